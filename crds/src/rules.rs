//! Builders of the schema's CEL rules, so that each kind states a rule once and in the REST API's words.

use kube::core::{Message, Rule};

use crate::words;

/// A rule whose message is `Field <field>: <reason>`.
pub(crate) fn field_rule(rule: impl Into<String>, field: &str, reason: &str) -> Rule {
    Rule::new(rule).message(Message::Message(format!("Field {field}: {reason}")))
}

/// On the root: `metadata.name` fits a label value and a libvirt LXC host name.
pub(crate) fn short_name() -> Rule {
    field_rule("self.metadata.name.size() <= 63", "name", words::NAME_TOO_LONG)
}

/// On the root: who refers to this object does so by `displayName`, for good; it changes only while it means another object.
pub(crate) fn keeps_name() -> Rule {
    let same = "has(self.spec.displayName) == has(oldSelf.spec.displayName) \
                && (!has(self.spec.displayName) || self.spec.displayName == oldSelf.spec.displayName)";
    let conflict = "has(self.status) && has(self.status.conditions) \
                    && self.status.conditions.exists(c, c.type == 'Accepted' && c.reason == 'NameConflict')";
    field_rule(
        format!("({same}) || ({conflict})"),
        "displayName",
        words::KEEPS_NAME,
    )
}

/// On the spec: an optional field keeps the value (or the absence) it was created with.
///
/// Spelled on the parent: a rule on the field itself does not run when the field is added or removed.
pub(crate) fn immutable(field: &str) -> Rule {
    let rule = format!(
        "has(self.{field})==has(oldSelf.{field}) && (!has(self.{field}) || self.{field}==oldSelf.{field})"
    );
    field_rule(rule, field, words::IMMUTABLE)
}
