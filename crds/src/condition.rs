//! Conditions by the Kubernetes convention: types, and an update that keeps `lastTransitionTime` honest.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

/// The spec makes sense: references and names resolve. `False` = not acted on; the message says why.
pub const ACCEPTED: &str = "Accepted";
/// A host has been chosen (or the message says how many hosts fell out for what reason).
pub const SCHEDULED: &str = "Scheduled";
/// The image is in the host's cache; `False` while downloading, the message carries the progress.
pub const IMAGE_READY: &str = "ImageReady";
/// Instance: the domain is what the spec asks for. Host: its agent serves it.
pub const READY: &str = "Ready";
/// Nothing is left to do; `False` lists what differs.
pub const CONVERGED: &str = "Converged";
/// The guest agent answers; `Unknown` for guests without its channel.
pub const AGENT_CONNECTED: &str = "AgentConnected";
/// The builder has run to its end; only of Instances that have one. `False` says how far it is, or why it failed.
pub const PROVISIONED: &str = "Provisioned";
/// Host: every configured libvirt connection answers.
pub const LIBVIRT_CONNECTED: &str = "LibvirtConnected";
/// Host: new Instances may be placed here.
pub const SCHEDULABLE: &str = "Schedulable";
/// Host: the agent's data directory has room.
pub const STORAGE_HEALTHY: &str = "StorageHealthy";
/// Host: its Instances were edited to take more than it has. Only while that is so.
pub const OVERCOMMITTED: &str = "Overcommitted";
/// Host: guests run on hardware virtualization; `False` = kvm guests are emulated.
pub const HARDWARE_VIRTUALIZATION: &str = "HardwareVirtualization";

/// The three values of a condition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// The condition holds.
    True,
    /// It does not.
    False,
    /// Could not be asked.
    Unknown,
}

impl Status {
    /// The word Kubernetes uses.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::True => "True",
            Self::False => "False",
            Self::Unknown => "Unknown",
        }
    }
}

impl From<bool> for Status {
    fn from(holds: bool) -> Self {
        if holds { Self::True } else { Self::False }
    }
}

/// A condition as decided now; [`upsert`] gives it its transition time.
#[must_use]
pub fn condition(
    type_: &str,
    status: Status,
    reason: &str,
    message: impl Into<String>,
    observed_generation: Option<i64>,
    now: Time,
) -> Condition {
    Condition {
        type_: type_.to_owned(),
        status: status.as_str().to_owned(),
        reason: reason.to_owned(),
        message: message.into(),
        observed_generation,
        last_transition_time: now,
    }
}

/// Puts `new` in the place of the condition of its type, or adds it.
///
/// The transition time of the present condition is kept when its status does not change: a moving time would make every
/// status write a change and wake the writer's own watch.
pub fn upsert(conditions: &mut Vec<Condition>, mut new: Condition) {
    match conditions.iter_mut().find(|c| c.type_ == new.type_) {
        Some(old) => {
            if old.status == new.status {
                new.last_transition_time = old.last_transition_time.clone();
            }
            *old = new;
        }
        None => conditions.push(new),
    }
}

/// The condition of this type, if it was ever reported.
#[must_use]
pub fn find<'a>(conditions: &'a [Condition], type_: &str) -> Option<&'a Condition> {
    conditions.iter().find(|c| c.type_ == type_)
}

/// Whether the condition was reported as `True`.
#[must_use]
pub fn is_true(conditions: &[Condition], type_: &str) -> bool {
    find(conditions, type_).is_some_and(|c| c.status == Status::True.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Time {
        Time(k8s_openapi::jiff::Timestamp::from_second(second).unwrap())
    }

    #[test]
    fn the_transition_time_moves_only_with_the_status() {
        let mut list = Vec::new();
        upsert(
            &mut list,
            condition(READY, Status::False, "Starting", "", Some(1), at(1)),
        );
        upsert(
            &mut list,
            condition(READY, Status::False, "Waiting", "agent", Some(2), at(2)),
        );
        assert_eq!(
            (list[0].last_transition_time.clone(), list[0].reason.as_str()),
            (at(1), "Waiting")
        );
        upsert(
            &mut list,
            condition(READY, Status::True, "Running", "", Some(2), at(3)),
        );
        assert_eq!((list.len(), list[0].last_transition_time.clone()), (1, at(3)));
        assert!(is_true(&list, READY) && !is_true(&list, SCHEDULED));
    }
}
