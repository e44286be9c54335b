//! What VirtShell takes for one guest, measured against raw libvirt and the API server's own counters inside one run.
//!
//! Needs a running system (`make up`) and its environment (`.virtshell/env`); `make bench` does both. Every sample of
//! VirtShell stands beside a raw sample taken right after it: the same overlay, seed and domain XML, made with
//! `qemu-img`, `genisoimage` and two libvirt calls. So noise of the machine meets both.

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
use virtshell_tests::{Requests, percentile as at};

const NAMESPACE: &str = "virtshell";
const IMAGE: &str = "debian-guest";
/// Longest wait for one step; a sample that takes longer is a failure, not a number.
const PATIENCE: Duration = Duration::from_mins(1);
/// How long a guest must have run so that its end is no part of a crash loop.
const STABLE: Duration = Duration::from_secs(65);
/// How long standing still is watched.
const STILL: Duration = Duration::from_mins(1);

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
    let libvirt = Connect::open(Some("qemu:///system")).context("qemu:///system does not answer")?;
    latency(&client, &libvirt, samples).await?;
    answers(&client, &libvirt, samples.div_ceil(10)).await?;
    drift(&client, &libvirt, samples.div_ceil(2)).await?;
    writes(&client).await
}

/// Create to running, ours minus raw, one at a time.
async fn latency(client: &Client, libvirt: &Connect, samples: usize) -> Result<()> {
    let (mut ours, mut raw, mut overhead) = (Vec::new(), Vec::new(), Vec::new());
    for n in 0..=samples {
        let (took, instance) = create_to_running(client, &format!("bench-{n}")).await?;
        let xml = domain_of(libvirt, &instance)?.xml_desc(virt::sys::VIR_DOMAIN_XML_INACTIVE)?;
        let image = raw::backing_image(&xml)?;
        delete(client, &instance).await?;
        let same = raw::create(libvirt, &xml, &image, |_| Ok(()))?.all;
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
async fn answers(client: &Client, libvirt: &Connect, samples: usize) -> Result<()> {
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
        let xml = domain_of(libvirt, &seen)?.xml_desc(virt::sys::VIR_DOMAIN_XML_INACTIVE)?;
        let image = raw::backing_image(&xml)?;
        delete(client, &seen).await?;
        let raw = raw::create(libvirt, &xml, &image, until_it_answers)?.all;
        overhead.push(took.saturating_sub(raw));
    }
    print("create to agent, difference", &mut overhead);
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
async fn drift(client: &Client, libvirt: &Connect, samples: usize) -> Result<()> {
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
        let xml = domain.xml_desc(virt::sys::VIR_DOMAIN_XML_INACTIVE)?;
        let image = raw::backing_image(&xml)?;
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
        let raw = raw::create(libvirt, &xml, &image, |_| Ok(()))?;
        detected.push((running - destroyed).saturating_sub(raw.start));
        told.push(visible.saturating_duration_since(running));
    }
    print("powered off to running, difference", &mut detected);
    print("running to seen in the status", &mut told);
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
async fn writes(client: &Client) -> Result<()> {
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
    println!(
        "writes from create to Ready, the create left out: {}",
        after - before - 1
    );

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
    println!(
        "writes in {STILL:?} of standing still: {}",
        instance_writes(client).await? - before
    );
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
