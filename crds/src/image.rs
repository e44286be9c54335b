//! Image: what an Instance boots from.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::instance::Permissions;
use crate::rules;

/// What an Instance boots from.
#[derive(CustomResource, KubeSchema, Clone, Debug, Deserialize, Serialize, PartialEq)]
#[kube(
    group = "virtshell.io",
    version = "v1alpha1",
    kind = "Image",
    namespaced,
    status = "ImageStatus",
    derive = "PartialEq",
    shortname = "vsimg",
    category = "virtshell",
    doc = "What an Instance boots from: a disk image, an installation ISO or a container root. Hosts fetch it on first use.",
    printcolumn(name = "Type", type_ = "string", json_path = ".spec.type"),
    printcolumn(name = "URL", type_ = "string", json_path = ".spec.downloadUrl", priority = 1),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    validation = rules::short_name(),
)]
#[serde(rename_all = "camelCase")]
pub struct ImageSpec {
    /// The name REST clients use. Default: metadata.name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 255), regex(pattern = r"^[^\x00-\x1f\x7f]+$"))]
    pub display_name: Option<String>,
    /// What it is. docker-container images can be stored; no driver here runs them.
    #[serde(rename = "type")]
    pub type_: ImageType,
    /// Where disk, ISO or archive are: https://, http://, file:// on the node (if its agent allows it), or a File of
    /// VirtShell. It must not lead to the host itself (loopback, link-local and metadata services), unless its agent allows that.
    /// A #fragment is dropped when fetching.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 2048))]
    pub download_url: Option<String>,
    /// Root file system archive (tar, tar.gz, tar.xz, tar.zst) for lxc.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 2048))]
    pub container_resource: Option<String>,
    /// SHA-256 of the content of downloadUrl (of containerResource for lxc), checked before first use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = "^[0-9a-f]{64}$"))]
    pub sha256: Option<String>,
    /// Direct kernel boot; the disk may be absent then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot: Option<Boot>,
    /// Answer file of an unattended installation, for type iso. `{{hostname}}`, `{{timezone}}`, `{{username}}` and
    /// `{{pwhash}}` in it are filled in, the last two from the Instance's vars of these names (default: root and none).
    /// The installer finds it as `preseed.cfg` and `ks.cfg` on a volume labelled OEMDRV.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 2048))]
    pub preseed_url: Option<String>,
    /// Time zone of guests. Default: UTC.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 64))]
    pub timezone: Option<String>,
    /// Public SSH key for root. Text that is not a key is stored and has no effect.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16_384))]
    pub ssh_key: Option<String>,
    /// Free text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 4096))]
    pub details: Option<String>,
    /// Operating system, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 255))]
    pub os: Option<String>,
    /// Release, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 255))]
    pub release: Option<String>,
    /// Version, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 255))]
    pub version: Option<String>,
    /// Variant, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 255))]
    pub variant: Option<String>,
    /// Architecture, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 255))]
    pub arch: Option<String>,
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
}

/// What an image is.
#[derive(Clone, Copy, Debug, Deserialize, Serialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum ImageType {
    /// A disk image, qcow2 or raw.
    Disk,
    /// An installation medium.
    Iso,
    /// A root file system for lxc.
    LxcContainer,
    /// Stored only: no driver runs it.
    DockerContainer,
}

impl ImageType {
    /// The word in the API.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Disk => "disk",
            Self::Iso => "iso",
            Self::LxcContainer => "lxc-container",
            Self::DockerContainer => "docker-container",
        }
    }
}

/// Direct kernel boot.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Boot {
    /// Where the kernel is; the same URLs as downloadUrl.
    #[schemars(length(min = 1, max = 2048))]
    pub kernel_url: String,
    /// Where the initial RAM disk is; empty = none.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 2048))]
    pub initrd_url: String,
    /// Kernel command line.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 2048))]
    pub cmdline: String,
}

/// What is true of an Image.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct ImageStatus {
    /// The generation that this status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Accepted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
}
