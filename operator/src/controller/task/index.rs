//! Which work is unfinished, by the Instances that it is done to.

use kube::ResourceExt;
use virtshell_crds::{Task, TaskState};

use crate::controller::cache::{Change, ObjectKey};
use crate::controller::index;

/// Unfinished work by the Instances it is done to; follows the cache change by change.
#[derive(Debug, Default)]
pub struct Index(index::Index<ObjectKey>);

impl Index {
    /// Follows the cache.
    pub fn observe(&mut self, change: &Change<Task>) {
        let Some(any) = change.new.as_ref().or(change.old.as_ref()) else {
            return;
        };
        let old = change.old.as_deref().map(targets_of).unwrap_or_default();
        let unfinished = change
            .new
            .as_deref()
            .filter(|new| !new.spec.manual && !is_finished(new));
        let new = unfinished.map(targets_of).unwrap_or_default();
        self.0.observe(&ObjectKey::of(&**any), old, new);
    }

    /// Unfinished work on an Instance.
    #[must_use]
    pub fn of(&self, instance: &ObjectKey) -> Vec<ObjectKey> {
        self.0.of(instance).cloned().collect()
    }
}

fn targets_of(task: &Task) -> Vec<ObjectKey> {
    let namespace = task.namespace().unwrap_or_default();
    let targets = task.spec.targets.iter().filter(|t| t.kind == "Instance");
    targets
        .map(|target| ObjectKey {
            namespace: namespace.clone(),
            name: target.name.clone(),
        })
        .collect()
}

/// Whether it ended and nobody has asked for another try.
pub(super) fn is_finished(task: &Task) -> bool {
    let status = task.status.as_ref();
    let ended = matches!(
        status.and_then(|s| s.state),
        Some(TaskState::Succeeded | TaskState::Failed)
    );
    ended && status.and_then(|s| s.observed_retry).unwrap_or_default() >= task.spec.retry
}
