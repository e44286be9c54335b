//! Provisioner: how an Instance is built.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::instance::{Launch, Permissions, Tag};
use crate::rules;

/// How an Instance is built: sizes, image, builder repository, executor, dependencies.
#[derive(CustomResource, KubeSchema, Clone, Debug, Default, Deserialize, Serialize, PartialEq)]
#[kube(
    group = "virtshell.io",
    version = "v1alpha1",
    kind = "Provisioner",
    namespaced,
    status = "ProvisionerStatus",
    derive = "PartialEq",
    derive = "Default",
    shortname = "vsprov",
    category = "virtshell",
    doc = "How an Instance is built. Instances keep the values they were created with.",
    printcolumn(name = "Image", type_ = "string", json_path = ".spec.image"),
    printcolumn(name = "Builder", type_ = "string", json_path = ".spec.builder"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    validation = rules::short_name(),
)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("!has(self.builder) || has(self.executor)").message("executor field was not provided"))]
pub struct ProvisionerSpec {
    /// The name REST clients use. Default: metadata.name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 255), regex(pattern = r"^[^\x00-\x1f\x7f]+$"))]
    pub display_name: Option<String>,
    /// Free text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 4096))]
    pub description: Option<String>,
    /// Version, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 255))]
    pub version: Option<String>,
    /// How many Instances a request launches. Default: 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub launch: Option<Launch>,
    /// Virtual CPUs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 256))]
    pub cpus: Option<i32>,
    /// Memory in MiB.
    #[serde(default, rename = "memoryMiB", skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 16_777_216))]
    pub memory_mib: Option<i64>,
    /// Root disk in MiB.
    #[serde(default, rename = "diskMiB", skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 67_108_864))]
    pub disk_mib: Option<i64>,
    /// The Image, by wire name or metadata.name; checked when an Instance uses it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 255))]
    pub image: Option<String>,
    /// Default driver of its Instances. Words other than kvm, qemu and lxc can be stored.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub driver: Option<ProvisionerDriver>,
    /// Git URL (http, https, git, ssh, file) that is cloned inside the guest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(min = 1, max = 2048),
        regex(pattern = r"^((https?|git|ssh|file)://|[A-Za-z0-9_.-]+@).+$")
    )]
    pub builder: Option<String>,
    /// Command line run in the clone by `sh -lc`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 4096))]
    pub executor: Option<String>,
    /// Tags for selectors.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), extend("x-kubernetes-list-type" = "set"))]
    pub tags: Vec<Tag>,
    /// Provisioners that must have run first, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), extend("x-kubernetes-list-type" = "atomic"))]
    pub depends: Vec<Dependency>,
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

/// The driver a provisioner names; the last four are known words that no host here runs.
#[derive(Clone, Copy, Debug, Deserialize, Serialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum ProvisionerDriver {
    /// QEMU with hardware virtualization.
    Kvm,
    /// QEMU, emulated.
    Qemu,
    /// A system container.
    Lxc,
    /// Not supported.
    Docker,
    /// Not supported.
    Virtualbox,
    /// Not supported.
    Vmware,
    /// Not supported.
    Ec2,
}

impl ProvisionerDriver {
    /// The word in the API.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Qemu => "qemu",
            Self::Lxc => "lxc",
            Self::Docker => "docker",
            Self::Virtualbox => "virtualbox",
            Self::Vmware => "vmware",
            Self::Ec2 => "ec2",
        }
    }

    /// The driver, when hosts run it.
    #[must_use]
    pub const fn supported(self) -> Option<crate::Driver> {
        match self {
            Self::Kvm => Some(crate::Driver::Kvm),
            Self::Qemu => Some(crate::Driver::Qemu),
            Self::Lxc => Some(crate::Driver::Lxc),
            Self::Docker | Self::Virtualbox | Self::Vmware | Self::Ec2 => None,
        }
    }
}

/// A provisioner that must have run first.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema, PartialEq, Eq)]
pub struct Dependency {
    /// Name of the Provisioner.
    #[schemars(length(min = 1, max = 255))]
    pub provisioner: String,
    /// Its version, for people.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 255))]
    pub version: String,
}

/// What is true of a Provisioner.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct ProvisionerStatus {
    /// The generation that this status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Accepted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
}
