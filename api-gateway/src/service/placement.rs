//! Which hosts an environment may use, and whether any of them could ever run an instance.
//!
//! The controller places; here is only what a create can refuse at once. Readiness and capacity change by the minute
//! and are not looked at.

use std::collections::BTreeMap;
use std::sync::Arc;

use virtshell_crds::{Driver, Environment, Host, HostType, Section};

use super::error::object_name;
use super::{Lacking, Service};
use crate::store::{Cached, by};

impl Service {
    /// Hosts of the environment's section and those it names, by name. Names without a host are ignored.
    #[must_use]
    pub fn eligible_hosts(&self, environment: &Environment) -> Vec<Arc<Host>> {
        let mut hosts: BTreeMap<String, Arc<Host>> = BTreeMap::new();
        let section = environment
            .spec
            .section
            .as_deref()
            .and_then(|name| self.named::<Section>(name));
        if let Some(section) = section.filter(|section| self.is_usable(section)) {
            for host in self.hosts_of(&section) {
                hosts.insert(host.wire_name().to_owned(), host);
            }
        }
        for host in environment
            .spec
            .hosts
            .iter()
            .filter_map(|name| self.named::<Host>(name))
        {
            hosts.insert(host.wire_name().to_owned(), host);
        }
        hosts.into_values().collect()
    }

    /// Hosts that name this section, by name.
    #[must_use]
    pub fn hosts_of(&self, section: &Section) -> Vec<Arc<Host>> {
        let mut hosts = self.store.hosts.by_key(by::CONTAINER, section.wire_name());
        if object_name(section) != section.wire_name() {
            // A spec may say metadata.name, unless that is another section's wire name.
            let others = self.store.hosts.by_key(by::CONTAINER, object_name(section));
            hosts.extend(others.into_iter().filter(|host| {
                let named = host
                    .spec
                    .section
                    .as_deref()
                    .and_then(|name| self.named::<Section>(name));
                named.is_some_and(|named| named.metadata.uid == section.metadata.uid)
            }));
        }
        hosts.sort_by(|a, b| a.wire_name().cmp(b.wire_name()));
        hosts
    }

    /// Whether environments of this namespace may use the section.
    fn is_usable(&self, section: &Section) -> bool {
        let namespaces = &section.spec.namespaces;
        namespaces.is_empty()
            || namespaces
                .iter()
                .any(|namespace| namespace == self.store.namespace())
    }
}

/// What none of these hosts has; `None` when one of them could run the instance.
#[must_use]
pub fn lacking<'a>(
    hosts: impl IntoIterator<Item = &'a Host>,
    wanted: HostType,
    driver: Driver,
) -> Option<Lacking> {
    let mut fitting = hosts
        .into_iter()
        .filter(|host| host.spec.enabled && host.spec.type_.serves(wanted))
        .peekable();
    if fitting.peek().is_none() {
        return Some(Lacking::HostType);
    }
    (!fitting.any(|host| offers(host, driver))).then_some(Lacking::Driver)
}

/// Whether a host offers a driver. One that neither declares nor reports any may turn out to.
fn offers(host: &Host, driver: Driver) -> bool {
    if !host.spec.drivers.is_empty() {
        return host
            .spec
            .drivers
            .iter()
            .any(|word| word.0.eq_ignore_ascii_case(driver.as_str()));
    }
    let reported = host
        .status
        .as_ref()
        .map(|status| status.drivers.as_slice())
        .unwrap_or_default();
    reported.is_empty() || reported.contains(&driver)
}

#[cfg(test)]
mod tests {
    use virtshell_crds::host::DriverWord;

    use super::*;

    fn host(type_: HostType, enabled: bool, declared: &[&str], reported: &[Driver]) -> Host {
        let mut host = Host::default();
        host.spec.type_ = type_;
        host.spec.enabled = enabled;
        host.spec.drivers = declared
            .iter()
            .map(|word| DriverWord((*word).to_owned()))
            .collect();
        host.status.get_or_insert_default().drivers = reported.to_vec();
        host
    }

    #[test]
    fn some_enabled_host_must_have_type_and_driver() {
        use Driver::{Kvm, Lxc};
        use HostType::{ComputeOptimized, GeneralPurpose, HighPerformance, MemoryOptimized};
        let general = |declared: &[&str], reported: &[Driver]| host(GeneralPurpose, true, declared, reported);
        for (rule, hosts, wanted, driver, expected) in [
            ("no host", vec![], GeneralPurpose, Kvm, Some(Lacking::HostType)),
            (
                "nothing known of its drivers",
                vec![general(&[], &[])],
                GeneralPurpose,
                Kvm,
                None,
            ),
            (
                "another type",
                vec![general(&[], &[])],
                MemoryOptimized,
                Kvm,
                Some(Lacking::HostType),
            ),
            (
                "disabled",
                vec![host(GeneralPurpose, false, &[], &[])],
                GeneralPurpose,
                Kvm,
                Some(Lacking::HostType),
            ),
            (
                "compute is high performance",
                vec![host(HighPerformance, true, &[], &[])],
                ComputeOptimized,
                Kvm,
                None,
            ),
            (
                "reported drivers",
                vec![general(&[], &[Lxc])],
                GeneralPurpose,
                Kvm,
                Some(Lacking::Driver),
            ),
            (
                "declared ones come first",
                vec![general(&["KVM"], &[Lxc])],
                GeneralPurpose,
                Kvm,
                None,
            ),
            (
                "declared, other",
                vec![general(&["docker"], &[Kvm])],
                GeneralPurpose,
                Kvm,
                Some(Lacking::Driver),
            ),
            (
                "one of two",
                vec![general(&["lxc"], &[]), general(&["kvm"], &[])],
                GeneralPurpose,
                Kvm,
                None,
            ),
        ] {
            assert_eq!(lacking(&hosts, wanted, driver), expected, "{rule}");
        }
    }
}
