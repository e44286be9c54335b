//! Where one Instance's domain should end up: the one place where the node checks and defaults a spec.
//!
//! Pure: an Instance and what the host can do go in, a [`Goal`] or the reason why there is none comes out.
//! [`super::plan`] decides how to get there, [`super::domain_xml`] writes it down for libvirt.

use std::time::Duration;

use sha2::{Digest, Sha256};
use virtshell_crds::instance::{
    CloudInit, DeletionPolicy, Disk, Driver, Interface, InterfaceModel, PowerState, Resolved, ResolvedImage,
    RestartMode, SecretKey, StopMode,
};
use virtshell_crds::resolve::{DEFAULT_CPUS, DEFAULT_DISK_MIB, DEFAULT_MEMORY_MIB};
use virtshell_crds::{FINALIZER_DOMAIN, ImageType, Instance, condition, names};

use super::applied::InterfaceWord;
use super::metadata::Applied;

/// Where the domain should end up. Deletion is a goal too, so that it takes the same path.
#[derive(Clone, Debug, PartialEq)]
pub enum Goal {
    /// A domain as described.
    Present(Box<Machine>),
    /// No domain.
    Gone(Removal),
}

impl Goal {
    /// The domain in full, unless there is to be none.
    #[must_use]
    pub fn machine(&self) -> Option<&Machine> {
        match self {
            Self::Present(machine) => Some(machine),
            Self::Gone(_) => None,
        }
    }
}

/// Who an Instance is, in Kubernetes and in libvirt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// uid of the Instance, and UUID of the domains we make.
    pub uid: String,
    /// Namespace of the Instance.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// libvirt's name of the domain.
    pub domain_name: String,
}

/// How to remove a domain.
#[derive(Clone, Debug, PartialEq)]
pub struct Removal {
    /// Whose domain.
    pub id: Identity,
    /// Its driver; absent when it was never placed, so that there is nothing to remove.
    pub driver: Option<Driver>,
    /// How it is stopped first.
    pub stop: Stop,
    /// Keep the disks.
    pub retain_disks: bool,
}

/// How a guest is stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stop {
    /// Ask, force, or only ask.
    pub mode: StopMode,
    /// How long it may take when asked.
    pub grace: Duration,
}

/// libvirt's type of a domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DomainType {
    /// Hardware virtualization.
    Kvm,
    /// Emulation.
    Qemu,
    /// A container.
    Lxc,
    /// libvirt's test driver, when the agent's configuration maps a driver to it.
    Test,
}

impl DomainType {
    /// libvirt's word.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Qemu => "qemu",
            Self::Lxc => "lxc",
            Self::Test => "test",
        }
    }
}

/// What the machine offers, as far as a goal depends on it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Offer {
    /// Logical CPUs.
    pub cpus: i32,
    /// Whether libvirt's network `default` is there.
    pub default_network: bool,
    /// The domain type of each driver that answers.
    pub drivers: Vec<(Driver, DomainType)>,
    /// Why a driver that is configured is not offered.
    pub refused: Vec<(Driver, String)>,
    /// Drivers whose libvirt has not answered yet, and its URI.
    pub silent: Vec<(Driver, String)>,
}

/// A domain in full: every value that libvirt or the storage needs.
#[derive(Clone, Debug, PartialEq)]
pub struct Machine {
    /// Whose it is.
    pub id: Identity,
    /// The driver asked for.
    pub driver: Driver,
    /// What it is for libvirt.
    pub domain_type: DomainType,
    /// Running, paused or stopped.
    pub power: PowerState,
    /// How it is stopped when it must be.
    pub stop: Stop,
    /// The restart asked for last.
    pub restart_token: String,
    /// How that restart stops the guest.
    pub restart_stop: Stop,
    /// Virtual CPUs.
    pub cpus: i32,
    /// Virtual CPUs it can grow to.
    pub max_cpus: i32,
    /// Memory.
    pub memory_mib: i64,
    /// Memory the balloon can grow to.
    pub max_memory_mib: i64,
    /// Root disk.
    pub disk_mib: i64,
    /// What it boots from; absent = an empty root disk.
    pub image: Option<ResolvedImage>,
    /// Whose disks it starts with, instead of the images' content.
    pub clone_of: Option<CloneSource>,
    /// Disks beside the root disk.
    pub disks: Vec<MachineDisk>,
    /// Network interfaces.
    pub interfaces: Vec<MachineInterface>,
    /// What the seed says.
    pub seed: SeedGoal,
    /// A serial console.
    pub serial: bool,
    /// A VNC display, and the address it listens on.
    pub vnc: Option<String>,
    /// libvirt's autostart flag.
    pub autostart: bool,
    /// The status says that its builder has run to the end.
    pub provisioned: bool,
    /// Fields that the spec leaves out and this host chose.
    pub defaulted: Vec<&'static str>,
}

/// An Instance to copy the disks of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CloneSource {
    /// Its name, in the clone's namespace.
    pub name: String,
    /// Its uid; absent = whoever has the name.
    pub uid: Option<String>,
}

/// A disk beside the root disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MachineDisk {
    /// Name in the spec.
    pub name: String,
    /// Size; absent = the image's.
    pub size_mib: Option<i64>,
    /// Content it starts with.
    pub image: Option<ResolvedImage>,
    /// libvirt's word for the bus.
    pub bus: &'static str,
}

/// A network interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MachineInterface {
    /// Name in the spec.
    pub name: String,
    /// What it joins.
    pub source: InterfaceSource,
    /// libvirt's word for the model.
    pub model: &'static str,
    /// MAC address, lower case.
    pub mac: String,
}

/// What an interface joins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum InterfaceSource {
    /// A libvirt network.
    Network(String),
    /// A bridge of the host.
    Bridge(String),
}

/// What the seed says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SeedGoal {
    /// Host name.
    pub hostname: String,
    /// Public SSH key for root.
    pub ssh_key: String,
    /// Time zone.
    pub timezone: String,
    /// User data in the spec.
    pub user_data: Option<String>,
    /// User data in a Secret.
    pub user_data_from: Option<SecretKey>,
    /// Network configuration.
    pub network_data: Option<String>,
    /// The user that an unattended installation makes.
    pub username: String,
    /// Hash of that user's password, as in /etc/shadow.
    pub password_hash: String,
}

/// Why there is no goal.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoGoal {
    /// Not for this node, or not yet.
    #[error("not for this host, or not placed yet")]
    NotOurs,
    /// The controller has not said what the Instance is.
    #[error("status.resolved is not complete: {0} is missing; the controller writes it")]
    Unresolved(&'static str),
    /// This host does not offer the driver.
    #[error("driver {driver} is not available on this host: {why}")]
    DriverUnavailable {
        /// The driver.
        driver: Driver,
        /// What is wrong.
        why: String,
    },
    /// The libvirt behind the driver has not answered yet.
    #[error("no connection to {uri}")]
    Silent {
        /// Its URI.
        uri: String,
    },
    /// The spec asks for what the driver cannot do.
    #[error("Field {field}: {why}")]
    Unsupported {
        /// Field in the spec.
        field: &'static str,
        /// What is wrong, and what would be right.
        why: String,
    },
}

/// What the Instance asks of this host.
pub fn goal(instance: &Instance, host: &str, offer: &Offer) -> Result<Goal, NoGoal> {
    let identity = identity(instance);
    let status = instance.status.as_ref();
    let resolved = status.and_then(|s| s.resolved.as_ref());
    let ours = instance.spec.host.as_deref() == Some(host)
        && instance
            .metadata
            .finalizers
            .iter()
            .flatten()
            .any(|f| f == FINALIZER_DOMAIN)
        && !instance.is_launch_parent();
    if !ours {
        return Err(NoGoal::NotOurs);
    }
    if instance.metadata.deletion_timestamp.is_some() {
        return Ok(Goal::Gone(Removal {
            id: identity,
            driver: resolved.and_then(|r| r.driver),
            stop: Stop {
                mode: delete_mode(instance.spec.stop_mode),
                ..stop(instance, instance.spec.stop_mode)
            },
            retain_disks: instance.spec.deletion_policy == DeletionPolicy::RetainDisks,
        }));
    }
    if !status.is_some_and(|s| condition::is_true(&s.conditions, condition::SCHEDULED)) {
        return Err(NoGoal::NotOurs);
    }
    let resolved = resolved.ok_or(NoGoal::Unresolved("resolved"))?;
    let driver = resolved.driver.ok_or(NoGoal::Unresolved("driver"))?;
    let domain_type = domain_type(driver, offer)?;
    let machine = machine(instance, identity, resolved, driver, domain_type, offer)?;
    if driver == Driver::Lxc {
        fits_a_container(instance, &machine)?;
    }
    Ok(Goal::Present(Box::new(machine)))
}

/// Who the Instance is.
#[must_use]
pub fn identity(instance: &Instance) -> Identity {
    let uid = instance.metadata.uid.clone().unwrap_or_default();
    let name = instance.metadata.name.clone().unwrap_or_default();
    Identity {
        domain_name: names::domain_name(&name, &uid),
        namespace: instance.metadata.namespace.clone().unwrap_or_default(),
        uid,
        name,
    }
}

fn domain_type(driver: Driver, offer: &Offer) -> Result<DomainType, NoGoal> {
    if let Some((_, found)) = offer.drivers.iter().find(|(d, _)| *d == driver) {
        return Ok(*found);
    }
    if let Some((_, uri)) = offer.silent.iter().find(|(d, _)| *d == driver) {
        return Err(NoGoal::Silent { uri: uri.clone() });
    }
    let why = offer.refused.iter().find(|(d, _)| *d == driver);
    Err(NoGoal::DriverUnavailable {
        driver,
        why: why.map_or_else(
            || "the agent has no connection for it".to_owned(),
            |(_, why)| why.clone(),
        ),
    })
}

fn machine(
    instance: &Instance,
    id: Identity,
    resolved: &Resolved,
    driver: Driver,
    domain_type: DomainType,
    offer: &Offer,
) -> Result<Machine, NoGoal> {
    let spec = &instance.spec;
    // The node follows each generation at once; `resolved` speaks for what the spec leaves out.
    let cpus = spec.cpus.or(resolved.cpus).unwrap_or(DEFAULT_CPUS);
    let memory_mib = spec
        .memory_mib
        .or(resolved.memory_mib)
        .unwrap_or(DEFAULT_MEMORY_MIB);
    let consoles = spec.consoles.clone().unwrap_or_default();
    Ok(Machine {
        driver,
        domain_type,
        power: spec.power_state,
        stop: stop(instance, spec.stop_mode),
        restart_token: spec.restart_token.clone(),
        restart_stop: stop(
            instance,
            match spec.restart_mode {
                RestartMode::Graceful => StopMode::Graceful,
                RestartMode::Force => StopMode::Force,
            },
        ),
        cpus,
        max_cpus: spec.max_cpus.unwrap_or_else(|| room(cpus, offer.cpus)).max(cpus),
        memory_mib,
        max_memory_mib: spec.max_memory_mib.unwrap_or(memory_mib).max(memory_mib),
        disk_mib: spec.disk_mib.or(resolved.disk_mib).unwrap_or(DEFAULT_DISK_MIB),
        image: resolved.image.clone(),
        clone_of: spec.clone_from.as_ref().map(|from| CloneSource {
            name: from.name.clone(),
            uid: from.uid.clone(),
        }),
        disks: disks(&spec.disks, resolved)?,
        interfaces: interfaces(&spec.interfaces, &id.uid, offer),
        seed: seed(instance, spec.cloud_init.clone().unwrap_or_default(), resolved),
        serial: consoles.serial,
        vnc: consoles.vnc.map(|vnc| vnc.listen),
        autostart: spec.autostart && spec.power_state == PowerState::Running,
        provisioned: instance.status.as_ref().and_then(|s| s.provisioned) == Some(true),
        defaulted: [
            ("maxCpus", spec.max_cpus.is_none()),
            ("maxMemoryMiB", spec.max_memory_mib.is_none()),
            ("interfaces", spec.interfaces.is_empty()),
        ]
        .into_iter()
        .filter_map(|(field, absent)| absent.then_some(field))
        .collect(),
        id,
    })
}

fn stop(instance: &Instance, mode: StopMode) -> Stop {
    let seconds = u64::try_from(instance.spec.shutdown_grace_seconds).unwrap_or(0);
    Stop {
        mode,
        grace: Duration::from_secs(seconds),
    }
}

/// An Instance that is deleted goes even when its guest was only to be asked.
fn delete_mode(mode: StopMode) -> StopMode {
    match mode {
        StopMode::Graceful | StopMode::AskOnly => StopMode::Graceful,
        StopMode::Force => StopMode::Force,
    }
}

/// Room to grow live: four times, at most what the host has.
fn room(cpus: i32, host_cpus: i32) -> i32 {
    cpus.saturating_mul(4).min(host_cpus.max(cpus))
}

fn disks(disks: &[Disk], resolved: &Resolved) -> Result<Vec<MachineDisk>, NoGoal> {
    disks
        .iter()
        .map(|disk| {
            let image = resolved.disk_images.get(&disk.name).cloned();
            if disk.image.is_some() && image.is_none() {
                return Err(NoGoal::Unresolved("the image of an added disk"));
            }
            Ok(MachineDisk {
                name: disk.name.clone(),
                size_mib: disk.size_mib,
                image,
                bus: disk.bus.as_str(),
            })
        })
        .collect()
}

fn interfaces(interfaces: &[Interface], uid: &str, offer: &Offer) -> Vec<MachineInterface> {
    if interfaces.is_empty() && offer.default_network {
        return vec![default_interface(uid)];
    }
    let source = |i: &Interface| match (&i.network, &i.bridge) {
        (_, Some(bridge)) => InterfaceSource::Bridge(bridge.clone()),
        (network, None) => InterfaceSource::Network(network.clone().unwrap_or_default()),
    };
    interfaces
        .iter()
        .map(|i| MachineInterface {
            name: i.name.clone(),
            source: source(i),
            model: i.model.as_str(),
            mac: mac_of(uid, i),
        })
        .collect()
}

/// The MAC address of an interface, lower case: the one given, or its own.
fn mac_of(uid: &str, interface: &Interface) -> String {
    let given = interface.mac.as_ref().map(|mac| mac.to_lowercase());
    given.unwrap_or_else(|| mac(uid, &interface.name))
}

/// The MAC addresses of an Instance's interfaces, lower case, given or derived.
#[must_use]
pub fn macs(instance: &Instance) -> Vec<String> {
    let uid = instance.metadata.uid.as_deref().unwrap_or_default();
    let given = instance.spec.interfaces.iter();
    let list: Vec<String> = given.map(|interface| mac_of(uid, interface)).collect();
    if list.is_empty() {
        return vec![default_interface(uid).mac];
    }
    list
}

/// Two interfaces of one host must not have the same MAC address: the Instance that came later is refused. `others` are
/// those that have one of its addresses.
pub fn refuse_duplicate_macs<'a>(
    instance: &Instance,
    others: impl Iterator<Item = (String, &'a Instance)>,
) -> Result<(), NoGoal> {
    let refuse = |mac: &str, whose: String| {
        Err(NoGoal::Unsupported {
            field: "interfaces",
            why: format!("the MAC address {mac} is {whose}; give another one"),
        })
    };
    let own = macs(instance);
    let times = |mac: &String| own.iter().filter(|other| *other == mac).count();
    if let Some(twice) = own.iter().find(|mac| times(mac) > 1) {
        return refuse(twice, "given twice".to_owned());
    }
    let age = |i: &Instance| (i.metadata.creation_timestamp.clone(), i.metadata.uid.clone());
    for (mac, other) in others {
        if age(other) < age(instance) {
            let of = &other.metadata;
            let name = |part: &Option<String>| part.clone().unwrap_or_default();
            return refuse(
                &mac,
                format!("that of {}/{}", name(&of.namespace), name(&of.name)),
            );
        }
    }
    Ok(())
}

fn default_interface(uid: &str) -> MachineInterface {
    MachineInterface {
        name: "eth0".to_owned(),
        source: InterfaceSource::Network("default".to_owned()),
        model: InterfaceModel::default().as_str(),
        mac: mac(uid, "eth0"),
    }
}

/// The MAC address of an interface that names none: QEMU's prefix and 24 bits that follow from uid and name, so that it
/// never changes.
#[must_use]
pub fn mac(uid: &str, interface: &str) -> String {
    let hash = Sha256::digest(format!("{uid}/{interface}"));
    format!("52:54:00:{:02x}:{:02x}:{:02x}", hash[0], hash[1], hash[2])
}

fn seed(instance: &Instance, cloud_init: CloudInit, resolved: &Resolved) -> SeedGoal {
    let image = resolved.image.as_ref();
    let name = instance.metadata.name.clone().unwrap_or_default();
    let var = |key: &str, default: &str| {
        let given = instance.spec.vars.get(key);
        given.map_or_else(|| default.to_owned(), Clone::clone)
    };
    SeedGoal {
        hostname: instance.spec.hostname.clone().unwrap_or(name),
        ssh_key: image.map(|i| i.ssh_key.clone()).unwrap_or_default(),
        timezone: image.map(|i| i.timezone.clone()).unwrap_or_default(),
        user_data: cloud_init.user_data,
        user_data_from: cloud_init.user_data_from,
        network_data: cloud_init.network_data,
        username: var("username", "root"),
        // Nobody logs in with a password that nobody chose.
        password_hash: var("pwhash", "!"),
    }
}

/// What a container cannot have is refused, not ignored.
fn fits_a_container(instance: &Instance, machine: &Machine) -> Result<(), NoGoal> {
    let refuse = |field, why: &str| {
        Err(NoGoal::Unsupported {
            field,
            why: why.to_owned(),
        })
    };
    if machine.vnc.is_some() {
        return refuse("consoles", "a container has no display; leave vnc out");
    }
    if !machine.disks.is_empty() {
        return refuse("disks", "a container has only its root; leave disks out");
    }
    if machine.image.as_ref().is_some_and(|i| i.boot.is_some()) {
        return refuse(
            "image",
            "a container boots no kernel of its own; use an image without boot",
        );
    }
    if machine.image.is_none() && machine.clone_of.is_none() {
        let blank = instance.spec.blank == Some(true);
        return refuse(
            if blank { "blank" } else { "image" },
            "a container needs an image with a root file system",
        );
    }
    Ok(())
}

impl Machine {
    /// Whether libvirt gives it a guest agent channel.
    #[must_use]
    pub fn has_agent(&self) -> bool {
        matches!(self.domain_type, DomainType::Kvm | DomainType::Qemu)
    }

    /// Whether a medium to install from is attached.
    #[must_use]
    pub fn installs(&self) -> bool {
        self.image.as_ref().is_some_and(|i| i.type_ == ImageType::Iso)
    }

    /// Whether an answer file goes with that medium.
    #[must_use]
    pub fn has_answers(&self) -> bool {
        self.installs() && self.image.as_ref().is_some_and(|i| !i.preseed_url.is_empty())
    }

    /// Every image that must be in the cache before its files can be made: the root's first.
    pub fn images(&self) -> impl Iterator<Item = &ResolvedImage> {
        self.image
            .iter()
            .chain(self.disks.iter().filter_map(|d| d.image.as_ref()))
    }

    /// Keeps what this host chose when the domain was defined, where the spec still leaves it open: a host that gained
    /// CPUs or lost a network is no reason to change a guest.
    pub fn keep_choices(&mut self, applied: &Applied) {
        let number = |field: &str| applied.get(field).and_then(|value| value.parse::<i64>().ok());
        if self.defaulted.contains(&"maxCpus") {
            let kept = number("maxCpus").and_then(|n| i32::try_from(n).ok());
            self.max_cpus = kept.filter(|max| *max >= self.cpus).unwrap_or(self.max_cpus);
        }
        if self.defaulted.contains(&"maxMemoryMiB") {
            let kept = number("maxMemoryMiB").filter(|max| *max >= self.memory_mib);
            self.max_memory_mib = kept.unwrap_or(self.max_memory_mib);
        }
        if self.defaulted.contains(&"interfaces") {
            let default = default_interface(&self.id.uid);
            match applied.get("interfaces").map(String::as_str) {
                Some("") => self.interfaces.clear(),
                Some(kept) if kept == InterfaceWord::of(&default).to_string() => {
                    self.interfaces = vec![default];
                }
                // Cards of the user's own, who has left them out since.
                Some(_) | None => {}
            }
        }
    }
}

#[cfg(test)]
#[path = "goal/tests.rs"]
mod tests;
