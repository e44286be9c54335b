//! Says what is true of an Instance: outcome of a look in, status, Events and the time of the next look out.
//!
//! Pure, and the only place where an outcome becomes conditions and phase. [`super::reconcile`] writes the result, when
//! it differs from what is there.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use virtshell_crds::condition::{
    AGENT_CONNECTED, CONVERGED, IMAGE_READY, PROVISIONED, READY, Status, condition, upsert,
};
use virtshell_crds::instance::{Addresses, DiskStatus, DomainStatus, Driver, InterfaceStatus, Timings};
use virtshell_crds::{Instance, InstanceStatus, Phase, PowerState};

use super::context::Record;
use super::goal::{DomainType, Machine};
use super::guest::GuestView;
use super::observed::Moment;
use super::observed::{DomainState, OurDomain, Power};
use super::plan::{Blocked, Outstanding, Waiting, outstanding};
use super::provision::{Stage, is_retried};
use super::storage::ObservedFiles;

/// The top-level fields of status that the node owns.
pub const OWNED: &[&str] = &[
    "observedGeneration",
    "phase",
    "message",
    "host",
    "powerState",
    "lastRestartToken",
    "provisioned",
    "domain",
    "addresses",
    "interfaces",
    "disks",
    "restartRequired",
    "startedAt",
    "timings",
    "conditions",
];

/// How a look ended.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// The domain is what the goal says.
    Settled,
    /// Something is waited for; the text says what.
    Waiting(Waiting, String),
    /// Only somebody else's work helps.
    Blocked(Blocked),
    /// A step, or the look itself, failed.
    Failed(Failure),
    /// The domain is being removed.
    Deleting,
}

/// A failure, in the words of whoever failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// One word.
    pub reason: &'static str,
    /// What was wrong and what would be right.
    pub message: String,
    /// Nothing may be said about the domain.
    pub unknown: bool,
    /// A later try may succeed without anybody's edit.
    pub transient: bool,
    /// It was the image.
    pub image: bool,
}

/// Everything a status rests on.
pub struct Facts<'a> {
    /// The Instance as last seen.
    pub instance: &'a Instance,
    /// This host.
    pub host: &'a str,
    /// What the domain should be; absent when there is no goal.
    pub machine: Option<&'a Machine>,
    /// What libvirt said; absent when it could not be asked.
    pub domain: Option<&'a DomainState>,
    /// The files; absent when they could not be asked.
    pub files: Option<&'a ObservedFiles>,
    /// What the guest said.
    pub guest: &'a GuestView,
    /// What the agent remembers.
    pub record: &'a Record,
    /// How far its building is; absent when this look did not get to it.
    pub stage: Option<&'a Stage>,
    /// The agent's clock.
    pub moment: Moment,
    /// The calendar.
    pub now: Time,
}

/// The status that the node applies: all that it owns.
#[must_use]
pub fn status(facts: &Facts<'_>, outcome: &Outcome) -> InstanceStatus {
    let old = facts.instance.status.clone().unwrap_or_default();
    let ours = match facts.domain {
        Some(DomainState::Ours(domain)) => Some(&**domain),
        Some(DomainState::Absent | DomainState::Foreign { .. }) | None => None,
    };
    // What cannot be asked now stays as it was said last; Ready=Unknown says that it may be old.
    let asked = facts.domain.is_some();
    let outstanding = match (facts.machine, ours) {
        (Some(machine), Some(domain)) => {
            let files = super::reconcile::files_of(facts.files);
            outstanding(machine, domain, &files, &facts.record.memory, facts.moment)
        }
        _ => Outstanding::default(),
    };
    let mut status = InstanceStatus {
        observed_generation: facts.instance.metadata.generation,
        phase: phase(facts, ours, outcome).or(old.phase),
        message: message(facts, outcome),
        host: Some(facts.host.to_owned()),
        power_state: if asked {
            ours.map(|d| power_state(d.power))
        } else {
            old.power_state
        },
        last_restart_token: ours.map_or(old.last_restart_token.clone(), |d| {
            d.config.metadata.restart_token.clone()
        }),
        provisioned: match facts.stage {
            None | Some(Stage::NotNeeded) => old.provisioned,
            Some(stage) => Some(*stage == Stage::Done),
        },
        domain: domain(facts, ours).or(if asked { None } else { old.domain.clone() }),
        disks: facts
            .files
            .map_or(old.disks.clone(), |files| disks(files, facts.machine)),
        started_at: facts
            .record
            .started_at
            .map(Time)
            .or_else(|| old.started_at.clone()),
        timings: timings(facts).or_else(|| old.timings.clone()),
        ..InstanceStatus::default()
    };
    let running = ours.is_some_and(|d| d.power != Power::Off);
    if !asked {
        (status.addresses, status.interfaces) = (old.addresses.clone(), old.interfaces.clone());
    } else if running {
        status.interfaces = interfaces(facts);
        status.addresses = addresses(&status.interfaces);
        if status.addresses.is_none() && facts.guest.agent.is_none() {
            // An agent that has just started has not asked yet: what was known of this run stays.
            (status.addresses, status.interfaces) = (old.addresses.clone(), old.interfaces.clone());
        }
    }
    status.conditions = conditions(facts, ours, outcome, &outstanding, &old.conditions);
    status.restart_required = outstanding.fields;
    status
}

/// Absent when nothing may be said, so that the last one stays.
fn phase(facts: &Facts<'_>, ours: Option<&OurDomain>, outcome: &Outcome) -> Option<Phase> {
    match outcome {
        Outcome::Settled if ours.is_some_and(|d| d.power == Power::Running) => Some(match facts.stage {
            Some(Stage::Waiting(_) | Stage::Running) => Phase::Provisioning,
            Some(Stage::Failed(..)) => Phase::Failed,
            Some(Stage::NotNeeded | Stage::Done) | None => Phase::Running,
        }),
        Outcome::Deleting => Some(Phase::Deleting),
        Outcome::Failed(failure) if failure.unknown => None,
        Outcome::Failed(failure) if !failure.transient => Some(Phase::Failed),
        // What blocks a guest that runs has not failed it yet.
        Outcome::Blocked(_) if ours.is_none_or(|d| d.power == Power::Off) => Some(Phase::Failed),
        Outcome::Blocked(_) | Outcome::Settled | Outcome::Waiting(..) | Outcome::Failed(_) => {
            Some(match ours.map(|d| d.power) {
                None => Phase::Creating,
                Some(Power::Running) => Phase::Running,
                Some(Power::Paused(_)) => Phase::Paused,
                Some(Power::Off) => Phase::Stopped,
            })
        }
    }
}

fn message(facts: &Facts<'_>, outcome: &Outcome) -> String {
    match outcome {
        Outcome::Settled => unbuilt(facts).map_or_else(String::new, |(_, message)| message),
        Outcome::Deleting => String::new(),
        Outcome::Waiting(_, text) => text.clone(),
        Outcome::Blocked(blocked) => explain(blocked),
        Outcome::Failed(failure) => failure.message.clone(),
    }
}

/// Reason and message of an Instance that is not built yet, or could not be.
fn unbuilt(facts: &Facts<'_>) -> Option<(&'static str, String)> {
    let stage = facts.stage?;
    let (_, reason, message) = stage.said().filter(|_| *stage != Stage::Done)?;
    Some(match stage {
        Stage::Failed(..) => (reason, message),
        Stage::NotNeeded | Stage::Waiting(_) | Stage::Running | Stage::Done => ("Provisioning", message),
    })
}

/// What blocks, and what would help.
#[must_use]
pub fn explain(blocked: &Blocked) -> String {
    match blocked {
        Blocked::NameTaken { name, uuid } => format!(
            "a domain that VirtShell did not make has the name or UUID: {name} ({uuid}); rename or undefine it, it is never touched"
        ),
        Blocked::ShutdownIgnored => {
            "the guest was asked to shut down and did not; shut it down from inside, or set stopMode to Graceful or Force".to_owned()
        }
        Blocked::DiskMissing { name, running: false } => format!(
            "the file of disk {name} is gone from this host; put it back, or delete the Instance{}",
            if name == "root" { "" } else { ", or take the disk out of the spec" }
        ),
        Blocked::DiskMissing { name, running: true } => format!(
            "the file of disk {name} was deleted while the guest has it open; copy its data out of the guest before it stops"
        ),
        Blocked::StorageFull => {
            "QEMU suspended the guest because the host's storage has no room; make room there, and it is resumed".to_owned()
        }
        Blocked::StorageFailed => {
            "QEMU suspended the guest because reading or writing a disk failed; it is resumed now and then, see the kernel's log of the host".to_owned()
        }
    }
}

/// One word for what blocks.
#[must_use]
pub const fn blocked_reason(blocked: &Blocked) -> &'static str {
    match blocked {
        Blocked::NameTaken { .. } => "DomainNameTaken",
        Blocked::ShutdownIgnored => "ShutdownIgnored",
        Blocked::DiskMissing { .. } => "DiskMissing",
        Blocked::StorageFull => "StorageFull",
        Blocked::StorageFailed => "StorageFailed",
    }
}

const fn waiting_reason(waiting: Waiting) -> &'static str {
    match waiting {
        Waiting::Image => "ImageDownloading",
        Waiting::Copy => "CopyingDisks",
        Waiting::Shutdown => "ShuttingDown",
        Waiting::CrashLoop => "CrashLoopBackOff",
    }
}

fn power_state(power: Power) -> PowerState {
    match power {
        Power::Running => PowerState::Running,
        Power::Paused(_) => PowerState::Paused,
        Power::Off => PowerState::Stopped,
    }
}

fn domain(facts: &Facts<'_>, ours: Option<&OurDomain>) -> Option<DomainStatus> {
    let domain = ours?;
    let old = facts.instance.status.as_ref().and_then(|s| s.domain.as_ref());
    let type_ = domain
        .config
        .metadata
        .applied
        .get("driver")
        .cloned()
        .or_else(|| old.map(|d| d.type_.clone()));
    Some(DomainStatus {
        name: domain.name.clone(),
        uuid: domain.uuid.clone(),
        type_: type_.unwrap_or_default(),
    })
}

fn disks(files: &ObservedFiles, machine: Option<&Machine>) -> Vec<DiskStatus> {
    let wanted = |name: &str| machine.is_none_or(|m| m.disks.iter().any(|d| d.name == name));
    let one = |name: &str, info: &super::storage::DiskInfo, detached| DiskStatus {
        name: name.to_owned(),
        path: info.path.display().to_string(),
        size_mib: info.virtual_mib,
        detached,
    };
    let root = files.root.iter().map(|info| one("root", info, false));
    root.chain(
        files
            .disks
            .iter()
            .map(|(name, info)| one(name, info, !wanted(name))),
    )
    .collect()
}

fn interfaces(facts: &Facts<'_>) -> Vec<InterfaceStatus> {
    let Some(machine) = facts.machine else {
        return vec![];
    };
    machine
        .interfaces
        .iter()
        .map(|interface| {
            let seen = facts.guest.interfaces.iter().find(|g| g.mac == interface.mac);
            InterfaceStatus {
                name: interface.name.clone(),
                mac: interface.mac.clone(),
                ipv4: seen.map(|g| g.ipv4.clone()).unwrap_or_default(),
                ipv6: seen.map(|g| g.ipv6.clone()).unwrap_or_default(),
            }
        })
        .collect()
}

fn addresses(interfaces: &[InterfaceStatus]) -> Option<Addresses> {
    let all = Addresses {
        ipv4: interfaces.iter().flat_map(|i| i.ipv4.clone()).collect(),
        ipv6: interfaces.iter().flat_map(|i| i.ipv6.clone()).collect(),
    };
    (!all.ipv4.is_empty() || !all.ipv6.is_empty()).then_some(all)
}

/// How the last start spent its time; absent when this agent did not make it.
fn timings(facts: &Facts<'_>) -> Option<Timings> {
    facts.record.started_at?;
    let since = facts.record.memory.starts.last;
    let agent_ms = facts
        .guest
        .answered_at
        .zip(since)
        .and_then(|(answered, started)| i64::try_from(answered.saturating_sub(started).as_millis()).ok());
    Some(Timings {
        agent_ms,
        ..facts.record.timings.clone()
    })
}

// --- Conditions -------------------------------------------------------------------------------------------------------

fn conditions(
    facts: &Facts<'_>,
    ours: Option<&OurDomain>,
    outcome: &Outcome,
    outstanding: &Outstanding,
    old: &[Condition],
) -> Vec<Condition> {
    let mine = [IMAGE_READY, READY, CONVERGED, AGENT_CONNECTED, PROVISIONED];
    let mut list: Vec<Condition> = old
        .iter()
        .filter(|c| mine.contains(&c.type_.as_str()))
        .cloned()
        .collect();
    let generation = facts.instance.metadata.generation;
    let unknown = matches!(outcome, Outcome::Failed(failure) if failure.unknown);
    for (type_, (status, reason, message)) in [
        (IMAGE_READY, image_ready(facts, outcome)),
        (READY, ready(facts, ours, outcome)),
        (CONVERGED, converged(facts, outcome, outstanding)),
        (AGENT_CONNECTED, agent_connected(facts, ours)),
    ] {
        // What was said of image and agent stands while nothing can be asked.
        let stands = unknown && matches!(type_, IMAGE_READY | AGENT_CONNECTED);
        match list.iter_mut().find(|c| stands && c.type_ == type_) {
            Some(said) => said.observed_generation = generation,
            None => upsert(
                &mut list,
                condition(type_, status, reason, message, generation, facts.now.clone()),
            ),
        }
    }
    provisioned(facts, ours, &mut list);
    list
}

/// What is said of the builder stands until a look gets to it; but a failure does not outlive a restart that asked for
/// another try.
fn provisioned(facts: &Facts<'_>, ours: Option<&OurDomain>, list: &mut Vec<Condition>) {
    let status = facts.instance.status.as_ref();
    let retried = status
        .zip(ours)
        .is_some_and(|(status, domain)| is_retried(status, domain));
    let said = match facts.stage {
        Some(stage) => stage.said(),
        None if retried && list.iter().any(|c| c.type_ == PROVISIONED && c.status != "True") => {
            Stage::Waiting("the instance is restarted").said()
        }
        None => {
            let generation = facts.instance.metadata.generation;
            for condition in list.iter_mut().filter(|c| c.type_ == PROVISIONED) {
                condition.observed_generation = generation;
            }
            return;
        }
    };
    match said {
        None => list.retain(|c| c.type_ != PROVISIONED),
        Some((status, reason, message)) => {
            let generation = facts.instance.metadata.generation;
            upsert(
                list,
                condition(
                    PROVISIONED,
                    status,
                    reason,
                    message,
                    generation,
                    facts.now.clone(),
                ),
            );
        }
    }
}

type Said = (Status, &'static str, String);

fn image_ready(facts: &Facts<'_>, outcome: &Outcome) -> Said {
    if let Outcome::Waiting(Waiting::Image, text) = outcome {
        return (Status::False, "Downloading", text.clone());
    }
    if let Outcome::Failed(failure) = outcome
        && failure.image
    {
        return (Status::False, failure.reason, failure.message.clone());
    }
    if facts.machine.is_some_and(|m| m.images().next().is_none()) {
        return (Status::True, "NotNeeded", String::new());
    }
    if facts.files.is_some_and(|f| f.root.is_some()) {
        return (Status::True, "Cached", String::new());
    }
    (Status::Unknown, "NotFetched", String::new())
}

fn ready(facts: &Facts<'_>, ours: Option<&OurDomain>, outcome: &Outcome) -> Said {
    match outcome {
        Outcome::Settled => match unbuilt(facts) {
            Some((reason, message)) => (Status::False, reason, message),
            None => (Status::True, settled_reason(ours), emulation(facts)),
        },
        Outcome::Waiting(waiting, text) => (Status::False, waiting_reason(*waiting), text.clone()),
        Outcome::Blocked(blocked) => (Status::False, blocked_reason(blocked), explain(blocked)),
        Outcome::Failed(failure) => {
            let status = if failure.unknown {
                Status::Unknown
            } else {
                Status::False
            };
            (status, failure.reason, failure.message.clone())
        }
        Outcome::Deleting => (Status::False, "Deleting", String::new()),
    }
}

fn settled_reason(ours: Option<&OurDomain>) -> &'static str {
    match ours.map(|d| d.power) {
        Some(Power::Running) => "Running",
        Some(Power::Paused(_)) => "Paused",
        Some(Power::Off) | None => "Stopped",
    }
}

/// A guest of driver kvm that runs emulated is what was asked, but slower: its reader should know.
fn emulation(facts: &Facts<'_>) -> String {
    let emulated = |m: &&Machine| m.driver == Driver::Kvm && m.domain_type == DomainType::Qemu;
    facts.machine.filter(emulated).map_or_else(String::new, |_| {
        "runs emulated: this host has no usable hardware virtualization (its Host says why) and allows emulation".to_owned()
    })
}

fn converged(facts: &Facts<'_>, outcome: &Outcome, outstanding: &Outstanding) -> Said {
    let fields = outstanding.fields.join(", ");
    match outcome {
        Outcome::Settled if outstanding.fields.is_empty() => match unbuilt(facts) {
            Some((reason, message)) => (Status::False, reason, message),
            None => (Status::True, "Converged", String::new()),
        },
        Outcome::Settled if outstanding.pending == outstanding.fields => (
            Status::False,
            "Detaching",
            format!("the guest was asked to let go of devices and has not yet: {fields}"),
        ),
        Outcome::Settled => (
            Status::False,
            "RestartRequired",
            format!("these fields change at the next restart: {fields}"),
        ),
        Outcome::Failed(failure) if failure.unknown => {
            (Status::Unknown, failure.reason, failure.message.clone())
        }
        Outcome::Waiting(..) | Outcome::Blocked(_) | Outcome::Failed(_) => {
            (Status::False, "Converging", message(facts, outcome))
        }
        Outcome::Deleting => (Status::False, "Deleting", String::new()),
    }
}

fn agent_connected(facts: &Facts<'_>, ours: Option<&OurDomain>) -> Said {
    if facts.machine.is_some_and(|m| !m.has_agent()) {
        return (
            Status::Unknown,
            "NoChannel",
            "a guest of this driver has no agent channel".to_owned(),
        );
    }
    if ours.is_none_or(|d| d.power != Power::Running) {
        return (Status::Unknown, "NotRunning", String::new());
    }
    match facts.guest.agent {
        Some(true) => (Status::True, "Answered", String::new()),
        Some(false) => (
            Status::False,
            "Silent",
            "the guest agent does not answer any more".to_owned(),
        ),
        None => (
            Status::Unknown,
            "WaitingForAgent",
            "the guest agent has not answered yet".to_owned(),
        ),
    }
}

#[cfg(test)]
#[path = "report/tests.rs"]
mod tests;
