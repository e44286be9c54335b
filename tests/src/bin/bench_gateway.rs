//! How fast the gateway is beside the API server that it stands on, and what it takes: reads, writes and memory, in one
//! run on one machine, with the same Instances, on a control plane of its own. Both are asked with as many connections
//! by the same program (`wrk`): the gateway over plain HTTP with signed requests of a user whose permissions are checked
//! (signed once: the signature is good for 15 minutes, and checked every time), the API server over TLS with the token of
//! the gateway's own account.
//!
//! `make bench-gateway` builds and runs it: `bench_gateway [INSTANCES] [CACHED]`, by default 1000 and 10000.

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use futures::{StreamExt, TryStreamExt, stream};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Client, ResourceExt};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use virtshell_crds::{API_VERSION, HostSpec, Image, Instance, LABEL_CREDENTIALS, Task};
use virtshell_tests::identity::{Account, SYSTEM};
use virtshell_tests::process::{peak_kib, resident_kib};
use virtshell_tests::program::Program;
use virtshell_tests::scale::{NAMESPACE, furnish};
use virtshell_tests::wrk::Load;
use virtshell_tests::{ControlPlane, Fleet, percentile as at, ports, repository, wait_for};

/// Connections of the load, and requests in flight where something is made.
const CONNECTIONS: usize = 16;
/// How long one load lasts; each is made twice, the two sides in turns.
const LOAD: Duration = Duration::from_secs(8);
const ROUNDS: usize = 2;
/// Things of one kind that are made on each side, one at a time and then many at a time.
const MADE: usize = 320;
/// Longer than anything here may take.
const PATIENCE: Duration = Duration::from_mins(5);
/// How long the memory is watched under load.
const ENDURANCE: Duration = Duration::from_mins(1);
/// Where the Instances live.
const BASE: &str = "/virtshell/api/v1";
/// Keys of the user who asks.
const KEYS: [&str; 2] = ["BENCHKEY", "bench-secret-0123456789"];

#[tokio::main]
async fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let mut number = |default: usize| arguments.next().map_or(Ok(default), |n| n.parse());
    let usage = "usage: bench_gateway [INSTANCES] [CACHED]";
    let instances = number(1000).context(usage)?;
    let cached = number(10_000).context(usage)?;
    let control_plane = ControlPlane::start()?;
    furnish(&control_plane)?;
    user(&control_plane)?;
    let spec = HostSpec {
        enabled: true,
        section: Some("default".to_owned()),
        ..HostSpec::default()
    };
    let _fleet = Fleet::join(&control_plane, "bench", 1, &spec, 65_536).await?;
    let account = control_plane.account(SYSTEM, "virtshell-gateway").await?;
    let client = control_plane.admin().await?;
    {
        let gateway = Gateway::start(&control_plane, &account, "gateway-empty").await?;
        gateway.memory("memory, no Instances")?;
    }
    fill(&client, 0..instances).await?;
    {
        let gateway = Gateway::start(&control_plane, &account, "gateway").await?;
        reads(&gateway, &ApiServer::of(&account)?, instances).await?;
        writes(&gateway, &account.client).await?;
    }
    clear(&client).await?;
    fill(&client, 0..cached).await?;
    memory(&control_plane, &account, cached).await
}

// --- Reads ------------------------------------------------------------------------------------------------------------

async fn reads(gateway: &Gateway, api_server: &ApiServer, instances: usize) -> Result<()> {
    let middle = object_name(instances / 2);
    for (what, ours, theirs) in [
        (
            "GET one",
            format!("/instances/{}", wire_name(instances / 2)),
            format!("/{middle}"),
        ),
        ("list", "/instances".to_owned(), String::new()),
    ] {
        let (mut our_loads, mut their_loads) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            their_loads.push(api_server.load(&theirs).await?);
            our_loads.push(gateway.load(&ours, LOAD).await?);
        }
        let (ours, theirs) = (best(&our_loads), best(&their_loads));
        for (who, load) in [("gateway", ours), ("API server", theirs)] {
            println!(
                "{:<33}{:>9.0} requests/s   P50 {:>8.1?}  P99 {:>8.1?}",
                format!("{what}, {who}"),
                load.per_second,
                load.p50,
                load.p99
            );
        }
        println!("{what}, ratio{:>34.1}", ours.per_second / theirs.per_second);
    }
    Ok(())
}

/// The round in which more was answered: what others do on the machine meets the other one.
fn best(loads: &[Load]) -> Load {
    let mut loads = loads.to_vec();
    loads.sort_by(|a, b| b.per_second.total_cmp(&a.per_second));
    loads[0]
}

// --- Writes -----------------------------------------------------------------------------------------------------------

/// Makes things through the gateway, and the same things with the calls that it makes for them, in turns.
async fn writes(gateway: &Gateway, client: &Client) -> Result<()> {
    let image =
        |name: &str| json!({"name": name, "type": "disk", "download_url": "https://example.org/disk.qcow2"});
    let instance =
        |name: &str| json!({"name": name, "image": "bench", "memory": "512MB", "cpus": 1, "hdsize": "10GB"});
    let (for_images, for_instances) = (
        &gateway.signed("POST", "/images")?,
        &gateway.signed("POST", "/instances")?,
    );
    gateway.post("/images", for_images, image("bench")).await?;
    gateway
        .post("/instances", for_instances, instance("bench-pattern"))
        .await?;
    let images: Api<Image> = Api::namespaced(client.clone(), NAMESPACE);
    let instances: Api<Instance> = Api::namespaced(client.clone(), NAMESPACE);
    let tasks: Api<Task> = Api::namespaced(client.clone(), NAMESPACE);
    // What the gateway wrote is what is written raw, but for the name: namesakes, which only kubectl can make, would have
    // to be told apart.
    let one_image = images.get("bench").await?;
    let one_instance = instances.get("bench-pattern").await?;
    let all = tasks.list(&ListParams::default()).await?;
    let one_task = all.items.into_iter().next().context("a creation has its task")?;

    for in_flight in [1, CONNECTIONS] {
        let ours = |name: String| gateway.post("/images", for_images, image(&name));
        let raw = |name: String| {
            let mut image = one_image.clone();
            image.spec.display_name = Some(name.clone());
            create(images.clone(), image, name)
        };
        compare("POST of an image", in_flight, ours, raw).await?;

        let ours = |name: String| gateway.post("/instances", for_instances, instance(&name));
        let raw = |name: String| {
            let mut instance = one_instance.clone();
            instance.spec.display_name = Some(name.clone());
            let instance = create(instances.clone(), instance, name.clone());
            let task = create(tasks.clone(), one_task.clone(), name);
            async move {
                instance.await?;
                task.await
            }
        };
        compare("POST of an Instance", in_flight, ours, raw).await?;
    }
    Ok(())
}

async fn compare<A, B>(
    what: &str,
    in_flight: usize,
    ours: impl Fn(String) -> A,
    raw: impl Fn(String) -> B,
) -> Result<()>
where
    A: Future<Output = Result<()>>,
    B: Future<Output = Result<()>>,
{
    let stem = format!(
        "{}-{in_flight}",
        what.rsplit(' ').next().unwrap_or_default().to_lowercase()
    );
    let (mut our_times, mut raw_times) = (Vec::new(), Vec::new());
    let batch = in_flight * 5;
    for first in (0..MADE).step_by(batch) {
        let names = |side: &str| {
            (first..first + batch)
                .map(|n| format!("{side}-{stem}-{n}"))
                .collect::<Vec<_>>()
        };
        // In turns, and who begins changes too.
        if (first / batch).is_multiple_of(2) {
            raw_times.extend(timed(names("raw"), in_flight, &raw).await?);
            our_times.extend(timed(names("ours"), in_flight, &ours).await?);
        } else {
            our_times.extend(timed(names("ours"), in_flight, &ours).await?);
            raw_times.extend(timed(names("raw"), in_flight, &raw).await?);
        }
    }
    for times in [&mut our_times, &mut raw_times] {
        times.sort();
    }
    println!(
        "{:<34}P50 {:>8.2?} P99 {:>8.2?}, raw P50 {:>8.2?} P99 {:>8.2?}, ratio {:.2}",
        format!("{what}, {in_flight} at a time"),
        at(&our_times, 50),
        at(&our_times, 99),
        at(&raw_times, 50),
        at(&raw_times, 99),
        at(&our_times, 50).as_secs_f64() / at(&raw_times, 50).as_secs_f64()
    );
    Ok(())
}

async fn timed<F: Future<Output = Result<()>>>(
    names: Vec<String>,
    in_flight: usize,
    make: impl Fn(String) -> F,
) -> Result<Vec<Duration>> {
    stream::iter(names)
        .map(|name| {
            let making = make(name);
            async move {
                let began = Instant::now();
                making.await.map(|()| began.elapsed())
            }
        })
        .buffer_unordered(in_flight)
        .try_collect()
        .await
}

/// Makes an object like `pattern` under another name.
async fn create<K>(api: Api<K>, mut pattern: K, name: String) -> Result<()>
where
    K: kube::Resource + Clone + std::fmt::Debug + DeserializeOwned + Serialize,
{
    let meta = std::mem::take(pattern.meta_mut());
    *pattern.meta_mut() = ObjectMeta {
        name: Some(name),
        labels: meta.labels,
        annotations: meta.annotations,
        ..ObjectMeta::default()
    };
    api.create(&PostParams::default(), &pattern).await?;
    Ok(())
}

// --- Memory -----------------------------------------------------------------------------------------------------------

/// Memory of a gateway that begins with so many Instances, when it has read them, read them anew, and under load.
async fn memory(control_plane: &ControlPlane, account: &Account, cached: usize) -> Result<()> {
    let gateway = Gateway::start(control_plane, account, "gateway-memory").await?;
    gateway.memory(&format!("memory, {cached} Instances"))?;
    let before = gateway.lists()?;
    control_plane.stop_api_server()?;
    control_plane.start_api_server()?;
    let began = Instant::now();
    while gateway.lists()? == before {
        ensure!(began.elapsed() < PATIENCE, "the gateway does not list anew");
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    tokio::time::sleep(Duration::from_secs(5)).await;
    gateway.memory("memory, after all was listed anew")?;
    let one = format!("/instances/{}", wire_name(cached / 2));
    gateway.load(&one, LOAD).await?;
    let warm = gateway.memory("memory, after a short load of GET one")?;
    let load = gateway.load(&one, ENDURANCE).await?;
    let worn = gateway.memory(&format!("memory, after {ENDURANCE:?} of it"))?;
    println!(
        "grown under {:.1} million requests{:>18.1} MiB",
        load.per_second * ENDURANCE.as_secs_f64() / 1e6,
        worn - warm
    );
    Ok(())
}

fn mib(kib: u64) -> f64 {
    kib as f64 / 1024.0
}

// --- The two sides ----------------------------------------------------------------------------------------------------

/// Headers that prove who asks.
type Signed = Vec<(&'static str, String)>;

/// The gateway that was built with this program.
struct Gateway {
    program: Program,
    address: String,
    http: reqwest::Client,
}

impl Gateway {
    /// Starts it as it is installed, with its own account, and waits until its caches are filled.
    async fn start(control_plane: &ControlPlane, account: &Account, name: &str) -> Result<Self> {
        let path = std::env::current_exe()?.with_file_name("virtshell-gateway");
        ensure!(path.exists(), "{} has not been built: make build", path.display());
        let [port] = ports::free()?;
        let address = format!("127.0.0.1:{port}");
        let mut command = Command::new(path);
        command.arg("--kubeconfig").arg(&account.kubeconfig);
        command.args(["--namespace", NAMESPACE, "--listen", &address]);
        command
            .arg("--file-store")
            .arg(control_plane.directory().join("files"));
        // As it is installed, and lists are told.
        command.env("RUST_LOG", "info,virtshell_gateway::store=debug");
        let mut program = Program::start(name, &mut command, control_plane.directory())?;
        program
            .wait_until_ready(&format!("http://{address}/readyz"), PATIENCE)
            .await?;
        Ok(Self {
            program,
            address,
            http: reqwest::Client::new(),
        })
    }

    /// How often it has listed the Instances.
    fn lists(&self) -> Result<usize> {
        let log = self.program.log()?;
        Ok(log
            .lines()
            .filter(|line| line.contains("listed") && line.contains("Instance"))
            .count())
    }

    /// Prints what it takes, and returns it in MiB.
    fn memory(&self, when: &str) -> Result<f64> {
        let pid = self.program.pid();
        let now = mib(resident_kib(pid)?);
        let most = mib(peak_kib(pid)?);
        println!("{when:<42}{now:>8.1} MiB now, {most:.1} MiB at most so far");
        Ok(now)
    }

    /// What proves who asks, for a path below the base.
    fn signed(&self, method: &str, path: &str) -> Result<Signed> {
        let date = k8s_openapi::jiff::Timestamp::now()
            .strftime("%a, %d %b %Y %H:%M:%S GMT")
            .to_string();
        let output = Command::new(repository().join("hack/vscurl"))
            .args([
                "--sign",
                method,
                &self.address,
                "",
                "",
                &date,
                &format!("{BASE}{path}"),
            ])
            .env("VIRTSHELL_SECRET_ACCESS_KEY", KEYS[1])
            .output()?;
        ensure!(
            output.status.success(),
            "hack/vscurl: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        let signature = String::from_utf8(output.stdout)?;
        Ok(vec![
            ("Date", date),
            (
                "X-VirtShell-Authorization",
                format!("{}:{}", KEYS[0], signature.trim()),
            ),
        ])
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{BASE}{path}", self.address)
    }

    async fn load(&self, path: &str, time: Duration) -> Result<Load> {
        Load::on(&self.url(path), &self.signed("GET", path)?, CONNECTIONS, time).await
    }

    /// Makes something; `signed` is what [`Self::signed`] says for the path.
    async fn post(&self, path: &str, signed: &Signed, body: Value) -> Result<()> {
        let mut request = self.http.post(self.url(path)).body(body.to_string());
        for (name, value) in signed {
            request = request.header(*name, value);
        }
        let answer = request.send().await?;
        let status = answer.status();
        ensure!(status.is_success(), "{path}: {status} {}", answer.text().await?);
        Ok(())
    }
}

/// The API server's own collection of Instances.
struct ApiServer {
    url: String,
    token: String,
}

impl ApiServer {
    fn of(account: &Account) -> Result<Self> {
        let kubeconfig: serde_yaml::Value =
            serde_yaml::from_str(&std::fs::read_to_string(&account.kubeconfig)?)?;
        let text = |list: &str, entry: &str, field: &str| {
            let text = kubeconfig[list][0][entry][field].as_str().map(str::to_owned);
            text.with_context(|| format!("the kubeconfig has a {field}"))
        };
        let server = text("clusters", "cluster", "server")?;
        Ok(Self {
            url: format!("{server}/apis/{API_VERSION}/namespaces/{NAMESPACE}/instances"),
            token: text("users", "user", "token")?,
        })
    }

    async fn load(&self, path: &str) -> Result<Load> {
        let headers = [("Authorization", format!("Bearer {}", self.token))];
        Load::on(&format!("{}{path}", self.url), &headers, CONNECTIONS, LOAD).await
    }
}

// --- What is asked for ------------------------------------------------------------------------------------------------

/// A user like any other: permissions are checked.
fn user(control_plane: &ControlPlane) -> Result<()> {
    let [id, secret] = KEYS;
    for object in [
        json!({"apiVersion": API_VERSION, "kind": "User", "metadata": {"name": "bench", "namespace": NAMESPACE},
            "spec": {"login": "bench", "credentialsSecret": "user-bench"}}),
        json!({"apiVersion": "v1", "kind": "Secret",
            "metadata": {"name": "user-bench", "namespace": NAMESPACE, "labels": {LABEL_CREDENTIALS: "true"}},
            "stringData": {"accessKeyId": id, "secretAccessKey": secret}}),
    ] {
        control_plane
            .kubectl()
            .ok_with(["apply", "-f", "-"], &object.to_string())?;
    }
    Ok(())
}

fn wire_name(n: usize) -> String {
    format!("web_server_{n:05}")
}

fn object_name(n: usize) -> String {
    virtshell_crds::names::object_name(&wire_name(n))
}

/// Makes Instances as they are when they run: everything a user may have said, and all that VirtShell says of them.
async fn fill(client: &Client, which: std::ops::Range<usize>) -> Result<()> {
    let api: Api<Instance> = Api::namespaced(client.clone(), NAMESPACE);
    stream::iter(which)
        .map(|n| {
            let api = api.clone();
            async move {
                let instance: Instance = serde_json::from_value(wanted(n))?;
                let made = api.create(&PostParams::default(), &instance).await?;
                let patch = Patch::Merge(json!({"status": running(&made)}));
                api.patch_status(&made.name_any(), &PatchParams::default(), &patch)
                    .await?;
                anyhow::Ok(())
            }
        })
        .buffer_unordered(CONNECTIONS)
        .try_for_each(|()| async { Ok(()) })
        .await
}

/// Removes what was made so far.
async fn clear(client: &Client) -> Result<()> {
    let instances = Api::<Instance>::namespaced(client.clone(), NAMESPACE);
    let (delete, all) = (DeleteParams::default(), ListParams::default());
    instances.delete_collection(&delete, &all).await?;
    Api::<Task>::namespaced(client.clone(), NAMESPACE)
        .delete_collection(&delete, &all)
        .await?;
    Api::<Image>::namespaced(client.clone(), NAMESPACE)
        .delete_collection(&delete, &all)
        .await?;
    let left = async || instances.list_metadata(&all).await.map(|list| list.items.len());
    wait_for("the Instances to be gone", PATIENCE, left, |left| *left == 0)
        .await
        .map(drop)
}

fn wanted(n: usize) -> Value {
    let packages = "  - a-package-of-this-guest\n".repeat(40);
    json!({
        "apiVersion": API_VERSION, "kind": "Instance",
        "metadata": {
            "name": object_name(n), "namespace": NAMESPACE,
            "labels": {"virtshell.io/name": wire_name(n)},
            "annotations": {
                "virtshell.io/created-by": "8f0c21d4-1111-2222-3333-444444444444",
                "virtshell.io/created-at": "1795000000000000",
            },
        },
        "spec": {
            "displayName": wire_name(n), "description": format!("Web server number {n} of the shop"),
            "environment": "default", "image": "debian-12", "driver": "kvm", "cpus": 2, "memoryMiB": 1024, "diskMiB": 10240,
            "cloudInit": {"userData": format!("#cloud-config\npackages:\n{packages}")},
            "tags": ["web", "shop"], "owner": "bench", "permissions": "xwrxwr--r",
        },
    })
}

fn running(instance: &Instance) -> Value {
    let (name, uid) = (instance.name_any(), instance.uid().unwrap_or_default());
    let generation = instance.metadata.generation.unwrap_or_default();
    let is_true = |type_: &str| {
        json!({"type": type_, "status": "True", "reason": "AsAsked", "message": "", "observedGeneration": generation,
            "lastTransitionTime": "2026-01-01T00:00:00Z"})
    };
    let types = [
        "Accepted",
        "Scheduled",
        "ImageReady",
        "Ready",
        "Converged",
        "AgentConnected",
    ];
    json!({
        "observedGeneration": generation, "phase": "Running", "host": "bench-000", "powerState": "Running", "provisioned": true,
        "resolved": {"environment": "default", "driver": "kvm", "hostType": "GeneralPurpose", "cpus": 2, "memoryMiB": 1024,
            "diskMiB": 10240, "launch": {"min": 1, "max": 1},
            "image": {"name": "debian-12", "type": "disk", "url": "https://cloud.debian.org/images/debian-12.qcow2",
                "sha256": "0".repeat(64), "timezone": "UTC"}},
        "domain": {"name": format!("{name}-{}", uid.get(..8).unwrap_or_default()), "uuid": uid, "type": "qemu"},
        "addresses": {"ipv4": ["192.168.122.50"], "ipv6": ["fe80::5054:ff:feaa:bb01"]},
        "interfaces": [{"name": "eth0", "mac": "52:54:00:aa:bb:01", "ipv4": ["192.168.122.50"], "ipv6": ["fe80::5054:ff:feaa:bb01"]}],
        "disks": [{"name": "root", "path": format!("/var/lib/virtshell/instances/{uid}/root.qcow2"), "sizeMiB": 10240, "detached": false}],
        "startedAt": "2026-01-01T00:00:00Z",
        "timings": {"imageMs": 0, "defineMs": 8, "startMs": 340, "agentMs": 2900},
        "tags": ["web", "shop"],
        "conditions": types.map(is_true),
    })
}
