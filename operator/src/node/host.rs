//! The Host of this machine: made when it is not there, and told what the machine has.
//!
//! What the host offers ([`Offer`]) is decided here as well, for goals and for the Host's status from one source.

use std::collections::HashSet;
use std::net::IpAddr;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use kube::api::{Api, PostParams};
use kube::runtime::{WatchStreamExt, watcher};
use serde_json::json;
use tokio::sync::Notify;
use virtshell_crds::condition::{
    HARDWARE_VIRTUALIZATION, LIBVIRT_CONNECTED, READY, SCHEDULABLE, STORAGE_HEALTHY, Status, condition,
    upsert,
};
use virtshell_crds::host::{CachedImage, Capacity, Cpu, Endpoint, ForeignDomain, Hypervisor, OrphanDomain};
use virtshell_crds::instance::{Addresses, Driver};
use virtshell_crds::{Host, HostSpec, HostStatus, Instance};

use super::connection::{Connection, Lane};
use super::context::Context;
use super::goal::{DomainType, Offer};
use super::libvirt::{Facts, Listed};
use super::storage::Room;
use super::storage::kvm_probe::KvmSupport;
use crate::probes::Readiness;
use crate::status::{apply, differs};

/// How often the machine is looked at when nothing asks for it.
const PERIOD: Duration = Duration::from_secs(15);
/// Events come in bursts; one look serves a burst.
const BURST: Duration = Duration::from_millis(300);
/// How long a list of all domains may take.
const LIST_DEADLINE: Duration = Duration::from_secs(10);
/// Foreign domains that the status lists; more are counted.
const MOST_FOREIGN: usize = 100;
/// The top-level fields of status that the node owns.
const OWNED: &[&str] = &[
    "observedGeneration",
    "capacity",
    "drivers",
    "hypervisor",
    "cpu",
    "hostname",
    "nodeName",
    "addresses",
    "endpoint",
    "images",
    "foreignDomains",
    "foreignDomainCount",
    "orphanDomains",
    "conditions",
];

/// What does not change while the agent runs.
pub struct Machine {
    /// The Kubernetes node it runs on; empty = none.
    pub node_name: String,
    /// Its host name.
    pub hostname: String,
    /// Whether hardware virtualization works.
    pub kvm: KvmSupport,
    /// Whether guests of driver kvm may run emulated.
    pub allow_emulation: bool,
}

/// What the host offers, by what its libvirt connections said.
#[must_use]
pub fn offer<'a>(
    connections: impl Iterator<Item = (Driver, &'a str, Option<Facts>)>,
    machine: &Machine,
) -> Offer {
    let mut offer = Offer::default();
    for (driver, uri, facts) in connections {
        let Some(facts) = facts else {
            offer.silent.push((driver, uri.to_owned()));
            continue;
        };
        offer.cpus = offer.cpus.max(i32::try_from(facts.cpus).unwrap_or(i32::MAX));
        offer.default_network |= facts.default_network;
        match domain_type(driver, &facts.driver, machine) {
            Ok(type_) => offer.drivers.push((driver, type_)),
            Err(why) => offer.refused.push((driver, why)),
        }
    }
    offer
}

fn domain_type(driver: Driver, hypervisor: &str, machine: &Machine) -> Result<DomainType, String> {
    match (hypervisor, driver, &machine.kvm) {
        ("Test" | "TEST", _, _) => Ok(DomainType::Test),
        ("LXC", Driver::Lxc, _) => Ok(DomainType::Lxc),
        ("QEMU", Driver::Qemu, _) => Ok(DomainType::Qemu),
        ("QEMU", Driver::Kvm, KvmSupport::Usable) => Ok(DomainType::Kvm),
        ("QEMU", Driver::Kvm, KvmSupport::Unusable { .. }) if machine.allow_emulation => Ok(DomainType::Qemu),
        ("QEMU", Driver::Kvm, KvmSupport::Unusable { reason }) => Err(format!(
            "hardware virtualization is not usable ({reason}) and the agent runs without --allow-emulation"
        )),
        (other, _, _) => Err(format!(
            "its libvirt connection is to {other}, which cannot run it"
        )),
    }
}

/// Keeps the Host up to date until the process ends; `look` asks for a look.
///
/// The agent is ready while it knows its Instances and one libvirt answers.
pub async fn run(context: Arc<Context>, machine: Machine, look: Arc<Notify>, readiness: Readiness) {
    loop {
        let serves = context.connections.values().any(|c| c.facts().is_some());
        readiness.set(context.instances.listed() && serves);
        if let Err(error) = once(&context, &machine).await {
            tracing::warn!(host.name = context.host, %error, "the Host cannot be written");
        }
        tokio::select! {
            () = tokio::time::sleep(PERIOD) => {}
            () = look.notified() => tokio::time::sleep(BURST).await,
        }
    }
}

/// Asks for a look whenever somebody edits the Host: its conditions must soon speak of the newest generation.
pub async fn follow(context: Arc<Context>, look: Arc<Notify>) {
    let api: Api<Host> = Api::all(context.client.clone());
    let config = watcher::Config::default().fields(&format!("metadata.name={}", context.host));
    let mut events = std::pin::pin!(watcher(api, config).default_backoff().applied_objects());
    let mut seen = None;
    while let Some(event) = events.next().await {
        if event.is_ok() {
            context.metrics.heard("host");
        }
        match event {
            Ok(host) if seen == host.metadata.generation => {}
            Ok(host) => {
                seen = host.metadata.generation;
                look.notify_one();
            }
            Err(error) => tracing::debug!(%error, "the watch of the Host failed; it is opened again"),
        }
    }
}

async fn once(context: &Arc<Context>, machine: &Machine) -> kube::Result<()> {
    let connections = context.connections.iter();
    let now_offered = offer(
        connections.map(|(driver, c)| (*driver, c.uri(), c.facts())),
        machine,
    );
    let changed = {
        let mut offer = context.offer.write().unwrap_or_else(PoisonError::into_inner);
        let changed = *offer != now_offered;
        *offer = now_offered.clone();
        changed
    };
    if changed {
        // A driver came or went: every Instance's goal may be another one.
        for instance in context.instances.all() {
            context.requests.now(&instance.uid().unwrap_or_default());
        }
    }
    let api: Api<Host> = Api::all(context.client.clone());
    let host = match api.get_opt(&context.host).await? {
        Some(host) => host,
        None => create(&api, context, machine).await?,
    };
    let seen = look_around(context).await;
    let status = status(&host, machine, &now_offered, &seen);
    if differs(&json!(host.status), &json!(status), OWNED) {
        apply(&api, &host, &context.manager, &status).await?;
    }
    Ok(())
}

async fn create(api: &Api<Host>, context: &Context, machine: &Machine) -> kube::Result<Host> {
    let spec = HostSpec {
        enabled: true,
        node_name: Some(machine.node_name.clone()).filter(|name| !name.is_empty()),
        ..HostSpec::default()
    };
    match api
        .create(&PostParams::default(), &Host::new(&context.host, spec))
        .await
    {
        Err(kube::Error::Api(answer)) if answer.is_already_exists() => api.get(&context.host).await,
        other => other,
    }
}

/// What one look at the machine showed.
struct Surroundings {
    facts: Vec<(Driver, Facts)>,
    down: Vec<String>,
    foreign: Vec<ForeignDomain>,
    orphans: Vec<OrphanDomain>,
    room: Option<Room>,
    images: Vec<CachedImage>,
    addresses: Addresses,
    endpoint: Endpoint,
}

async fn look_around(context: &Arc<Context>) -> Surroundings {
    let mut seen = Surroundings {
        facts: vec![],
        down: vec![],
        foreign: vec![],
        orphans: vec![],
        room: context.storage.room().await.ok(),
        images: images(context),
        addresses: addresses(),
        endpoint: context.endpoint(),
    };
    for (driver, connection) in &context.connections {
        match connection.facts() {
            Some(facts) => seen.facts.push((*driver, facts)),
            None => seen.down.push(connection.uri().to_owned()),
        }
    }
    for (driver, connection) in context.libvirts() {
        if connection.facts().is_some() {
            domains(context, driver, connection, &mut seen).await;
        }
    }
    seen.down.dedup();
    seen
}

fn images(context: &Context) -> Vec<CachedImage> {
    let mut images: Vec<CachedImage> = context
        .storage
        .cached_images()
        .into_iter()
        .map(|image| CachedImage {
            name: image.name,
            sha256: image.sha256,
            size_bytes: i64::try_from(image.size_bytes).unwrap_or(i64::MAX),
        })
        .collect();
    images.sort_by(|a, b| (&a.name, &a.sha256).cmp(&(&b.name, &b.sha256)));
    images
}

/// Sorts the domains into those of our Instances, orphans and foreign ones.
async fn domains(
    context: &Arc<Context>,
    driver: Driver,
    connection: &Arc<Connection>,
    seen: &mut Surroundings,
) {
    let known = known(&context.instances.all());
    let listed = connection
        .call(Lane::Read, "all domains", "list", LIST_DEADLINE, move |link| {
            link.list(&known)
        })
        .await;
    let Ok(listed) = listed else { return };
    for domain in listed {
        match &domain.owner {
            Some(owner) if context.instances.get(&owner.uid).is_some() => {}
            Some(owner) => {
                // Without files of ours it is another VirtShell's on the same libvirt. One that may belong to another
                // host's binding by now, or that could not be asked for, is no orphan either.
                let made_here = context.storage.files(&owner.uid).dir.is_dir();
                if !made_here {
                    seen.foreign.push(foreign(driver, domain));
                } else if is_gone(context, &owner.namespace, &owner.name, &owner.uid).await == Some(true) {
                    stop_autostart(connection, &domain).await;
                    let (name, uid) = (domain.name.clone(), owner.uid.clone());
                    seen.orphans.push(OrphanDomain { name, uid });
                }
            }
            None => seen.foreign.push(foreign(driver, domain)),
        }
    }
    seen.foreign
        .sort_by(|a, b| (&a.driver, &a.name).cmp(&(&b.driver, &b.name)));
    seen.orphans.sort_by(|a, b| a.name.cmp(&b.name));
}

/// UUIDs of the domains that belong to Instances: each is looked at for itself, which tells if it does no longer.
fn known(instances: &[Arc<Instance>]) -> HashSet<String> {
    let domains = instances.iter().filter_map(|instance| {
        let status = instance.status.as_ref()?;
        Some(status.domain.as_ref()?.uuid.clone())
    });
    domains.collect()
}

/// Whether a live read, not a cache, shows that there is no such Instance; `None` when it could not be asked.
async fn is_gone(context: &Context, namespace: &str, name: &str, uid: &str) -> Option<bool> {
    let api: Api<Instance> = Api::namespaced(context.client.clone(), namespace);
    let found = api.get_opt(name).await.ok()?;
    Some(found.is_none_or(|instance| instance.uid().as_deref() != Some(uid)))
}

/// An orphan is never started, by libvirtd neither.
async fn stop_autostart(connection: &Arc<Connection>, domain: &Listed) {
    if !domain.autostart {
        return;
    }
    let uuid = domain.uuid.clone();
    let stopped = connection.call(
        Lane::Define,
        &domain.uuid,
        "clear autostart of",
        LIST_DEADLINE,
        move |link| link.set_autostart(&uuid, false),
    );
    if let Err(error) = stopped.await {
        tracing::warn!(domain.name = domain.name, %error, "autostart of an orphan cannot be cleared");
    }
}

fn foreign(driver: Driver, domain: Listed) -> ForeignDomain {
    ForeignDomain {
        name: domain.name,
        uuid: domain.uuid,
        id: domain.id,
        driver: if driver == Driver::Lxc { "lxc" } else { "qemu" }.to_owned(),
        state: domain.state.to_owned(),
    }
}

/// Addresses of the machine, without loopback, link-local ones, and those of bridges that libvirt made.
pub(super) fn addresses() -> Addresses {
    let mut found = Addresses::default();
    for interface in nix::ifaddrs::getifaddrs().into_iter().flatten() {
        if interface.interface_name.starts_with("virbr") {
            continue;
        }
        let address = interface.address.as_ref();
        let ip = address
            .and_then(|a| a.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip())))
            .or_else(|| address.and_then(|a| a.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip()))));
        match ip {
            Some(IpAddr::V4(v4)) if !v4.is_loopback() && !v4.is_link_local() => {
                found.ipv4.push(v4.to_string());
            }
            Some(IpAddr::V6(v6)) if !v6.is_loopback() && !v6.is_unicast_link_local() => {
                found.ipv6.push(v6.to_string());
            }
            Some(_) | None => {}
        }
    }
    found.ipv4.sort();
    found.ipv6.sort();
    found
}

fn status(host: &Host, machine: &Machine, offer: &Offer, seen: &Surroundings) -> HostStatus {
    let facts = seen
        .facts
        .iter()
        .find(|(d, _)| *d != Driver::Lxc)
        .or(seen.facts.first())
        .map(|(_, facts)| facts);
    let old = host.status.clone().unwrap_or_default();
    let more = seen.foreign.len() > MOST_FOREIGN;
    HostStatus {
        observed_generation: host.metadata.generation,
        capacity: facts
            .map(|facts| capacity(facts, seen.room.as_ref()))
            .or(old.capacity),
        drivers: offer.drivers.iter().map(|(driver, _)| *driver).collect(),
        hypervisor: facts.map(|facts| Hypervisor {
            type_: facts.driver.clone(),
            version: facts.details.hypervisor_version.clone(),
            libvirt: facts.libvirt_version.clone(),
        }),
        cpu: facts.map(cpu),
        hostname: machine.hostname.clone(),
        node_name: machine.node_name.clone(),
        addresses: Some(seen.addresses.clone()),
        endpoint: Some(seen.endpoint.clone()),
        images: seen.images.clone(),
        foreign_domains: seen.foreign.iter().take(MOST_FOREIGN).cloned().collect(),
        foreign_domain_count: more.then(|| i32::try_from(seen.foreign.len()).unwrap_or(i32::MAX)),
        orphan_domains: seen.orphans.clone(),
        conditions: conditions(host, machine, offer, seen),
        ..HostStatus::default()
    }
}

fn capacity(facts: &Facts, room: Option<&Room>) -> Capacity {
    Capacity {
        cpus: i32::try_from(facts.cpus).unwrap_or(i32::MAX),
        memory_mib: i64::try_from(facts.memory_mib).unwrap_or(i64::MAX),
        disk_mib: room.map_or(0, |room| i64::try_from(room.total_mib).unwrap_or(i64::MAX)),
    }
}

fn cpu(facts: &Facts) -> Cpu {
    let number = |n: u32| i32::try_from(n).unwrap_or(i32::MAX);
    let (nodes, sockets, cores, threads) = facts.topology;
    Cpu {
        model: facts.details.cpu_model.clone(),
        mhz: number(facts.mhz),
        sockets: number(sockets),
        cores: number(cores),
        threads: number(threads),
        numa_nodes: number(nodes),
    }
}

/// The conditions that the node says, with the transition times that they had.
fn conditions(host: &Host, machine: &Machine, offer: &Offer, seen: &Surroundings) -> Vec<Condition> {
    let said = say(host.spec.enabled, machine, offer, seen);
    let old = host
        .status
        .as_ref()
        .map(|s| s.conditions.clone())
        .unwrap_or_default();
    let mine = |c: &Condition| said.iter().any(|(type_, ..)| *type_ == c.type_);
    let mut list: Vec<Condition> = old.into_iter().filter(mine).collect();
    let now = Time(Timestamp::now());
    for (type_, status, reason, message) in said {
        upsert(
            &mut list,
            condition(
                type_,
                status,
                reason,
                message,
                host.metadata.generation,
                now.clone(),
            ),
        );
    }
    list
}

type Said = (&'static str, Status, &'static str, String);

fn say(enabled: bool, machine: &Machine, offer: &Offer, seen: &Surroundings) -> [Said; 5] {
    let serves = !offer.drivers.is_empty();
    let nearly_full = seen.room.as_ref().is_some_and(Room::is_nearly_full);
    let down = seen.down.join(", ");
    let unavailable: Vec<String> = offer
        .refused
        .iter()
        .map(|(driver, why)| format!("{driver}: {why}"))
        .collect();
    let unavailable = unavailable.join("; ");
    let no = String::new;
    [
        if serves {
            (READY, Status::True, "AgentServes", unavailable)
        } else {
            (READY, Status::False, "NoDriver", unavailable)
        },
        if seen.down.is_empty() {
            (LIBVIRT_CONNECTED, Status::True, "Connected", no())
        } else {
            let text = format!("no answer from {down}; is libvirtd running?");
            (LIBVIRT_CONNECTED, Status::False, "Disconnected", text)
        },
        if !enabled {
            (
                SCHEDULABLE,
                Status::False,
                "Disabled",
                "spec.enabled is false".to_owned(),
            )
        } else if !serves {
            (
                SCHEDULABLE,
                Status::False,
                "NoDriver",
                "no driver answers".to_owned(),
            )
        } else if nearly_full {
            (
                SCHEDULABLE,
                Status::False,
                "NoRoom",
                "the data directory is nearly full".to_owned(),
            )
        } else {
            (SCHEDULABLE, Status::True, "Open", no())
        },
        storage_healthy(seen.room.as_ref()),
        match &machine.kvm {
            KvmSupport::Usable => (HARDWARE_VIRTUALIZATION, Status::True, "Usable", no()),
            KvmSupport::Unusable { reason } if machine.allow_emulation => {
                let text = format!("{reason}; guests of driver kvm run emulated");
                (HARDWARE_VIRTUALIZATION, Status::False, "Emulated", text)
            }
            KvmSupport::Unusable { reason } => {
                (HARDWARE_VIRTUALIZATION, Status::False, "Unusable", reason.clone())
            }
        },
    ]
}

fn storage_healthy(room: Option<&Room>) -> Said {
    match room {
        None => (
            STORAGE_HEALTHY,
            Status::Unknown,
            "NotAnswering",
            "the file system does not say".to_owned(),
        ),
        Some(room) if room.is_nearly_full() => {
            let text = format!(
                "{} MiB are free of {}; make room in the data directory",
                room.free_mib, room.total_mib
            );
            (STORAGE_HEALTHY, Status::False, "NearlyFull", text)
        }
        Some(_) => (STORAGE_HEALTHY, Status::True, "Room", String::new()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine(usable: bool, allow_emulation: bool) -> Machine {
        let kvm = if usable {
            KvmSupport::Usable
        } else {
            KvmSupport::Unusable {
                reason: "no svm".into(),
            }
        };
        Machine {
            node_name: String::new(),
            hostname: "h".into(),
            kvm,
            allow_emulation,
        }
    }

    #[test]
    fn kvm_is_offered_where_its_guests_really_run() {
        let (usable, emulated, refused) = (machine(true, false), machine(false, true), machine(false, false));
        assert_eq!(domain_type(Driver::Kvm, "QEMU", &usable), Ok(DomainType::Kvm));
        assert_eq!(domain_type(Driver::Kvm, "QEMU", &emulated), Ok(DomainType::Qemu));
        assert!(
            domain_type(Driver::Kvm, "QEMU", &refused)
                .unwrap_err()
                .contains("--allow-emulation")
        );
        assert_eq!(domain_type(Driver::Qemu, "QEMU", &refused), Ok(DomainType::Qemu));
        assert_eq!(domain_type(Driver::Lxc, "LXC", &refused), Ok(DomainType::Lxc));
        assert!(domain_type(Driver::Lxc, "QEMU", &usable).is_err());
        assert_eq!(domain_type(Driver::Kvm, "Test", &refused), Ok(DomainType::Test));
    }

    #[test]
    fn a_connection_that_is_down_is_no_offer() {
        let facts = Facts {
            driver: "QEMU".into(),
            cpus: 2,
            default_network: true,
            ..Facts::default()
        };
        let list = [
            (Driver::Qemu, "qemu:///system", Some(facts)),
            (Driver::Lxc, "lxc:///system", None),
        ];
        let offer = offer(list.into_iter(), &machine(false, false));
        assert_eq!((offer.cpus, offer.default_network), (2, true));
        assert_eq!(offer.drivers, [(Driver::Qemu, DomainType::Qemu)]);
        assert_eq!(offer.silent, [(Driver::Lxc, "lxc:///system".to_owned())]);
    }
}
