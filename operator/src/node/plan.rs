//! Decides which steps bring one domain to its goal.
//!
//! Pure: no clock, no randomness, no I/O, so that every rule has a row in the table test. Every pair of goal and
//! observation is named; a new variant becomes a list of compile errors to visit. [`super::perform`] executes the steps,
//! [`super::report`] explains the rest.

use std::time::Duration;

use virtshell_crds::PowerState;
use virtshell_crds::instance::{Driver, StopMode};

use super::applied::{DiskWord, words};
use super::backoff;
use super::goal::{DomainType, Goal, Machine, Removal, Stop};
use super::metadata::Metadata;
use super::observed::{Asked, DomainState, Moment, Observed, OurDomain, PausedBy, Power};

mod live;

pub use live::{Change, Device, Outstanding, outstanding, patience};

/// How often a guest is asked again during its grace period: one that is still booting drops the ACPI event.
const ASK_AGAIN: Duration = Duration::from_secs(5);
/// A guest that ends sooner than this after its start did not stay up.
pub const STABLE: Duration = Duration::from_mins(1);
/// So many quick ends are repaired at once, before the back-off begins.
const PATIENCE: u32 = 2;
/// How often to look whether an administrator has cured what blocks.
const LOOK_AGAIN: Duration = Duration::from_secs(30);
/// How long a guest that was resumed after its storage failed is left alone when that happens again.
const RESUME_AGAIN: Duration = Duration::from_secs(25);

/// One step. Executing it twice does what executing it once does.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Make the root disk, or the container's root file system.
    MakeRoot,
    /// Make a disk.
    MakeDisk(String),
    /// Enlarge a disk of an inactive domain, "root" or by name, to so many MiB.
    GrowDisk(String, i64),
    /// Make the seed, or write it anew.
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
    /// Change the running domain.
    Change(Change),
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
    /// The disks of another Instance to be copied.
    Copy,
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
    /// The file of a disk that the domain had is gone.
    DiskMissing {
        /// Name of the disk, or root.
        name: String,
        /// The guest still runs, on the deleted file.
        running: bool,
    },
    /// The guest is suspended because its storage has no room.
    StorageFull,
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
        Power::Paused(_) => then(vec![Action::Destroy], Next::Again),
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
    let clones = machine.clone_of.is_some();
    if clones && seen.files.root.is_none() {
        return then(vec![], Next::Wait(now, Waiting::Copy));
    }
    let mut actions = missing_files(machine, seen);
    // What is copied was provisioned where it came from.
    actions.push(Action::Define(metadata(machine, clones)));
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
        | Action::Change(_)
        | Action::SetLiveMetadata(_) => false,
    })
}

fn wait_for_image(now: Moment) -> Plan {
    then(vec![], Next::Wait(now, Waiting::Image))
}

fn missing_files(machine: &Machine, seen: &Observed) -> Vec<Action> {
    let mut actions = Vec::new();
    if seen.files.root.is_none() {
        actions.push(Action::MakeRoot);
    }
    actions.extend(missing_disks(machine, seen));
    let small = live::too_small(machine, &seen.files).into_iter();
    actions.extend(small.map(|(name, mib)| Action::GrowDisk(name, mib)));
    if !seen.files.seed && machine.driver != Driver::Lxc {
        actions.push(Action::MakeSeed);
    }
    actions
}

fn missing_disks<'a>(machine: &'a Machine, seen: &'a Observed) -> impl Iterator<Item = Action> + 'a {
    let missing = machine
        .disks
        .iter()
        .filter(|d| !seen.files.disks.contains_key(&d.name));
    missing.map(|d| Action::MakeDisk(d.name.clone()))
}

/// A disk that the domain was made with and whose file is gone: an empty one in its place would hide the loss.
fn lost_disk(machine: &Machine, domain: &OurDomain, seen: &Observed) -> Option<Blocked> {
    let there = |name: &str| match name {
        "root" => seen.files.root.is_some(),
        name => seen.files.disks.contains_key(name) || !machine.disks.iter().any(|d| d.name == name),
    };
    let recorded = words(&domain.config.metadata.applied, "disks").filter_map(DiskWord::parse);
    let name = recorded.map(|disk| disk.name).find(|name| !there(name))?;
    Some(Blocked::DiskMissing {
        name: name.to_owned(),
        running: domain.power != Power::Off,
    })
}

/// Autostart and start of an inactive domain, after `actions`.
fn boot(machine: &Machine, autostart: bool, seen: &Observed, now: Moment, mut actions: Vec<Action>) -> Plan {
    if machine.autostart != autostart {
        actions.push(Action::SetAutostart(machine.autostart));
    }
    if machine.power == PowerState::Stopped {
        return then(actions, Next::Settled);
    }
    if let Some(until) = pause_before_start(&machine.id.uid, seen, now) {
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

/// Until when a guest that does not stay up is left alone.
fn pause_before_start(uid: &str, seen: &Observed, now: Moment) -> Option<Moment> {
    let starts = seen.memory.starts;
    let beyond = starts.quick.checked_sub(PATIENCE)?;
    let pause = backoff::pause(beyond, uid);
    starts.last.map(|last| last + pause).filter(|until| *until > now)
}

/// The metadata of a definition made now.
fn metadata(machine: &Machine, provisioned: bool) -> Metadata {
    Metadata {
        uid: machine.id.uid.clone(),
        namespace: machine.id.namespace.clone(),
        name: machine.id.name.clone(),
        restart_token: machine.restart_token.clone(),
        // Either remembers it for the other: a status that was replaced, a domain that was undefined.
        provisioned: provisioned || machine.provisioned,
        applied: machine.applied(),
    }
}

// --- Converging -----------------------------------------------------------------------------------------------------

fn converge(machine: &Machine, domain: &OurDomain, seen: &Observed, now: Moment) -> Plan {
    match (machine.power, domain.power) {
        (PowerState::Running | PowerState::Paused | PowerState::Stopped, Power::Off) => {
            inactive(machine, domain, seen, now)
        }
        // What crashed, or what is suspended and should be off, cannot answer a request.
        (_, Power::Paused(PausedBy::Crash)) | (PowerState::Stopped, Power::Paused(_)) => {
            then(vec![Action::Destroy], Next::Again)
        }
        (PowerState::Stopped, Power::Running) => match reconfigure(machine, domain, seen) {
            Some(first) => stop_running(machine.stop, domain, seen, now, first),
            None => wait_for_image(now),
        },
        (PowerState::Running | PowerState::Paused, Power::Running | Power::Paused(_)) => {
            active(machine, domain, seen, now)
        }
    }
}

/// An inactive domain gets the newest definition, and with it the restart token: a start from here is the restart that
/// was asked for. The token is written before the start, so that an agent killed after it never restarts again.
fn inactive(machine: &Machine, domain: &OurDomain, seen: &Observed, now: Moment) -> Plan {
    if let Some(lost) = lost_disk(machine, domain, seen) {
        return blocked(lost);
    }
    let mut actions = missing_files(machine, seen);
    let wanted = metadata(machine, domain.config.metadata.provisioned);
    let old = &domain.config.metadata.applied;
    let news = ["hostname", "cloudInit"];
    let told = news
        .iter()
        .all(|field| old.get(*field) == wanted.applied.get(*field));
    if !told && !actions.contains(&Action::MakeSeed) {
        actions.push(Action::MakeSeed);
    }
    if !is_defined(domain, &wanted) {
        actions.push(Action::Define(wanted));
    }
    if needs_images(machine, &actions) && !seen.memory.images_cached {
        return wait_for_image(now);
    }
    boot(machine, domain.autostart, seen, now, actions)
}

/// Whether the configuration is there, is recorded as this one, and still carries what is recorded.
fn is_defined(domain: &OurDomain, wanted: &Metadata) -> bool {
    domain.persistent && domain.config.metadata == *wanted && domain.config.carries == wanted.applied
}

/// Brings the configuration of an active domain up to date, without its restart token: that is written when it is off.
/// `None` when an image must be fetched first.
fn reconfigure(machine: &Machine, domain: &OurDomain, seen: &Observed) -> Option<Vec<Action>> {
    if lost_disk(machine, domain, seen).is_some() {
        return Some(vec![]);
    }
    let mut actions: Vec<Action> = missing_disks(machine, seen).collect();
    let old = &domain.config.metadata;
    let mut wanted = Metadata {
        restart_token: old.restart_token.clone(),
        ..metadata(machine, old.provisioned)
    };
    // The seed is written when the domain is off, and recorded then.
    for field in ["hostname", "cloudInit"] {
        if let Some(value) = old.applied.get(field) {
            wanted.applied.insert(field.to_owned(), value.clone());
        }
    }
    if !is_defined(domain, &wanted) {
        actions.push(Action::Define(wanted));
    }
    if machine.autostart != domain.autostart {
        actions.push(Action::SetAutostart(machine.autostart));
    }
    (!needs_images(machine, &actions) || seen.memory.images_cached).then_some(actions)
}

fn active(machine: &Machine, domain: &OurDomain, seen: &Observed, now: Moment) -> Plan {
    // A guest that lost a disk would not come back from a restart.
    if let Some(lost) = lost_disk(machine, domain, seen) {
        return blocked(lost);
    }
    let Some(mut actions) = reconfigure(machine, domain, seen) else {
        return wait_for_image(now);
    };
    if machine.restart_token != domain.config.metadata.restart_token {
        return match domain.power {
            Power::Paused(_) => {
                actions.push(Action::Destroy);
                then(actions, Next::Again)
            }
            Power::Running | Power::Off => stop_running(machine.restart_stop, domain, seen, now, actions),
        };
    }
    match (machine.power, domain.power) {
        (PowerState::Running, Power::Paused(PausedBy::IoError)) => {
            let tried = seen.memory.resumed.is_some_and(|at| now < at + RESUME_AGAIN);
            if tried || (seen.no_space && !seen.room) {
                let why = if seen.no_space {
                    Blocked::StorageFull
                } else {
                    Blocked::StorageFailed
                };
                return then(actions, Next::Blocked(why));
            }
            actions.push(Action::Resume);
            return then(actions, Next::Again);
        }
        (PowerState::Running, Power::Paused(_)) => {
            actions.push(Action::Resume);
            return then(actions, Next::Again);
        }
        (PowerState::Paused, Power::Running) => {
            actions.push(Action::Suspend);
            return then(actions, Next::Again);
        }
        (PowerState::Running, Power::Running)
        | (PowerState::Paused, Power::Paused(_))
        | (PowerState::Stopped, _)
        | (_, Power::Off) => {}
    }
    let changes = live::changes(machine, domain, &seen.files, &seen.memory, now);
    if changes.is_empty() {
        actions.extend(live::reached(machine, domain, &seen.memory, now).map(Action::SetLiveMetadata));
        return then(actions, Next::Settled);
    }
    // What has been reached is seen by another look, and recorded then.
    actions.extend(changes.into_iter().map(Action::Change));
    then(actions, Next::Again)
}

#[cfg(test)]
#[path = "plan/tests.rs"]
mod tests;
