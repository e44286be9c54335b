//! Kubernetes Events: what a person wants to read in `kubectl describe`.

use kube::Resource;
use kube::runtime::events::{Event, EventType};
use virtshell_crds::Instance;

use super::backoff;
use super::context::Context;
use super::observed::DomainState;
use super::plan::{Action, Change, Device};

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
    /// What a step is worth telling.
    #[must_use]
    pub fn of(action: &Action, before: &DomainState) -> Option<Self> {
        match action {
            Action::Define(_) if *before == DomainState::Absent => Some(Self::Defined),
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

    fn event(&self) -> Event {
        let (warning, reason, action, note) = match self {
            Self::Defined => (false, "DomainDefined", "Define", "defined the domain".to_owned()),
            Self::Started => (false, "DomainStarted", "Start", "started the domain".to_owned()),
            Self::PoweredOff => (
                false,
                "DomainPoweredOff",
                "Destroy",
                "powered the domain off".to_owned(),
            ),
            Self::AskedToShutDown => (
                false,
                "ShutdownRequested",
                "Shutdown",
                "asked the guest to shut down".to_owned(),
            ),
            Self::Suspended => (
                false,
                "DomainSuspended",
                "Suspend",
                "suspended the domain".to_owned(),
            ),
            Self::Resumed => (false, "DomainResumed", "Resume", "resumed the domain".to_owned()),
            Self::Stopped => (
                true,
                "DomainStopped",
                "Start",
                "the domain was stopped outside of VirtShell; powerState is Running, so it is started again"
                    .to_owned(),
            ),
            Self::Undefined => (
                true,
                "DomainUndefined",
                "Define",
                "the domain was undefined outside of VirtShell; it is defined again".to_owned(),
            ),
            Self::SuspendedOutside => (
                true,
                "DomainSuspended",
                "Resume",
                "the domain was suspended outside of VirtShell; powerState is Running, so it is resumed"
                    .to_owned(),
            ),
            Self::Edited(fields) => (
                true,
                "DomainEdited",
                "Define",
                format!(
                    "the definition was edited outside of VirtShell ({}); it is put back",
                    fields.join(", ")
                ),
            ),
            Self::Changed(fields) => (
                true,
                "DomainChanged",
                "Converge",
                format!(
                    "the running domain was changed outside of VirtShell ({}); it is changed back",
                    fields.join(", ")
                ),
            ),
            Self::Live(what) => (false, "DomainUpdated", "Update", what.clone()),
            Self::Problem(reason, message) => (true, *reason, "Converge", message.clone()),
        };
        Event {
            type_: if warning {
                EventType::Warning
            } else {
                EventType::Normal
            },
            reason: reason.to_owned(),
            // The API takes 1 KiB.
            note: Some(note.chars().take(1000).collect()),
            action: action.to_owned(),
            secondary: None,
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

/// How often an Event is tried to be written: for about five minutes.
const TRIES: u32 = 9;

/// Whether the API server will refuse again. One that has just started does not know its accounts and roles yet.
fn is_final(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(answer) if (400..500).contains(&answer.code) && ![401, 403, 429].contains(&answer.code))
}

/// Writes the Event beside the work: nobody waits for it. Guests are repaired while the API server is away, and that is
/// told when it is back, unless that takes too long.
pub fn told(context: &Context, instance: &Instance, tell: &Tell) {
    let (recorder, reference, event) = (context.recorder.clone(), instance.object_ref(&()), tell.event());
    tokio::spawn(async move {
        for attempt in 0..TRIES {
            let Err(error) = recorder.publish(&event, &reference).await else {
                return;
            };
            tracing::debug!(reason = event.reason, %error, attempt, "an Event was not written");
            if is_final(&error) {
                return;
            }
            tokio::time::sleep(backoff::pause(
                attempt,
                reference.uid.as_deref().unwrap_or_default(),
            ))
            .await;
        }
    });
}

#[cfg(test)]
mod tests {
    use kube::core::Status;

    use super::*;

    #[test]
    fn a_refusal_is_final_unless_the_api_server_may_not_know_us_yet() {
        for (code, expected) in [
            (400, true),
            (404, true),
            (422, true),
            (401, false),
            (403, false),
            (429, false),
            (500, false),
        ] {
            let error = kube::Error::Api(Box::new(Status::failure("no", "").with_code(code)));
            assert_eq!(is_final(&error), expected, "{code}");
        }
    }
}
