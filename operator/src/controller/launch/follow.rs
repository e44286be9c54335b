//! What an edit of a launch parent asks of its children.
//!
//! Pure. An edit of the parent is the same edit of every child: what was asked of a child is kept in an annotation of it, as kubectl keeps
//! what it applied, and what differs between that and the parent now is changed in the child. So whatever a child was given
//! on its own stays until the same is changed in the parent: a field, a variable, a tag, one of its disks or interfaces.
//!
//! What tells guests apart is never passed on ([`OWN`]), and a root disk that has grown further does not shrink.

use kube::ResourceExt;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use virtshell_crds::instance::InstanceSpec;
use virtshell_crds::{ANNOTATION_LAUNCH_GENERATION, ANNOTATION_LAUNCH_SPEC, Instance};

use super::group::spec_for;
use crate::controller::accept::frozen;

/// Fields of a child that are its own. Its name is known to others by now, its host is final, its addresses are one guest's.
const OWN: [&str; 4] = ["displayName", "host", "addresses", "launch"];
/// What decides how an Instance goes.
const LAST: [&str; 3] = ["deletionPolicy", "stopMode", "shutdownGraceSeconds"];
/// A call is passed on whole: to stop is to stop in the way that is asked for, whatever the child was told before.
const CALLS: [(&str, [&str; 2]); 2] = [
    ("powerState", ["stopMode", "shutdownGraceSeconds"]),
    ("restartToken", ["restartMode", "shutdownGraceSeconds"]),
];
/// A field that is longer than this, in bytes of JSON, is remembered by its digest: all annotations together have room for
/// 256 KiB, and variables alone can have a MiB.
const LONGEST: usize = 4096;

/// Whether a child follows its parent's spec as it is now.
#[must_use]
pub fn is_current(child: &Instance, parent: &Instance) -> bool {
    child.annotations().get(ANNOTATION_LAUNCH_GENERATION) == Some(&generation(parent))
}

/// The annotations of the `n`-th child by which it is known what `parent` asks of it now.
#[must_use]
pub fn annotations(parent: &Instance, n: i32) -> [(String, String); 2] {
    let asked = asked(parent, n).into_iter().map(|(field, value)| {
        let text = value.to_string();
        let kept = if text.len() > LONGEST {
            digest(&text)
        } else {
            value
        };
        (field, kept)
    });
    let asked: Map<String, Value> = asked.collect();
    [
        (ANNOTATION_LAUNCH_GENERATION.to_owned(), generation(parent)),
        (
            ANNOTATION_LAUNCH_SPEC.to_owned(),
            Value::Object(asked).to_string(),
        ),
    ]
}

/// The merge patch that makes the `n`-th child follow its parent. Both are as the API server has them: a cache leaves out what is
/// needed here.
#[must_use]
pub fn patch(child: &Instance, parent: &Instance, n: i32) -> Value {
    let annotations: Map<String, Value> = annotations(parent, n)
        .into_iter()
        .map(|(key, value)| (key, json!(value)))
        .collect();
    json!({"metadata": {"annotations": annotations}, "spec": changes(child, parent, n)})
}

/// The merge patch by which the `n`-th child of a parent that is being deleted goes as the parent was asked to; `None` = it does.
#[must_use]
pub fn last_patch(child: &Instance, parent: &Instance, n: i32) -> Option<Value> {
    let mut changes = changes(child, parent, n);
    changes.retain(|field, _| LAST.contains(&field.as_str()));
    (!changes.is_empty()).then(|| json!({ "spec": changes }))
}

/// Whether a child may have to be told how to go. Needs nothing that a cache leaves out.
#[must_use]
pub fn may_go_otherwise(child: &Instance, parent: &Instance) -> bool {
    let how = |i: &Instance| {
        (
            i.spec.deletion_policy,
            i.spec.stop_mode,
            i.spec.shutdown_grace_seconds,
        )
    };
    how(child) != how(parent)
}

fn generation(parent: &Instance) -> String {
    parent.metadata.generation.unwrap_or_default().to_string()
}

/// What a parent asks of its `n`-th child.
fn asked(parent: &Instance, n: i32) -> Map<String, Value> {
    let mut fields = fields(&spec_for(parent, n));
    fields.retain(|field, _| !OWN.contains(&field.as_str()));
    fields
}

/// A spec as JSON; what can have entries has none where it has none.
fn fields(spec: &InstanceSpec) -> Map<String, Value> {
    let Value::Object(mut fields) = json!(spec) else {
        return Map::new();
    };
    for list in ["disks", "interfaces", "tags"] {
        fields.entry(list).or_insert_with(|| json!([]));
    }
    fields.entry("vars").or_insert_with(|| json!({}));
    fields
}

/// What stands for a long field. It has no entries: where it is another one now, the whole field is.
fn digest(text: &str) -> Value {
    json!(format!("sha256:{}", hex::encode(Sha256::digest(text))))
}

/// What the parent has changed since it was last followed, as a merge patch of the child's spec.
fn changes(child: &Instance, parent: &Instance, n: i32) -> Map<String, Value> {
    let now = asked(parent, n);
    let Some(mut then) = remembered(child) else {
        // Nobody knows what was asked: all that differs counts as the child's own.
        return Map::new();
    };
    for (field, value) in &now {
        if then.get(field) == Some(&digest(&value.to_string())) {
            then.insert(field.clone(), value.clone());
        }
    }
    let live = fields(&child.spec);
    let mut wanted = merged_fields(&then, &now, live.clone());
    for (call, how) in CALLS {
        if then.get(call) != now.get(call) {
            wanted.extend(
                how.iter()
                    .filter_map(|f| Some(((*f).to_owned(), now.get(*f)?.clone()))),
            );
        }
    }
    let size = |value: Option<&Value>| value.and_then(Value::as_i64);
    let grown = frozen(child).and_then(|r| r.disk_mib).max(child.spec.disk_mib);
    if size(wanted.get("diskMiB")) < grown {
        match live.get("diskMiB") {
            Some(own) => wanted.insert("diskMiB".to_owned(), own.clone()),
            None => wanted.remove("diskMiB"),
        };
    }
    difference(&live, &wanted)
}

/// What was asked of a child when it last followed its parent.
fn remembered(child: &Instance) -> Option<Map<String, Value>> {
    serde_json::from_str(child.annotations().get(ANNOTATION_LAUNCH_SPEC)?).ok()
}

/// `live` with what was changed between `then` and `now`; `Null` = nothing there.
fn merged(then: &Value, now: &Value, live: &Value) -> Value {
    match (then, now, live) {
        _ if then == now => live.clone(),
        (Value::Object(then), Value::Object(now), Value::Object(live)) => {
            Value::Object(merged_fields(then, now, live.clone()))
        }
        (Value::Array(then), Value::Array(now), Value::Array(live)) => {
            Value::Array(merged_entries(then, now, live))
        }
        _ => now.clone(),
    }
}

fn merged_fields(
    then: &Map<String, Value>,
    now: &Map<String, Value>,
    mut live: Map<String, Value>,
) -> Map<String, Value> {
    let all: Vec<&String> = then
        .keys()
        .chain(now.keys().filter(|field| !then.contains_key(*field)))
        .collect();
    for field in all {
        let of = |fields: &Map<String, Value>| fields.get(field).cloned().unwrap_or_default();
        let value = merged(&of(then), &of(now), &of(&live));
        if value.is_null() {
            live.remove(field);
        } else {
            live.insert(field.clone(), value);
        }
    }
    live
}

/// Entries are told apart by their names, plain ones by themselves.
fn merged_entries(then: &[Value], now: &[Value], live: &[Value]) -> Vec<Value> {
    fn of<'a>(list: &'a [Value], entry: &Value) -> Option<&'a Value> {
        let name = |entry: &'a Value| entry.get("name").unwrap_or(entry);
        list.iter()
            .find(|other| name(other) == entry.get("name").unwrap_or(entry))
    }
    let there = live.iter().filter_map(|own| match (of(then, own), of(now, own)) {
        (Some(_), None) => None,
        (None, None) => Some(own.clone()),
        (then, Some(now)) => Some(merged(then.unwrap_or(&Value::Null), now, own)),
    });
    // What is as it was, and not there, was taken out of the child.
    let added = now
        .iter()
        .filter(|entry| of(live, entry).is_none() && of(then, entry) != Some(*entry));
    there.chain(added.cloned()).collect()
}

/// The merge patch that makes `there` what is `wanted`.
fn difference(there: &Map<String, Value>, wanted: &Map<String, Value>) -> Map<String, Value> {
    let gone = there.keys().filter(|field| !wanted.contains_key(*field));
    let mut patch: Map<String, Value> = gone.map(|field| (field.clone(), Value::Null)).collect();
    for (field, value) in wanted {
        match (there.get(field), value) {
            (Some(same), _) if same == value => {}
            (Some(Value::Object(there)), Value::Object(wanted)) => {
                patch.insert(field.clone(), Value::Object(difference(there, wanted)));
            }
            _ => {
                patch.insert(field.clone(), value.clone());
            }
        }
    }
    patch
}

#[cfg(test)]
#[path = "follow_tests.rs"]
mod tests;
