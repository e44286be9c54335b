//! What all hosts offer, side by side: a decision of placement looks at every host, and objects that are spread over memory
//! would cost it most of its time. So all that can be known before the decision stands here: which hosts live, which of them an
//! Environment has, and where in the ledger their sums are.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use tokio::time::Instant;
use virtshell_crds::condition::{self, ACCEPTED, READY, STORAGE_HEALTHY, Status};
use virtshell_crds::{Driver, Host, HostType};

use super::cache::{Cache, Cached, ObjectKey};
use super::ledger::Slot;
use super::placement::{Candidate, Reach, Used};
use super::wire_name::NAME_CONFLICT;

/// What a host says of itself, as far as placement goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offer {
    /// metadata.name.
    pub name: String,
    /// The name people know it by.
    pub wire_name: String,
    /// The name of its Section.
    pub section: Option<String>,
    enabled: bool,
    has_its_name: bool,
    type_: HostType,
    /// By [`Driver`].
    drivers: [bool; 3],
    ready: bool,
    has_room: bool,
    /// Memory for guests, in MiB: declared, else reported, else 0.
    pub memory_mib: i64,
    /// Disk for guests, in MiB, likewise.
    pub disk_mib: i64,
}

impl Offer {
    /// That of a host.
    #[must_use]
    pub fn of(host: &Host) -> Self {
        let spec = &host.spec;
        let status = host.status.as_ref();
        let capacity = status.and_then(|s| s.capacity.as_ref());
        let offers = |driver: Driver| {
            if spec.drivers.is_empty() {
                status.is_some_and(|s| s.drivers.contains(&driver))
            } else {
                spec.drivers
                    .iter()
                    .any(|d| d.0.eq_ignore_ascii_case(driver.as_str()))
            }
        };
        let declared = |own: i64, reported: Option<i64>| {
            if own > 0 {
                own
            } else {
                reported.unwrap_or_default()
            }
        };
        let said = |type_| find(host, type_);
        Self {
            name: host.metadata.name.clone().unwrap_or_default(),
            wire_name: host.wire_name().to_owned(),
            section: spec.section.clone(),
            enabled: spec.enabled && host.metadata.deletion_timestamp.is_none(),
            // One that has not been looked at has its name.
            has_its_name: said(ACCEPTED).is_none_or(|c| c.reason != NAME_CONFLICT),
            type_: spec.type_,
            drivers: [Driver::Kvm, Driver::Qemu, Driver::Lxc].map(offers),
            ready: said(READY).is_some_and(|c| c.status == Status::True.as_str()),
            // One that has not said that its disks are nearly full has room.
            has_room: said(STORAGE_HEALTHY).is_none_or(|c| c.status != Status::False.as_str()),
            memory_mib: declared(spec.memory_mib, capacity.map(|c| c.memory_mib)),
            disk_mib: declared(spec.disk_mib, capacity.map(|c| c.disk_mib)),
        }
    }

    /// The host as a place for an Instance with this driver. Whether it has been heard of lately, and what is taken there, is
    /// left to say.
    #[must_use]
    pub fn candidate(&self, reach: Reach, driver: Driver) -> Candidate<'_> {
        Candidate {
            name: &self.name,
            reach,
            enabled: self.enabled,
            has_its_name: self.has_its_name,
            type_: self.type_,
            offers_driver: self.drivers[driver as usize],
            ready: self.ready,
            has_room: self.has_room,
            memory_mib: self.memory_mib,
            disk_mib: self.disk_mib,
            used: Used::default(),
        }
    }
}

fn find<'a>(host: &'a Host, type_: &str) -> Option<&'a Condition> {
    condition::find(&host.status.as_ref()?.conditions, type_)
}

/// A host and what is known of it beside its offer.
#[derive(Clone, Debug)]
pub struct Listed {
    /// What it offers.
    pub offer: Offer,
    /// Whether it has been heard of lately.
    pub is_heard: bool,
    /// Where its sums are.
    pub slot: Slot,
}

/// The hosts as they are until something changes.
struct List {
    hosts: Arc<[Listed]>,
    /// When the first of them could fall silent.
    until: Option<Instant>,
    /// Which of them an Environment has.
    reaches: HashMap<ObjectKey, Arc<[Reach]>>,
}

/// All hosts, listed anew when one of them, a Section or an Environment has changed.
#[derive(Default)]
pub struct Roster(Mutex<Option<List>>);

impl Roster {
    /// The hosts as they are now; `until_silent` says how long one may stay silent (`None` = it is), `slot` where its sums are.
    pub fn of(
        &self,
        hosts: &Cache<Host>,
        now: Instant,
        until_silent: impl Fn(&str) -> Option<Duration>,
        mut slot: impl FnMut(&str) -> Slot,
    ) -> Arc<[Listed]> {
        // Read under the lock: a change that is not in it yet will take it away again.
        let mut list = self.lock();
        if let Some(list) = &*list
            && list.until.is_none_or(|until| now < until)
        {
            return list.hosts.clone();
        }
        let mut until: Option<Instant> = None;
        let listed = hosts.all().into_iter().map(|host| {
            let offer = Offer::of(&host);
            let left = until_silent(&offer.name);
            let silent_at = left.map(|left| now + left);
            until = [until, silent_at].into_iter().flatten().min();
            Listed {
                is_heard: left.is_some(),
                slot: slot(&offer.name),
                offer,
            }
        });
        let hosts: Arc<[Listed]> = listed.collect();
        *list = Some(List {
            hosts: hosts.clone(),
            until,
            reaches: HashMap::new(),
        });
        hosts
    }

    /// Which of the `listed` hosts an Environment has; `find` says it of each. It runs under the lock, as above, and must look
    /// the Environment up itself.
    pub fn reaches(
        &self,
        listed: &Arc<[Listed]>,
        environment: &ObjectKey,
        find: impl FnOnce() -> Arc<[Reach]>,
    ) -> Arc<[Reach]> {
        match &mut *self.lock() {
            Some(list) if Arc::ptr_eq(&list.hosts, listed) => {
                if let Some(known) = list.reaches.get(environment) {
                    return known.clone();
                }
                let found = find();
                list.reaches.insert(environment.clone(), found.clone());
                found
            }
            Some(_) | None => find(),
        }
    }

    /// Something has changed; the caches have it.
    pub fn forget(&self) {
        *self.lock() = None;
    }

    fn lock(&self) -> MutexGuard<'_, Option<List>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::controller::ledger::Ledger;
    use serde_json::{Value, json};

    fn host(spec: &Value, status: &Value) -> Host {
        serde_json::from_value(json!({
            "apiVersion": "virtshell.io/v1alpha1", "kind": "Host", "metadata": {"name": "h", "uid": "h", "resourceVersion": "1"},
            "spec": spec, "status": status,
        }))
        .unwrap()
    }

    fn said(type_: &str, status: &str, reason: &str) -> Value {
        json!({"type": type_, "status": status, "reason": reason, "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"})
    }

    #[test]
    fn what_is_declared_wins_over_what_is_reported() {
        let status = json!({
            "capacity": {"cpus": 1, "memoryMiB": 100, "diskMiB": 200}, "drivers": ["kvm", "lxc"],
            "conditions": [said("Ready", "True", "Serving")],
        });
        let reported = Offer::of(&host(&json!({"enabled": true}), &status));
        let shown = |o: &Offer| (o.memory_mib, o.disk_mib, o.drivers, o.ready, o.enabled);
        assert_eq!(shown(&reported), (100, 200, [true, false, true], true, true));
        let own = json!({"enabled": false, "memoryMiB": 7, "diskMiB": 8, "drivers": ["QEMU", "docker"]});
        let declared = Offer::of(&host(&own, &status));
        assert_eq!(shown(&declared), (7, 8, [false, true, false], true, false));
        let silent = Offer::of(&host(&json!({"enabled": true}), &json!({})));
        assert_eq!(shown(&silent), (0, 0, [false; 3], false, true));
        assert!(silent.has_room && silent.has_its_name);
        let troubled = json!({"conditions": [
            said("StorageHealthy", "False", "NearlyFull"), said("Accepted", "False", "NameConflict"),
        ]});
        let troubled = Offer::of(&host(&json!({}), &troubled));
        assert!(!troubled.has_room && !troubled.has_its_name);
        let homeless = json!({"conditions": [said("Accepted", "False", "SectionNotFound")]});
        assert!(Offer::of(&host(&json!({}), &homeless)).has_its_name);
    }

    #[test]
    fn it_is_made_anew_after_a_change_only() {
        let (cache, roster) = (Cache::default(), Roster::default());
        let mut ledger = Ledger::default();
        let mut of = |roster: &Roster| {
            let minute = |_: &str| Some(Duration::from_mins(1));
            roster.of(&cache, Instant::now(), minute, |name| ledger.slot(name))
        };
        cache.store(host(&json!({"section": "a"}), &json!({})));
        let first = of(&roster);
        assert_eq!(first[0].offer.section.as_deref(), Some("a"));
        assert!(Arc::ptr_eq(&first, &of(&roster)));
        let mut moved = host(&json!({"section": "b"}), &json!({}));
        moved.metadata.resource_version = Some("2".to_owned());
        cache.store(moved);
        roster.forget();
        assert_eq!(of(&roster)[0].offer.section.as_deref(), Some("b"));
    }

    #[test]
    fn it_holds_until_the_first_host_could_be_silent() {
        let (cache, roster, start) = (Cache::default(), Roster::default(), Instant::now());
        cache.store(host(&json!({}), &json!({})));
        let mut ledger = Ledger::default();
        let mut heard = |seconds: u64, left: Option<u64>| {
            let now = start + Duration::from_secs(seconds);
            let left = left.map(Duration::from_secs);
            roster.of(&cache, now, |_| left, |name| ledger.slot(name))[0].is_heard
        };
        assert!(heard(0, Some(40)));
        assert!(heard(39, None), "not asked again");
        assert!(!heard(40, None));
        assert!(!heard(1000, Some(40)), "that it is back must be told");
        roster.forget();
        assert!(heard(1000, Some(40)));
    }

    #[test]
    fn what_an_environment_has_is_found_once_per_list() {
        let (cache, roster) = (Cache::default(), Roster::default());
        cache.store(host(&json!({}), &json!({})));
        let mut ledger = Ledger::default();
        let mut of = || roster.of(&cache, Instant::now(), |_| None, |name| ledger.slot(name));
        let named = |name: &str| ObjectKey {
            namespace: "n".to_owned(),
            name: name.to_owned(),
        };
        let first = of();
        let found = |list, name, reach| roster.reaches(list, &named(name), || Arc::new([reach]))[0];
        assert_eq!(found(&first, "e", Reach::Inside), Reach::Inside);
        assert_eq!(found(&first, "e", Reach::Outside), Reach::Inside, "known");
        assert_eq!(found(&first, "f", Reach::Outside), Reach::Outside, "another one");
        roster.forget();
        assert_eq!(found(&first, "e", Reach::Outside), Reach::Outside, "an old list");
        let second = of();
        assert_eq!(found(&first, "e", Reach::Inside), Reach::Inside, "an old list");
        assert_eq!(found(&second, "e", Reach::Outside), Reach::Outside, "made anew");
    }
}
