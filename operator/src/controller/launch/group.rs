//! What a launch group is made of, and how far it is.
//!
//! Pure. [`child`] is the `n`-th Instance of a group, [`changes`] what an edit of the parent asks of them, [`Group`] what they
//! are together.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::ObjectMeta;
use kube::{Resource, ResourceExt};
use serde_json::{Map, Value, json};
use virtshell_crds::condition::{self, READY, SCHEDULED, Status};
use virtshell_crds::instance::{InstanceSpec, Resolved};
use virtshell_crds::{
    ANNOTATION_CREATED_AT, ANNOTATION_CREATED_BY, ANNOTATION_LAUNCH_GENERATION, Instance,
    LABEL_LAUNCH_PARENT, LABEL_NAME, LABEL_NAME_HASH, Launch, Phase, launch, names,
};

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
    let hostname = parent.spec.hostname.as_ref().map(|h| format!("{h}-{n}"));
    let mut interfaces = parent.spec.interfaces.clone();
    for interface in &mut interfaces {
        interface.mac = None;
    }
    let spec = InstanceSpec {
        display_name: Some(wire.clone()),
        // One that is too long for a host name gives way to the default.
        hostname: hostname.filter(|h| h.len() <= 63),
        launch: Some(Launch::default()),
        addresses: None,
        restart_token: String::new(),
        interfaces,
        ..parent.spec.clone()
    };
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
        .chain([(ANNOTATION_LAUNCH_GENERATION.to_owned(), generation(parent))]);
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
        spec,
        status: None,
    }
}

fn generation(parent: &Instance) -> String {
    parent.metadata.generation.unwrap_or_default().to_string()
}

/// The annotation of a child that is made to follow its parent's spec now; `None` = it was already, and what it was asked for
/// since then on its own is not undone.
#[must_use]
pub fn follows(child: &Instance, parent: &Instance) -> Option<Value> {
    let now = generation(parent);
    let present = child.annotations().get(ANNOTATION_LAUNCH_GENERATION);
    (present != Some(&now)).then(|| json!({ ANNOTATION_LAUNCH_GENERATION: now }))
}

/// What the parent's spec asks of its children since it was last passed on; `None` = nothing. What was passed on is
/// remembered in the parent's status: powerState, lastRestartToken and the resolved sizes.
///
/// Children that were changed on their own keep that until the parent is changed.
#[must_use]
pub fn changes(parent: &Instance, resolved: &Resolved) -> Option<Value> {
    let spec = &parent.spec;
    let status = parent.status.as_ref()?;
    let mut changes = Map::new();
    if status
        .power_state
        .is_some_and(|passed_on| passed_on != spec.power_state)
    {
        changes.insert("powerState".to_owned(), json!(spec.power_state));
        changes.insert("stopMode".to_owned(), json!(spec.stop_mode));
        changes.insert(
            "shutdownGraceSeconds".to_owned(),
            json!(spec.shutdown_grace_seconds),
        );
    }
    if status.last_restart_token != spec.restart_token {
        changes.insert("restartToken".to_owned(), json!(spec.restart_token));
        changes.insert("restartMode".to_owned(), json!(spec.restart_mode));
        changes.insert(
            "shutdownGraceSeconds".to_owned(),
            json!(spec.shutdown_grace_seconds),
        );
    }
    let frozen = status.resolved.as_ref()?;
    if frozen.cpus != resolved.cpus {
        changes.insert("cpus".to_owned(), json!(resolved.cpus));
    }
    if frozen.memory_mib != resolved.memory_mib {
        changes.insert("memoryMiB".to_owned(), json!(resolved.memory_mib));
    }
    if frozen.disk_mib != resolved.disk_mib {
        changes.insert("diskMiB".to_owned(), json!(resolved.disk_mib));
    }
    (!changes.is_empty()).then_some(Value::Object(changes))
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
#[path = "group_tests.rs"]
mod tests;
