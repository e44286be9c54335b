//! How the agent behaves with many Instances, on libvirt's in-process test driver: against the bare API writes that
//! they need, and against a bare process with the same domains. Everything in one run, on a control plane of its own.
//!
//! `make scale` builds and runs it: `scale [INSTANCES] [DOMAINS]`, by default 1000 and 500. A promise that is not kept ends
//! the run with an error, after all has been measured.

use std::collections::HashMap;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use futures::{StreamExt, TryStreamExt, stream};
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Client, ResourceExt};
use serde_json::{Value, json};
use virt::connect::Connect;
use virt::domain::Domain;
use virtshell_crds::{FINALIZER_DOMAIN, HostSpec, Instance, condition, node_manager};
use virtshell_tests::identity::{SYSTEM, SimulatedNode};
use virtshell_tests::process::{cpu_seconds, resident_kib};
use virtshell_tests::program::Program;
use virtshell_tests::scale::{NAMESPACE, furnish, instance, operator};
use virtshell_tests::{ControlPlane, Controller, Limits, Requests, percentile as at, ports};

/// Requests in flight, of the one who creates and of the bare writes.
const IN_FLIGHT: usize = 16;
/// A definition as the agent makes it for the test driver, and what in it belongs to one domain.
const PATTERN: &str = include_str!("../../../operator/src/node/domain_xml/golden/test.xml");
const OWN_UUID: &str = "8f0c21d4-1111-2222-3333-444444444444";
const OWN_NAME: &str = "web-8f0c21d4";
/// Longer than anything here may take.
const PATIENCE: Duration = Duration::from_mins(10);
/// How long standing still is watched.
const STILL: Duration = Duration::from_mins(1);

/// Milliseconds from creation to Ready, one at a time.
const CREATE_P99_MS: f64 = 500.0;
/// MiB that the agent takes beside what libvirt takes for the domains in its process.
const MEMORY_MIB: f64 = 30.0;
/// Per cent of a core that the agent takes while nothing happens.
const IDLE_PERCENT: f64 = 1.0;
/// Of the time that the bare writes take.
const RATIO: f64 = 1.5;

#[tokio::main]
async fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let first = arguments.next();
    if first.as_deref() == Some("bare") {
        let count = arguments.next().context("bare COUNT")?.parse()?;
        return bare_process(count);
    }
    let number = |text: Option<String>, default: usize| text.map_or(Ok(default), |n| n.parse());
    let instances = number(first, 1000).context("usage: scale [INSTANCES] [DOMAINS]")?;
    let domains = number(arguments.next(), 500).context("usage: scale [INSTANCES] [DOMAINS]")?;
    let _ = rustls::crypto::ring::default_provider().install_default();
    let control_plane = ControlPlane::start()?;
    furnish(&control_plane)?;
    let mut limits = Limits::default();
    let (pattern, ours) = converge(&control_plane, instances, domains, &mut limits).await?;
    let bare = bare_writes(&control_plane, &pattern, instances).await?;
    let ratio = ours.as_secs_f64() / bare.as_secs_f64();
    println!("ratio                            {ratio:>8.2}");
    limits.at_most("the time against the bare writes'", ratio, RATIO);
    limits.verdict()
}

fn is_ready(instance: &Instance) -> bool {
    let status = instance.status.as_ref();
    status.is_some_and(|s| {
        s.observed_generation == instance.metadata.generation
            && condition::is_true(&s.conditions, condition::READY)
    })
}

// --- VirtShell --------------------------------------------------------------------------------------------------------

struct Running {
    agent: Program,
    _controller: Controller,
    _data: tempfile::TempDir,
}

async fn start(control_plane: &ControlPlane) -> Result<Running> {
    let controller = Controller::start(control_plane, &operator()?, "controller").await?;
    let spec = HostSpec {
        enabled: true,
        section: Some("default".to_owned()),
        memory_mib: 1 << 20,
        disk_mib: 1 << 20,
        ..HostSpec::default()
    };
    let node = SimulatedNode::join(control_plane, "scale", spec).await?;
    let data = tempfile::tempdir()?;
    let [agent_port, api_port] = ports::free()?;
    let mut command = Command::new(operator()?);
    command
        .arg("node")
        .arg("--kubeconfig")
        .arg(&node.account.kubeconfig);
    command.args([
        "--namespace",
        SYSTEM,
        "--host-name",
        "scale",
        "--driver",
        "kvm=test:///default",
    ]);
    command.args(["--listen", &format!("127.0.0.1:{agent_port}")]);
    command.args(["--listen-api", &format!("127.0.0.1:{api_port}")]);
    command.arg("--data-dir").arg(data.path());
    let mut agent = Program::start("agent", &mut command, control_plane.directory())?;
    let ready = format!("http://127.0.0.1:{agent_port}/readyz");
    agent.wait_until_ready(&ready, PATIENCE).await?;
    Ok(Running {
        agent,
        _controller: controller,
        _data: data,
    })
}

/// The agent's memory and idleness with `domains` Instances; then creates many, and waits for the last. Returns one of
/// them, and how long they took.
async fn converge(
    control_plane: &ControlPlane,
    instances: usize,
    domains: usize,
    limits: &mut Limits,
) -> Result<(Instance, Duration)> {
    let client = control_plane.admin().await?;
    let api: Api<Instance> = Api::namespaced(client.clone(), NAMESPACE);
    let running = start(control_plane).await?;

    // One at a time first: what a single creation takes when nothing else happens.
    let mut single = create_all(&api, "single", domains, 1).await?.1;
    single.sort();
    println!(
        "test driver, create to Ready     P50 {:>8.1?}  P99 {:>8.1?}  (n={domains}, one at a time)",
        at(&single, 50),
        at(&single, 99)
    );
    let p99 = at(&single, 99).as_secs_f64() * 1000.0;
    limits.at_most("create to Ready in ms, P99", p99, CREATE_P99_MS);
    let pid = running.agent.pid();
    let (rss, cpu) = (resident_kib(pid)?, still(pid).await?);
    let bare = bare_kib(domains)?;
    let (more, idle) = (mib(rss.saturating_sub(bare)), cpu * 100.0);
    println!(
        "agent with {domains} domains         RSS {:.1} MiB, bare process {:.1} MiB, difference {more:.1} MiB; idle CPU {idle:.2} % of a core",
        mib(rss),
        mib(bare),
    );
    limits.at_most("the agent's own memory in MiB", more, MEMORY_MIB);
    limits.at_most("the agent's idle CPU in per cent", idle, IDLE_PERCENT);
    delete_all(&api).await?;

    let before = Requests::so_far(control_plane)?;
    let (took, mut each) = create_all(&api, "many", instances, IN_FLIGHT).await?;
    println!(
        "requests of the API server       {}",
        Requests::so_far(control_plane)?.since(&before)
    );
    each.sort();
    println!(
        "VirtShell, {instances} Instances        {:>8.2} s until the last is Ready; each P50 {:.1?} P99 {:.1?}",
        took.as_secs_f64(),
        at(&each, 50),
        at(&each, 99)
    );
    let pattern = api.get("many-0").await?;
    ensure!(is_ready(&pattern));
    delete_all(&api).await?;
    Ok((pattern, took))
}

/// Creates `count` with so many requests in flight and waits until the last is Ready; with one in flight, each waits for
/// its own. Returns the time of all, and of each from its creation.
async fn create_all(
    api: &Api<Instance>,
    prefix: &str,
    count: usize,
    in_flight: usize,
) -> Result<(Duration, Vec<Duration>)> {
    let (told, mut heard) = tokio::sync::mpsc::unbounded_channel();
    let watched = api.clone();
    let watching = tokio::spawn(async move {
        let mut events = std::pin::pin!(
            watcher(watched, watcher::Config::default())
                .default_backoff()
                .applied_objects()
        );
        while let Some(event) = events.next().await {
            match event {
                Ok(instance) if is_ready(&instance) => {
                    if told.send((instance.name_any(), Instant::now())).is_err() {
                        return;
                    }
                }
                Ok(_) => {}
                Err(error) => eprintln!("the watch failed, and goes on: {error}"),
            }
        }
    });
    tokio::time::sleep(Duration::from_millis(500)).await;
    let began = Instant::now();
    let (mut created, mut ready) = (HashMap::new(), HashMap::new());
    let creations = stream::iter((0..count).map(|n| format!("{prefix}-{n}"))).map(|name| async move {
        let at = Instant::now();
        api.create(&PostParams::default(), &instance(&name)?).await?;
        Ok::<_, anyhow::Error>((name, at))
    });
    let mut creations = creations.buffer_unordered(in_flight);
    while ready.len() < count {
        tokio::select! {
            Some((name, at)) = heard.recv() => { ready.entry(name).or_insert(at); }
            Some(made) = creations.next(), if in_flight > 1 || ready.len() == created.len() => {
                let (name, at) = made?;
                created.insert(name, at);
            }
            () = tokio::time::sleep(PATIENCE) => anyhow::bail!("{} of {count} are Ready after {PATIENCE:?}", ready.len()),
        }
    }
    watching.abort();
    let took = began.elapsed();
    Ok((took, created.iter().map(|(name, at)| ready[name] - *at).collect()))
}

async fn delete_all(api: &Api<Instance>) -> Result<()> {
    api.delete_collection(&DeleteParams::default(), &ListParams::default())
        .await?;
    let began = Instant::now();
    while !api.list_metadata(&ListParams::default()).await?.items.is_empty() {
        ensure!(began.elapsed() < PATIENCE, "they are not gone");
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    Ok(())
}

// --- What it is compared with -----------------------------------------------------------------------------------------

/// The writes that an Instance needs until it is Ready, by those who make them, under as many watches: how long they take.
async fn bare_writes(control_plane: &ControlPlane, pattern: &Instance, count: usize) -> Result<Duration> {
    let user = control_plane.admin().await?;
    let controller = control_plane
        .account(SYSTEM, "virtshell-controller")
        .await?
        .client;
    let node = SimulatedNode::join(control_plane, "bare", HostSpec::default()).await?;
    let everything = watcher::Config::default();
    let ours = watcher::Config::default().fields("spec.host=bare");
    let watches = [
        (user.clone(), everything.clone()),
        (controller.clone(), everything),
        (node.account.client.clone(), ours),
    ];
    let idle: Vec<_> = watches
        .into_iter()
        .map(|(client, config)| {
            tokio::spawn(async move {
                let api: Api<Instance> = Api::namespaced(client, NAMESPACE);
                watcher(api, config).for_each(|_| async {}).await;
            })
        })
        .collect();
    tokio::time::sleep(Duration::from_millis(500)).await;
    let began = Instant::now();
    stream::iter(0..count)
        .map(|n| {
            write_one(
                &user,
                &controller,
                &node.account.client,
                pattern,
                format!("bare-{n}"),
            )
        })
        .buffer_unordered(IN_FLIGHT)
        .try_for_each(|()| async { Ok(()) })
        .await?;
    let took = began.elapsed();
    idle.iter().for_each(tokio::task::JoinHandle::abort);
    println!(
        "bare API writes, {count} times 4    {:>8.2} s",
        took.as_secs_f64()
    );
    Ok(took)
}

async fn write_one(
    user: &Client,
    controller: &Client,
    node: &Client,
    pattern: &Instance,
    name: String,
) -> Result<()> {
    let api = |client: &Client| -> Api<Instance> { Api::namespaced(client.clone(), NAMESPACE) };
    let made = api(user)
        .create(&PostParams::default(), &instance(&name)?)
        .await?;
    let binding = json!({"metadata": {"resourceVersion": made.resource_version(), "finalizers": [FINALIZER_DOMAIN]},
        "spec": {"host": "bare"}});
    api(controller)
        .patch(&name, &PatchParams::default(), &Patch::Merge(binding))
        .await?;
    let status = serde_json::to_value(pattern.status.as_ref())?;
    let (theirs, own) = (
        ["resolved", "conditions"],
        [
            "phase",
            "host",
            "powerState",
            "domain",
            "disks",
            "interfaces",
            "startedAt",
            "timings",
            "observedGeneration",
            "conditions",
        ],
    );
    let pick = |fields: &[&str], mine: &[&str]| -> Value {
        let mut picked: serde_json::Map<String, Value> = fields
            .iter()
            .filter_map(|f| Some(((*f).to_owned(), status.get(f)?.clone())))
            .collect();
        if let Some(Value::Array(conditions)) = picked.get_mut("conditions") {
            conditions.retain(|c| mine.contains(&c["type"].as_str().unwrap_or_default()));
        }
        json!({"apiVersion": virtshell_crds::API_VERSION, "kind": "Instance", "status": picked})
    };
    let apply = |manager: &str| PatchParams::apply(manager).force();
    let first = pick(&theirs, &[condition::ACCEPTED, condition::SCHEDULED]);
    api(controller)
        .patch_status(&name, &apply("virtshell-controller"), &Patch::Apply(first))
        .await?;
    let rest = [
        condition::IMAGE_READY,
        condition::READY,
        condition::CONVERGED,
        condition::AGENT_CONNECTED,
    ];
    api(node)
        .patch_status(
            &name,
            &apply(&node_manager("bare")),
            &Patch::Apply(pick(&own, &rest)),
        )
        .await?;
    Ok(())
}

/// Resident memory of a process that holds the same domains and does nothing else.
fn bare_kib(domains: usize) -> Result<u64> {
    let mut child = Command::new(std::env::current_exe()?)
        .args(["bare", &domains.to_string()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut said = String::new();
    std::io::BufRead::read_line(
        &mut std::io::BufReader::new(child.stdout.take().context("its output")?),
        &mut said,
    )?;
    ensure!(said == "ready\n", "the bare process said {said:?}");
    let kib = resident_kib(child.id());
    drop(child.stdin.take());
    child.wait()?;
    kib
}

/// Defines and starts so many domains as an agent would, says so, and stays until its input ends.
fn bare_process(count: usize) -> Result<()> {
    let libvirt = Connect::open(Some("test:///default"))?;
    let mut domains: Vec<Domain> = Vec::new();
    for n in 0..count {
        let uuid = format!("00000000-0000-4000-8000-{n:012x}");
        let xml = PATTERN
            .replace(OWN_UUID, &uuid)
            .replace(OWN_NAME, &format!("bare-{n}"));
        let domain = libvirt.define_domain_xml(&xml)?;
        domain.create()?;
        domains.push(domain);
    }
    println!("ready");
    std::io::stdin().read_line(&mut String::new())?;
    Ok(())
}

// --- Numbers ----------------------------------------------------------------------------------------------------------

fn mib(kib: u64) -> f64 {
    kib as f64 / 1024.0
}

/// Share of a core that a process uses while nothing is asked of it.
async fn still(pid: u32) -> Result<f64> {
    tokio::time::sleep(Duration::from_secs(10)).await;
    let (before, began) = (cpu_seconds(pid)?, Instant::now());
    tokio::time::sleep(STILL).await;
    Ok((cpu_seconds(pid)? - before) / began.elapsed().as_secs_f64())
}
