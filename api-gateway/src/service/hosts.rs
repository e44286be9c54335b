//! Machines that run instances.

use std::collections::BTreeSet;
use std::sync::Arc;

use virtshell_crds::host::DriverWord;
use virtshell_crds::{Host, HostSpec, HostType, Instance, Section};

use super::error::object_name;
use super::objects::{keeps_name, put, set};
use super::{Caller, Holder, Kind, Service, ServiceError};
use crate::store::{Cached, by};

/// Values of a host; what is absent stays as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostChange {
    /// Must be the host's own.
    pub name: Option<String>,
    /// Operating system, for people.
    pub os: Option<String>,
    /// Memory for guests in MiB.
    pub memory_mib: Option<i64>,
    /// Disk for guests in MiB.
    pub disk_mib: Option<i64>,
    /// Whether new instances may be placed here.
    pub enabled: Option<bool>,
    /// What the machine is good for.
    pub host_type: Option<HostType>,
    /// Address.
    pub local_ipv4: Option<String>,
    /// Address.
    pub local_ipv6: Option<String>,
    /// Address.
    pub public_ipv4: Option<String>,
    /// Address.
    pub public_ipv6: Option<String>,
    /// Name or uuid of its section.
    pub section: Option<String>,
    /// Drivers it offers.
    pub drivers: Option<Vec<String>>,
    /// The Kubernetes node whose agent serves it.
    pub node_name: Option<String>,
}

impl HostChange {
    fn apply(self, spec: &mut HostSpec) {
        put(&mut spec.os, self.os);
        put(&mut spec.memory_mib, self.memory_mib);
        put(&mut spec.disk_mib, self.disk_mib);
        put(&mut spec.enabled, self.enabled);
        put(&mut spec.type_, self.host_type);
        put(&mut spec.local_ipv4, self.local_ipv4);
        put(&mut spec.local_ipv6, self.local_ipv6);
        put(&mut spec.public_ipv4, self.public_ipv4);
        put(&mut spec.public_ipv6, self.public_ipv6);
        set(&mut spec.section, self.section);
        put(
            &mut spec.drivers,
            self.drivers
                .map(|words| words.into_iter().map(DriverWord).collect()),
        );
        set(&mut spec.node_name, self.node_name);
    }
}

impl Service {
    /// Registers a host.
    pub async fn create_host(
        &self,
        caller: &Caller,
        name: &str,
        change: HostChange,
    ) -> Result<Arc<Host>, ServiceError> {
        self.check_new_name::<Host>(name)?;
        let change = self.with_known_section(change)?;
        self.create(caller, name, |metadata| {
            let mut spec = HostSpec {
                display_name: Some(name.to_owned()),
                enabled: true,
                ..HostSpec::default()
            };
            change.clone().apply(&mut spec);
            Host {
                metadata,
                spec,
                status: None,
            }
        })
        .await
    }

    /// Changes a host.
    pub async fn update_host(
        &self,
        caller: &Caller,
        host: &Arc<Host>,
        change: HostChange,
    ) -> Result<(), ServiceError> {
        keeps_name(change.name.as_ref(), host.wire_name())?;
        let change = self.with_known_section(change)?;
        self.change(caller, host, |host| {
            if let Some(section) = &change.section {
                self.may_leave_for(host, section)?;
            }
            change.clone().apply(&mut host.spec);
            Ok(())
        })
        .await?;
        Ok(())
    }

    /// Removes a host that runs nothing.
    pub async fn delete_host(&self, host: &Host) -> Result<(), ServiceError> {
        if let Some(by) = Holder::instances(&self.instances_on(host)) {
            return Err(in_use(host, by));
        }
        self.remove(host).await
    }

    /// Instances placed on a host, by name.
    #[must_use]
    pub fn instances_on(&self, host: &Host) -> Vec<Arc<Instance>> {
        let mut instances = self.store.instances.by_key(by::HOST, object_name(host));
        instances.sort_by(|a, b| a.wire_name().cmp(b.wire_name()));
        instances
    }

    /// Refuses to take a host out of its section while instances of the section's environments are there. `section` is where it goes.
    pub(super) fn may_leave_for(&self, host: &Host, section: &str) -> Result<(), ServiceError> {
        let Some(present) = &host.spec.section else {
            return Ok(());
        };
        let Some(present) = self.named::<Section>(present) else {
            return Ok(());
        };
        if present.wire_name() == section {
            return Ok(());
        }
        let environments: BTreeSet<String> = self
            .instances_on(host)
            .iter()
            .filter_map(|instance| self.environment_of(instance))
            .filter(|environment| {
                self.section_of(environment)
                    .is_some_and(|s| s.metadata.uid == present.metadata.uid)
            })
            .map(|environment| environment.wire_name().to_owned())
            .collect();
        match environments.into_iter().next() {
            Some(environment) => Err(in_use(host, Holder::InstancesOf { environment })),
            None => Ok(()),
        }
    }

    fn with_known_section(&self, mut change: HostChange) -> Result<HostChange, ServiceError> {
        if let Some(section) = &change.section {
            change.section = Some(self.reference::<Section>(section)?.wire_name().to_owned());
        }
        Ok(change)
    }
}

fn in_use(host: &Host, by: Holder) -> ServiceError {
    ServiceError::InUse {
        kind: Kind::Host,
        name: host.wire_name().to_owned(),
        by,
    }
}
