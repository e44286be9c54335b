//! What the agent tells people in Kubernetes Events.

use virtshell_crds::{Instance, PowerState};

use super::context::Context;
use super::goal::Goal;
use super::observed::DomainState;
use super::plan::{Action, Change, Device};
use crate::events::Level;

/// Something worth telling.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Tell {
    /// The domain was made.
    Defined,
    /// It was started.
    Started,
    /// It was powered off.
    PoweredOff,
    /// The guest was asked to shut down.
    AskedToShutDown,
    /// Its CPUs were suspended.
    Suspended,
    /// They were resumed.
    Resumed,
    /// Somebody, or the guest itself, stopped it.
    Stopped,
    /// The guest panicked, or its QEMU died.
    Crashed,
    /// Somebody undefined it.
    Undefined,
    /// Somebody suspended it.
    SuspendedOutside,
    /// Somebody edited its definition: these fields.
    Edited(Vec<String>),
    /// Somebody changed the running domain: these fields.
    Changed(Vec<String>),
    /// The running domain was changed: what was done.
    Live(String),
    /// It cannot get where it should: reason and message.
    Problem(&'static str, String),
}

impl Tell {
    /// What a step is worth telling. Where a start follows, that tells of the definition too.
    #[must_use]
    pub fn of(action: &Action, before: &DomainState, goal: &Goal) -> Option<Self> {
        let starts = goal.machine().is_some_and(|m| m.power == PowerState::Running);
        match action {
            Action::Define(_) if *before == DomainState::Absent && !starts => Some(Self::Defined),
            Action::Start { .. } => Some(Self::Started),
            Action::Destroy => Some(Self::PoweredOff),
            Action::Ask { .. } => Some(Self::AskedToShutDown),
            Action::Suspend => Some(Self::Suspended),
            Action::Resume => Some(Self::Resumed),
            Action::Change(change) => Some(Self::Live(describe(change))),
            Action::Define(_)
            | Action::MakeRoot
            | Action::MakeDisk(_)
            | Action::GrowDisk(..)
            | Action::MakeSeed
            | Action::SetAutostart(_)
            | Action::Undefine
            | Action::RemoveFiles { .. }
            | Action::SetLiveMetadata(_) => None,
        }
    }

    /// Level, reason, action and note.
    fn words(&self) -> (Level, &'static str, &'static str, String) {
        match self {
            Self::Defined => (
                Level::Normal,
                "DomainDefined",
                "Define",
                "defined the domain".to_owned(),
            ),
            Self::Started => (
                Level::Normal,
                "DomainStarted",
                "Start",
                "started the domain".to_owned(),
            ),
            Self::PoweredOff => (
                Level::Normal,
                "DomainPoweredOff",
                "Destroy",
                "powered the domain off".to_owned(),
            ),
            Self::AskedToShutDown => (
                Level::Normal,
                "ShutdownRequested",
                "Shutdown",
                "asked the guest to shut down".to_owned(),
            ),
            Self::Suspended => (
                Level::Normal,
                "DomainSuspended",
                "Suspend",
                "suspended the domain".to_owned(),
            ),
            Self::Resumed => (
                Level::Normal,
                "DomainResumed",
                "Resume",
                "resumed the domain".to_owned(),
            ),
            Self::Stopped => (
                Level::Warning,
                "DomainStopped",
                "Start",
                "the domain was stopped outside of VirtShell; powerState is Running, so it is started again"
                    .to_owned(),
            ),
            Self::Crashed => (
                Level::Warning,
                "DomainCrashed",
                "Start",
                "the guest crashed: its kernel panicked, or its hypervisor process ended; powerState is Running, so it is started again"
                    .to_owned(),
            ),
            Self::Undefined => (
                Level::Warning,
                "DomainUndefined",
                "Define",
                "the domain was undefined outside of VirtShell; it is defined again".to_owned(),
            ),
            Self::SuspendedOutside => (
                Level::Warning,
                "DomainSuspended",
                "Resume",
                "the domain was suspended outside of VirtShell; powerState is Running, so it is resumed"
                    .to_owned(),
            ),
            Self::Edited(fields) => (
                Level::Warning,
                "DomainEdited",
                "Define",
                format!(
                    "the definition was edited outside of VirtShell ({}); it is put back",
                    fields.join(", ")
                ),
            ),
            Self::Changed(fields) => (
                Level::Warning,
                "DomainChanged",
                "Converge",
                format!(
                    "the running domain was changed outside of VirtShell ({}); it is changed back",
                    fields.join(", ")
                ),
            ),
            Self::Live(what) => (Level::Normal, "DomainUpdated", "Update", what.clone()),
            Self::Problem(reason, message) => (Level::Warning, *reason, "Converge", message.clone()),
        }
    }
}

fn describe(change: &Change) -> String {
    let device = |device: &Device| match device {
        Device::Disk(name) => format!("disk {name}"),
        Device::Interface(mac) => format!("interface {mac}"),
    };
    match change {
        Change::Vcpus(cpus) => format!("gave the running domain {cpus} CPUs"),
        Change::Memory(mib) => format!("gave the running domain {mib} MiB of memory"),
        Change::Attach(what) => format!("attached {}", device(what)),
        Change::Detach(what) => format!("asked the guest to let go of {}", device(what)),
        Change::Update(what) => format!("reconnected {}", device(what)),
        Change::Grow(disk, mib) => format!("enlarged disk {disk} to {mib} MiB"),
    }
}

/// Tells of an Instance, beside the work.
pub fn told(context: &Context, instance: &Instance, tell: &Tell) {
    let (level, reason, action, note) = tell.words();
    context.events.say(instance, level, action, reason, &note);
}
