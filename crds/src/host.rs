//! Host: a machine with libvirt.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::instance::Driver;
use crate::rules;

/// A machine with libvirt, made by its agent or by an operator.
#[derive(CustomResource, KubeSchema, Clone, Debug, Default, Deserialize, Serialize, PartialEq)]
#[kube(
    group = "virtshell.io",
    version = "v1alpha1",
    kind = "Host",
    status = "HostStatus",
    derive = "PartialEq",
    derive = "Default",
    shortname = "vsh",
    category = "virtshell",
    doc = "A machine with libvirt. Its agent makes it and reports; the spec overrides what the agent reports.",
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type=='Ready')].status"),
    printcolumn(name = "Type", type_ = "string", json_path = ".spec.type"),
    printcolumn(name = "Section", type_ = "string", json_path = ".spec.section"),
    printcolumn(name = "CPUs", type_ = "integer", json_path = ".status.capacity.cpus"),
    printcolumn(name = "Memory", type_ = "integer", json_path = ".status.capacity.memoryMiB", description = "MiB"),
    printcolumn(name = "Instances", type_ = "integer", json_path = ".status.allocated.instances"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(name = "Drivers", type_ = "string", json_path = ".status.drivers", priority = 1),
    printcolumn(name = "Libvirt", type_ = "string", json_path = ".status.hypervisor.libvirt", priority = 1),
    validation = rules::short_name(),
)]
#[serde(rename_all = "camelCase")]
pub struct HostSpec {
    /// The name REST clients use. Default: metadata.name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 255), regex(pattern = r"^[^\x00-\x1f\x7f]+$"))]
    pub display_name: Option<String>,
    /// Operating system, for people.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 255))]
    pub os: String,
    /// What the machine is good for. Selects; promises no hardware.
    #[serde(default, rename = "type")]
    pub type_: HostType,
    /// Whether new Instances may be placed here. Those that are here stay.
    #[serde(default = "yes")]
    pub enabled: bool,
    /// Drivers it offers; empty = what its agent reports.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), extend("x-kubernetes-list-type" = "set"))]
    pub drivers: Vec<DriverWord>,
    /// The Section it belongs to, by wire name or metadata.name. None: only Environments that name it use it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 255))]
    pub section: Option<String>,
    /// The Kubernetes node whose agent serves it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub node_name: Option<String>,
    /// Memory for guests in MiB; 0 = what the agent reports.
    #[serde(default, rename = "memoryMiB", skip_serializing_if = "is_zero")]
    #[schemars(range(min = 0))]
    pub memory_mib: i64,
    /// Disk for guests in MiB; 0 = what the agent reports.
    #[serde(default, rename = "diskMiB", skip_serializing_if = "is_zero")]
    #[schemars(range(min = 0))]
    pub disk_mib: i64,
    /// Local IPv4 address.
    #[serde(default, rename = "localIPv4", skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 15))]
    pub local_ipv4: String,
    /// Local IPv6 address; not validated.
    #[serde(default, rename = "localIPv6", skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 64))]
    pub local_ipv6: String,
    /// Public IPv4 address.
    #[serde(default, rename = "publicIPv4", skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 15))]
    pub public_ipv4: String,
    /// Public IPv6 address; not validated.
    #[serde(default, rename = "publicIPv6", skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 64))]
    pub public_ipv6: String,
}

fn yes() -> bool {
    true
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_zero(value: &i64) -> bool {
    *value == 0
}

/// What a machine is good for.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize, JsonSchema, PartialEq, Eq)]
pub enum HostType {
    /// Balanced.
    #[default]
    GeneralPurpose,
    /// Much CPU; equal to HighPerformance for placement.
    ComputeOptimized,
    /// Much CPU; equal to ComputeOptimized for placement.
    HighPerformance,
    /// Much memory.
    MemoryOptimized,
    /// Much disk.
    StorageOptimized,
}

impl HostType {
    /// The word in the API.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::GeneralPurpose => "GeneralPurpose",
            Self::ComputeOptimized => "ComputeOptimized",
            Self::HighPerformance => "HighPerformance",
            Self::MemoryOptimized => "MemoryOptimized",
            Self::StorageOptimized => "StorageOptimized",
        }
    }

    /// Whether a host of this type serves a request for `wanted`.
    #[must_use]
    pub fn serves(self, wanted: Self) -> bool {
        let computes = |t| matches!(t, Self::ComputeOptimized | Self::HighPerformance);
        self == wanted || (computes(self) && computes(wanted))
    }
}

/// A driver's word; any word may be declared, only kvm, qemu and lxc are ever used.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema, PartialEq, Eq, PartialOrd, Ord)]
#[serde(transparent)]
pub struct DriverWord(#[schemars(length(min = 1, max = 32))] pub String);

/// What is true of a Host. Its agent applies most of it; `allocated` is the controller's.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct HostStatus {
    /// The generation that this status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// What the machine has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capacity: Option<Capacity>,
    /// What placed Instances take.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allocated: Option<Allocated>,
    /// Drivers that answered; kvm only where guests of it really run.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "atomic"))]
    pub drivers: Vec<Driver>,
    /// The hypervisor and its versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hypervisor: Option<Hypervisor>,
    /// The CPU and its topology.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu: Option<Cpu>,
    /// Host name of the machine.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub hostname: String,
    /// The Kubernetes node that its agent runs on.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub node_name: String,
    /// Addresses of the machine, without loopback and link-local ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub addresses: Option<crate::instance::Addresses>,
    /// Where the agent serves live bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<Endpoint>,
    /// Images in its cache.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "atomic"))]
    pub images: Vec<CachedImage>,
    /// Domains that VirtShell did not make: seen, never touched. At most 100.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "atomic"))]
    pub foreign_domains: Vec<ForeignDomain>,
    /// How many foreign domains there are, when they are more than the list holds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub foreign_domain_count: Option<i32>,
    /// Domains with our metadata whose Instance is gone: not started, not removed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "atomic"))]
    pub orphan_domains: Vec<OrphanDomain>,
    /// Ready, LibvirtConnected, Schedulable, StorageHealthy, HardwareVirtualization (node); Accepted, and Overcommitted while
    /// Instances that were edited take more than it has (controller).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
}

/// What a machine has.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Capacity {
    /// Logical CPUs.
    pub cpus: i32,
    /// Memory in MiB.
    #[serde(rename = "memoryMiB")]
    pub memory_mib: i64,
    /// Size in MiB of the file system that holds disks.
    #[serde(rename = "diskMiB")]
    pub disk_mib: i64,
}

/// What placed Instances take.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Allocated {
    /// Virtual CPUs.
    pub cpus: i32,
    /// Memory in MiB.
    #[serde(rename = "memoryMiB")]
    pub memory_mib: i64,
    /// Disk in MiB.
    #[serde(rename = "diskMiB")]
    pub disk_mib: i64,
    /// How many Instances.
    pub instances: i32,
}

/// The hypervisor and its versions.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema, PartialEq, Eq)]
pub struct Hypervisor {
    /// libvirt's word for it.
    #[serde(rename = "type")]
    pub type_: String,
    /// Its version.
    pub version: String,
    /// libvirt's version.
    pub libvirt: String,
}

/// The CPU and its topology.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Cpu {
    /// Model, in libvirt's words.
    pub model: String,
    /// Clock in MHz.
    pub mhz: i32,
    /// Sockets per NUMA node.
    pub sockets: i32,
    /// Cores per socket.
    pub cores: i32,
    /// Threads per core.
    pub threads: i32,
    /// NUMA nodes.
    pub numa_nodes: i32,
}

/// Where an agent serves live bytes.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema, PartialEq, Eq)]
pub struct Endpoint {
    /// https://address:port
    pub url: String,
    /// The certificate the agent made for itself, PEM.
    pub certificate: String,
}

/// An image in a host's cache.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct CachedImage {
    /// Name of the Image it was fetched for.
    pub name: String,
    /// SHA-256 of the content.
    pub sha256: String,
    /// Size in bytes.
    pub size_bytes: i64,
}

/// A domain that VirtShell did not make.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema, PartialEq, Eq)]
pub struct ForeignDomain {
    /// libvirt's name of it.
    pub name: String,
    /// libvirt's UUID of it.
    pub uuid: String,
    /// libvirt's id while it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<i32>,
    /// qemu or lxc.
    pub driver: String,
    /// libvirt's word for its state.
    pub state: String,
}

/// A domain with our metadata whose Instance is gone.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema, PartialEq, Eq)]
pub struct OrphanDomain {
    /// libvirt's name of it.
    pub name: String,
    /// uid of the Instance it was made for.
    pub uid: String,
}
