//! The values an instance has, as far as they are known now.
//!
//! Frozen by the controller in `status.resolved`; until that is there, the same rules applied to what the instance
//! refers to.

use std::collections::BTreeMap;
use std::sync::Arc;

use virtshell_crds::resolve::{self, DEFAULT_ENVIRONMENT, NamedImage};
use virtshell_crds::{Driver, Environment, HostType, Image, Instance, Launch, Phase, Provisioner, launch};

use super::Service;
use super::error::object_name;
use crate::store::{Cached, by};

/// The values of an instance.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Effective {
    /// Name of its environment.
    pub environment: String,
    /// How it runs.
    pub driver: Option<Driver>,
    /// Kind of host.
    pub host_type: HostType,
    /// Virtual CPUs.
    pub cpus: Option<i32>,
    /// Memory in MiB.
    pub memory_mib: Option<i64>,
    /// Root disk in MiB.
    pub disk_mib: Option<i64>,
    /// How many were asked for.
    pub launch: Launch,
    /// Name of its image.
    pub image: Option<String>,
}

/// IPv4 and IPv6 addresses of an instance: the declared one of a family, else those observed.
#[must_use]
pub fn addresses(instance: &Instance) -> [&[String]; 2] {
    let declared = instance.spec.addresses.as_ref();
    let status = instance.status.as_ref();
    let observed = status.and_then(|status| status.addresses.as_ref());
    [
        family(declared.map(|a| &a.ipv4), observed.map(|a| &a.ipv4)),
        family(declared.map(|a| &a.ipv6), observed.map(|a| &a.ipv6)),
    ]
}

fn family<'a>(declared: Option<&'a String>, observed: Option<&'a Vec<String>>) -> &'a [String] {
    match declared.filter(|address| !address.is_empty()) {
        Some(address) => std::slice::from_ref(address),
        None => observed.map(Vec::as_slice).unwrap_or_default(),
    }
}

impl Service {
    /// The values of an instance.
    #[must_use]
    pub fn effective(&self, instance: &Instance) -> Effective {
        let spec = &instance.spec;
        let frozen = instance
            .status
            .as_ref()
            .and_then(|status| status.resolved.as_ref());
        if let Some(frozen) = frozen {
            return Effective {
                environment: frozen.environment.clone(),
                driver: frozen.driver,
                host_type: frozen.host_type.unwrap_or_default(),
                // A later change of its own sizes counts before the controller has frozen it again.
                cpus: spec.cpus.or(frozen.cpus),
                memory_mib: spec.memory_mib.or(frozen.memory_mib),
                disk_mib: spec.disk_mib.or(frozen.disk_mib),
                launch: frozen.launch.unwrap_or_default(),
                image: frozen
                    .image
                    .as_ref()
                    .map(|image| image.name.clone())
                    .or_else(|| spec.image.clone()),
            };
        }
        let provisioner = spec
            .provisioner
            .as_deref()
            .and_then(|name| self.named::<Provisioner>(name));
        let provisioner = provisioner.as_deref().map(|p| &p.spec);
        let name = resolve::image_name(spec, provisioner);
        let image = name.and_then(|name| self.named::<Image>(name));
        let named = image.as_deref().map(|image| NamedImage {
            name: name.unwrap_or_default(),
            spec: &image.spec,
        });
        let resolved = resolve::resolve(spec, provisioner, named, &BTreeMap::new()).ok();
        Effective {
            environment: spec
                .environment
                .clone()
                .unwrap_or_else(|| DEFAULT_ENVIRONMENT.to_owned()),
            driver: resolved.as_ref().map_or(spec.driver, |r| r.driver),
            host_type: spec.host_type.unwrap_or_default(),
            cpus: resolved.as_ref().map_or(spec.cpus, |r| r.cpus),
            memory_mib: resolved.as_ref().map_or(spec.memory_mib, |r| r.memory_mib),
            disk_mib: resolved.as_ref().map_or(spec.disk_mib, |r| r.disk_mib),
            launch: spec
                .launch
                .or(provisioner.and_then(|p| p.launch))
                .unwrap_or_default(),
            image: name.map(str::to_owned),
        }
    }

    /// Whether the instance stands for a group of launched ones and has no guest of its own.
    #[must_use]
    pub fn is_launch_parent(&self, instance: &Instance) -> bool {
        let spec = &instance.spec;
        let frozen = instance
            .status
            .as_ref()
            .and_then(|s| s.resolved.as_ref())
            .and_then(|r| r.launch);
        let launch = frozen.or(spec.launch).or_else(|| {
            let provisioner = spec
                .provisioner
                .as_deref()
                .and_then(|name| self.named::<Provisioner>(name));
            provisioner.and_then(|p| p.spec.launch)
        });
        launch.is_some_and(|launch| launch.max > 1)
    }

    /// The launched instances of a parent, by name.
    #[must_use]
    pub fn children(&self, parent: &Instance) -> Vec<Arc<Instance>> {
        let mut children = self
            .store
            .instances
            .by_key(by::LAUNCH_PARENT, object_name(parent));
        children.sort_by(|a, b| a.wire_name().cmp(b.wire_name()));
        children
    }

    /// The environment an instance is in.
    #[must_use]
    pub fn environment_of(&self, instance: &Instance) -> Option<Arc<Environment>> {
        self.named(
            instance
                .spec
                .environment
                .as_deref()
                .unwrap_or(DEFAULT_ENVIRONMENT),
        )
    }

    /// The name of the host an instance is on, or bound to.
    #[must_use]
    pub fn host_name(&self, instance: &Instance) -> Option<String> {
        let name = instance
            .status
            .as_ref()
            .and_then(|s| s.host.as_ref())
            .or(instance.spec.host.as_ref())?;
        let host = self.store.hosts.by_object_name(name);
        Some(host.map_or_else(|| name.clone(), |host| host.wire_name().to_owned()))
    }

    /// What state an instance is in, for people; a parent is as far as the least of its children.
    #[must_use]
    pub fn phase(&self, instance: &Instance) -> Phase {
        if instance.metadata.deletion_timestamp.is_some() {
            return Phase::Deleting;
        }
        if self.is_launch_parent(instance) {
            let children = self.children(instance);
            if let Some(phase) = launch::phase(children.iter().map(|child| own_phase(child))) {
                return phase;
            }
        }
        own_phase(instance)
    }
}

fn own_phase(instance: &Instance) -> Phase {
    let phase = instance
        .status
        .as_ref()
        .and_then(|status| status.phase)
        .unwrap_or(Phase::Pending);
    if instance.metadata.deletion_timestamp.is_some() {
        Phase::Deleting
    } else {
        phase
    }
}
