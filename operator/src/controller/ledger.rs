//! What every host has given away: by Instances that are bound, and by those whose binding is on its way.
//!
//! Placement reads and writes the ledger under one lock, so that two Instances never get the same memory while the watch
//! is still catching up (kube-scheduler's "assumed" pods). Sums are kept up to date: a decision costs nothing per
//! Instance.

use std::collections::{BTreeSet, HashMap};

use kube::ResourceExt;
use virtshell_crds::instance::{InstanceSpec, InstanceStatus, Resolved};
use virtshell_crds::resolve::{DEFAULT_CPUS, DEFAULT_DISK_MIB, DEFAULT_MEMORY_MIB};
use virtshell_crds::{FINALIZER_DOMAIN, Instance};

use super::cache::Change;
use super::placement::{Demand, Used};

/// Where the sums of a host stand: a decision looks at all of them, side by side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot(usize);

#[derive(Clone, Debug, PartialEq)]
struct Entry {
    at: Slot,
    demand: Demand,
    /// Decided, but not yet seen in the cache.
    assumed: bool,
}

/// Who takes what where.
#[derive(Debug, Default)]
pub struct Ledger {
    entries: HashMap<String, Entry>,
    /// Every host that was ever heard of keeps its slot.
    slots: HashMap<String, Slot>,
    /// Name and sums, by slot.
    hosts: Vec<(String, Used)>,
    /// Hosts that have got more room since they were last asked for.
    freed: BTreeSet<String>,
}

impl Ledger {
    /// What is taken on a host.
    #[must_use]
    pub fn used(&self, host: &str) -> Used {
        let slot = self.slots.get(host);
        slot.map(|slot| self.hosts[slot.0].1).unwrap_or_default()
    }

    /// What is taken on hosts by others than the Instance `uid`.
    pub fn used_by_others(&self, uid: &str) -> impl Fn(Slot) -> Used {
        let own = self.entries.get(uid);
        move |at| {
            let mut used = self.hosts[at.0].1;
            if let Some(own) = own.filter(|own| own.at == at) {
                used.remove(own.demand);
            }
            used
        }
    }

    /// The slot of a host.
    pub fn slot(&mut self, host: &str) -> Slot {
        if let Some(slot) = self.slots.get(host) {
            return *slot;
        }
        let slot = Slot(self.hosts.len());
        self.hosts.push((host.to_owned(), Used::default()));
        self.slots.insert(host.to_owned(), slot);
        slot
    }

    /// Counts an Instance on a host before its binding is written.
    pub fn assume(&mut self, uid: &str, host: &str, demand: Demand) {
        let at = self.slot(host);
        self.set(
            uid,
            Entry {
                at,
                demand,
                assumed: true,
            },
        );
    }

    /// The binding was not written: counts the Instance no more, unless the cache has shown it bound.
    pub fn forget(&mut self, uid: &str) {
        if self.entries.get(uid).is_some_and(|entry| entry.assumed) {
            self.remove(uid);
        }
    }

    /// Follows the cache.
    pub fn observe(&mut self, change: &Change<Instance>) {
        let old = change.old.as_ref().and_then(|i| i.uid());
        let new = change.new.as_ref().and_then(|i| i.uid());
        if let Some(gone) = old.filter(|old| Some(old) != new.as_ref()) {
            self.remove(&gone);
        }
        let (Some(uid), Some(instance)) = (new, &change.new) else {
            return;
        };
        let known = self.entries.get(&uid);
        match bound_host(instance) {
            Some(host) => {
                // Until the values are frozen, the decision that bound it knows them better.
                let demand = known
                    .filter(|_| !is_resolved(instance))
                    .map_or_else(|| demand(instance), |entry| entry.demand);
                let entry = Entry {
                    at: self.slot(host),
                    demand,
                    assumed: false,
                };
                self.set(&uid, entry);
            }
            // What was decided is not seen yet.
            None if known.is_some_and(|entry| entry.assumed) => {}
            None => self.remove(&uid),
        }
    }

    /// The hosts that have got more room since this was last asked.
    pub fn take_freed(&mut self) -> BTreeSet<String> {
        std::mem::take(&mut self.freed)
    }

    fn set(&mut self, uid: &str, entry: Entry) {
        let (at, demand) = (entry.at, entry.demand);
        if let Some(previous) = self.entries.insert(uid.to_owned(), entry) {
            let frees = previous.at != at
                || previous.demand.memory_mib > demand.memory_mib
                || previous.demand.disk_mib > demand.disk_mib;
            self.take_off(&previous, frees);
        }
        self.hosts[at.0].1.add(demand);
    }

    fn remove(&mut self, uid: &str) {
        if let Some(entry) = self.entries.remove(uid) {
            self.take_off(&entry, true);
        }
    }

    fn take_off(&mut self, entry: &Entry, frees: bool) {
        let (name, used) = &mut self.hosts[entry.at.0];
        used.remove(entry.demand);
        if frees {
            self.freed.insert(name.clone());
        }
    }
}

/// The host that keeps room for an Instance: bound with the finalizer, by a decision of ours; a mere pin counts nothing.
#[must_use]
pub fn bound_host(instance: &Instance) -> Option<&str> {
    let held = instance.finalizers().iter().any(|f| f == FINALIZER_DOMAIN);
    instance.spec.host.as_deref().filter(|_| held)
}

fn is_resolved(instance: &Instance) -> bool {
    instance.status.as_ref().is_some_and(|s| s.resolved.is_some())
}

/// What an Instance takes: its frozen values, else its own, else the defaults.
#[must_use]
pub fn demand(instance: &Instance) -> Demand {
    demand_with(
        instance,
        instance.status.as_ref().and_then(|s| s.resolved.as_ref()),
    )
}

/// What an Instance takes when it has these values.
#[must_use]
pub fn demand_with(instance: &Instance, resolved: Option<&Resolved>) -> Demand {
    let spec = &instance.spec;
    Demand {
        cpus: resolved
            .and_then(|r| r.cpus)
            .or(spec.cpus)
            .unwrap_or(DEFAULT_CPUS),
        memory_mib: resolved
            .and_then(|r| r.memory_mib)
            .or(spec.memory_mib)
            .unwrap_or(DEFAULT_MEMORY_MIB),
        disk_mib: disks(instance, resolved),
    }
}

/// All disks together, in MiB, and those that were detached: their files stay. A disk is as large as its host says, once it does,
/// or as it is to be where that is more. The size of an image shows only when its disk is made; until then it counts as a
/// root disk of which nothing is said.
fn disks(instance: &Instance, resolved: Option<&Resolved>) -> i64 {
    let spec = &instance.spec;
    let there = instance
        .status
        .as_ref()
        .map(|s| s.disks.as_slice())
        .unwrap_or_default();
    let size = |name: &str, asked: Option<i64>| {
        let made = there.iter().find(|d| d.name == name && !d.detached);
        made.map(|d| d.size_mib).max(asked).unwrap_or(DEFAULT_DISK_MIB)
    };
    let root = size("root", resolved.and_then(|r| r.disk_mib).or(spec.disk_mib));
    let others: i64 = spec.disks.iter().map(|d| size(&d.name, d.size_mib)).sum();
    let detached = there.iter().filter(|d| d.detached).map(|d| d.size_mib);
    root + others + detached.sum::<i64>()
}

/// Leaves of the disks that a host reports those that tell more than the spec does: [`demand`] reads no others.
pub fn strip_disks(spec: &InstanceSpec, status: &mut InstanceStatus) {
    let root = status
        .resolved
        .as_ref()
        .and_then(|r| r.disk_mib)
        .or(spec.disk_mib);
    status.disks.retain_mut(|disk| {
        disk.path = String::new();
        let asked = if disk.name == "root" {
            root
        } else {
            let named = spec.disks.iter().find(|d| d.name == disk.name);
            named.and_then(|d| d.size_mib)
        };
        disk.detached || asked.is_none_or(|asked| asked < disk.size_mib)
    });
    status.disks.shrink_to_fit();
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::controller::placement::{Candidate, Request, place};
    use crate::controller::testing::{Random, roomy};
    use serde_json::json;
    use virtshell_crds::{Driver, HostType};

    fn instance(uid: &str, host: Option<&str>, memory: i64) -> Arc<Instance> {
        let finalizers: Vec<&str> = host.iter().map(|_| FINALIZER_DOMAIN).collect();
        Arc::new(
            serde_json::from_value(json!({
                "apiVersion": "virtshell.io/v1alpha1", "kind": "Instance",
                "metadata": {"name": uid, "uid": uid, "finalizers": finalizers},
                "spec": {"blank": true, "host": host, "memoryMiB": memory, "diskMiB": 10},
                "status": {"resolved": {"memoryMiB": memory, "cpus": 1, "diskMiB": 10}},
            }))
            .unwrap(),
        )
    }

    fn seen(new: Option<Arc<Instance>>, old: Option<Arc<Instance>>) -> Change<Instance> {
        Change { old, new }
    }

    #[test]
    fn a_disk_counts_as_it_is_once_that_is_known() {
        let image = |size: Option<i64>| json!({"name": "data", "image": "i", "sizeMiB": size});
        let made = |name: &str, size: i64, detached: bool| json!({"name": name, "path": "/p", "sizeMiB": size, "detached": detached});
        for (rule, disks, there, expected) in [
            ("the root alone", json!([]), json!([]), 100),
            (
                "an empty disk",
                json!([{"name": "data", "sizeMiB": 50}]),
                json!([]),
                150,
            ),
            ("an image with a size", json!([image(Some(50))]), json!([]), 150),
            (
                "an image of unknown size",
                json!([image(None)]),
                json!([]),
                100 + DEFAULT_DISK_MIB,
            ),
            (
                "an image whose disk is there",
                json!([image(None)]),
                json!([made("data", 7, false)]),
                107,
            ),
            (
                "an image larger than its disk was to be",
                json!([image(Some(5))]),
                json!([made("data", 7, false)]),
                107,
            ),
            (
                "a root that its image makes larger",
                json!([]),
                json!([made("root", 300, false)]),
                300,
            ),
            (
                "a root that is to grow",
                json!([]),
                json!([made("root", 50, false)]),
                100,
            ),
            (
                "a disk that was detached",
                json!([]),
                json!([made("old", 7, true), made("root", 100, false)]),
                107,
            ),
            (
                "another one of its name",
                json!([{"name": "old", "sizeMiB": 5}]),
                json!([made("old", 7, true)]),
                112,
            ),
        ] {
            let mut instance = Instance::clone(&instance("u", Some("h"), 1));
            instance.spec.disks = serde_json::from_value(disks).unwrap();
            let status = instance.status.as_mut().unwrap();
            status.resolved.as_mut().unwrap().disk_mib = Some(100);
            status.disks = serde_json::from_value(there).unwrap();
            assert_eq!(demand(&instance).disk_mib, expected, "{rule}");
            strip_disks(&instance.spec, instance.status.as_mut().unwrap());
            assert_eq!(demand(&instance).disk_mib, expected, "{rule}: of what is kept");
        }
        let mut plain = Instance::clone(&instance("u", Some("h"), 1));
        let status = plain.status.as_mut().unwrap();
        status.disks = serde_json::from_value(json!([made("root", 10, false)])).unwrap();
        strip_disks(&plain.spec, status);
        assert!(status.disks.is_empty(), "what the spec says is not kept twice");
    }

    const DEMAND: Demand = Demand {
        cpus: 1,
        memory_mib: 100,
        disk_mib: 10,
    };

    #[test]
    fn an_assumption_holds_until_the_cache_agrees_or_it_is_forgotten() {
        let mut ledger = Ledger::default();
        ledger.assume("u", "h", DEMAND);
        let unbound = instance("u", None, 100);
        ledger.observe(&seen(Some(unbound.clone()), None));
        assert_eq!(
            ledger.used("h").memory_mib,
            100,
            "an older event does not undo it"
        );
        let bound = instance("u", Some("h"), 100);
        ledger.observe(&seen(Some(bound.clone()), Some(unbound)));
        ledger.forget("u");
        assert_eq!(ledger.used("h").memory_mib, 100, "seen bound: not forgotten");
        let slot = ledger.slot("h");
        assert_eq!(ledger.used_by_others("u")(slot), Used::default());
        ledger.observe(&seen(None, Some(bound)));
        assert_eq!(ledger.used("h"), Used::default());
        ledger.assume("v", "h", DEMAND);
        ledger.forget("v");
        assert_eq!(ledger.used("h"), Used::default());
    }

    #[test]
    fn room_appears_when_something_goes_or_shrinks() {
        let at = |host, memory| Some(instance("u", Some(host), memory));
        for (rule, old, new, freed) in [
            ("comes", None, at("h", 100), &[][..]),
            ("grows", at("h", 100), at("h", 200), &[]),
            ("shrinks", at("h", 200), at("h", 100), &["h"]),
            ("moves", at("h", 100), at("g", 100), &["h"]),
            ("goes", at("h", 100), None, &["h"]),
        ] {
            let mut ledger = Ledger::default();
            ledger.observe(&seen(old.clone(), None));
            ledger.observe(&seen(new, old));
            let told: Vec<String> = ledger.take_freed().into_iter().collect();
            assert_eq!(told, freed, "{rule}");
            assert!(ledger.take_freed().is_empty(), "{rule}: told once");
        }
        let mut ledger = Ledger::default();
        ledger.assume("u", "h", DEMAND);
        ledger.forget("u");
        assert_eq!(ledger.take_freed().len(), 1, "a binding that was not written");
    }

    /// However late the watch shows what was decided, and whatever fails meanwhile, no host gets more than it has.
    #[test]
    fn decisions_that_the_watch_has_not_shown_are_not_made_twice() {
        for seed in 0..500 {
            let random = &mut Random::new(seed);
            let mut ledger = Ledger::default();
            // Decided and written, but not shown yet.
            let mut late: Vec<Arc<Instance>> = Vec::new();
            let mut shown: Vec<Arc<Instance>> = Vec::new();
            for n in 0..60 {
                match random.below(4) {
                    0 | 1 => {
                        let uid = n.to_string();
                        let memory_mib = random.below(500) as i64 + 1;
                        let demand = Demand { memory_mib, ..DEMAND };
                        let request = Request {
                            environment: "e",
                            driver: Driver::Kvm,
                            host_type: HostType::GeneralPurpose,
                            demand,
                        };
                        let hosts = ["x", "y"].map(|name| (name, ledger.slot(name)));
                        let hosts = hosts.map(|(name, slot)| Candidate {
                            used: ledger.used_by_others(&uid)(slot),
                            ..roomy(name, 1000, 10_000)
                        });
                        let Ok(host) = place(&request, &hosts) else {
                            continue;
                        };
                        ledger.assume(&uid, host, demand);
                        if random.below(5) == 0 {
                            ledger.forget(&uid);
                        } else {
                            ledger.observe(&seen(Some(instance(&uid, None, memory_mib)), None));
                            late.push(instance(&uid, Some(host), memory_mib));
                        }
                    }
                    2 if !late.is_empty() => {
                        let bound = late.swap_remove(random.below(late.len() as u64) as usize);
                        ledger.observe(&seen(Some(bound.clone()), None));
                        shown.push(bound);
                    }
                    3 if !shown.is_empty() => {
                        let gone = shown.swap_remove(random.below(shown.len() as u64) as usize);
                        ledger.observe(&seen(None, Some(gone)));
                    }
                    _ => {}
                }
                for host in ["x", "y"] {
                    let there = late
                        .iter()
                        .chain(&shown)
                        .filter(|i| i.spec.host.as_deref() == Some(host));
                    let taken: i64 = there.filter_map(|i| i.spec.memory_mib).sum();
                    assert!(taken <= 1000, "seed {seed}");
                    assert_eq!(ledger.used(host).memory_mib, taken, "seed {seed}");
                }
            }
        }
    }

    /// Whatever happens in whatever order, the sums are those of the entries.
    #[test]
    fn sums_agree_with_entries() {
        let (uids, hosts) = (["a", "b", "c", "d", "e"], ["x", "y", "z"]);
        for seed in 0..500 {
            let random = &mut Random::new(seed);
            let mut ledger = Ledger::default();
            for _ in 0..60 {
                let (uid, host) = (uids[random.below(5) as usize], hosts[random.below(3) as usize]);
                let memory = random.below(500) as i64;
                match random.below(4) {
                    0 => ledger.assume(
                        uid,
                        host,
                        Demand {
                            memory_mib: memory,
                            ..DEMAND
                        },
                    ),
                    1 => ledger.forget(uid),
                    2 => {
                        ledger.observe(&seen(Some(instance(uid, Some(host), memory)), None));
                    }
                    _ => {
                        ledger.observe(&seen(None, Some(instance(uid, Some(host), memory))));
                    }
                }
            }
            for host in hosts {
                let mut sum = Used::default();
                for entry in ledger.entries.values().filter(|e| ledger.hosts[e.at.0].0 == host) {
                    sum.add(entry.demand);
                }
                assert_eq!(ledger.used(host), sum, "seed {seed}");
            }
        }
    }
}
