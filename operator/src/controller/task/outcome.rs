//! How far a Task is, from what its targets show.
//!
//! Pure. [`standing`] judges one target, [`outcome`] the whole. A Task that changes power does so by a write to the target's
//! spec and remembers the generation that this gave: what the node reports of an older generation is not yet an answer.

use virtshell_crds::condition::{self, ACCEPTED, IMAGE_READY, READY, SCHEDULED};
use virtshell_crds::task::TaskCounts;
use virtshell_crds::{Instance, Launch, Phase, PowerState, TaskState};

/// What a Task is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// Watch an Instance come up.
    Create,
    /// Watch an edit take effect.
    Update,
    /// Watch an Instance go.
    Delete,
    /// `spec.powerState: Running`.
    Start,
    /// `spec.powerState: Stopped`.
    Stop,
    /// `spec.powerState: Running`, and a new restart token.
    Restart,
}

impl Work {
    /// By the Task's type; `None` for words that nobody acts on.
    #[must_use]
    pub fn of(type_: &str) -> Option<Self> {
        Some(match type_ {
            "create_instance" | "clone_instance" => Self::Create,
            "update_instance" => Self::Update,
            "delete_instance" => Self::Delete,
            "start_instance" => Self::Start,
            "stop_instance" => Self::Stop,
            "restart_instance" => Self::Restart,
            _ => return None,
        })
    }

    /// Whether it changes the power of its targets: such work on one Instance is done in order.
    #[must_use]
    pub const fn is_power(self) -> bool {
        matches!(self, Self::Start | Self::Stop | Self::Restart)
    }

    /// The finer word once it has succeeded.
    #[must_use]
    pub const fn last_stage(self) -> &'static str {
        match self {
            Self::Create => "provisioned",
            Self::Update | Self::Delete | Self::Start | Self::Stop | Self::Restart => "",
        }
    }

    const fn wanted(self) -> PowerState {
        match self {
            Self::Stop => PowerState::Stopped,
            Self::Create | Self::Update | Self::Delete | Self::Start | Self::Restart => PowerState::Running,
        }
    }
}

/// One target as it is now.
#[derive(Clone, Copy, Debug)]
pub struct Target<'a> {
    /// The name people know it by.
    pub name: &'a str,
    /// The Instance; `None` when it is certain that it is gone.
    pub instance: Option<&'a Instance>,
    /// The generation that this Task's own write gave.
    pub written: Option<i64>,
    /// Earlier power work on it is not finished.
    pub must_wait: bool,
}

/// How far one target is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// The Task's own write is due.
    Act,
    /// Nobody works on it yet.
    Pending(Progress),
    /// Somebody works on it.
    Working(Progress),
    /// As asked.
    Succeeded,
    /// It will not be; in words that begin with the reason where there is one.
    Failed(String),
}

/// A finer word for progress, and why.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// A word of the REST API.
    pub stage: &'static str,
    /// A sentence, or nothing.
    pub log: String,
}

/// Nobody works on it yet.
pub(super) fn pending(stage: &'static str, log: impl Into<String>) -> Standing {
    Standing::Pending(Progress {
        stage,
        log: log.into(),
    })
}

/// Somebody works on it.
pub(super) fn working(stage: &'static str, log: impl Into<String>) -> Standing {
    Standing::Working(Progress {
        stage,
        log: log.into(),
    })
}

/// How far one target is; `token` is the restart token that this Task and try would write.
#[must_use]
pub fn standing(work: Work, token: &str, is_retry: bool, target: &Target<'_>) -> Standing {
    let Some(instance) = target.instance else {
        return match work {
            Work::Delete => Standing::Succeeded,
            Work::Create | Work::Update | Work::Start | Work::Stop | Work::Restart => {
                Standing::Failed(format!("instance {} not found", target.name))
            }
        };
    };
    let deleting = instance.metadata.deletion_timestamp.is_some();
    if work == Work::Delete {
        return if deleting {
            working("deleting", "")
        } else {
            Standing::Act
        };
    }
    if deleting {
        return Standing::Failed(format!("instance {} is being deleted", target.name));
    }
    match (work, target.written) {
        (_, None) if work.is_power() && target.must_wait => {
            pending("dispatching", "waits for earlier work on the instance")
        }
        // The first try of a create writes nothing: the Instance is the request.
        (Work::Create, None) if !is_retry => created(instance, 0),
        (_, None) => Standing::Act,
        (Work::Create, Some(generation)) => created(instance, generation),
        (Work::Update, Some(generation)) => updated(instance, generation),
        (Work::Start | Work::Stop | Work::Restart | Work::Delete, Some(generation)) => {
            powered(work, token, instance, generation)
        }
    }
}

/// How far the creation of an Instance is.
#[must_use]
pub fn created(instance: &Instance, generation: i64) -> Standing {
    if let Some(message) = failure(instance, generation) {
        return Standing::Failed(message);
    }
    if let Some(said) = refusal(instance) {
        return pending("dispatching", said);
    }
    let ready = find(instance, READY);
    let reports = instance.status.as_ref().is_some_and(|s| s.host.is_some());
    match (ready, reports) {
        _ if generation > reported(instance) => working("dispatched", ""),
        (_, false) => working("dispatched", ""),
        (Some(ready), true) if ready.status == "True" => Standing::Succeeded,
        (_, true) => match find(instance, IMAGE_READY) {
            Some(image) if image.status != "True" => working("setting up", image.message.clone()),
            Some(_) | None if phase(instance) == Some(Phase::Provisioning) => {
                working("provisioning", message(instance))
            }
            Some(_) | None => working("creating", message(instance)),
        },
    }
}

/// How far a launch is, from the creation of its children (name, standing): enough must run, and nobody may still be on the way.
#[must_use]
pub fn launched(launch: Launch, children: &[(String, Standing)]) -> Standing {
    let is_done = |s: &Standing| *s == Standing::Succeeded;
    // One that waits for room may wait for long, and says why; one that says nothing has not been looked at yet.
    let waits = |s: &Standing| matches!(s, Standing::Pending(progress) if !progress.log.is_empty());
    let is_failed = |s: &Standing| matches!(s, Standing::Failed(_));
    let least = launch.min as usize;
    let count = |is: &dyn Fn(&Standing) -> bool| children.iter().filter(|(_, s)| is(s)).count();
    let (done, failed) = (count(&is_done), count(&is_failed));
    let on_the_way = children
        .iter()
        .map(|(_, s)| s)
        .find(|s| !is_done(s) && !waits(s) && !is_failed(s));
    if children.len() - failed < least {
        let can = children.len() - failed;
        return Standing::Failed(format!(
            "{can} of {} can run, {least} must: {}",
            launch.max,
            reasons(children)
        ));
    }
    match (on_the_way, children.iter().find(|(_, s)| waits(s))) {
        (Some(Standing::Working(progress)), _) => {
            working(progress.stage, format!("{done} of {} run", launch.max))
        }
        (Some(_), _) => working("dispatching", format!("{done} of {} run", launch.max)),
        (None, Some((name, Standing::Pending(progress)))) if done < least => {
            pending(progress.stage, format!("{name}: {}", progress.log))
        }
        (None, _) => Standing::Succeeded,
    }
}

fn updated(instance: &Instance, generation: i64) -> Standing {
    if let Some(accepted) = find(instance, ACCEPTED)
        && accepted.status == "False"
    {
        return Standing::Failed(accepted.message.clone());
    }
    if let Some(message) = failure(instance, generation) {
        return Standing::Failed(message);
    }
    if reported(instance) >= generation {
        Standing::Succeeded
    } else {
        working("dispatched", "")
    }
}

fn powered(work: Work, token: &str, instance: &Instance, generation: i64) -> Standing {
    let spec = &instance.spec;
    let kept = spec.power_state == work.wanted() && (work != Work::Restart || spec.restart_token == token);
    if !kept {
        return Standing::Failed(
            "Superseded: the instance was asked for something else meanwhile".to_owned(),
        );
    }
    if let Some(message) = failure(instance, generation) {
        return Standing::Failed(message);
    }
    let status = instance.status.as_ref();
    let power = status.and_then(|s| s.power_state);
    // What has never been placed does not run; what is bound may be starting, whatever its status shows yet.
    let stopped_before_it_began =
        work == Work::Stop && spec.host.is_none() && status.is_none_or(|s| s.host.is_none());
    let restarted = work != Work::Restart || status.is_some_and(|s| s.last_restart_token == token);
    if stopped_before_it_began
        || (reported(instance) >= generation && power == Some(work.wanted()) && restarted)
    {
        return Standing::Succeeded;
    }
    working("executing", refusal(instance).unwrap_or_default())
}

/// Why no node has the Instance, once the controller has said so.
fn refusal(instance: &Instance) -> Option<String> {
    let not_true = |type_| find(instance, type_).is_none_or(|c| c.status != "True");
    // A placement outlives an edit that makes no sense.
    if !not_true(SCHEDULED) {
        return None;
    }
    let said = [ACCEPTED, SCHEDULED]
        .into_iter()
        .filter_map(|type_| find(instance, type_));
    Some(
        said.filter(|c| c.status == "False")
            .map(|c| c.message.clone())
            .next()
            .unwrap_or_default(),
    )
}

/// The node's word that the last action failed. Only the phase says so: Ready is False while work goes on, too.
fn failure(instance: &Instance, generation: i64) -> Option<String> {
    let failed = phase(instance) == Some(Phase::Failed) && reported(instance) >= generation;
    failed.then(|| {
        let said = message(instance);
        if said.is_empty() {
            "the instance failed".to_owned()
        } else {
            said
        }
    })
}

fn find<'a>(
    instance: &'a Instance,
    type_: &str,
) -> Option<&'a k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition> {
    condition::find(&instance.status.as_ref()?.conditions, type_)
}

fn phase(instance: &Instance) -> Option<Phase> {
    instance.status.as_ref()?.phase
}

fn message(instance: &Instance) -> String {
    instance
        .status
        .as_ref()
        .map(|s| s.message.clone())
        .unwrap_or_default()
}

fn reported(instance: &Instance) -> i64 {
    instance
        .status
        .as_ref()
        .and_then(|s| s.observed_generation)
        .unwrap_or_default()
}

/// How far the whole Task is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// The state.
    pub state: TaskState,
    /// A finer word.
    pub stage: String,
    /// The latest summary.
    pub log: String,
    /// Targets by outcome.
    pub counts: TaskCounts,
}

/// The state of a Task from those of its targets (name, standing). It succeeds only if all do, and ends only when all have; or
/// when it is `overdue`, which it is after `limit` seconds.
#[must_use]
pub fn outcome(targets: &[(String, Standing)], overdue: bool, limit: i64) -> Outcome {
    let count = |matches: fn(&Standing) -> bool| targets.iter().filter(|(_, s)| matches(s)).count() as i32;
    let total = targets.len() as i32;
    let mut counts = TaskCounts {
        targets: total,
        succeeded: count(|s| matches!(s, Standing::Succeeded)),
        failed: count(|s| matches!(s, Standing::Failed(_))),
    };
    let unfinished = total - counts.succeeded - counts.failed;
    if unfinished > 0 && overdue {
        let log = with_last_words(format!("Timeout: not done after {limit} s"), targets);
        counts.failed += unfinished;
        return ended(TaskState::Failed, log, counts);
    }
    if unfinished == 0 {
        return if counts.failed == 0 {
            let log = if total > 1 {
                format!("{total} of {total}")
            } else {
                String::new()
            };
            ended(TaskState::Succeeded, log, counts)
        } else {
            let log = failures(targets);
            ended(TaskState::Failed, log, counts)
        };
    }
    let idle = count(|s| matches!(s, Standing::Pending(_) | Standing::Act));
    let state = if idle == total {
        TaskState::Pending
    } else {
        TaskState::InProgress
    };
    let progress = targets.iter().find_map(|(_, standing)| match standing {
        Standing::Pending(progress) | Standing::Working(progress) => Some(progress.clone()),
        Standing::Act | Standing::Succeeded | Standing::Failed(_) => None,
    });
    let Progress { stage, log } = progress.unwrap_or_default();
    Outcome {
        state,
        stage: stage.to_owned(),
        log: if total > 1 {
            format!("{} of {total}", counts.succeeded)
        } else {
            log
        },
        counts,
    }
}

fn ended(state: TaskState, log: String, counts: TaskCounts) -> Outcome {
    Outcome {
        state,
        stage: String::new(),
        log,
        counts,
    }
}

fn with_last_words(text: String, targets: &[(String, Standing)]) -> String {
    let last = targets.iter().find_map(|(_, standing)| match standing {
        Standing::Pending(progress) | Standing::Working(progress) => {
            Some(&progress.log).filter(|log| !log.is_empty())
        }
        Standing::Act | Standing::Succeeded | Standing::Failed(_) => None,
    });
    match last {
        Some(log) => format!("{text}; last: {log}"),
        None => text,
    }
}

/// What failed: the words themselves for a single target, else each with its name; at most three.
fn failures(targets: &[(String, Standing)]) -> String {
    if let [(_, Standing::Failed(words))] = targets {
        return words.clone();
    }
    let failed = failed(targets).count();
    format!("{failed} of {} failed: {}", targets.len(), reasons(targets))
}

/// The first three failures, each with its name.
pub(super) fn reasons(targets: &[(String, Standing)]) -> String {
    let shown: Vec<String> = failed(targets)
        .take(3)
        .map(|(name, words)| format!("{name}: {words}"))
        .collect();
    shown.join("; ")
}

fn failed(targets: &[(String, Standing)]) -> impl Iterator<Item = (&str, &str)> {
    targets.iter().filter_map(|(name, standing)| match standing {
        Standing::Failed(words) => Some((name.as_str(), words.as_str())),
        Standing::Act | Standing::Pending(_) | Standing::Working(_) | Standing::Succeeded => None,
    })
}

#[cfg(test)]
#[path = "outcome_tests.rs"]
mod tests;
