//! The least that each kind's spec must say.

use serde_json::{Value, json};

/// Every kind, with the least spec it is admitted with.
pub fn least() -> [(&'static str, Value); 11] {
    [
        ("Environment", json!({})),
        ("File", json!({"content": {"inline": ""}})),
        ("Group", json!({})),
        ("Host", json!({})),
        ("Image", json!({"type": "disk"})),
        ("Instance", json!({"blank": true})),
        ("Provisioner", json!({})),
        ("Section", json!({})),
        ("Task", json!({"description": "d"})),
        (
            "TaskAssignment",
            json!({"task": {"name": "t", "uid": "u"}, "host": "h", "attempt": 0, "type": "execute_command",
                   "timeoutSeconds": 60, "targets": [{"name": "a", "uid": "u"}]}),
        ),
        ("User", json!({})),
    ]
}

/// The least spec of one kind.
pub fn least_of(kind: &str) -> Value {
    let found = least().into_iter().find(|(name, _)| *name == kind);
    found.unwrap_or_else(|| panic!("{kind} is a kind")).1
}

/// Overwrites members of `object` with those of `change`, deeply; null removes.
pub fn merge(object: &mut Value, change: &Value) {
    let Some(members) = change.as_object() else {
        *object = change.clone();
        return;
    };
    if !object.is_object() {
        *object = json!({});
    }
    for (key, value) in members {
        if value.is_null() {
            object.as_object_mut().unwrap().remove(key);
        } else {
            merge(&mut object[key], value);
        }
    }
}
