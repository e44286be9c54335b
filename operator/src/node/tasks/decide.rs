//! What is to be done next of all the work that was assigned to this host.
//!
//! Pure. Work on one Instance is done in the order in which it was asked for, one thing at a time; different Instances
//! go on beside each other, up to a bound. A result `Started` that this process knows nothing of belongs to one before
//! it: how that ended cannot be known, so it is failed and never run again.

use std::cmp::Ordering;
use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kube::ResourceExt;
use virtshell_crds::task::{AssignedTarget, TargetResult, TargetState};
use virtshell_crds::{ANNOTATION_CREATED_AT, Instance, PowerState, TaskAssignment};

use super::Kind;
use super::result::failed;
use crate::node::access::{Channel, Choice, Signs, choose};
use crate::node::observed::Moment;
use crate::node::provision::is_unfinished;

/// Commands in guests of this host at the same time.
pub const AT_ONCE: usize = 32;
/// How long what the watch of Instances shows may lag behind the watch of assignments.
const LAG: Duration = Duration::from_secs(3);
/// How long a guest that should run may take until a command can be run in it.
const PATIENCE: Duration = Duration::from_mins(3);
/// How often a target that is waited for is looked at.
const LOOK_AGAIN: Duration = Duration::from_millis(200);

/// One target of one assignment: their uids.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// Of the assignment.
    pub assignment: String,
    /// Of the Instance.
    pub target: String,
}

/// What this process knows of a target that the cluster may not know yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Progress {
    /// It will be started as soon as the cluster knows that it was.
    Claimed {
        /// The way into the guest.
        channel: Channel,
        /// When it must be done.
        until: Timestamp,
    },
    /// It runs.
    Running,
    /// It ended.
    Ended(TargetResult),
}

/// Whether a target can be worked on now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// This way.
    Ready(Channel),
    /// Not yet.
    Wait,
    /// Never: a word, and what it means.
    Refused(&'static str, String),
}

/// What is to be done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Decision {
    /// What this process knows from now on: ends without a beginning, and claims.
    pub news: Vec<(Key, Progress)>,
    /// Targets that are first in their row and not ready.
    pub waits: Vec<Key>,
    /// When to look again at the latest.
    pub again: Option<Duration>,
}

/// Decides, where `standing` says of a target in its namespace whether it can be worked on.
pub fn decide(
    assignments: &[Arc<TaskAssignment>],
    mine: &BTreeMap<Key, Progress>,
    now: Timestamp,
    mut standing: impl FnMut(&Key, &str, &AssignedTarget) -> Standing,
) -> Decision {
    let mut decision = Decision::default();
    let mut busy: HashSet<&str> = HashSet::new();
    let mut running = 0;
    for (key, progress) in mine {
        match progress {
            Progress::Claimed { .. } | Progress::Running => {
                busy.insert(&key.target);
                running += 1;
            }
            Progress::Ended(_) => {}
        }
    }
    for assignment in in_order(assignments) {
        let until = deadline(assignment);
        let namespace = assignment.namespace().unwrap_or_default();
        for target in &assignment.spec.targets {
            let key = Key {
                assignment: assignment.uid().unwrap_or_default(),
                target: target.uid.clone(),
            };
            if mine.contains_key(&key) {
                continue;
            }
            let end = |reason: &str, why: &str| Progress::Ended(failed(target, reason, why));
            let news = match state(assignment, &target.uid) {
                TargetState::Succeeded | TargetState::Failed => continue,
                TargetState::Started => end(
                    "Interrupted",
                    "the agent of the host was restarted while it ran; it may have been done in part or whole",
                ),
                TargetState::Pending if now >= until => {
                    end("TimedOut", "it could not be started within the task's time")
                }
                TargetState::Pending if Kind::of(&assignment.spec.type_).is_none() => end(
                    "Unsupported",
                    &format!("{} is nothing that a host does", assignment.spec.type_),
                ),
                TargetState::Pending => {
                    decision.look_again(until.duration_since(now));
                    // Whoever comes first keeps the others waiting, ready or not.
                    if !busy.insert(&target.uid) {
                        continue;
                    }
                    match standing(&key, &namespace, target) {
                        Standing::Refused(reason, why) => end(reason, &why),
                        Standing::Ready(channel) if running < AT_ONCE => {
                            running += 1;
                            Progress::Claimed { channel, until }
                        }
                        Standing::Ready(_) => continue,
                        Standing::Wait => {
                            decision.waits.push(key);
                            continue;
                        }
                    }
                }
            };
            decision.news.push((key, news));
        }
    }
    if !decision.waits.is_empty() {
        decision.look_again(SignedDuration::try_from(LOOK_AGAIN).unwrap_or_default());
    }
    decision
}

impl Decision {
    fn look_again(&mut self, after: SignedDuration) {
        let after = Duration::try_from(after).unwrap_or_default();
        self.again = Some(self.again.map_or(after, |again| again.min(after)));
    }
}

/// The order of work: by creation, which has whole seconds; by the creation in microseconds that the maker noted; by name.
fn in_order(assignments: &[Arc<TaskAssignment>]) -> Vec<&Arc<TaskAssignment>> {
    let mut list: Vec<_> = assignments
        .iter()
        .filter(|a| a.metadata.deletion_timestamp.is_none())
        .collect();
    list.sort_by(|a, b| order(a, b));
    list
}

fn order(a: &TaskAssignment, b: &TaskAssignment) -> Ordering {
    let noted = |x: &TaskAssignment| {
        let text = x.annotations().get(ANNOTATION_CREATED_AT);
        text.and_then(|text| text.parse::<u64>().ok()).unwrap_or(0)
    };
    created(a)
        .cmp(&created(b))
        .then_with(|| noted(a).cmp(&noted(b)))
        .then_with(|| a.name_any().cmp(&b.name_any()))
}

fn created(assignment: &TaskAssignment) -> Timestamp {
    assignment
        .metadata
        .creation_timestamp
        .as_ref()
        .map_or(Timestamp::UNIX_EPOCH, |time| time.0)
}

fn deadline(assignment: &TaskAssignment) -> Timestamp {
    let seconds = i64::from(assignment.spec.timeout_seconds);
    created(assignment)
        .checked_add(SignedDuration::from_secs(seconds))
        .unwrap_or(Timestamp::MAX)
}

/// What the cluster knows of a target.
fn state(assignment: &TaskAssignment, uid: &str) -> TargetState {
    let results = assignment.status.iter().flat_map(|status| &status.results);
    results
        .into_iter()
        .find(|result| result.uid == uid)
        .map_or(TargetState::Pending, |result| result.state)
}

/// What is known of a target besides its assignment.
#[derive(Clone, Copy, Debug)]
pub struct Seen<'a> {
    /// The Instance; absent when this host has none with the target's uid.
    pub instance: Option<&'a Instance>,
    /// Whether its libvirt answers.
    pub connected: bool,
    /// What is known of the way into it.
    pub signs: &'a Signs,
    /// How long this process has waited for it.
    pub waited: Duration,
}

/// Whether a target can be worked on.
#[must_use]
pub fn standing(target: &AssignedTarget, namespace: &str, seen: &Seen<'_>, now: Moment) -> Standing {
    let give_up = |after: Duration, reason, why: &str| {
        if seen.waited < after {
            Standing::Wait
        } else {
            Standing::Refused(reason, why.to_owned())
        }
    };
    // An assignment reaches no other namespace than its own.
    let ours = |i: &&Instance| {
        i.metadata.namespace.as_deref() == Some(namespace)
            && i.metadata.name.as_deref() == Some(&target.name)
            && i.metadata.deletion_timestamp.is_none()
    };
    let Some(instance) = seen.instance.filter(ours) else {
        return give_up(LAG, "NotFound", "no such instance on this host");
    };
    if instance.spec.power_state != PowerState::Running {
        return give_up(LAG, "NotRunning", "the instance is not running, and is not to");
    }
    if !seen.connected {
        return give_up(
            PATIENCE,
            "HypervisorUnreachable",
            "the host's libvirt does not answer",
        );
    }
    let running = instance.status.as_ref().and_then(|s| s.power_state) == Some(PowerState::Running);
    if !running {
        return give_up(PATIENCE, "NotRunning", "the instance is not running");
    }
    // Work on one Instance is done in order, and its creation came first.
    if is_unfinished(instance) {
        return Standing::Wait;
    }
    match choose(seen.signs, now) {
        Choice::Use(channel) => Standing::Ready(channel),
        Choice::Wait => give_up(PATIENCE, "NoChannel", "the guest is not up yet"),
        Choice::Nothing(why) => Standing::Refused("NoChannel", why),
    }
}

#[cfg(test)]
#[path = "decide_tests.rs"]
mod tests;
