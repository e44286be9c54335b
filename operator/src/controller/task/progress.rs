//! What a Task remembers of its states: when each began, and what was said.

use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use virtshell_crds::task::TaskHistory;
use virtshell_crds::{Task, TaskState, TaskStatus};

/// Previous states that a Task keeps.
const HISTORY: usize = 100;

/// The status to work on: as it is, or emptied for another try.
pub(super) fn begun(task: &Task, now: Timestamp) -> TaskStatus {
    let status = task.status.clone().unwrap_or_default();
    if status.observed_retry.unwrap_or_default() >= task.spec.retry {
        return status;
    }
    TaskStatus {
        observed_retry: Some(task.spec.retry),
        state: Some(TaskState::Pending),
        // The clock of the new try begins.
        started_at: Some(Time(now)),
        last_update: Some(Time(now)),
        history: with_history(&status),
        conditions: status.conditions,
        ..TaskStatus::default()
    }
}

/// The status with another state, and the times that belong to that.
pub(super) fn moved(status: TaskStatus, state: TaskState, now: Timestamp) -> TaskStatus {
    if status.state == Some(state) {
        return status;
    }
    let history = with_history(&status);
    let now = Time(now);
    let ended = matches!(state, TaskState::Succeeded | TaskState::Failed);
    let began = state != TaskState::Pending;
    TaskStatus {
        state: Some(state),
        started_at: status.started_at.or_else(|| began.then(|| now.clone())),
        finished_at: ended.then(|| now.clone()),
        last_update: Some(now),
        history,
        ..status
    }
}

fn with_history(status: &TaskStatus) -> Vec<TaskHistory> {
    let mut history = status.history.clone();
    if let (Some(state), Some(at)) = (status.state, status.last_update.clone()) {
        history.push(TaskHistory {
            state,
            at,
            log: status.log.clone(),
        });
    }
    let surplus = history.len().saturating_sub(HISTORY);
    history.drain(..surplus);
    history
}

/// When a Task that has ended did so, as far as is known: the maker of a record need not say it.
pub(super) fn ended_at(task: &Task) -> Option<Time> {
    let status = task.shown_status();
    let has_ended = matches!(status.state, Some(TaskState::Succeeded | TaskState::Failed));
    let known = status.finished_at.or(status.last_update);
    known
        .or_else(|| task.metadata.creation_timestamp.clone())
        .filter(|_| has_ended)
}

/// A log is a summary: at most 4096 characters.
pub(super) fn cut(log: String) -> String {
    if log.chars().count() <= 4096 {
        log
    } else {
        log.chars().take(4096).collect()
    }
}

/// How long ago something was; nothing for what is unknown or to come.
pub(super) fn age(since: Option<&Time>, now: Timestamp) -> Duration {
    since
        .and_then(|since| Duration::try_from(now.duration_since(since.0)).ok())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::controller::task::{index::is_finished, token};
    use serde_json::json;

    fn second(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn history_keeps_what_was_and_times_follow_the_state() {
        let first = moved(TaskStatus::default(), TaskState::Pending, second(1));
        assert_eq!((first.history.len(), first.started_at.clone()), (0, None));
        let same = moved(first.clone(), TaskState::Pending, second(2));
        assert_eq!(same, first);
        let working = moved(
            TaskStatus {
                log: "no room".into(),
                ..first
            },
            TaskState::InProgress,
            second(3),
        );
        assert_eq!(working.started_at, Some(Time(second(3))));
        let done = moved(working, TaskState::Succeeded, second(4));
        assert_eq!(
            (done.started_at.clone(), done.finished_at.clone()),
            (Some(Time(second(3))), Some(Time(second(4))))
        );
        let seen: Vec<_> = done
            .history
            .iter()
            .map(|h| (h.state, h.at.0, h.log.as_str()))
            .collect();
        assert_eq!(
            seen,
            [
                (TaskState::Pending, second(1), "no room"),
                (TaskState::InProgress, second(3), "no room")
            ]
        );
    }

    #[test]
    fn a_task_ended_when_it_says_or_was_last_written_or_made() {
        let made = "2026-01-01T00:00:00Z";
        let (later, last) = ("2026-01-02T00:00:00Z", "2026-01-03T00:00:00Z");
        let announced = json!({"state": "Failed", "lastUpdate": later});
        for (rule, annotation, status, expected) in [
            ("nothing is known", json!(null), json!(null), None),
            (
                "it goes on",
                json!(null),
                json!({"state": "InProgress", "lastUpdate": last}),
                None,
            ),
            (
                "it says",
                json!(null),
                json!({"state": "Failed", "finishedAt": later, "lastUpdate": last}),
                Some(later),
            ),
            (
                "last written",
                json!(null),
                json!({"state": "Succeeded", "lastUpdate": last}),
                Some(last),
            ),
            (
                "made as ended",
                json!(null),
                json!({"state": "Succeeded"}),
                Some(made),
            ),
            (
                "its maker did not get to write it",
                announced.clone(),
                json!(null),
                Some(later),
            ),
            (
                "what was written counts",
                announced,
                json!({"state": "Pending"}),
                None,
            ),
        ] {
            let task: Task = serde_json::from_value(json!({
                "apiVersion": "virtshell.io/v1alpha1", "kind": "Task", "spec": {"description": "d", "type": "", "manual": true},
                "metadata": {"name": "t", "creationTimestamp": made, "annotations": {"virtshell.io/initial-status": annotation.to_string()}},
                "status": status,
            }))
            .unwrap();
            let expected = expected.map(|at| serde_json::from_value::<Time>(json!(at)).unwrap());
            assert_eq!(ended_at(&task), expected, "{rule}");
        }
    }

    #[test]
    fn another_try_starts_empty_but_remembers() {
        let task: Task = serde_json::from_value(json!({
            "apiVersion": "virtshell.io/v1alpha1", "kind": "Task", "metadata": {"name": "t", "uid": "u"},
            "spec": {"description": "d", "type": "start_instance", "retry": 1},
            "status": {"state": "Failed", "log": "no", "lastUpdate": "2026-01-01T00:00:00Z", "finishedAt": "2026-01-01T00:00:00Z",
                       "generations": [{"name": "a", "generation": 3}]},
        }))
        .unwrap();
        assert!(!is_finished(&task));
        let status = begun(&task, second(9));
        assert_eq!(
            (status.state, status.observed_retry),
            (Some(TaskState::Pending), Some(1))
        );
        assert!(status.generations.is_empty() && status.finished_at.is_none());
        assert_eq!(status.history[0].log, "no");
        assert_eq!(token(&task), "u-1");
    }
}
