//! Decides which steps bring one domain to its goal.
//!
//! Pure: no clock, no randomness, no I/O, so that every rule has a row in the table test. Every pair of goal and
//! observation is named; a new variant becomes a list of compile errors to visit. [`super::perform`] executes the steps,
//! [`super::report`] explains the rest.

use std::time::Duration;

use virtshell_crds::PowerState;
use virtshell_crds::instance::{Driver, StopMode};

use super::goal::{DomainType, Goal, Machine, MachineDisk, Removal, Stop};
use super::metadata::{Metadata, differing};
use super::observed::{Asked, DomainState, Files, Moment, Observed, OurDomain, PausedBy, Power};

/// How often a guest is asked again during its grace period: one that is still booting drops the ACPI event.
const ASK_AGAIN: Duration = Duration::from_secs(5);
/// A guest that ends sooner than this after its start did not stay up.
pub const STABLE: Duration = Duration::from_mins(1);
/// So many quick ends are repaired at once, before the back-off begins.
const PATIENCE: u32 = 2;
/// The longest pause between two starts of a guest that does not stay up.
const LONGEST_PAUSE: Duration = Duration::from_mins(5);
/// How often to look whether an administrator has cured what blocks.
const LOOK_AGAIN: Duration = Duration::from_secs(30);

/// One step. Executing it twice does what executing it once does.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Make the root disk, or the container's root file system.
    MakeRoot,
    /// Make a disk.
    MakeDisk(String),
    /// Enlarge a disk of an inactive domain, "root" or by name, to so many MiB.
    GrowDisk(String, i64),
    /// Make the seed.
    MakeSeed,
    /// Define the domain with this metadata: the configuration, also of a running domain.
    Define(Metadata),
    /// Set or clear libvirt's autostart flag.
    SetAutostart(bool),
    /// Start it.
    Start {
        /// With its CPUs suspended.
        paused: bool,
    },
    /// Suspend its CPUs.
    Suspend,
    /// Resume its CPUs.
    Resume,
    /// Ask the guest to shut down.
    Ask {
        /// Through the guest agent; else by ACPI, or the container's init.
        agent: bool,
    },
    /// Power off.
    Destroy,
    /// Remove the configuration.
    Undefine,
    /// Remove the files.
    RemoveFiles {
        /// Keep the disks.
        retain_disks: bool,
    },
    /// Change the number of CPUs of the running domain.
    SetVcpus(i32),
    /// Change the balloon of the running domain.
    SetMemory(i64),
    /// Write the metadata of the running domain.
    SetLiveMetadata(Metadata),
}

/// What to do, and what then.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// Steps, in order; the first failure ends them.
    pub actions: Vec<Action>,
    /// What comes after them.
    pub then: Next,
}

/// What comes after the steps.
#[derive(Clone, Debug, PartialEq)]
pub enum Next {
    /// The domain is what the goal says.
    Settled,
    /// The domain is gone, and so is everything we made for it.
    Removed,
    /// Look again, and plan again.
    Again,
    /// Look again at that moment, or when something happens.
    Wait(Moment, Waiting),
    /// Nothing helps but somebody else's work.
    Blocked(Blocked),
}

/// What is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Waiting {
    /// An image to be fetched.
    Image,
    /// The guest to shut down.
    Shutdown,
    /// The next try to start a guest that does not stay up.
    CrashLoop,
}

/// What keeps a domain from its goal until somebody acts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Blocked {
    /// A domain that is not ours has the name or the UUID.
    NameTaken {
        /// Its name.
        name: String,
        /// Its UUID.
        uuid: String,
    },
    /// The guest was asked to shut down and did not, and must not be forced.
    ShutdownIgnored,
    /// The root disk of a domain that had one is gone.
    RootMissing,
    /// The guest is suspended because its storage failed.
    StorageFailed,
}

impl Blocked {
    /// How long until another look.
    #[must_use]
    pub const fn look_again(&self) -> Duration {
        LOOK_AGAIN
    }
}

/// The plan for this goal, given what was seen.
#[must_use]
pub fn plan(goal: &Goal, seen: &Observed, now: Moment) -> Plan {
    match (goal, &seen.domain) {
        // A foreign domain is never touched, not even when our object is deleted; nor are files that it may have open,
        // should it be one of ours that lost its mark.
        (Goal::Gone(removal), DomainState::Foreign { uuid, .. }) if *uuid == removal.id.uid => {
            then(vec![], Next::Removed)
        }
        (Goal::Gone(removal), DomainState::Absent | DomainState::Foreign { .. }) => {
            removed(removal, seen, vec![])
        }
        (Goal::Gone(removal), DomainState::Ours(domain)) => remove(removal, domain, seen, now),
        (Goal::Present(_), DomainState::Foreign { name, uuid }) => blocked(Blocked::NameTaken {
            name: name.clone(),
            uuid: uuid.clone(),
        }),
        (Goal::Present(machine), DomainState::Absent) => create(machine, seen, now),
        (Goal::Present(machine), DomainState::Ours(domain)) => converge(machine, domain, seen, now),
    }
}

fn then(actions: Vec<Action>, then: Next) -> Plan {
    Plan { actions, then }
}

fn blocked(why: Blocked) -> Plan {
    then(vec![], Next::Blocked(why))
}

// --- Removing -------------------------------------------------------------------------------------------------------

fn removed(removal: &Removal, seen: &Observed, mut actions: Vec<Action>) -> Plan {
    if seen.files.any {
        actions.push(Action::RemoveFiles {
            retain_disks: removal.retain_disks,
        });
    }
    then(actions, Next::Removed)
}

fn remove(removal: &Removal, domain: &OurDomain, seen: &Observed, now: Moment) -> Plan {
    match domain.power {
        Power::Off => removed(removal, seen, vec![Action::Undefine]),
        Power::Running => match halt(removal.stop, domain, seen.memory.asked, now) {
            Halt::Off | Halt::Ignored => then(vec![Action::Destroy], Next::Again),
            Halt::Asking(plan) => plan,
        },
        // It cannot answer a request.
        Power::Paused(PausedBy::Request | PausedBy::IoError) => then(vec![Action::Destroy], Next::Again),
    }
}

// --- Stopping -------------------------------------------------------------------------------------------------------

enum Halt {
    /// Power off now.
    Off,
    /// Ask, or wait for the answer.
    Asking(Plan),
    /// It was asked long enough, and must not be forced.
    Ignored,
}

/// How to stop a running guest now.
fn halt(stop: Stop, domain: &OurDomain, asked: Option<Asked>, now: Moment) -> Halt {
    match stop.mode {
        StopMode::Force => return Halt::Off,
        StopMode::Graceful if stop.grace.is_zero() => return Halt::Off,
        StopMode::Graceful | StopMode::AskOnly => {}
    }
    // The agent is the surer way when it is there; ACPI follows, should the agent only pretend.
    let by_agent = |times: u32| domain.agent_open && times.is_multiple_of(2);
    let ask = |times, deadline: Moment| {
        let actions = vec![Action::Ask {
            agent: by_agent(times),
        }];
        Halt::Asking(then(
            actions,
            Next::Wait(deadline.min(now + ASK_AGAIN), Waiting::Shutdown),
        ))
    };
    let Some(asked) = asked else {
        return ask(0, now + stop.grace);
    };
    let deadline = asked.since + stop.grace;
    if now >= deadline {
        return match stop.mode {
            StopMode::AskOnly => Halt::Ignored,
            StopMode::Graceful | StopMode::Force => Halt::Off,
        };
    }
    let again = asked.last + ASK_AGAIN;
    if now >= again {
        return ask(asked.times, deadline);
    }
    Halt::Asking(then(vec![], Next::Wait(deadline.min(again), Waiting::Shutdown)))
}

fn stop_running(
    stop: Stop,
    domain: &OurDomain,
    seen: &Observed,
    now: Moment,
    mut first: Vec<Action>,
) -> Plan {
    match halt(stop, domain, seen.memory.asked, now) {
        Halt::Off => {
            first.push(Action::Destroy);
            then(first, Next::Again)
        }
        Halt::Asking(asking) => {
            first.extend(asking.actions);
            then(first, asking.then)
        }
        Halt::Ignored => then(first, Next::Blocked(Blocked::ShutdownIgnored)),
    }
}

// --- Creating -------------------------------------------------------------------------------------------------------

/// No domain is there: a first creation, one that was interrupted, or one that somebody undefined.
fn create(machine: &Machine, seen: &Observed, now: Moment) -> Plan {
    let mut actions = missing_files(machine, seen);
    actions.push(Action::Define(metadata(machine, false)));
    if needs_images(machine, &actions) && !seen.memory.images_cached {
        return wait_for_image(now);
    }
    boot(machine, false, seen, now, actions)
}

/// Whether steps need what is in the image cache: content to start from, or a kernel that the definition names.
fn needs_images(machine: &Machine, actions: &[Action]) -> bool {
    let boots_kernel = || machine.image.as_ref().is_some_and(|i| i.boot.is_some()) || machine.installs();
    actions.iter().any(|action| match action {
        Action::MakeRoot => machine.image.is_some(),
        Action::MakeDisk(name) => machine.disks.iter().any(|d| d.name == *name && d.image.is_some()),
        Action::Define(_) => boots_kernel(),
        Action::GrowDisk(..)
        | Action::MakeSeed
        | Action::SetAutostart(_)
        | Action::Start { .. }
        | Action::Suspend
        | Action::Resume
        | Action::Ask { .. }
        | Action::Destroy
        | Action::Undefine
        | Action::RemoveFiles { .. }
        | Action::SetVcpus(_)
        | Action::SetMemory(_)
        | Action::SetLiveMetadata(_) => false,
    })
}

fn wait_for_image(now: Moment) -> Plan {
    then(vec![], Next::Wait(now, Waiting::Image))
}

fn missing_files(machine: &Machine, seen: &Observed) -> Vec<Action> {
    let mut actions = Vec::new();
    match seen.files.root {
        None => actions.push(Action::MakeRoot),
        Some(mib) if mib < machine.disk_mib => {
            actions.push(Action::GrowDisk("root".to_owned(), machine.disk_mib));
        }
        Some(_) => {}
    }
    for disk in &machine.disks {
        match (seen.files.disks.get(&disk.name), disk.size_mib) {
            (None, _) => actions.push(Action::MakeDisk(disk.name.clone())),
            (Some(mib), Some(wanted)) if *mib < wanted => {
                actions.push(Action::GrowDisk(disk.name.clone(), wanted));
            }
            (Some(_), _) => {}
        }
    }
    if !seen.files.seed && machine.driver != Driver::Lxc {
        actions.push(Action::MakeSeed);
    }
    actions
}

/// Autostart and start of an inactive domain, after `actions`.
fn boot(machine: &Machine, autostart: bool, seen: &Observed, now: Moment, mut actions: Vec<Action>) -> Plan {
    if machine.autostart != autostart {
        actions.push(Action::SetAutostart(machine.autostart));
    }
    if machine.power == PowerState::Stopped {
        return then(actions, Next::Settled);
    }
    if let Some(until) = pause_before_start(seen, now) {
        return then(actions, Next::Wait(until, Waiting::CrashLoop));
    }
    // A container cannot be started suspended.
    let paused = machine.power == PowerState::Paused;
    let start_paused = paused && machine.domain_type != DomainType::Lxc;
    actions.push(Action::Start { paused: start_paused });
    if paused && !start_paused {
        actions.push(Action::Suspend);
    }
    then(actions, Next::Settled)
}

/// Until when a guest that does not stay up is left alone: 2^n seconds, at most five minutes.
fn pause_before_start(seen: &Observed, now: Moment) -> Option<Moment> {
    let starts = seen.memory.starts;
    let beyond = starts.quick.checked_sub(PATIENCE)?;
    let pause = Duration::from_secs(1 << beyond.min(9)).min(LONGEST_PAUSE);
    starts.last.map(|last| last + pause).filter(|until| *until > now)
}

/// The metadata of a definition made now.
fn metadata(machine: &Machine, provisioned: bool) -> Metadata {
    Metadata {
        uid: machine.id.uid.clone(),
        namespace: machine.id.namespace.clone(),
        name: machine.id.name.clone(),
        restart_token: machine.restart_token.clone(),
        provisioned,
        applied: machine.applied(),
    }
}

// --- Converging -----------------------------------------------------------------------------------------------------

fn converge(machine: &Machine, domain: &OurDomain, seen: &Observed, now: Moment) -> Plan {
    match (machine.power, domain.power) {
        (PowerState::Running | PowerState::Paused | PowerState::Stopped, Power::Off) => {
            inactive(machine, domain, seen, now)
        }
        (PowerState::Stopped, Power::Running) => match reconfigure(machine, domain, seen) {
            Some(first) => stop_running(machine.stop, domain, seen, now, first),
            None => wait_for_image(now),
        },
        // It cannot answer a request.
        (PowerState::Stopped, Power::Paused(PausedBy::Request | PausedBy::IoError)) => {
            then(vec![Action::Destroy], Next::Again)
        }
        (PowerState::Running | PowerState::Paused, Power::Running | Power::Paused(_)) => {
            active(machine, domain, seen, now)
        }
    }
}

/// An inactive domain gets the newest definition, and with it the restart token: a start from here is the restart that
/// was asked for. The token is written before the start, so that an agent killed after it never restarts again.
fn inactive(machine: &Machine, domain: &OurDomain, seen: &Observed, now: Moment) -> Plan {
    if seen.files.root.is_none() {
        return blocked(Blocked::RootMissing);
    }
    let mut actions = missing_files(machine, seen);
    let wanted = metadata(machine, domain.config.provisioned);
    if domain.config != wanted || !domain.persistent {
        actions.push(Action::Define(wanted));
    }
    if needs_images(machine, &actions) && !seen.memory.images_cached {
        return wait_for_image(now);
    }
    boot(machine, domain.autostart, seen, now, actions)
}

/// Brings the configuration of an active domain up to date, without its restart token: that is written when it is off.
/// `None` when an image must be fetched first.
fn reconfigure(machine: &Machine, domain: &OurDomain, seen: &Observed) -> Option<Vec<Action>> {
    let missing = |name: &str| !seen.files.disks.contains_key(name);
    let disks = machine.disks.iter().filter(|d| missing(&d.name));
    let mut actions: Vec<Action> = disks.map(|d| Action::MakeDisk(d.name.clone())).collect();
    let wanted = Metadata {
        restart_token: domain.config.restart_token.clone(),
        ..metadata(machine, domain.config.provisioned)
    };
    if domain.config != wanted || !domain.persistent {
        actions.push(Action::Define(wanted));
    }
    if machine.autostart != domain.autostart {
        actions.push(Action::SetAutostart(machine.autostart));
    }
    (!needs_images(machine, &actions) || seen.memory.images_cached).then_some(actions)
}

fn active(machine: &Machine, domain: &OurDomain, seen: &Observed, now: Moment) -> Plan {
    let Some(mut actions) = reconfigure(machine, domain, seen) else {
        return wait_for_image(now);
    };
    if machine.restart_token != domain.config.restart_token {
        return match domain.power {
            Power::Paused(_) => {
                actions.push(Action::Destroy);
                then(actions, Next::Again)
            }
            Power::Running | Power::Off => stop_running(machine.restart_stop, domain, seen, now, actions),
        };
    }
    actions.extend(live_changes(machine, domain, seen));
    match (machine.power, domain.power) {
        (PowerState::Running, Power::Paused(PausedBy::IoError)) => {
            return then(actions, Next::Blocked(Blocked::StorageFailed));
        }
        (PowerState::Running, Power::Paused(PausedBy::Request)) => actions.push(Action::Resume),
        (PowerState::Paused, Power::Running) => actions.push(Action::Suspend),
        (PowerState::Running, Power::Running)
        | (PowerState::Paused, Power::Paused(_))
        | (PowerState::Stopped, _)
        | (_, Power::Off) => {}
    }
    then(actions, Next::Settled)
}

/// What of the difference between the running domain and its goal can be changed while it runs.
fn live_changes(machine: &Machine, domain: &OurDomain, seen: &Observed) -> Vec<Action> {
    let Some(live) = domain
        .live
        .as_ref()
        .filter(|_| machine.domain_type != DomainType::Lxc)
    else {
        return vec![];
    };
    if domain.power != Power::Running {
        return vec![];
    }
    let wanted = machine.applied();
    let mut actions = Vec::new();
    let mut reached = live.clone();
    for field in differing(&live.applied, &wanted) {
        let Some(value) = wanted.get(&field) else { continue };
        let within = |limit: &str, value: i64| {
            live.applied
                .get(limit)
                .and_then(|l| l.parse::<i64>().ok())
                .is_some_and(|limit| value <= limit)
        };
        let action = match field.as_str() {
            "cpus" if within("maxCpus", i64::from(machine.cpus)) => Action::SetVcpus(machine.cpus),
            "memoryMiB" if within("maxMemoryMiB", machine.memory_mib) => {
                Action::SetMemory(machine.memory_mib)
            }
            _ => continue,
        };
        if seen.memory.refused.get(&field) == Some(value) {
            continue;
        }
        actions.push(action);
        reached.applied.insert(field, value.clone());
    }
    if !actions.is_empty() {
        actions.push(Action::SetLiveMetadata(reached));
    }
    actions
}

/// The fields that the user set and the running domain does not have yet.
#[must_use]
pub fn restart_required(machine: &Machine, domain: &OurDomain, files: &Files) -> Vec<String> {
    let (Some(live), Power::Running | Power::Paused(_)) = (&domain.live, domain.power) else {
        return vec![];
    };
    let mut fields = differing(&live.applied, &machine.applied());
    fields.retain(|field| !machine.defaulted.contains(&field.as_str()));
    if files.root.is_some_and(|mib| mib < machine.disk_mib) {
        fields.push("diskMiB".to_owned());
    }
    let small = |d: &MachineDisk| {
        files
            .disks
            .get(&d.name)
            .zip(d.size_mib)
            .is_some_and(|(mib, wanted)| *mib < wanted)
    };
    if machine.disks.iter().any(small) && !fields.iter().any(|f| f == "disks") {
        fields.push("disks".to_owned());
    }
    fields.sort();
    fields
}

#[cfg(test)]
#[path = "plan/tests.rs"]
mod tests;
