//! Which work is unfinished, by the Instances that it is done to.

use std::collections::{BTreeSet, HashMap};

use kube::ResourceExt;
use virtshell_crds::{Task, TaskState};

use crate::controller::cache::{Change, ObjectKey};

/// Unfinished work by the Instances it is done to; follows the cache change by change.
#[derive(Debug, Default)]
pub struct Index {
    by_instance: HashMap<ObjectKey, BTreeSet<ObjectKey>>,
}

impl Index {
    /// Follows the cache.
    pub fn observe(&mut self, change: &Change<Task>) {
        if let Some(old) = &change.old {
            let key = ObjectKey::of(&**old);
            for instance in targets_of(old) {
                if let Some(tasks) = self.by_instance.get_mut(&instance) {
                    tasks.remove(&key);
                    if tasks.is_empty() {
                        self.by_instance.remove(&instance);
                    }
                }
            }
        }
        if let Some(new) = &change.new
            && !new.spec.manual
            && !is_finished(new)
        {
            for instance in targets_of(new) {
                self.by_instance
                    .entry(instance)
                    .or_default()
                    .insert(ObjectKey::of(&**new));
            }
        }
    }

    /// Unfinished work on an Instance.
    #[must_use]
    pub fn of(&self, instance: &ObjectKey) -> Vec<ObjectKey> {
        self.by_instance
            .get(instance)
            .into_iter()
            .flatten()
            .cloned()
            .collect()
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
