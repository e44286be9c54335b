//! What the generated definitions demand of `spec`, as a list: so that a test can ask whether each demand has been tried.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

/// One demand of a schema.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Demand {
    /// Kind of the object.
    pub kind: String,
    /// Where, from the object: `spec.disks[].name`.
    pub path: String,
    /// What.
    pub what: What,
}

/// What a schema demands of one field.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum What {
    /// At least so many characters.
    MinLength(i64),
    /// At most so many characters.
    MaxLength(i64),
    /// At least this number.
    Minimum(i64),
    /// At most this number.
    Maximum(i64),
    /// At least so many entries.
    MinItems(i64),
    /// At most so many entries.
    MaxItems(i64),
    /// At most so many keys.
    MaxProperties(i64),
    /// A regular expression.
    Pattern(String),
    /// One of these words.
    Enum(Vec<String>),
    /// A field that must be there.
    Required(String),
    /// No two equal entries; of a list-map, none with equal keys.
    Unique,
    /// A CEL rule, by its message.
    Rule(String),
}

/// Everything that the definitions demand of `metadata` and `spec`. Status is written by VirtShell alone.
///
/// # Errors
/// When a definition cannot be written as JSON.
pub fn demands() -> serde_json::Result<BTreeSet<Demand>> {
    let mut found = BTreeSet::new();
    for definition in virtshell_crds::manifests::definitions() {
        let kind = definition.spec.names.kind.clone();
        for version in &definition.spec.versions {
            let schema = serde_json::to_value(&version.schema)?;
            let root = &schema["openAPIV3Schema"];
            let mut walk = Walk {
                kind: &kind,
                found: &mut found,
            };
            walk.own(root, "");
            walk.all(&root["properties"]["spec"], "spec");
        }
    }
    Ok(found)
}

struct Walk<'a> {
    kind: &'a str,
    found: &'a mut BTreeSet<Demand>,
}

impl Walk<'_> {
    fn all(&mut self, schema: &Value, path: &str) {
        self.own(schema, path);
        for (name, property) in schema["properties"].as_object().unwrap_or(&Map::new()) {
            self.all(property, &format!("{path}.{name}"));
        }
        if schema["items"].is_object() {
            self.all(&schema["items"], &format!("{path}[]"));
        }
        if schema["additionalProperties"].is_object() {
            self.all(&schema["additionalProperties"], &format!("{path}{{}}"));
        }
    }

    fn own(&mut self, schema: &Value, path: &str) {
        // Limits are JSON numbers that may be written 16.0.
        let number = |key: &str| {
            #[expect(clippy::cast_possible_truncation, reason = "limits are whole numbers")]
            schema[key].as_f64().map(|n| n as i64)
        };
        let words = |key: &str| -> Vec<String> {
            let list = schema[key].as_array().map(Vec::as_slice).unwrap_or_default();
            list.iter().filter_map(Value::as_str).map(str::to_owned).collect()
        };
        let mut found = Vec::new();
        found.extend(number("minLength").map(What::MinLength));
        found.extend(number("maxLength").map(What::MaxLength));
        found.extend(number("minimum").map(What::Minimum));
        found.extend(number("maximum").map(What::Maximum));
        found.extend(number("minItems").map(What::MinItems));
        found.extend(number("maxItems").map(What::MaxItems));
        found.extend(number("maxProperties").map(What::MaxProperties));
        found.extend(schema["pattern"].as_str().map(|p| What::Pattern(p.to_owned())));
        if schema["enum"].is_array() {
            found.push(What::Enum(words("enum")));
        }
        // The object's own required fields (spec) are everybody's.
        if !path.is_empty() {
            found.extend(words("required").into_iter().map(What::Required));
        }
        if matches!(schema["x-kubernetes-list-type"].as_str(), Some("set" | "map")) {
            found.push(What::Unique);
        }
        for rule in schema["x-kubernetes-validations"]
            .as_array()
            .unwrap_or(&Vec::new())
        {
            let message = rule["message"].as_str().unwrap_or_default();
            found.push(What::Rule(message.to_owned()));
        }
        self.found.extend(found.into_iter().map(|what| Demand {
            kind: self.kind.to_owned(),
            path: path.to_owned(),
            what,
        }));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn demands_are_found_at_every_depth() {
        let found = demands().unwrap();
        for (path, what) in [
            (
                "",
                What::Rule("Field name: must have at most 63 characters".to_owned()),
            ),
            ("spec.cpus", What::Maximum(256)),
            ("spec.disks", What::Unique),
            ("spec.disks[]", What::Required("name".to_owned())),
            ("spec.disks[].name", What::MaxLength(32)),
            ("spec.tags[]", What::MinLength(1)),
            (
                "spec.powerState",
                What::Enum(["Running", "Stopped", "Paused"].map(str::to_owned).to_vec()),
            ),
        ] {
            let demand = Demand {
                kind: "Instance".to_owned(),
                path: path.to_owned(),
                what,
            };
            assert!(found.contains(&demand), "{demand:?}");
        }
    }
}
