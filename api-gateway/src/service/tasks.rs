//! Asynchronous work: the product's own tasks, and records that clients keep.

use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use serde_json::{Value, json};
use virtshell_crds::task::{TaskHistory, TaskParams, TaskTarget};
use virtshell_crds::{
    ANNOTATION_CREATED_BY, ANNOTATION_INITIAL_STATUS, Instance, Task, TaskSpec, TaskState, TaskStatus, words,
};

use super::error::{object_name, uid};
use super::objects::{created, forbidden, may, put};
use super::{Caller, Field, Kind, Service, ServiceError, Verb, is_uuid};
use crate::store::StoreError;

/// Most targets of one task.
const MAX_TARGETS: usize = 1000;
/// Most previous states that a task keeps.
const MAX_HISTORY: usize = 100;
/// How often a record is changed anew when others write at the same time.
const RETRIES: u32 = 3;

/// What a client says about the progress of a task.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// The state.
    pub state: Option<TaskState>,
    /// A finer word.
    pub stage: Option<String>,
    /// A summary.
    pub log: Option<String>,
}

/// A record that a client makes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NewRecord {
    /// What is done.
    pub description: String,
    /// The kind of work, in any words.
    pub task_type: Option<String>,
    /// uuid of what it is done to.
    pub object: Option<String>,
    /// How far it is.
    pub progress: Progress,
}

/// A change that a client makes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TaskChange {
    /// What is done.
    pub description: Option<String>,
    /// The kind of work.
    pub task_type: Option<String>,
    /// How far it is.
    pub progress: Progress,
}

/// Which tasks a list shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Filter {
    /// Those in a state.
    State(TaskState),
    /// Those with a finer word.
    Stage(String),
    /// None: the word means nothing.
    Nothing,
}

/// Work that a request asks the product to do.
pub(super) struct Work<'a> {
    /// The kind of work.
    pub type_: &'a str,
    /// What is done, for people.
    pub description: String,
    /// What it is done to.
    pub targets: &'a [Arc<Instance>],
    /// Parameters, by type.
    pub params: Option<TaskParams>,
}

impl Service {
    /// The task with this uuid, if the caller may do this with it.
    pub fn permitted_task(&self, caller: &Caller, verb: Verb, id: &str) -> Result<Arc<Task>, ServiceError> {
        // Tasks have no names.
        let task = is_uuid(id)
            .then(|| self.store.tasks.by_uid(id))
            .flatten()
            .ok_or_else(|| ServiceError::NotFound {
                kind: Kind::Task,
                name: id.to_owned(),
            })?;
        if self.may_do_with_task(caller, verb, &task) {
            return Ok(task);
        }
        Err(forbidden(caller, verb, Kind::Task, uid(task.as_ref())))
    }

    /// Tasks that the caller may see, oldest first.
    #[must_use]
    pub fn visible_tasks(&self, caller: &Caller, filter: Option<&Filter>) -> Vec<Arc<Task>> {
        let mut tasks = self.store.tasks.list();
        tasks.retain(|task| {
            filter.is_none_or(|filter| passes(filter, task))
                && self.may_do_with_task(caller, Verb::Read, task)
        });
        tasks
    }

    /// Makes a record. No controller acts on it.
    pub async fn create_record(&self, caller: &Caller, record: NewRecord) -> Result<Arc<Task>, ServiceError> {
        let progress = with_default_state(record.progress.clone());
        let status = initial_status(&progress);
        let target = record.object.map(|id| self.target_of(&id));
        let mut metadata = new_task_metadata(caller, &new_task_name());
        // Status is a second write: whoever finds the task without it can make up for a gateway that died in between.
        metadata
            .annotations
            .get_or_insert_default()
            .insert(ANNOTATION_INITIAL_STATUS.to_owned(), status.to_string());
        let task = Task {
            metadata,
            spec: TaskSpec {
                description: record.description,
                type_: record.task_type.unwrap_or_default(),
                manual: true,
                targets: target.into_iter().collect(),
                ..task_spec()
            },
            status: None,
        };
        let made = self.store.tasks.create(&task).await.map_err(of_write)?;
        let patch = json!({"status": status});
        self.store
            .tasks
            .patch_status(object_name(made.as_ref()), &patch)
            .await
            .map_err(of_write)
    }

    /// Changes a task: anything of a record, and of the product's own work only `pending`, which asks for a new try.
    pub async fn update_task(
        &self,
        caller: &Caller,
        task: &Arc<Task>,
        change: TaskChange,
    ) -> Result<(), ServiceError> {
        if !task.spec.manual {
            return self.retry_task(caller, task, &change).await;
        }
        let mut known = task.clone();
        if change.description.is_some() || change.task_type.is_some() {
            let changed = self.change(caller, task, |task| {
                put(&mut task.spec.description, change.description.clone());
                put(&mut task.spec.type_, change.task_type.clone());
                Ok(())
            });
            known = changed.await?.unwrap_or(known);
        }
        if change.progress == Progress::default() {
            return Ok(());
        }
        for attempt in 0.. {
            let status = next_status(&shown_status(&known), &change.progress, Time(Timestamp::now()));
            let patch = json!({
                "metadata": {"resourceVersion": known.metadata.resource_version},
                "status": status,
            });
            match self
                .store
                .tasks
                .patch_status(object_name(known.as_ref()), &patch)
                .await
            {
                Err(StoreError::Conflict) if attempt < RETRIES => {
                    known = self
                        .store
                        .tasks
                        .refresh(object_name(known.as_ref()))
                        .await
                        .map_err(of_write)?;
                }
                changed => return changed.map(drop).map_err(of_write),
            }
        }
        unreachable!("the last attempt returns")
    }

    /// Removes a task.
    pub async fn delete_task(&self, task: &Task) -> Result<(), ServiceError> {
        self.remove(task).await
    }

    /// Removes every task that the caller may delete, except for work that is not finished.
    pub async fn delete_tasks(&self, caller: &Caller) -> Result<(), ServiceError> {
        let mut tasks = self.store.tasks.list();
        tasks.retain(|task| {
            self.may_do_with_task(caller, Verb::Delete, task)
                && (task.spec.manual || is_finished(state_of(task)))
        });
        for task in tasks {
            match self.remove(task.as_ref()).await {
                // Somebody else was faster.
                Ok(()) | Err(ServiceError::NotFound { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Announces work to the controller.
    pub(super) async fn start_work(
        &self,
        caller: &Caller,
        name: &str,
        work: Work<'_>,
    ) -> Result<Arc<Task>, ServiceError> {
        if work.targets.len() > MAX_TARGETS {
            let reason = format!(
                "{} instances are selected; at most {MAX_TARGETS} fit one task",
                work.targets.len()
            );
            return Err(ServiceError::invalid(Field::Targets, reason));
        }
        let task = Task {
            metadata: new_task_metadata(caller, name),
            spec: TaskSpec {
                description: work.description,
                type_: work.type_.to_owned(),
                targets: work.targets.iter().map(|instance| target(instance)).collect(),
                params: work.params,
                ..task_spec()
            },
            status: None,
        };
        self.store.tasks.create(&task).await.map_err(of_write)
    }

    async fn retry_task(
        &self,
        caller: &Caller,
        task: &Arc<Task>,
        change: &TaskChange,
    ) -> Result<(), ServiceError> {
        // What is done, and to what, was said by the request that made it.
        for (field, is_given) in [
            (Field::Description, change.description.is_some()),
            (Field::Type, change.task_type.is_some()),
        ] {
            if is_given {
                return Err(ServiceError::invalid(field, words::IMMUTABLE));
            }
        }
        // Its log is the controller's: one that comes along is not kept.
        match change.progress.state {
            None => Ok(()),
            Some(TaskState::Pending) => {
                self.change(caller, task, |task| {
                    task.spec.retry += i32::from(is_finished(state_of(task)));
                    Ok(())
                })
                .await?;
                Ok(())
            }
            Some(TaskState::InProgress | TaskState::Succeeded | TaskState::Failed) => {
                Err(ServiceError::invalid(
                    Field::Status,
                    "only pending can be set on VirtShell's own tasks: it asks for a new try",
                ))
            }
        }
    }

    fn may_do_with_task(&self, caller: &Caller, verb: Verb, task: &Task) -> bool {
        caller.is_system
            || created_by(task) == Some(&caller.uid)
            || (verb == Verb::Read
                && task.spec.targets.iter().any(|target| {
                    self.instance_of(target)
                        .is_some_and(|instance| may(caller, Verb::Read, Some(instance.as_ref())))
                }))
    }

    /// The instance that a task's target is.
    #[must_use]
    pub fn instance_of(&self, target: &TaskTarget) -> Option<Arc<Instance>> {
        match &target.uid {
            Some(uid) => self.store.instances.by_uid(uid),
            None => self.store.instances.by_object_name(&target.name),
        }
    }

    /// What a record's uuid means: an instance, when it is one's.
    fn target_of(&self, id: &str) -> TaskTarget {
        match self.store.instances.by_uid(id) {
            Some(instance) => target(&instance),
            None => TaskTarget {
                kind: "Object".to_owned(),
                name: id.to_owned(),
                uid: Some(id.to_owned()),
            },
        }
    }
}

/// A name for a task that is to be made.
#[must_use]
pub(super) fn new_task_name() -> String {
    format!("task-{}", &uuid::Uuid::new_v4().simple().to_string()[..16])
}

/// The status of a task, or what its maker said until the status is written.
#[must_use]
pub fn shown_status(task: &Task) -> TaskStatus {
    task.shown_status()
}

/// uid of the user who made a task.
#[must_use]
pub fn created_by(task: &Task) -> Option<&String> {
    task.metadata
        .annotations
        .as_ref()
        .and_then(|annotations| annotations.get(ANNOTATION_CREATED_BY))
}

fn state_of(task: &Task) -> TaskState {
    shown_status(task).state.unwrap_or_default()
}

fn passes(filter: &Filter, task: &Task) -> bool {
    match filter {
        Filter::State(state) => state_of(task) == *state,
        Filter::Stage(stage) => shown_status(task).stage == *stage,
        Filter::Nothing => false,
    }
}

fn is_finished(state: TaskState) -> bool {
    match state {
        TaskState::Succeeded | TaskState::Failed => true,
        TaskState::Pending | TaskState::InProgress => false,
    }
}

/// The status after a client's report: what was goes into the history.
fn next_status(present: &TaskStatus, progress: &Progress, now: Time) -> Value {
    let mut history = present.history.clone();
    history.push(TaskHistory {
        state: present.state.unwrap_or_default(),
        at: present.last_update.clone().unwrap_or_else(|| now.clone()),
        log: present.log.clone(),
    });
    let surplus = history.len().saturating_sub(MAX_HISTORY);
    history.drain(..surplus);
    let state = progress.state.or(present.state).unwrap_or_default();
    // A new state without a finer word leaves the old word behind.
    let word = progress.stage.clone().unwrap_or_else(|| {
        if progress.state.is_some() {
            String::new()
        } else {
            present.stage.clone()
        }
    });
    json!({
        "state": state,
        "stage": word,
        "log": progress.log.as_ref().unwrap_or(&present.log),
        "lastUpdate": now,
        "finishedAt": is_finished(state).then_some(now),
        "history": history,
    })
}

fn with_default_state(mut progress: Progress) -> Progress {
    progress.state = progress.state.or(Some(TaskState::Pending));
    progress
}

fn initial_status(progress: &Progress) -> Value {
    let now = Time(Timestamp::now());
    let state = progress.state.unwrap_or_default();
    let mut status = json!({
        "state": state,
        "stage": progress.stage.clone().unwrap_or_default(),
        "log": progress.log.clone().unwrap_or_default(),
        "lastUpdate": now,
    });
    if is_finished(state) {
        status["finishedAt"] = json!(now);
    }
    status
}

fn target(instance: &Instance) -> TaskTarget {
    TaskTarget {
        kind: Kind::Instance.as_str().to_owned(),
        name: object_name(instance).to_owned(),
        uid: instance.metadata.uid.clone(),
    }
}

fn new_task_metadata(caller: &Caller, name: &str) -> ObjectMeta {
    ObjectMeta {
        name: Some(name.to_owned()),
        annotations: Some(created(caller)),
        ..ObjectMeta::default()
    }
}

fn task_spec() -> TaskSpec {
    TaskSpec {
        timeout_seconds: 3600,
        ..TaskSpec::default()
    }
}

fn of_write(error: StoreError) -> ServiceError {
    ServiceError::of_write(error, Kind::Task, "")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Time {
        Time(Timestamp::from_second(second).unwrap())
    }

    fn status(value: Value) -> TaskStatus {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn a_report_moves_what_was_into_the_history() {
        let first =
            status(json!({"state": "InProgress", "stage": "copying", "log": "a", "lastUpdate": at(5)}));
        let log_only = Progress {
            log: Some("b".into()),
            ..Progress::default()
        };
        let second = status(next_status(&first, &log_only, at(9)));
        assert_eq!(
            (second.state, second.log.as_str(), second.stage.as_str()),
            (Some(TaskState::InProgress), "b", "copying")
        );
        assert_eq!(second.last_update, Some(at(9)));
        assert_eq!(
            second.history,
            [TaskHistory {
                state: TaskState::InProgress,
                at: at(5),
                log: "a".into()
            }]
        );
        let done = Progress {
            state: Some(TaskState::Succeeded),
            ..Progress::default()
        };
        let third = status(next_status(&second, &done, at(12)));
        assert_eq!(
            (third.state, third.log.as_str(), third.stage.as_str()),
            (Some(TaskState::Succeeded), "b", "")
        );
        assert_eq!((third.history.len(), third.finished_at), (2, Some(at(12))));
    }

    #[test]
    fn the_history_is_bounded_and_keeps_the_newest() {
        let mut present = status(json!({"state": "Pending"}));
        for second in 0..150 {
            let log = Progress {
                log: Some(second.to_string()),
                ..Progress::default()
            };
            present = status(next_status(&present, &log, at(second)));
        }
        assert_eq!(
            (present.history.len(), present.history[99].log.as_str()),
            (MAX_HISTORY, "148")
        );
    }
}
