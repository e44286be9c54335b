//! What VirtShell takes for one guest, measured against raw libvirt and the API server's own counters inside one run.
//!
//! Needs a running system (`make up`) and its environment (`.virtshell/env`); `make bench` does both. Every sample of
//! VirtShell stands beside a raw sample taken right after it: the same overlay, seed and domain XML, made with
//! `qemu-img`, `genisoimage` and two libvirt calls. So noise of the machine meets both. A promise that is not kept ends the
//! run with an error, after all has been measured.

mod raw;

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use futures::{StreamExt, TryStreamExt};
use kube::api::{Api, DeleteParams, PostParams, WatchParams};
use kube::core::WatchEvent;
use kube::{Client, ResourceExt};
use virt::connect::Connect;
use virt::domain::{Domain, DomainState};
use virt::enumutil::Enum;
use virtshell_crds::{Instance, InstanceSpec, PowerState, condition};
use virtshell_tests::{Limits, Requests, percentile as at};

use raw::Model;

const NAMESPACE: &str = "virtshell";
const IMAGE: &str = "debian-guest";
/// Longest wait for one step; a sample that takes longer is a failure, not a number.
const PATIENCE: Duration = Duration::from_mins(1);
/// How long a guest must have run so that its end is no part of a crash loop.
const STABLE: Duration = Duration::from_secs(65);
/// How long standing still is watched.
const STILL: Duration = Duration::from_mins(1);
/// Guests that are asked for together, to see how many start per second.
const TOGETHER: usize = 12;
/// Calls that the node agent has in flight with a libvirtd: as many threads make the raw domains.
const PARALLEL: usize = 4;

/// Milliseconds that a guest may take longer to run than by hand, in the middle.
const CREATE_P50_MS: f64 = 100.0;
/// Milliseconds that the guest agent's first answer may come later than by hand.
const ANSWER_P50_MS: f64 = 300.0;
/// Milliseconds from a guest's end to the start of its repair.
const DETECTION_P50_MS: f64 = 1000.0;
/// Milliseconds from a change of a guest until the status says so.
const VISIBLE_P99_MS: f64 = 100.0;
/// Of the guests that start per second by hand.
const START_RATE: f64 = 0.9;
/// Writes to an Instance from its creation to Ready: its binding, and two by the agent.
const WRITES: u64 = 3;

#[tokio::main]
async fn main() -> Result<()> {
    let samples: usize = std::env::args()
        .nth(1)
        .map_or(Ok(50), |n| n.parse())
        .context("usage: bench [SAMPLES]")?;
    let _ = rustls::crypto::ring::default_provider().install_default();
    virt::error::clear_error_callback();
    let client = Client::try_default()
        .await
        .context("no cluster: run `make up` and `. .virtshell/env` first")?;
    let libvirt = Connect::open(Some(raw::URI)).context("qemu:///system does not answer")?;
    let mut limits = Limits::default();
    latency(&client, &libvirt, samples, &mut limits).await?;
    together(&client, &libvirt, samples.div_ceil(10), &mut limits).await?;
    answers(&client, &libvirt, samples.div_ceil(10), &mut limits).await?;
    drift(&client, &libvirt, samples.div_ceil(2), &mut limits).await?;
    writes(&client, &mut limits).await?;
    limits.verdict()
}

fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}

/// Create to running, ours minus raw, one at a time.
async fn latency(client: &Client, libvirt: &Connect, samples: usize, limits: &mut Limits) -> Result<()> {
    let (mut ours, mut raw, mut overhead) = (Vec::new(), Vec::new(), Vec::new());
    for n in 0..=samples {
        let (took, instance) = create_to_running(client, &format!("bench-{n}")).await?;
        let model = Model::of(&domain_of(libvirt, &instance)?)?;
        delete(client, &instance).await?;
        let same = raw::create(libvirt, n, &model)?.all;
        // The first pair fills caches (QEMU's capabilities, the image in the page cache) on both sides.
        if n > 0 {
            ours.push(took);
            raw.push(same);
            overhead.push(took.saturating_sub(same));
        }
    }
    print("create to running, VirtShell", &mut ours);
    print("create to running, raw libvirt", &mut raw);
    print("create to running, difference", &mut overhead);
    println!(
        "create to running, ratio           P50 {:>8.2}",
        at(&ours, 50).as_secs_f64() / at(&raw, 50).as_secs_f64()
    );
    limits.at_most(
        "create to running, difference in ms",
        ms(at(&overhead, 50)),
        CREATE_P50_MS,
    );
    Ok(())
}

/// How many guests start per second when many are asked for at once, and how many do by hand.
async fn together(client: &Client, libvirt: &Connect, samples: usize, limits: &mut Limits) -> Result<()> {
    let (mut ours, mut raw, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..samples {
        let names: Vec<String> = (0..TOGETHER)
            .map(|n| format!("bench-together-{round}-{n}"))
            .collect();
        let began = Instant::now();
        let made = futures::future::try_join_all(names.iter().map(|name| create_to_running(client, name)));
        let made: Vec<Instance> = made.await?.into_iter().map(|(_, instance)| instance).collect();
        let took = began.elapsed();
        let models = made
            .iter()
            .map(|instance| Model::of(&domain_of(libvirt, instance)?))
            .collect::<Result<Vec<_>>>()?;
        futures::future::try_join_all(made.iter().map(|instance| delete(client, instance))).await?;
        let same = raw::create_all(&models, PARALLEL)?;
        let rate = |took: Duration| TOGETHER as f64 / took.as_secs_f64();
        ours.push(rate(took));
        raw.push(rate(same));
        ratios.push(rate(took) / rate(same));
    }
    let middle = |rates: &mut Vec<f64>| {
        rates.sort_by(f64::total_cmp);
        rates[rates.len() / 2]
    };
    let ratio = middle(&mut ratios);
    println!(
        "{TOGETHER} guests at once, started        {:.2}/s by VirtShell, {:.2}/s by {PARALLEL} threads by hand, ratio {ratio:.2} (n={samples})",
        middle(&mut ours),
        middle(&mut raw)
    );
    limits.at_least("the rate of starts against raw libvirt", ratio, START_RATE);
    Ok(())
}

fn print(what: &str, samples: &mut [Duration]) {
    samples.sort();
    println!(
        "{what:<34} P50 {:>8.1?}  P99 {:>8.1?}  (n={})",
        at(samples, 50),
        at(samples, 99),
        samples.len()
    );
}

/// Create to the guest agent's first answer, ours minus raw.
async fn answers(client: &Client, libvirt: &Connect, samples: usize, limits: &mut Limits) -> Result<()> {
    let api: Api<Instance> = Api::namespaced(client.clone(), NAMESPACE);
    let answers = |i: &Instance| {
        let status = i.status.as_ref();
        status.is_some_and(|s| condition::is_true(&s.conditions, condition::AGENT_CONNECTED))
    };
    let mut overhead = Vec::new();
    for n in 0..samples {
        let started = Instant::now();
        let created = api
            .create(&PostParams::default(), &instance(&format!("bench-agent-{n}")))
            .await?;
        let seen = watch_until(&api, &created, answers).await?;
        let took = started.elapsed();
        let model = Model::of(&domain_of(libvirt, &seen)?)?;
        delete(client, &seen).await?;
        let raw = raw::create(libvirt, n, &model)?;
        until_it_answers(&raw.domain)?;
        overhead.push(took.saturating_sub(raw.began.elapsed()));
    }
    print("create to agent, difference", &mut overhead);
    limits.at_most(
        "create to agent, difference in ms",
        ms(at(&overhead, 50)),
        ANSWER_P50_MS,
    );
    Ok(())
}

fn until_it_answers(domain: &Domain) -> Result<()> {
    let started = Instant::now();
    while domain
        .qemu_agent_command(r#"{"execute":"guest-ping"}"#, 1, 0)
        .is_err()
    {
        ensure!(
            started.elapsed() < PATIENCE,
            "the raw guest's agent does not answer"
        );
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// Guests powered off behind VirtShell's back, one after the other: until each runs again, less what libvirt takes for a
/// start, and from then until the status says so.
async fn drift(client: &Client, libvirt: &Connect, samples: usize, limits: &mut Limits) -> Result<()> {
    let api: Api<Instance> = Api::namespaced(client.clone(), NAMESPACE);
    let mut guests = Vec::new();
    for n in 0..samples {
        guests.push(create_to_running(client, &format!("bench-drift-{n}")).await?.1);
    }
    // One that ends soon after its start is started again after a pause.
    tokio::time::sleep(STABLE).await;
    let (mut detected, mut told) = (Vec::new(), Vec::new());
    for guest in guests {
        let domain = domain_of(libvirt, &guest)?;
        let model = Model::of(&domain)?;
        let first = guest.status.as_ref().and_then(|s| s.started_at.clone());
        let guest = api.get(&guest.name_any()).await?;
        let started_again = |i: &Instance| i.status.as_ref().is_some_and(|s| s.started_at != first);
        let watching = async {
            let seen = watch_until(&api, &guest, started_again).await?;
            Ok::<_, anyhow::Error>((seen, Instant::now()))
        };
        // libvirt waits for QEMU to end, which is no part of what is measured.
        domain.destroy()?;
        let destroyed = Instant::now();
        let (running, (seen, visible)) = tokio::try_join!(until_running(libvirt, &domain), watching)?;
        delete(client, &seen).await?;
        let raw = raw::create(libvirt, detected.len(), &model)?;
        detected.push((running - destroyed).saturating_sub(raw.start));
        told.push(visible.saturating_duration_since(running));
    }
    print("powered off to running, difference", &mut detected);
    print("running to seen in the status", &mut told);
    limits.at_most(
        "powered off to running, difference in ms",
        ms(at(&detected, 50)),
        DETECTION_P50_MS,
    );
    limits.at_most("running to seen in ms, P99", ms(at(&told, 99)), VISIBLE_P99_MS);
    Ok(())
}

/// When the domain runs again.
async fn until_running(libvirt: &Connect, domain: &Domain) -> Result<Instant> {
    let uuid = domain.uuid_string()?;
    let libvirt = libvirt.clone();
    let wait = move || {
        let started = Instant::now();
        let domain = libvirt.lookup_domain_by_uuid_string(&uuid)?;
        while domain.state()?.0 != Enum::Known(DomainState::Running) {
            ensure!(started.elapsed() < PATIENCE, "it was not started again");
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok(Instant::now())
    };
    tokio::task::spawn_blocking(wait).await?
}

/// From the create call to the watch event that shows the domain running.
async fn create_to_running(client: &Client, name: &str) -> Result<(Duration, Instance)> {
    let api: Api<Instance> = Api::namespaced(client.clone(), NAMESPACE);
    let running = |i: &Instance| {
        i.status
            .as_ref()
            .is_some_and(|s| s.power_state == Some(PowerState::Running))
    };
    let started = Instant::now();
    let created = api.create(&PostParams::default(), &instance(name)).await?;
    let seen = watch_until(&api, &created, running).await?;
    Ok((started.elapsed(), seen))
}

fn instance(name: &str) -> Instance {
    let spec = InstanceSpec {
        image: Some(IMAGE.to_owned()),
        cpus: Some(1),
        memory_mib: Some(192),
        disk_mib: Some(1024),
        shutdown_grace_seconds: 0,
        ..InstanceSpec::default()
    };
    Instance::new(name, spec)
}

async fn watch_until(
    api: &Api<Instance>,
    from: &Instance,
    met: impl Fn(&Instance) -> bool,
) -> Result<Instance> {
    let version = from
        .resource_version()
        .context("the API server returned no resourceVersion")?;
    let params = WatchParams::default().fields(&format!("metadata.name={}", from.name_any()));
    let wait = async {
        let mut events = api.watch(&params, &version).await?.boxed();
        while let Some(event) = events.try_next().await? {
            if let WatchEvent::Modified(instance) = event
                && met(&instance)
            {
                return Ok(instance);
            }
        }
        bail!("the watch of {} ended", from.name_any())
    };
    match tokio::time::timeout(PATIENCE, wait).await {
        Ok(result) => result,
        Err(_) => bail!(
            "{} did not get there in {PATIENCE:?}: kubectl describe vsi {0}",
            from.name_any()
        ),
    }
}

async fn delete(client: &Client, instance: &Instance) -> Result<()> {
    let api: Api<Instance> = Api::namespaced(client.clone(), NAMESPACE);
    api.delete(&instance.name_any(), &DeleteParams::default()).await?;
    let started = Instant::now();
    while api.get_opt(&instance.name_any()).await?.is_some() {
        ensure!(
            started.elapsed() < PATIENCE,
            "{} was not removed in {PATIENCE:?}",
            instance.name_any()
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

fn domain_of(libvirt: &Connect, instance: &Instance) -> Result<Domain> {
    let domain = instance
        .status
        .as_ref()
        .and_then(|s| s.domain.as_ref())
        .context("the status names no domain")?;
    Ok(libvirt.lookup_domain_by_uuid_string(&domain.uuid)?)
}

/// Writes to an Instance from create to Ready, and while nothing happens, by the API server's own counter.
async fn writes(client: &Client, limits: &mut Limits) -> Result<()> {
    let api: Api<Instance> = Api::namespaced(client.clone(), NAMESPACE);
    let ready = |i: &Instance| {
        i.status
            .as_ref()
            .is_some_and(|s| condition::is_true(&s.conditions, condition::READY))
    };
    let before = instance_writes(client).await?;
    let created = api
        .create(&PostParams::default(), &instance("bench-writes"))
        .await?;
    let seen = watch_until(&api, &created, ready).await?;
    let after = instance_writes(client).await?;
    let written = after - before - 1;
    println!("writes from create to Ready, the create left out: {written}");
    limits.at_most("writes from create to Ready", written, WRITES);

    // The agent's answer and the address may be one write or two; after them nothing changes any more.
    let settled = |i: &Instance| {
        i.status.as_ref().is_some_and(|s| {
            condition::is_true(&s.conditions, condition::AGENT_CONNECTED) && s.addresses.is_some()
        })
    };
    if !settled(&seen) {
        watch_until(&api, &seen, settled).await?;
    }
    let before = instance_writes(client).await?;
    tokio::time::sleep(STILL).await;
    let written = instance_writes(client).await? - before;
    println!("writes in {STILL:?} of standing still: {written}");
    limits.at_most("writes while nothing happens", written, 0);
    delete(client, &seen).await
}

/// Writes to Instances and their status since the API server started.
async fn instance_writes(client: &Client) -> Result<u64> {
    let request = kube::core::Request::new("").get("metrics", &kube::api::GetParams::default());
    let mut request = request?;
    *request.uri_mut() = "/metrics".parse()?;
    Ok(Requests::parse(&client.request_text(request).await?).writes("instances"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_samples() {
        let list: Vec<_> = (1..=50).map(Duration::from_millis).collect();
        assert_eq!(
            (at(&list, 50), at(&list, 99)),
            (Duration::from_millis(25), Duration::from_millis(50))
        );
        assert_eq!(at(&list[..1], 50), Duration::from_millis(1));
    }
}
