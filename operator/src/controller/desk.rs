//! What is known of all Instances together: who takes what where, who waits for what. It follows the Instance cache change
//! by change, so that no look at one object has to go through the others.

use std::collections::{BTreeSet, HashMap, HashSet};

use virtshell_crds::Instance;
use virtshell_crds::condition::{self, ACCEPTED, SCHEDULED};

use super::accept::{environment_name, frozen};
use super::cache::{Change, ObjectKey};
use super::depends;
use super::index::Index;
use super::launch::group::parent_of;
use super::ledger::Ledger;
use super::room::Waiting;

/// The bookkeeping.
#[derive(Default)]
pub struct Desk {
    /// Who takes what where.
    pub ledger: Ledger,
    /// Those without `Accepted=True` at their generation.
    pub unaccepted: HashSet<ObjectKey>,
    /// Those without `Scheduled=True`.
    pub unscheduled: HashSet<ObjectKey>,
    /// Those among them that are clones, by the Instance that they name as their source.
    pub clones: Index<ObjectKey>,
    /// Children of launch parents, by the parent's uid.
    pub children: Index<String>,
    /// By the host in their spec.
    pub on_host: Index<String>,
    /// By the Environment that they name.
    pub in_environment: Index<ObjectKey>,
    /// By the Provisioner that they name.
    pub made_by: Index<ObjectKey>,
    /// Those that look at what they depend on, by the Provisioners of that.
    pub depending_on: Index<ObjectKey>,
    /// Those that no host had room for when they last looked.
    waiting: HashMap<ObjectKey, Waiting>,
}

impl Desk {
    /// Follows the cache.
    pub fn observe(&mut self, change: &Change<Instance>) {
        self.ledger.observe(change);
        let Some(any) = change.new.as_ref().or(change.old.as_ref()) else {
            return;
        };
        let key = ObjectKey::of(&**any);
        let (old, new) = (change.old.as_deref(), change.new.as_deref());
        self.children.observe(
            &key,
            old.and_then(|i| Some(parent_of(i)?.uid.clone())),
            new.and_then(|i| Some(parent_of(i)?.uid.clone())),
        );
        let host = |i: &Instance| i.spec.host.clone();
        self.on_host.observe(&key, old.and_then(host), new.and_then(host));
        self.in_environment
            .observe(&key, old.map(environment), new.map(environment));
        let provisioner = |i: &Instance| Some(beside(i, i.spec.provisioner.as_deref()?));
        self.made_by
            .observe(&key, old.and_then(provisioner), new.and_then(provisioner));
        let live = change
            .new
            .as_ref()
            .filter(|i| i.metadata.deletion_timestamp.is_none());
        self.depending_on.observe(
            &key,
            old.map(depends_on).unwrap_or_default(),
            live.map(|i| depends_on(i)).unwrap_or_default(),
        );
        keep(
            &mut self.unaccepted,
            &key,
            live.is_some_and(|i| lacks(i, ACCEPTED, true)),
        );
        let unscheduled = new.is_some_and(waits_for_host);
        keep(&mut self.unscheduled, &key, unscheduled);
        if !unscheduled {
            self.waiting.remove(&key);
        }
        let source = |i: &Instance| {
            let from = i.spec.clone_from.as_ref().filter(|_| waits_for_host(i))?;
            Some(beside(i, &from.name))
        };
        self.clones
            .observe(&key, old.and_then(source), new.and_then(source));
    }

    /// An Instance is looked at: whether it waits for room will be seen.
    pub fn looks_again(&mut self, instance: &ObjectKey) {
        self.waiting.remove(instance);
    }

    /// An Instance was refused for what hosts had at this moment.
    pub fn refused(&mut self, waiting: Waiting) {
        self.waiting.insert(waiting.instance.clone(), waiting);
    }

    /// Those that wait for room, the oldest first.
    #[must_use]
    pub fn waiting(&self) -> Vec<Waiting> {
        let mut waiting: Vec<Waiting> = self.waiting.values().cloned().collect();
        waiting.sort_by(|a, b| (a.since, &a.instance).cmp(&(b.since, &b.instance)));
        waiting
    }

    /// The hosts that got more room since this was last asked, when somebody waits for it.
    pub fn take_freed(&mut self) -> BTreeSet<String> {
        let freed = self.ledger.take_freed();
        if self.waiting.is_empty() {
            return BTreeSet::new();
        }
        freed
    }
}

/// The Environment that an Instance is in, as it is named by its frozen values or its spec.
#[must_use]
pub fn environment(instance: &Instance) -> ObjectKey {
    let name = frozen(instance)
        .map(|r| r.environment.as_str())
        .filter(|name| !name.is_empty())
        .unwrap_or_else(|| environment_name(&instance.spec));
    beside(instance, name)
}

/// Something of this name in the namespace of an Instance.
#[must_use]
pub fn beside(instance: &Instance, name: &str) -> ObjectKey {
    ObjectKey {
        namespace: instance.metadata.namespace.clone().unwrap_or_default(),
        name: name.to_owned(),
    }
}

fn depends_on(instance: &Instance) -> Vec<ObjectKey> {
    let values = frozen(instance).filter(|_| depends::is_dependent(instance));
    let depends = values.into_iter().flat_map(|values| &values.depends);
    depends.map(|d| beside(instance, &d.provisioner)).collect()
}

/// Whether an Instance is to get a host and has none.
#[must_use]
pub fn waits_for_host(instance: &Instance) -> bool {
    instance.metadata.deletion_timestamp.is_none() && lacks(instance, SCHEDULED, false)
}

/// Whether a condition is not `True`; with `current`, whether it is not at the Instance's generation.
fn lacks(instance: &Instance, type_: &str, current: bool) -> bool {
    let status = instance.status.as_ref();
    let condition = status.and_then(|s| condition::find(&s.conditions, type_));
    condition.is_none_or(|c| {
        c.status != condition::Status::True.as_str()
            || (current && c.observed_generation != instance.metadata.generation)
    })
}

fn keep(set: &mut HashSet<ObjectKey>, key: &ObjectKey, member: bool) {
    if member {
        set.insert(key.clone());
    } else {
        set.remove(key);
    }
}
