//! Group: users that permissions speak of together.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::rules;

/// Users that permissions speak of together.
#[derive(CustomResource, KubeSchema, Clone, Debug, Default, Deserialize, Serialize, PartialEq)]
#[kube(
    group = "virtshell.io",
    version = "v1alpha1",
    kind = "Group",
    namespaced,
    status = "GroupStatus",
    derive = "PartialEq",
    derive = "Default",
    shortname = "vsgrp",
    category = "virtshell",
    doc = "A group of users. Members are its users and the users whose groups name it.",
    printcolumn(name = "Members", type_ = "string", json_path = ".status.members[*].name"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    validation = rules::short_name(),
)]
#[serde(rename_all = "camelCase")]
pub struct GroupSpec {
    /// The name REST clients use. Default: metadata.name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 255), regex(pattern = r"^[^\x00-\x1f\x7f]+$"))]
    pub display_name: Option<String>,
    /// Users by name; they need not exist.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 1000), inner(length(min = 1, max = 255)), extend("x-kubernetes-list-type" = "set"))]
    pub users: Vec<String>,
}

/// What is true of a Group.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct GroupStatus {
    /// The generation that this status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Effective members.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "atomic"))]
    pub members: Vec<GroupMember>,
    /// Accepted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
}

/// A member of a group.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema, PartialEq, Eq)]
pub struct GroupMember {
    /// User name.
    pub name: String,
    /// uid of the User; empty when there is none of that name.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub uid: String,
}
