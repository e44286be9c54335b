//! What all hosts offer, side by side: a decision of placement looks at every host, and objects that are spread over memory
//! would cost it most of its time.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use virtshell_crds::condition::{self, ACCEPTED, READY, STORAGE_HEALTHY, Status};
use virtshell_crds::{Driver, Host, HostType};

use super::cache::{Cache, Cached};
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
    drivers: Vec<Driver>,
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
        let offers = |driver: &Driver| {
            if spec.drivers.is_empty() {
                status.is_some_and(|s| s.drivers.contains(driver))
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
            drivers: [Driver::Kvm, Driver::Qemu, Driver::Lxc]
                .into_iter()
                .filter(offers)
                .collect(),
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
            offers_driver: self.drivers.contains(&driver),
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

/// The offers of all hosts, made anew when one of them has changed.
#[derive(Default)]
pub struct Roster(Mutex<Option<Arc<[Offer]>>>);

impl Roster {
    /// As they are now.
    pub fn of(&self, hosts: &Cache<Host>) -> Arc<[Offer]> {
        // Read under the lock: a change that is not in it yet will take it away again.
        self.lock()
            .get_or_insert_with(|| hosts.all().iter().map(|host| Offer::of(host)).collect())
            .clone()
    }

    /// One has changed; the cache has it.
    pub fn forget(&self) {
        *self.lock() = None;
    }

    fn lock(&self) -> MutexGuard<'_, Option<Arc<[Offer]>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
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
        let shown = |o: &Offer| (o.memory_mib, o.disk_mib, o.drivers.clone(), o.ready, o.enabled);
        assert_eq!(
            shown(&reported),
            (100, 200, vec![Driver::Kvm, Driver::Lxc], true, true)
        );
        let own = json!({"enabled": false, "memoryMiB": 7, "diskMiB": 8, "drivers": ["QEMU", "docker"]});
        let declared = Offer::of(&host(&own, &status));
        assert_eq!(shown(&declared), (7, 8, vec![Driver::Qemu], true, false));
        let silent = Offer::of(&host(&json!({"enabled": true}), &json!({})));
        assert_eq!(shown(&silent), (0, 0, vec![], false, true));
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
        cache.store(host(&json!({"section": "a"}), &json!({})));
        let first = roster.of(&cache);
        assert_eq!(first[0].section.as_deref(), Some("a"));
        assert!(Arc::ptr_eq(&first, &roster.of(&cache)));
        let mut moved = host(&json!({"section": "b"}), &json!({}));
        moved.metadata.resource_version = Some("2".to_owned());
        cache.store(moved);
        roster.forget();
        assert_eq!(roster.of(&cache)[0].section.as_deref(), Some("b"));
    }
}
