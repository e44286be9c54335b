//! What a launch group is made of, and how far it is.
//!
//! Pure. [`child`] is the `n`-th Instance of a group, [`Group`] what all are together; [`super::follow`] is what an edit of the
//! parent asks of them.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::ObjectMeta;
use kube::{Resource, ResourceExt};
use virtshell_crds::condition::{self, READY, SCHEDULED, Status};
use virtshell_crds::instance::InstanceSpec;
use virtshell_crds::{
    ANNOTATION_CREATED_AT, ANNOTATION_CREATED_BY, Instance, LABEL_LAUNCH_PARENT, LABEL_NAME, LABEL_NAME_HASH,
    Launch, Phase, launch, names,
};

use super::follow;

/// The launch parent that made an Instance.
#[must_use]
pub fn parent_of(instance: &Instance) -> Option<&OwnerReference> {
    // The label tells a launched one from one that something else owns.
    instance.labels().get(LABEL_LAUNCH_PARENT)?;
    let mut owners = instance.owner_references().iter();
    owners.find(|owner| owner.controller == Some(true) && owner.kind == Instance::kind(&()))
}

/// The `n`-th Instance of a group (n = 1, 2, ...), under the `candidate`-th name for it.
///
/// It has the values of `parent`, which is as the API server has it: a cache leaves out user data. What tells guests apart is
/// its own.
#[must_use]
pub fn child(parent: &Instance, n: i32, candidate: u32) -> Instance {
    let wire = launch::child_name(parent.wire_name(), n);
    let mut labels = BTreeMap::from([
        (LABEL_LAUNCH_PARENT.to_owned(), parent.name_any()),
        (LABEL_NAME_HASH.to_owned(), names::name_hash(&wire)),
    ]);
    if names::is_label_value(&wire) {
        labels.insert(LABEL_NAME.to_owned(), wire.clone());
    }
    let kept = [ANNOTATION_CREATED_BY, ANNOTATION_CREATED_AT];
    let annotations = kept
        .into_iter()
        .filter_map(|key| Some((key.to_owned(), parent.annotations().get(key)?.clone())))
        .chain(follow::annotations(parent, n));
    Instance {
        metadata: ObjectMeta {
            name: Some(names::object_name_candidate(&wire, candidate)),
            namespace: parent.namespace(),
            labels: Some(labels),
            annotations: Some(annotations.collect()),
            owner_references: Some(vec![OwnerReference {
                api_version: Instance::api_version(&()).into_owned(),
                kind: Instance::kind(&()).into_owned(),
                name: parent.name_any(),
                uid: parent.uid().unwrap_or_default(),
                controller: Some(true),
                block_owner_deletion: None,
            }]),
            ..ObjectMeta::default()
        },
        spec: InstanceSpec {
            display_name: Some(wire),
            launch: Some(Launch::default()),
            addresses: None,
            // It has not been started yet.
            restart_token: String::new(),
            ..spec_for(parent, n)
        },
        status: None,
    }
}

/// The spec of a parent as it is meant for its `n`-th child.
#[must_use]
pub fn spec_for(parent: &Instance, n: i32) -> InstanceSpec {
    let mut spec = parent.spec.clone();
    for interface in &mut spec.interfaces {
        interface.mac = None;
    }
    let hostname = spec.hostname.map(|h| format!("{h}-{n}"));
    // One that is too long for a host name gives way to the default.
    spec.hostname = hostname.filter(|h| h.len() <= 63);
    spec
}

/// Whether an Instance is a child of this parent.
#[must_use]
pub fn is_child(instance: &Instance, parent: &Instance) -> bool {
    parent_of(instance).is_some_and(|owner| Some(&owner.uid) == parent.metadata.uid.as_ref())
}

/// What an Instance that has the name of a child already means for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// It is the child: an earlier look made it.
    Child,
    /// It was renamed and has the object's name only: the next candidate is free of it.
    Renamed,
    /// The name is another's.
    Taken,
}

/// What the Instance that is `there` instead of `child` is.
#[must_use]
pub fn found(there: &Instance, child: &Instance, parent: &Instance) -> Found {
    if is_child(there, parent) {
        Found::Child
    } else if there.wire_name() == child.wire_name() {
        Found::Taken
    } else {
        Found::Renamed
    }
}

/// What the children of a group are together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// For people.
    pub phase: Phase,
    /// What keeps the one that is least far.
    pub message: String,
    /// Whether every child has a host, and how many have.
    pub scheduled: (Status, String),
    /// Whether as many are ready as must be, and how many are.
    pub ready: (Status, String),
}

/// Looks at the children that are there.
#[must_use]
pub fn group<'a>(launch: Launch, children: impl IntoIterator<Item = &'a Instance>) -> Group {
    let children: Vec<&Instance> = children.into_iter().collect();
    let phase_of = |child: &Instance| {
        if child.metadata.deletion_timestamp.is_some() {
            return Phase::Deleting;
        }
        let status = child.status.as_ref();
        status.and_then(|s| s.phase).unwrap_or(Phase::Pending)
    };
    let having = |type_: &str| {
        let has = |child: &&&Instance| {
            let status = child.status.as_ref();
            status.is_some_and(|s| condition::is_true(&s.conditions, type_))
        };
        children.iter().filter(has).count()
    };
    let (placed, ready, total) = (having(SCHEDULED), having(READY), children.len());
    let phase = launch::phase(children.iter().map(|c| phase_of(c))).unwrap_or(Phase::Pending);
    let least = children.iter().find(|child| phase_of(child) == phase);
    let said = least.and_then(|child| {
        let message = child.status.as_ref().map(|s| s.message.as_str())?;
        (!message.is_empty()).then(|| format!("{}: {message}", child.wire_name()))
    });
    Group {
        phase,
        message: said.unwrap_or_default(),
        scheduled: (
            Status::from(placed == total),
            format!("{placed} of {total} instances have a host"),
        ),
        ready: (
            Status::from(ready >= launch.min.max(1) as usize),
            format!("{ready} of {total} instances are ready, {} must be", launch.min),
        ),
    }
}

#[cfg(test)]
#[path = "children_tests.rs"]
mod children_tests;
#[cfg(test)]
#[path = "group_tests.rs"]
mod tests;
