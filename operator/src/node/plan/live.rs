//! What of the difference between a running domain and its goal can be changed while it runs.
//!
//! | field | live | else |
//! |---|---|---|
//! | cpus, memoryMiB | within the maximum that the domain was started with | next restart |
//! | disks | attach, detach, enlarge on virtio and scsi | a changed bus: next restart |
//! | interfaces | attach, detach, another network or bridge; another model by both | |
//! | diskMiB | enlarge | containers: next restart |
//! | the rest | | next restart |
//!
//! What the guest or QEMU refuses waits for the next restart too. A detach is a request: the guest lets go of the device
//! when it pleases, and until then the device is there.

use std::collections::BTreeSet;
use std::time::Duration;

use virtshell_crds::instance::Driver;

use crate::node::applied::{DiskWord, InterfaceWord, words};
use crate::node::goal::Machine;
use crate::node::metadata::{Applied, Metadata, differing};
use crate::node::observed::{Definition, Files, Memory, Moment, OurDomain, Power};

/// How long a guest may take to inflate or deflate its balloon.
const BALLOON_PATIENCE: Duration = Duration::from_mins(1);
/// How long a guest may take to let go of a device.
const DETACH_PATIENCE: Duration = Duration::from_mins(1);

/// A change of a running domain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// So many CPUs.
    Vcpus(i32),
    /// A balloon that leaves so many MiB.
    Memory(i64),
    /// Give it a device, as its configuration has it.
    Attach(Device),
    /// Ask the guest to let go of a device.
    Detach(Device),
    /// Connect an interface as its configuration has it.
    Update(Device),
    /// Enlarge a disk, "root" or by name, to so many MiB.
    Grow(String, i64),
}

/// A device of a running domain.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Device {
    /// A disk beside the root disk, by name.
    Disk(String),
    /// A network interface, by MAC address.
    Interface(String),
}

impl Device {
    /// The field of the spec that it belongs to.
    #[must_use]
    pub const fn field(&self) -> &'static str {
        match self {
            Self::Disk(_) => "disks",
            Self::Interface(_) => "interfaces",
        }
    }

    /// Its name or address.
    #[must_use]
    pub fn name(&self) -> &str {
        match self {
            Self::Disk(name) | Self::Interface(name) => name,
        }
    }
}

/// The steps, in order; none when nothing differs that can be changed now.
#[must_use]
pub fn changes(
    machine: &Machine,
    domain: &OurDomain,
    files: &Files,
    memory: &Memory,
    now: Moment,
) -> Vec<Change> {
    let Some(live) = domain.live.as_ref().filter(|_| domain.power == Power::Running) else {
        return vec![];
    };
    let wanted = machine.applied();
    let carried = carried(live, &wanted, memory, now);
    let mut changes = Vec::new();
    let within = |limit: &str, value: i64| {
        let limit = carried.get(limit).and_then(|l| l.parse::<i64>().ok());
        limit.is_some_and(|limit| value <= limit)
    };
    let differs = |field: &str| carried.get(field) != wanted.get(field);
    let container = machine.driver == Driver::Lxc;
    if differs("cpus") && (container || within("maxCpus", i64::from(machine.cpus))) {
        changes.push(Change::Vcpus(machine.cpus));
    }
    let asked = memory.balloon.is_some_and(|(mib, _)| mib == machine.memory_mib);
    if differs("memoryMiB") && within("maxMemoryMiB", machine.memory_mib) && !asked {
        changes.push(Change::Memory(machine.memory_mib));
    }
    if !container {
        changes.extend(disks(machine, &carried, &wanted));
        changes.extend(enlargements(machine, files, &carried));
    }
    changes.extend(interfaces(machine, &carried, &wanted));
    changes.retain(|change| !memory.refused.contains(change) && !is_asked(change, memory));
    changes
}

fn is_asked(change: &Change, memory: &Memory) -> bool {
    matches!(change, Change::Detach(device) if memory.detaching.contains_key(device))
}

/// What the running copy carries; a balloon that moves, or that no guest moves, counts as what was asked of it.
fn carried(live: &Definition, wanted: &Applied, memory: &Memory, now: Moment) -> Applied {
    let mut carried = live.carries.clone();
    let field = "memoryMiB";
    let (Some(want), Some(have)) = (wanted.get(field), carried.get(field)) else {
        return carried;
    };
    let asked = memory.balloon.filter(|(mib, _)| mib.to_string() == *want);
    let moving = asked.is_some_and(|(_, since)| now < since + BALLOON_PATIENCE);
    // Without a balloon driver a guest has all it was started with, and no restart changes that.
    let unmoved = carried.get("maxMemoryMiB") == Some(have);
    let recorded = live.metadata.applied.get(field) == Some(want);
    if moving || (unmoved && (asked.is_some() || recorded)) {
        let want = want.clone();
        carried.insert(field.to_owned(), want);
    }
    carried
}

fn disks(machine: &Machine, carried: &Applied, wanted: &Applied) -> Vec<Change> {
    let named = |applied| -> BTreeSet<&str> {
        words(applied, "disks")
            .filter_map(|word| Some(DiskWord::parse(word)?.name))
            .collect()
    };
    let (have, want) = (named(carried), named(wanted));
    let gone = have.iter().filter(|name| !want.contains(*name));
    let attached = machine
        .disks
        .iter()
        .filter(|disk| !have.contains(disk.name.as_str()));
    gone.map(|name| Change::Detach(Device::Disk((*name).to_owned())))
        .chain(attached.map(|disk| Change::Attach(Device::Disk(disk.name.clone()))))
        .collect()
}

/// Disks whose files are smaller than asked; only those that the domain has open are QEMU's to enlarge.
fn enlargements(machine: &Machine, files: &Files, carried: &Applied) -> Vec<Change> {
    let open =
        |name: &str| words(carried, "disks").any(|w| DiskWord::parse(w).is_some_and(|w| w.name == name));
    too_small(machine, files)
        .into_iter()
        .filter(|(name, _)| open(name))
        .map(|(name, mib)| Change::Grow(name, mib))
        .collect()
}

/// Disks whose files are smaller than asked, and the size asked for.
#[must_use]
pub fn too_small(machine: &Machine, files: &Files) -> Vec<(String, i64)> {
    let root = files.root.map(|mib| ("root", mib, machine.disk_mib));
    let others = machine
        .disks
        .iter()
        .filter_map(|d| Some((d.name.as_str(), *files.disks.get(&d.name)?, d.size_mib?)));
    root.into_iter()
        .chain(others)
        .filter(|(_, has, wanted)| has < wanted)
        .map(|(name, _, wanted)| (name.to_owned(), wanted))
        .collect()
}

fn interfaces(machine: &Machine, carried: &Applied, wanted: &Applied) -> Vec<Change> {
    let parsed = |applied| -> Vec<InterfaceWord<'_>> {
        words(applied, "interfaces")
            .filter_map(InterfaceWord::parse)
            .collect()
    };
    let (have, want) = (parsed(carried), parsed(wanted));
    let device = |mac: &str| Device::Interface(mac.to_owned());
    let mut changes = Vec::new();
    for old in &have {
        match want.iter().find(|new| new.mac == old.mac) {
            // Another card: the new one comes when the guest has let go of this one.
            Some(new) if new.model != old.model => changes.push(Change::Detach(device(old.mac))),
            Some(new) if (new.kind, new.source) != (old.kind, old.source) => {
                changes.push(Change::Update(device(old.mac)));
            }
            Some(_) => {}
            None => changes.push(Change::Detach(device(old.mac))),
        }
    }
    let added = machine
        .interfaces
        .iter()
        .filter(|new| !have.iter().any(|old| old.mac == new.mac));
    changes.extend(added.map(|new| Change::Attach(device(&new.mac))));
    changes
}

/// The running copy's metadata as it should be now: the record of every field that has been reached; `None` when it says
/// so already.
#[must_use]
pub fn reached(machine: &Machine, domain: &OurDomain, memory: &Memory, now: Moment) -> Option<Metadata> {
    let live = domain.live.as_ref()?;
    let wanted = machine.applied();
    let carried = carried(live, &wanted, memory, now);
    let mut metadata = live.metadata.clone();
    for (field, value) in wanted {
        // What XML cannot tell is taken from the record, so it is reached by a start alone.
        if carried.get(&field) == Some(&value) {
            metadata.applied.insert(field, value);
        }
    }
    (metadata != live.metadata).then_some(metadata)
}

/// What the running domain does not have yet.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outstanding {
    /// Fields of the spec, in order.
    pub fields: Vec<String>,
    /// Those of them that the guest was asked for a moment ago, and may still grant.
    pub pending: Vec<String>,
}

/// The fields that the user set and the running domain does not have.
#[must_use]
pub fn outstanding(
    machine: &Machine,
    domain: &OurDomain,
    files: &Files,
    memory: &Memory,
    now: Moment,
) -> Outstanding {
    let (Some(live), Power::Running | Power::Paused(_)) = (&domain.live, domain.power) else {
        return Outstanding::default();
    };
    let wanted = machine.applied();
    let mut fields: BTreeSet<String> = differing(&carried(live, &wanted, memory, now), &wanted)
        .into_iter()
        .filter(|field| !machine.defaulted.contains(&field.as_str()))
        .collect();
    for (name, _) in too_small(machine, files) {
        fields.insert(if name == "root" { "diskMiB" } else { "disks" }.to_owned());
    }
    let young: BTreeSet<&str> = memory
        .detaching
        .iter()
        .filter(|(_, since)| now < **since + DETACH_PATIENCE)
        .map(|(device, _)| device.field())
        .collect();
    let pending = fields
        .iter()
        .filter(|f| young.contains(f.as_str()))
        .cloned()
        .collect();
    Outstanding {
        fields: fields.into_iter().collect(),
        pending,
    }
}

/// When what was asked of the guest runs out of patience; absent when nothing was.
#[must_use]
pub fn patience(memory: &Memory, now: Moment) -> Option<Moment> {
    let balloon = memory.balloon.map(|(_, since)| since + BALLOON_PATIENCE);
    let detaching = memory.detaching.values().map(|since| *since + DETACH_PATIENCE);
    balloon.into_iter().chain(detaching).filter(|at| *at > now).min()
}
