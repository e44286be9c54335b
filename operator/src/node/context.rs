//! What every part of the agent shares: the cluster, the hypervisors, the storage, and what is remembered.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Instant;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::jiff::Timestamp;
use kube::{Client, ResourceExt};
use virtshell_crds::Instance;
use virtshell_crds::host::Endpoint;
use virtshell_crds::instance::{Driver, Timings};

use super::access::ssh;
use super::clone::Clones;
use super::connection::Connection;
use super::errands::Errands;
use super::events::Tell;
use super::files::Files;
use super::goal::{Offer, macs};
use super::guest::Guests;
use super::metrics::Metrics;
use super::observed::{Memory, Moment};
use super::own::Echoes;
use super::perform::PerformError;
use super::provision::Jobs;
use super::queue::Requests;
use super::storage::{BootFiles, CachedImage, Storage, StorageError};
use crate::events::Events;

/// What every part of the agent shares.
pub struct Context {
    /// The cluster.
    pub client: Client,
    /// Host.metadata.name.
    pub host: String,
    /// Field manager of this agent.
    pub manager: String,
    /// The connection of each configured driver.
    pub connections: BTreeMap<Driver, Arc<Connection>>,
    /// Images, disks and seeds.
    pub storage: Storage,
    /// Stored files.
    pub files: Arc<Files>,
    /// The key that guests trust; absent where none can be made.
    pub ssh_key: Option<Arc<ssh::Key>>,
    /// The Instances of this host, by uid, as last seen.
    pub instances: Instances,
    /// What this host offers.
    pub offer: RwLock<Offer>,
    /// Where the Node API is, and the certificate it has now.
    pub endpoint: RwLock<Endpoint>,
    /// What is remembered of each Instance, by uid.
    pub records: Mutex<HashMap<String, Record>>,
    /// What guests said.
    pub guests: Arc<Guests>,
    /// What is known of the building of Instances.
    pub jobs: Jobs,
    /// Whose disks are being copied.
    pub clones: Arc<Clones>,
    /// Images on their way.
    pub fetches: Errands<Result<Brought, StorageError>>,
    /// Copies of disks under way, by the uid of the clone.
    pub copies: Errands<Result<(), PerformError>>,
    /// What libvirt will tell of the agent's own doing.
    pub echoes: Echoes,
    /// Asks for looks.
    pub requests: Requests,
    /// Writes Events.
    pub events: Events,
    /// What is counted.
    pub metrics: Metrics,
    /// The start of the agent's own clock.
    pub started: Instant,
}

/// What is remembered of one Instance between two looks. Losing it costs time, never correctness.
#[derive(Clone, Default)]
pub struct Record {
    /// What the plan needs.
    pub memory: Memory,
    /// Failures in a row.
    pub failures: u32,
    /// When the image was first waited for.
    pub waiting_since: Option<Moment>,
    /// When the progress of a download was last written.
    pub progress_told: Option<Moment>,
    /// Images in the cache, by URL, checksum and type.
    pub images: Vec<(String, CachedImage)>,
    /// Kernel and RAM disk in the cache.
    pub boot: Option<BootFiles>,
    /// How the last start spent its time.
    pub timings: Timings,
    /// When it was last started by this agent.
    pub started_at: Option<Timestamp>,
    /// The last problem that an Event told of, so that it is told once.
    pub told: String,
    /// What somebody else did to the domain, told already.
    pub interference: Option<Tell>,
    /// This agent stopped the guest itself: its end is no surprise.
    pub expected_off: bool,
}

/// What was brought for one Instance.
#[derive(Default)]
pub struct Brought {
    /// As [`Record::images`].
    pub images: Vec<(String, CachedImage)>,
    /// As [`Record::boot`].
    pub boot: Option<BootFiles>,
}

impl Context {
    /// The agent's clock.
    #[must_use]
    pub fn now(&self) -> Moment {
        self.started.elapsed()
    }

    /// What this host offers now.
    #[must_use]
    pub fn offer(&self) -> Offer {
        self.offer.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Where the Node API is.
    #[must_use]
    pub fn endpoint(&self) -> Endpoint {
        self.endpoint
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Each libvirt once, with the first of the drivers that it serves.
    pub fn libvirts(&self) -> impl Iterator<Item = (Driver, &Arc<Connection>)> {
        let mut met = HashSet::new();
        let all = self.connections.iter();
        all.filter(move |(_, connection)| met.insert(connection.uri()))
            .map(|(driver, connection)| (*driver, connection))
    }

    /// What is remembered of an Instance.
    #[must_use]
    pub fn record(&self, uid: &str) -> Record {
        locked(&self.records).get(uid).cloned().unwrap_or_default()
    }

    /// Remembers.
    pub fn remember(&self, uid: &str, record: Record) {
        locked(&self.records).insert(uid.to_owned(), record);
    }

    /// Forgets an Instance that is gone.
    pub fn forget(&self, uid: &str) {
        locked(&self.records).remove(uid);
        self.guests.stop(uid);
        self.jobs.forget(uid);
        self.echoes.forget(uid);
        self.fetches.forget(uid);
        if let Some(key) = &self.ssh_key {
            key.forget(uid);
        }
        self.instances.remove(uid);
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The Instances of this host, by uid, as last seen.
#[derive(Default)]
pub struct Instances {
    index: RwLock<Index>,
    listed: AtomicBool,
}

#[derive(Default)]
struct Index {
    by_uid: HashMap<String, Arc<Instance>>,
    /// uids by MAC address.
    by_mac: HashMap<String, HashSet<String>>,
}

impl Index {
    fn put(&mut self, uid: String, instance: Instance) {
        self.remove(&uid);
        for mac in macs(&instance) {
            self.by_mac.entry(mac).or_default().insert(uid.clone());
        }
        self.by_uid.insert(uid, Arc::new(instance));
    }

    fn remove(&mut self, uid: &str) {
        let Some(old) = self.by_uid.remove(uid) else {
            return;
        };
        for mac in macs(&old) {
            if let Some(uids) = self.by_mac.get_mut(&mac) {
                uids.remove(uid);
                if uids.is_empty() {
                    self.by_mac.remove(&mac);
                }
            }
        }
    }
}

impl Instances {
    /// Whether all of them were seen once: before that, one that is not here may well be there.
    #[must_use]
    pub fn listed(&self) -> bool {
        self.listed.load(Ordering::Acquire)
    }

    /// All of them have been seen.
    pub fn set_listed(&self) {
        self.listed.store(true, Ordering::Release);
    }

    fn read(&self) -> RwLockReadGuard<'_, Index> {
        self.index.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Index> {
        self.index.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// An Instance.
    #[must_use]
    pub fn get(&self, uid: &str) -> Option<Arc<Instance>> {
        self.read().by_uid.get(uid).cloned()
    }

    /// The Instance of that name. At most a few hundred are on one host.
    #[must_use]
    pub fn named(&self, namespace: &str, name: &str) -> Option<Arc<Instance>> {
        let index = self.read();
        let found = index.by_uid.values().find(|instance| {
            let of = &instance.metadata;
            of.name.as_deref() == Some(name) && of.namespace.as_deref() == Some(namespace)
        });
        found.cloned()
    }

    /// Others that have a MAC address of this one, with the address.
    #[must_use]
    pub fn with_macs_of(&self, instance: &Instance) -> Vec<(String, Arc<Instance>)> {
        let index = self.read();
        let mut found = Vec::new();
        for mac in macs(instance) {
            let uids = index.by_mac.get(&mac).into_iter().flatten();
            let others = uids.filter(|uid| instance.metadata.uid.as_ref() != Some(uid));
            found.extend(others.filter_map(|uid| Some((mac.clone(), index.by_uid.get(uid)?.clone()))));
        }
        found
    }

    /// All of them.
    #[must_use]
    pub fn all(&self) -> Vec<Arc<Instance>> {
        self.read().by_uid.values().cloned().collect()
    }

    /// Puts a version of an Instance, unless a newer one is there; returns the one that was replaced.
    ///
    /// Our own writes answer before the watch shows them, and what the watch shows may be older.
    pub fn put(&self, mut instance: Instance) -> Option<Arc<Instance>> {
        let uid = instance.uid()?;
        // More than all the rest of an Instance, and of no use here.
        instance.metadata.managed_fields = None;
        let mut index = self.write();
        let old = index.by_uid.get(&uid).cloned();
        if old
            .as_deref()
            .is_none_or(|old| version(&old.metadata) <= version(&instance.metadata))
        {
            index.put(uid, instance);
        }
        old
    }

    /// Takes it out.
    pub fn remove(&self, uid: &str) {
        self.write().remove(uid);
    }

    /// The uids that are not among these.
    #[must_use]
    pub fn beside(&self, uids: &HashSet<String>) -> Vec<String> {
        let index = self.read();
        index
            .by_uid
            .keys()
            .filter(|uid| !uids.contains(*uid))
            .cloned()
            .collect()
    }
}

/// Resource versions of one kind can be compared as numbers (Kubernetes 1.35 made that part of the API).
#[must_use]
pub fn version(of: &ObjectMeta) -> u64 {
    of.resource_version
        .as_deref()
        .and_then(|v| v.parse().ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::goal::refuse_duplicate_macs;
    use super::*;

    fn instance(uid: &str, created: &str, macs: &[&str]) -> Instance {
        let interfaces: Vec<_> = macs
            .iter()
            .enumerate()
            .map(|(n, mac)| json!({"name": format!("eth{n}"), "network": "default", "mac": mac}))
            .collect();
        serde_json::from_value(json!({
            "apiVersion": "virtshell.io/v1alpha1", "kind": "Instance",
            "metadata": {"name": uid, "namespace": "n", "uid": uid, "creationTimestamp": created},
            "spec": {"interfaces": interfaces},
        }))
        .unwrap()
    }

    fn refusal(all: &Instances, of: &Instance) -> Option<String> {
        let others = all.with_macs_of(of);
        let others = others.iter().map(|(mac, other)| (mac.clone(), &**other));
        refuse_duplicate_macs(of, others).err().map(|why| why.to_string())
    }

    #[test]
    fn a_mac_address_belongs_to_the_instance_that_came_first() {
        let all = Instances::default();
        let first = instance("a", "2026-11-21T10:00:00Z", &["52:54:00:AA:00:01"]);
        let second = instance(
            "b",
            "2026-11-21T10:00:01Z",
            &["52:54:00:aa:00:01", "52:54:00:aa:00:02"],
        );
        for one in [&first, &second] {
            all.put(one.clone());
        }
        assert_eq!(refusal(&all, &first), None);
        let why = refusal(&all, &second).unwrap();
        assert!(why.contains("52:54:00:aa:00:01 is that of n/a"), "{why}");
        all.remove("a");
        assert_eq!(refusal(&all, &second), None, "until it is gone");
        all.put(first);
        all.put(instance("b", "2026-11-21T10:00:01Z", &["52:54:00:aa:00:02"]));
        assert!(
            all.with_macs_of(all.get("a").as_ref().unwrap()).is_empty(),
            "or has another"
        );
        let twice = instance(
            "c",
            "2026-11-21T10:00:02Z",
            &["52:54:00:aa:00:03", "52:54:00:AA:00:03"],
        );
        assert!(refusal(&all, &twice).unwrap().contains("given twice"));
        let derived = instance("d", "2026-11-21T10:00:03Z", &[]);
        assert_eq!(refusal(&all, &derived), None);
    }
}
