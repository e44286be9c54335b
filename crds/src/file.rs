//! File: stored content that guests and images can use.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::instance::Permissions;
use crate::rules;

/// A stored file.
#[derive(CustomResource, KubeSchema, Clone, Debug, Default, Deserialize, Serialize, PartialEq)]
#[kube(
    group = "virtshell.io",
    version = "v1alpha1",
    kind = "File",
    namespaced,
    status = "FileStatus",
    derive = "PartialEq",
    derive = "Default",
    shortname = "vsf",
    category = "virtshell",
    doc = "A stored file: small content inline, large content as a blob of the gateway's store.",
    printcolumn(name = "Folder", type_ = "string", json_path = ".spec.folder"),
    printcolumn(name = "Name", type_ = "string", json_path = ".spec.displayName"),
    printcolumn(name = "Size", type_ = "integer", json_path = ".spec.size", description = "bytes"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    validation = rules::short_name(),
)]
#[serde(rename_all = "camelCase")]
pub struct FileSpec {
    /// The file's name. Default: metadata.name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 255), regex(pattern = r"^[A-Za-z0-9._:@+ -]+$"))]
    pub display_name: Option<String>,
    /// Folder: names joined by slashes; empty = none.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(
        length(max = 1024),
        regex(pattern = r"^$|^[A-Za-z0-9._:@+ -]+(/[A-Za-z0-9._:@+ -]+)*$")
    )]
    pub folder: String,
    /// Size in bytes.
    #[serde(default)]
    #[schemars(range(min = 0))]
    pub size: i64,
    /// SHA-256 of the content.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = "^[0-9a-f]{64}$"))]
    pub sha256: Option<String>,
    /// Unix-style permissions for REST users. Default: xwrxwrxwr.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub permissions: Option<Permissions>,
    /// The User who owns it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 255))]
    pub owner: Option<String>,
    /// The Group that permissions speak of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 255))]
    pub group: Option<String>,
    /// The content.
    pub content: FileContent,
}

/// Where the content is: exactly one of the two.
#[derive(Clone, Debug, Default, Deserialize, Serialize, KubeSchema, PartialEq, Eq)]
#[x_kube(validation = rules::field_rule("has(self.inline) != has(self.blob)", "content", "give exactly one of inline and blob"))]
pub struct FileContent {
    /// Base64 of at most 64 KiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 87_384), regex(pattern = "^[A-Za-z0-9+/]*={0,2}$"))]
    pub inline: Option<String>,
    /// SHA-256 of a blob in the gateway's store.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = "^[0-9a-f]{64}$"))]
    pub blob: Option<String>,
}

/// What is true of a File.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct FileStatus {
    /// The generation that this status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Accepted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
}
