//! How far every target of a task is: what hosts reported of their parts, and what nobody was given.

use std::sync::Arc;

use futures::{StreamExt, TryStreamExt, stream};
use virtshell_crds::task::{TargetResult, TargetState, TaskTarget};
use virtshell_crds::{Instance, Task, TaskAssignment};

use super::error::{object_name, uid};
use super::tasks::shown_status;
use super::{Kind, Service, ServiceError};
use crate::store::{StoreError, by};

/// How many parts of a task are read at a time: one per host, of up to 512 KiB each.
const READS: usize = 8;

/// How one target fared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Wire name of the instance, or `metadata.name` of one that is gone.
    pub name: String,
    /// uid of the instance; empty where the task did not say and it is gone.
    pub uid: String,
    /// How far it is.
    pub state: TargetState,
    /// Why it failed: a word of the host, or a sentence of the controller. Empty when it did not.
    pub reason: String,
    /// Exit code of the command.
    pub exit_code: Option<i32>,
    /// Output of the command; empty where it was not asked for.
    pub output: String,
}

impl Service {
    /// Outcomes of the present try, by name, without what was printed: that is not held here. Targets that nothing is known of
    /// yet are left out.
    #[must_use]
    pub fn outcomes(&self, task: &Task) -> Vec<Outcome> {
        self.outcomes_of(task, &self.parts(task))
    }

    /// The same with what was printed, which is read from the API server where there can be any.
    pub async fn outcomes_with_output(&self, task: &Task) -> Result<Vec<Outcome>, ServiceError> {
        let whole = self.parts(task).into_iter().map(async |part| {
            if !has_ended(&part) {
                return Ok(part);
            }
            match self.store.assignments.whole(object_name(part.as_ref())).await {
                Ok(whole) => Ok(Arc::new(whole)),
                // It went with its task, or the task is tried again.
                Err(StoreError::NotFound) => Ok(part),
                Err(error) => Err(ServiceError::of_write(error, Kind::Task, uid(task))),
            }
        });
        let parts: Vec<Arc<TaskAssignment>> = stream::iter(whole).buffered(READS).try_collect().await?;
        Ok(self.outcomes_of(task, &parts))
    }

    /// What hosts were given of the present try: what an earlier one did or refused says nothing about this one.
    fn parts(&self, task: &Task) -> Vec<Arc<TaskAssignment>> {
        let mut parts = self.store.assignments.by_key(by::TASK, uid(task));
        parts.retain(|part| part.spec.attempt == task.spec.retry);
        parts
    }

    fn outcomes_of(&self, task: &Task, parts: &[Arc<TaskAssignment>]) -> Vec<Outcome> {
        let results = parts
            .iter()
            .filter_map(|part| part.status.as_ref())
            .flat_map(|status| &status.results);
        let mut outcomes: Vec<Outcome> = results.map(|result| self.reported(result)).collect();
        let status = shown_status(task);
        if status.observed_retry.unwrap_or_default() >= task.spec.retry {
            outcomes.extend(status.refused.iter().map(|refused| {
                let target = task
                    .spec
                    .targets
                    .iter()
                    .find(|target| target.name == refused.name);
                self.refused(&refused.name, target, &refused.message)
            }));
        }
        outcomes.sort_by(|a, b| a.name.cmp(&b.name));
        outcomes
    }

    fn reported(&self, result: &TargetResult) -> Outcome {
        let instance = self.store.instances.by_uid(&result.uid);
        Outcome {
            name: shown_name(instance.as_ref(), &result.name),
            uid: result.uid.clone(),
            state: result.state,
            reason: result.reason.clone(),
            exit_code: result.exit_code,
            output: result.output.clone(),
        }
    }

    fn refused(&self, name: &str, target: Option<&TaskTarget>, message: &str) -> Outcome {
        let instance = target.and_then(|target| self.instance_of(target));
        let id = target.and_then(|target| target.uid.clone());
        Outcome {
            name: shown_name(instance.as_ref(), name),
            uid: id
                .or_else(|| instance.map(|i| uid(i.as_ref()).to_owned()))
                .unwrap_or_default(),
            state: TargetState::Failed,
            reason: message.to_owned(),
            exit_code: None,
            output: String::new(),
        }
    }
}

/// Whether work has ended on a target, which is when its output is written.
fn has_ended(part: &TaskAssignment) -> bool {
    let results = part.status.iter().flat_map(|status| &status.results);
    results.into_iter().any(|result| match result.state {
        TargetState::Succeeded | TargetState::Failed => true,
        TargetState::Pending | TargetState::Started => false,
    })
}

fn shown_name(instance: Option<&Arc<Instance>>, object_name: &str) -> String {
    instance.map_or_else(|| object_name.to_owned(), |i| i.wire_name().to_owned())
}
