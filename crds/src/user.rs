//! User: who may do what through REST.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::rules;

/// Who may do what through REST.
#[derive(CustomResource, KubeSchema, Clone, Debug, Default, Deserialize, Serialize, PartialEq)]
#[kube(
    group = "virtshell.io",
    version = "v1alpha1",
    kind = "User",
    namespaced,
    status = "UserStatus",
    derive = "PartialEq",
    derive = "Default",
    shortname = "vsuser",
    category = "virtshell",
    doc = "A user of the REST API. Its keys are in a Secret.",
    printcolumn(name = "Type", type_ = "string", json_path = ".spec.type"),
    printcolumn(name = "Access-Key", type_ = "string", json_path = ".status.accessKeyId"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    validation = rules::short_name(),
)]
#[serde(rename_all = "camelCase")]
pub struct UserSpec {
    /// The user name REST clients use, without a colon. Default: metadata.name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 255), regex(pattern = r"^[^\x00-\x1f\x7f:]+$"))]
    pub display_name: Option<String>,
    /// system passes every check.
    #[serde(default, rename = "type")]
    pub type_: UserType,
    /// Login. Default: the user name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 255))]
    pub login: Option<String>,
    /// Groups by name; they need not exist. The first one is the group of what the user creates.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256), inner(length(min = 1, max = 255)), extend("x-kubernetes-list-type" = "set"))]
    pub groups: Vec<String>,
    /// The Secret with accessKeyId and secretAccessKey. Default: user-<metadata.name>, made when missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub credentials_secret: Option<String>,
}

/// What a user may do.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum UserType {
    /// What permissions allow.
    #[default]
    Regular,
    /// Everything.
    System,
}

/// What is true of a User.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct UserStatus {
    /// The generation that this status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Access key id of the credentials Secret.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub access_key_id: String,
    /// Accepted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
}

impl User {
    /// Name of the Secret with this user's keys.
    #[must_use]
    pub fn credentials_secret(&self) -> String {
        self.spec
            .credentials_secret
            .clone()
            .unwrap_or_else(|| format!("user-{}", self.metadata.name.as_deref().unwrap_or_default()))
    }
}
