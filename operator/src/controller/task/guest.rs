//! What hosts do inside guests for a Task, and how far they are: commands, files, packages.
//!
//! Pure. A host is given its part of an attempt once, whole, and never again: what it was given stands in a
//! [`TaskAssignment`](virtshell_crds::TaskAssignment), what nobody was given in `status.refused`. So every target has one
//! of three standings, and no restart of anybody makes a command run twice:
//!
//! ```text
//! undecided --+--> waits for earlier work --> undecided
//!             +--> refused  (no such Instance, not running, no host: it counts as failed)
//!             +--> given to its host --> Started --> Succeeded | Failed
//! ```

use std::collections::{BTreeMap, BTreeSet};

use virtshell_crds::condition::{self, SCHEDULED};
use virtshell_crds::task::{AssignedTarget, RefusedTarget, TargetResult, TargetState, TaskTarget};
use virtshell_crds::{Instance, PowerState, Task, TaskParams, TaskState, TaskStatus};

use super::outcome::{self, Outcome, Standing, pending, working};
use crate::controller::pulse::HostState;

/// Whether hosts do this kind of work inside guests.
#[must_use]
pub fn is_guest_work(type_: &str) -> bool {
    matches!(
        type_,
        "execute_command" | "copy_files" | "install_packages" | "upgrade_packages" | "remove_packages"
    )
}

/// One target as it is now.
#[derive(Clone, Copy, Debug)]
pub struct Seen<'a> {
    /// What the Task says.
    pub target: &'a TaskTarget,
    /// The name people know it by.
    pub name: &'a str,
    /// The Instance; `None` when it is certain that it is gone.
    pub instance: Option<&'a Instance>,
    /// Its place in an assignment of this attempt.
    pub given: Option<Given<'a>>,
    /// How its host is: the one it was given to, else the one it is bound to.
    pub host: HostState,
    /// Earlier work on it is not finished.
    pub is_busy: bool,
}

/// A target that a host was given.
#[derive(Clone, Copy, Debug)]
pub struct Given<'a> {
    /// The host.
    pub host: &'a str,
    /// What that host has said of it.
    pub result: Option<&'a TargetResult>,
}

/// What is due, and how far every target is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Parts to give out now, by host.
    pub parts: BTreeMap<String, Vec<AssignedTarget>>,
    /// All that this attempt refuses.
    pub refused: Vec<RefusedTarget>,
    /// Targets by the names people know.
    pub standings: Vec<(String, Standing)>,
}

enum Decision<'a> {
    Stands(Standing),
    Refuse(String),
    Wait(&'a str),
    Give(&'a str, AssignedTarget),
}

/// Decides about every target. `status` is that of the present attempt.
#[must_use]
pub fn plan(task: &Task, status: &TaskStatus, seen: &[Seen<'_>]) -> Plan {
    let mut asked: BTreeSet<&str> = status.hosts.iter().map(String::as_str).collect();
    asked.extend(seen.iter().filter_map(|s| s.given.map(|g| g.host)));
    let senseless = senseless(&task.spec.type_, task.spec.params.as_ref());
    let decisions: Vec<Decision<'_>> = seen
        .iter()
        .map(|target| decide(target, status, &asked, senseless))
        .collect();
    // A host is given its part whole: it waits for the last of its targets.
    let waiting: BTreeSet<&str> = decisions
        .iter()
        .filter_map(|d| match d {
            Decision::Wait(host) => Some(*host),
            Decision::Stands(_) | Decision::Refuse(_) | Decision::Give(..) => None,
        })
        .collect();
    let mut plan = Plan {
        refused: status.refused.clone(),
        ..Plan::default()
    };
    for (target, decision) in seen.iter().zip(decisions) {
        let standing = match decision {
            Decision::Stands(standing) => standing,
            Decision::Refuse(message) => {
                if !plan.refused.iter().any(|r| r.name == target.target.name) {
                    plan.refused.push(RefusedTarget {
                        name: target.target.name.clone(),
                        message: message.clone(),
                    });
                }
                Standing::Failed(message)
            }
            Decision::Wait(_) => pending("dispatching", "waits for earlier work on the instance"),
            Decision::Give(host, _) if waiting.contains(host) => {
                pending("dispatching", format!("waits for earlier work on host {host}"))
            }
            Decision::Give(host, assigned) => {
                let part = plan.parts.entry(host.to_owned()).or_default();
                // A Task may name one Instance twice.
                if !part.contains(&assigned) {
                    part.push(assigned);
                }
                working("dispatched", "")
            }
        };
        plan.standings.push((target.name.to_owned(), standing));
    }
    plan
}

fn decide<'a>(
    seen: &Seen<'a>,
    status: &TaskStatus,
    asked: &BTreeSet<&str>,
    senseless: Option<&'static str>,
) -> Decision<'a> {
    let name = seen.name;
    // Never recorded: an Instance may have its name, and what is recorded of a target is known by that.
    if seen.target.kind != "Instance" {
        let words = format!("{} {name} is not an instance", seen.target.kind);
        return Decision::Stands(Standing::Failed(words));
    }
    if let Some(given) = seen.given {
        return Decision::Stands(given_standing(seen, given));
    }
    if let Some(refused) = status.refused.iter().find(|r| r.name == seen.target.name) {
        return Decision::Stands(Standing::Failed(refused.message.clone()));
    }
    if let Some(words) = senseless {
        return Decision::Refuse(words.to_owned());
    }
    let Some(instance) = seen.instance else {
        return Decision::Refuse(format!("instance {name} not found"));
    };
    if instance.metadata.deletion_timestamp.is_some() {
        return Decision::Refuse(format!("instance {name} is being deleted"));
    }
    let Some(host) = bound_host(instance) else {
        return Decision::Refuse(format!("instance {name} is not running: it has no host yet"));
    };
    if asked.contains(host) {
        return Decision::Refuse(format!(
            "host {host} was given its part of this task without {name}"
        ));
    }
    if seen.is_busy {
        return Decision::Wait(host);
    }
    if seen.host == HostState::Gone {
        return Decision::Refuse(format!("host {host} is gone"));
    }
    let running = instance.status.as_ref().and_then(|s| s.power_state) == Some(PowerState::Running);
    match instance.metadata.uid.clone() {
        Some(uid) if running => Decision::Give(
            host,
            AssignedTarget {
                name: seen.target.name.clone(),
                uid,
            },
        ),
        Some(_) | None => Decision::Refuse(format!("instance {name} is not running")),
    }
}

fn given_standing(seen: &Seen<'_>, given: Given<'_>) -> Standing {
    let host = given.host;
    let state = given.result.map_or(TargetState::Pending, |r| r.state);
    let stage = match (state, given.result) {
        (TargetState::Succeeded, _) => return Standing::Succeeded,
        (TargetState::Failed, Some(result)) => return Standing::Failed(words(result)),
        (TargetState::Failed, None) | (TargetState::Pending, _) => "dispatched",
        (TargetState::Started, _) => "executing",
    };
    match (seen.host, seen.instance) {
        (HostState::Gone, _) => Standing::Failed(format!("host {host} is gone")),
        (_, None) => Standing::Failed(format!("instance {} was deleted", seen.name)),
        (HostState::Silent, Some(_)) => working(stage, format!("host {host} is silent")),
        (HostState::Alive, Some(_)) => working(stage, ""),
    }
}

/// The host whose agent has the Instance.
fn bound_host(instance: &Instance) -> Option<&str> {
    let conditions = &instance.status.as_ref()?.conditions;
    instance
        .spec
        .host
        .as_deref()
        .filter(|_| condition::is_true(conditions, SCHEDULED))
}

fn words(result: &TargetResult) -> String {
    match (result.reason.as_str(), result.exit_code) {
        ("", Some(code)) => format!("exit code {code}"),
        ("", None) => "failed".to_owned(),
        (reason, _) => reason.to_owned(),
    }
}

/// What the parameters lack, in the REST API's words.
fn senseless(type_: &str, params: Option<&TaskParams>) -> Option<&'static str> {
    let none = TaskParams::default();
    let params = params.unwrap_or(&none);
    match type_ {
        "execute_command" if params.command.is_none() => Some("command field was not provided"),
        "copy_files" if params.destination.is_none() => Some("destination field was not provided"),
        "copy_files" if params.file.is_some() == params.folder.is_some() => {
            Some("give exactly one of file and folder")
        }
        "install_packages" | "remove_packages" if params.packages.is_empty() => {
            Some("packages field was not provided")
        }
        _ => None,
    }
}

/// The state of the Task, as [`outcome::outcome`] has it, with the summary `3 of 4 targets succeeded` at its end.
#[must_use]
pub fn outcome(targets: &[(String, Standing)], overdue: bool, limit: i64) -> Outcome {
    let all = outcome::outcome(targets, overdue, limit);
    let counts = &all.counts;
    let summary = format!("{} of {} targets succeeded", counts.succeeded, counts.targets);
    let log = match all.state {
        TaskState::Pending | TaskState::InProgress => all.log,
        TaskState::Succeeded => summary,
        TaskState::Failed => {
            let unfinished = targets
                .iter()
                .any(|(_, s)| !matches!(s, Standing::Succeeded | Standing::Failed(_)));
            let reasons = outcome::reasons(targets);
            let words = [reasons, if unfinished { all.log } else { String::new() }];
            let words = words.into_iter().filter(|w| !w.is_empty());
            std::iter::once(summary)
                .chain(words)
                .collect::<Vec<_>>()
                .join("; ")
        }
    };
    Outcome { log, ..all }
}

#[cfg(test)]
#[path = "guest_story_tests.rs"]
mod story_tests;
#[cfg(test)]
#[path = "guest_tests.rs"]
mod tests;
