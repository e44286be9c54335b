//! Writing status: server-side apply of all that one field manager owns, and only when it would change something.
//!
//! An apply that changes nothing costs the API server as much as one that does, so the caller compares first with
//! [`differs`]. What an apply leaves out is deleted: every call carries everything its manager owns on that object.

use kube::api::{Api, Patch, PatchParams};
use kube::{Resource, ResourceExt};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

/// Applies `status` to the named object under `manager`, by force, and returns the object as it is then.
///
/// The uid goes along, so that an apply to a deleted object is refused (409 Conflict) instead of creating it again.
///
/// # Errors
/// Whatever the API server answers.
pub async fn apply<K>(api: &Api<K>, object: &K, manager: &str, status: &impl Serialize) -> kube::Result<K>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + std::fmt::Debug,
{
    let patch = json!({
        "apiVersion": K::api_version(&()),
        "kind": K::kind(&()),
        "metadata": { "name": object.name_any(), "uid": object.uid() },
        "status": status,
    });
    api.patch_status(
        &object.name_any(),
        &PatchParams::apply(manager).force(),
        &Patch::Apply(&patch),
    )
    .await
}

/// Whether applying `mine` would change `present`, where `mine` is all that one manager owns and `owned` names the
/// top-level fields of status that it owns (so that a field it now leaves out counts as a change).
///
/// Conditions compare by type, leaving out those of other managers and the transition times.
#[must_use]
pub fn differs(present: &Value, mine: &Value, owned: &[&str]) -> bool {
    owned.iter().any(|field| {
        let (present, mine) = (present.get(field), mine.get(field));
        if *field == "conditions" {
            conditions_differ(present, mine)
        } else {
            !same(present, mine)
        }
    })
}

/// Absent, null and empty are one.
fn same(a: Option<&Value>, b: Option<&Value>) -> bool {
    let empty = |v: Option<&Value>| match v {
        None | Some(Value::Null) => true,
        Some(Value::Array(list)) => list.is_empty(),
        Some(Value::String(text)) => text.is_empty(),
        Some(Value::Object(map)) => map.is_empty(),
        Some(Value::Bool(_) | Value::Number(_)) => false,
    };
    a == b || (empty(a) && empty(b))
}

fn conditions_differ(present: Option<&Value>, mine: Option<&Value>) -> bool {
    let list = |v: Option<&Value>| v.and_then(Value::as_array).cloned().unwrap_or_default();
    let present = list(present);
    list(mine).iter().any(|new| {
        let old = present.iter().find(|c| c["type"] == new["type"]);
        old.is_none_or(|old| {
            ["status", "reason", "message", "observedGeneration"]
                .iter()
                .any(|k| !same(old.get(k), new.get(k)))
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_the_manager_owns_counts() {
        let present = json!({
            "phase": "Running", "host": "h", "tags": [],
            "conditions": [
                {"type": "Ready", "status": "True", "reason": "Running", "message": "", "lastTransitionTime": "a"},
                {"type": "Accepted", "status": "True", "reason": "Valid", "message": ""},
            ],
        });
        let ready = |status: &str, at: &str| json!([{"type": "Ready", "status": status, "reason": "Running", "lastTransitionTime": at}]);
        for (rule, mine, owned, expected) in [
            ("the same", json!({"phase": "Running"}), vec!["phase"], false),
            (
                "another manager's field",
                json!({"phase": "Running"}),
                vec!["phase", "tags"],
                false,
            ),
            (
                "a field that is left out now",
                json!({"phase": "Running"}),
                vec!["phase", "host"],
                true,
            ),
            ("a new value", json!({"phase": "Stopped"}), vec!["phase"], true),
            (
                "only the time moved",
                json!({"conditions": ready("True", "b")}),
                vec!["conditions"],
                false,
            ),
            (
                "the status moved",
                json!({"conditions": ready("False", "a")}),
                vec!["conditions"],
                true,
            ),
        ] {
            assert_eq!(differs(&present, &mine, &owned), expected, "{rule}");
        }
    }
}
