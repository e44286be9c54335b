//! Instance: a virtual machine or a system container.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::host::HostType;
use crate::image::{Boot, ImageType};
use crate::provisioner::Dependency;
use crate::{rules, words};

/// What a user wants of a virtual machine or container.
#[derive(CustomResource, KubeSchema, Clone, Debug, Default, Deserialize, Serialize, PartialEq)]
#[kube(
    group = "virtshell.io",
    version = "v1alpha1",
    kind = "Instance",
    namespaced,
    status = "InstanceStatus",
    derive = "PartialEq",
    derive = "Default",
    shortname = "vsi",
    category = "virtshell",
    selectable = ".spec.host",
    doc = "A virtual machine or system container that the agent of its host keeps as the spec says.",
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase"),
    printcolumn(name = "Host", type_ = "string", json_path = ".spec.host"),
    printcolumn(name = "Driver", type_ = "string", json_path = ".status.resolved.driver"),
    printcolumn(name = "CPUs", type_ = "integer", json_path = ".status.resolved.cpus"),
    printcolumn(name = "Memory", type_ = "integer", json_path = ".status.resolved.memoryMiB", description = "MiB"),
    printcolumn(name = "IP", type_ = "string", json_path = ".status.addresses.ipv4[0]"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(name = "Image", type_ = "string", json_path = ".status.resolved.image.name", priority = 1),
    printcolumn(name = "Environment", type_ = "string", json_path = ".status.resolved.environment", priority = 1),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type=='Ready')].status", priority = 1),
    validation = rules::short_name(),
    validation = rules::field_rule("!has(self.spec.diskMiB) || (has(oldSelf.spec.diskMiB) && self.spec.diskMiB == oldSelf.spec.diskMiB) || !has(self.status) || !has(self.status.resolved) || !has(self.status.resolved.diskMiB) || self.spec.diskMiB >= self.status.resolved.diskMiB", "diskMiB", words::ONLY_GROWS),
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("has(self.image) || has(self.provisioner) || has(self.cloneFrom) || (has(self.blank) && self.blank)").message("image field was not provided: give at least one of image, provisioner, cloneFrom, blank: true"),
    validation = rules::immutable("image"),
    validation = rules::immutable("driver"),
    validation = rules::immutable("environment"),
    validation = rules::immutable("provisioner"),
    validation = rules::immutable("hostType"),
    validation = rules::immutable("launch"),
    validation = rules::immutable("cloneFrom"),
    validation = rules::immutable("blank"),
    validation = rules::field_rule("!has(self.maxCpus) || !has(self.cpus) || self.maxCpus >= self.cpus", "maxCpus", "must not be below cpus"),
    validation = rules::field_rule("!has(self.maxMemoryMiB) || !has(self.memoryMiB) || self.maxMemoryMiB >= self.memoryMiB", "maxMemoryMiB", "must not be below memoryMiB"),
    validation = rules::field_rule("!(has(self.vars) && has(self.varsFrom))", "varsFrom", "cannot stand beside vars"),
)]
pub struct InstanceSpec {
    /// The name REST clients use, 1 to 255 characters without control characters. May change. Default: metadata.name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 255), regex(pattern = r"^[^\x00-\x1f\x7f]+$"))]
    pub display_name: Option<String>,
    /// Host name inside the guest. Default: metadata.name. Reaches the guest through the seed at its next first boot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(min = 1, max = 63),
        regex(pattern = r"^[A-Za-z0-9]([-A-Za-z0-9]*[A-Za-z0-9])?$")
    )]
    pub hostname: Option<String>,
    /// Free text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 4096))]
    pub description: Option<String>,
    /// The Environment to run in, by wire name or metadata.name. Default: the Environment named "default". Fixed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 255))]
    pub environment: Option<String>,
    /// The Provisioner that gives sizes, image and builder. Fixed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 255))]
    pub provisioner: Option<String>,
    /// The Image to boot from; default: the provisioner's. Fixed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 255))]
    pub image: Option<String>,
    /// Start from an empty root disk instead of an image. Fixed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blank: Option<bool>,
    /// Copy the disks of another Instance, on that Instance's host. Fixed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clone_from: Option<CloneFrom>,
    /// The kind of host to run on. Default: GeneralPurpose. Fixed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_type: Option<HostType>,
    /// How the guest runs. Default: the provisioner's, else lxc for a container image, else kvm. Fixed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub driver: Option<Driver>,
    /// The Host it is bound to (metadata.name). Leave it out and the controller chooses; set it to pin. Cannot be moved
    /// by a user once set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub host: Option<String>,
    /// Virtual CPUs. Default: the provisioner's, else 1. Live up to maxCpus, else at the next restart.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 256))]
    pub cpus: Option<i32>,
    /// Room to add virtual CPUs live. Default: four times cpus, at most what the host has. Changes at the next restart.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1024))]
    pub max_cpus: Option<i32>,
    /// Memory in MiB. Default: the provisioner's, else 1024. Live up to maxMemoryMiB, else at the next restart.
    #[serde(default, rename = "memoryMiB", skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 32, max = 16_777_216))]
    pub memory_mib: Option<i64>,
    /// Memory in MiB up to which the balloon can grow live. Default: memoryMiB. Changes at the next restart.
    #[serde(default, rename = "maxMemoryMiB", skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 32, max = 16_777_216))]
    pub max_memory_mib: Option<i64>,
    /// Size of the root disk in MiB; never below the image's virtual size. Default: the provisioner's, else 10240. May
    /// only grow.
    #[serde(default, rename = "diskMiB", skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 67_108_864))]
    pub disk_mib: Option<i64>,
    /// Whether the guest runs.
    #[serde(default)]
    pub power_state: PowerState,
    /// How a stop is made.
    #[serde(default)]
    pub stop_mode: StopMode,
    /// A new value asks for exactly one restart: a stop and a start of the domain. On a failed Instance it asks for a new
    /// try.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 253))]
    pub restart_token: String,
    /// How the stop of a restart is made.
    #[serde(default)]
    pub restart_mode: RestartMode,
    /// Seconds that a guest has to shut down before stopMode decides what happens.
    #[serde(default = "default_shutdown_grace")]
    #[schemars(range(min = 0, max = 3600))]
    pub shutdown_grace_seconds: i32,
    /// Disks beside the root disk, by name. Adding one attaches it; removing one detaches it and keeps its file until the
    /// Instance is deleted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub disks: Vec<Disk>,
    /// Network interfaces, by name. Default: one on the network "default" when the host has it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub interfaces: Vec<Interface>,
    /// The NoCloud seed beside host name, SSH key and time zone. Read by the guest at its first boot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cloud_init: Option<CloudInit>,
    /// Consoles of the guest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub consoles: Option<Consoles>,
    /// Set libvirt's autostart flag while powerState is Running, so that the guest comes up before the agent does.
    #[serde(default = "yes")]
    pub autostart: bool,
    /// What becomes of the disks when the Instance is deleted.
    #[serde(default)]
    pub deletion_policy: DeletionPolicy,
    /// How many to launch; above 1 this object is a launch parent: it has no guest, an edit of it is the same edit of its
    /// children, and they go when it is deleted. Default: the provisioner's, else 1. Fixed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub launch: Option<Launch>,
    /// Variables for the provisioner's executor: at most 256, values of at most 4096 characters.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 256, "additionalProperties" = {"type": "string", "maxLength": 4096}))]
    pub vars: BTreeMap<String, String>,
    /// URL of a stored YAML file of `key: value` lines, instead of vars.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 2048))]
    pub vars_from: Option<String>,
    /// Tags for selectors, added to the provisioner's.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), extend("x-kubernetes-list-type" = "set"))]
    pub tags: Vec<Tag>,
    /// Unix-style permissions for REST users; see the access section of the guide. Default: xwrxwrxwr.
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
    /// Addresses declared by the user; REST shows them instead of the observed ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub addresses: Option<DeclaredAddresses>,
}

fn default_shutdown_grace() -> i32 {
    60
}

fn yes() -> bool {
    true
}

/// How a guest runs.
#[derive(Clone, Copy, Debug, Deserialize, Serialize, JsonSchema, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[serde(rename_all = "lowercase")]
pub enum Driver {
    /// QEMU with hardware virtualization, or emulated where the host allows that.
    Kvm,
    /// QEMU, emulated.
    Qemu,
    /// A system container.
    Lxc,
}

impl Driver {
    /// The word in the API.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Qemu => "qemu",
            Self::Lxc => "lxc",
        }
    }
}

impl std::fmt::Display for Driver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Whether a guest runs.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize, JsonSchema, PartialEq, Eq)]
pub enum PowerState {
    /// The domain is active.
    #[default]
    Running,
    /// The domain is inactive.
    Stopped,
    /// The domain is active, its CPUs are suspended.
    Paused,
}

/// How a stop is made.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize, JsonSchema, PartialEq, Eq)]
pub enum StopMode {
    /// Ask the guest; power off after shutdownGraceSeconds.
    #[default]
    Graceful,
    /// Power off at once.
    Force,
    /// Ask the guest; after shutdownGraceSeconds give up and say so.
    AskOnly,
}

/// How the stop of a restart is made.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize, JsonSchema, PartialEq, Eq)]
pub enum RestartMode {
    /// Ask the guest; power off after shutdownGraceSeconds.
    #[default]
    Graceful,
    /// Power off at once.
    Force,
}

/// What becomes of disks when the Instance is deleted.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize, JsonSchema, PartialEq, Eq)]
pub enum DeletionPolicy {
    /// They are deleted.
    #[default]
    Delete,
    /// They stay on the host.
    RetainDisks,
}

/// A tag: what a selector matches.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema, PartialEq, Eq, PartialOrd, Ord)]
#[serde(transparent)]
pub struct Tag(#[schemars(length(min = 1, max = 128))] pub String);

/// A permission string of nine letters.
#[derive(Clone, Debug, Default, Deserialize, Serialize, PartialEq, Eq)]
#[serde(transparent)]
pub struct Permissions(pub String);

impl JsonSchema for Permissions {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Permissions".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "type": "string",
            "pattern": "^-?[rwx_-]{9}$",
            "maxLength": 10,
            "x-kubernetes-validations": [{
                // The pattern is checked beside this rule, not before it: guard the length.
                "rule": "self.size() < 9 || self.size() > 10 || ['r','w','x'].all(c, [0,3,6].all(i, self.substring(self.size()-9+i, self.size()-6+i).split(c).size() <= 2))",
                "message": format!("Field permissions: {}", words::PERMISSIONS),
            }],
        })
    }
}

/// How many Instances to launch.
#[derive(Clone, Copy, Debug, Deserialize, Serialize, KubeSchema, PartialEq, Eq)]
#[x_kube(validation = rules::field_rule("self.min <= self.max", "launch", words::LAUNCH_ORDER))]
pub struct Launch {
    /// The least number that must run for success.
    #[schemars(range(min = 1, max = 100))]
    pub min: i32,
    /// The number to try.
    #[schemars(range(min = 1, max = 100))]
    pub max: i32,
}

impl Default for Launch {
    fn default() -> Self {
        Self { min: 1, max: 1 }
    }
}

/// The source of a clone.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema, PartialEq, Eq)]
pub struct CloneFrom {
    /// metadata.name of the source Instance.
    #[schemars(length(min = 1, max = 63))]
    pub name: String,
    /// uid of the source, so that a namesake is not copied by mistake.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub uid: Option<String>,
}

/// A disk beside the root disk.
#[derive(Clone, Debug, Default, Deserialize, Serialize, KubeSchema, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = rules::field_rule("has(self.sizeMiB) || has(self.image)", "disks", "a disk needs sizeMiB or image"),
    validation = rules::field_rule("!has(self.sizeMiB) || !has(oldSelf.sizeMiB) || self.sizeMiB >= oldSelf.sizeMiB", "disks", "sizeMiB may only grow"),
    validation = rules::field_rule("has(self.image) == has(oldSelf.image) && (!has(self.image) || self.image == oldSelf.image)", "disks", "image cannot change once set; remove the disk and add one of another name"),
)]
pub struct Disk {
    /// Name of the disk; "root" is taken by the root disk.
    #[schemars(
        length(min = 1, max = 32),
        regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")
    )]
    #[x_kube(validation = rules::field_rule("self != 'root' && self != 'seed'", "disks", "the names root and seed are taken"))]
    pub name: String,
    /// Size in MiB; with an image, at least the image's virtual size. May only grow.
    #[serde(default, rename = "sizeMiB", skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 67_108_864))]
    pub size_mib: Option<i64>,
    /// The Image whose content it starts with; default: empty. Fixed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 255))]
    pub image: Option<String>,
    /// The bus it hangs on.
    #[serde(default)]
    pub bus: DiskBus,
}

/// The bus of a disk.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum DiskBus {
    /// virtio-blk.
    #[default]
    Virtio,
    /// virtio-scsi.
    Scsi,
    /// SATA.
    Sata,
}

impl DiskBus {
    /// libvirt's word for the bus.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Virtio => "virtio",
            Self::Scsi => "scsi",
            Self::Sata => "sata",
        }
    }
}

/// A network interface.
#[derive(Clone, Debug, Default, Deserialize, Serialize, KubeSchema, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = rules::field_rule("has(self.network) != has(self.bridge)", "interfaces", "give exactly one of network and bridge"))]
pub struct Interface {
    /// Name of the interface in the API.
    #[schemars(
        length(min = 1, max = 15),
        regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")
    )]
    pub name: String,
    /// The libvirt network it joins.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub network: Option<String>,
    /// The bridge device of the host it joins.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 15))]
    pub bridge: Option<String>,
    /// The model of the card.
    #[serde(default)]
    pub model: InterfaceModel,
    /// MAC address, a unicast one. Default: derived from the uid and the interface's name, so it never changes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^[0-9A-Fa-f][02468ACEace](:[0-9A-Fa-f]{2}){5}$"))]
    pub mac: Option<String>,
}

/// The model of a network card.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum InterfaceModel {
    /// virtio-net.
    #[default]
    Virtio,
    /// Intel e1000e.
    E1000e,
    /// Intel e1000.
    E1000,
    /// Realtek 8139.
    Rtl8139,
}

impl InterfaceModel {
    /// libvirt's word for the model.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Virtio => "virtio",
            Self::E1000e => "e1000e",
            Self::E1000 => "e1000",
            Self::Rtl8139 => "rtl8139",
        }
    }
}

/// What the NoCloud seed says beside host name, SSH key and time zone.
#[derive(Clone, Debug, Default, Deserialize, Serialize, KubeSchema, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = rules::field_rule("!(has(self.userData) && has(self.userDataFrom))", "cloudInit", "userDataFrom cannot stand beside userData"))]
pub struct CloudInit {
    /// User data, at most 16 KiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16_384))]
    pub user_data: Option<String>,
    /// User data from a Secret in the same namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user_data_from: Option<SecretKey>,
    /// Network configuration (version 1 or 2), at most 16 KiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16_384))]
    pub network_data: Option<String>,
}

/// One key of a Secret.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema, PartialEq, Eq)]
pub struct SecretKey {
    /// Name of the Secret.
    #[schemars(length(min = 1, max = 253))]
    pub secret: String,
    /// Key in its data.
    #[schemars(length(min = 1, max = 253))]
    pub key: String,
}

/// Consoles of a guest.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema, PartialEq, Eq)]
pub struct Consoles {
    /// A serial console.
    #[serde(default = "yes")]
    pub serial: bool,
    /// A VNC display; absent = no display.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vnc: Option<Vnc>,
}

impl Default for Consoles {
    fn default() -> Self {
        Self {
            serial: true,
            vnc: None,
        }
    }
}

/// A VNC display.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema, PartialEq, Eq)]
pub struct Vnc {
    /// The address of the host it listens on.
    #[serde(default = "loopback")]
    #[schemars(length(min = 2, max = 45))]
    pub listen: String,
}

fn loopback() -> String {
    "127.0.0.1".to_owned()
}

/// Addresses that a user declares.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema, PartialEq, Eq)]
pub struct DeclaredAddresses {
    /// IPv4 address.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 15))]
    pub ipv4: String,
    /// IPv6 address; not validated.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 64))]
    pub ipv6: String,
}

/// What is true of an Instance. The controller and the node each apply their own part.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct InstanceStatus {
    /// The generation that this status speaks of: the node's once bound.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// A summary for people; nothing steers by it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<Phase>,
    /// Why the phase is what it is, when that needs words.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// The host where the domain really is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// What libvirt says; absent before there is a domain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub power_state: Option<PowerState>,
    /// Mirror of the restart token kept in the domain's metadata: the last restart that was done.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub last_restart_token: String,
    /// Whether the builder has run to its end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub provisioned: Option<bool>,
    /// The values it was created with: all that the node needs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resolved: Option<Resolved>,
    /// The libvirt domain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub domain: Option<DomainStatus>,
    /// Observed addresses of all interfaces.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub addresses: Option<Addresses>,
    /// Observed interfaces.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "atomic"))]
    pub interfaces: Vec<InterfaceStatus>,
    /// Disks and where their files are.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "atomic"))]
    pub disks: Vec<DiskStatus>,
    /// Spec fields that the running domain does not have yet.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "atomic"))]
    pub restart_required: Vec<String>,
    /// When the domain was last started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Time>,
    /// How the last start spent its time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timings: Option<Timings>,
    /// Children of a launch parent, metadata.name each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "atomic"))]
    pub children: Vec<String>,
    /// Effective tags: the spec's and the provisioner's.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "atomic"))]
    pub tags: Vec<String>,
    /// Accepted, Scheduled (controller); ImageReady, Ready, Converged, AgentConnected (node).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
}

/// A summary for people.
#[derive(Clone, Copy, Debug, Deserialize, Serialize, JsonSchema, PartialEq, Eq)]
pub enum Phase {
    /// Waiting for dependencies, a host or capacity.
    Pending,
    /// Placed; the domain is being made.
    Creating,
    /// The builder runs.
    Provisioning,
    /// The domain is active.
    Running,
    /// The domain is inactive on request.
    Stopped,
    /// The domain is suspended on request.
    Paused,
    /// Being removed.
    Deleting,
    /// The last action failed; the message says why.
    Failed,
}

/// The values an Instance was created with.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Resolved {
    /// Name of the Environment.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub environment: String,
    /// How the guest runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub driver: Option<Driver>,
    /// Kind of host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_type: Option<HostType>,
    /// Virtual CPUs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpus: Option<i32>,
    /// Memory in MiB.
    #[serde(default, rename = "memoryMiB", skip_serializing_if = "Option::is_none")]
    pub memory_mib: Option<i64>,
    /// Root disk in MiB.
    #[serde(default, rename = "diskMiB", skip_serializing_if = "Option::is_none")]
    pub disk_mib: Option<i64>,
    /// How many were asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub launch: Option<Launch>,
    /// Repository with the builder; empty = none.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub builder: String,
    /// Command that builds.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub executor: String,
    /// Provisioners that must have run first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "atomic"))]
    pub depends: Vec<Dependency>,
    /// Instances that meet them, in that order, as they were when this one was last looked at before it was provisioned.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "atomic"))]
    pub dependencies: Vec<MetDependency>,
    /// The image, copied: the Image object may go at any time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<ResolvedImage>,
    /// Images of additional disks, by disk name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub disk_images: BTreeMap<String, ResolvedImage>,
    /// The stored file with the variables for the builder: virtshell://NAMESPACE/files/NAME?sha256=HEX; empty = none.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub vars_from: String,
}

/// An Instance that another depends on: what VS_DEPENDS tells the executor.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema, PartialEq, Eq)]
pub struct MetDependency {
    /// The provisioner that made it.
    pub provisioner: String,
    /// Its wire name.
    pub name: String,
    /// Its first IPv4 address; empty when none is known yet.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub ipv4: String,
}

/// An image as it was when the Instance was created.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct ResolvedImage {
    /// Name of the Image.
    pub name: String,
    /// What it is.
    #[serde(rename = "type")]
    pub type_: ImageType,
    /// Where its content is: the root file system archive for lxc, else the disk or ISO. Empty for direct kernel boot
    /// without a disk. A File of ours is virtshell://NAMESPACE/files/NAME?sha256=HEX here and in the other
    /// URLs.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub url: String,
    /// SHA-256 of the content; empty = not checked.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub sha256: String,
    /// Direct kernel boot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot: Option<Boot>,
    /// Time zone for the guest.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub timezone: String,
    /// Public SSH key for root.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub ssh_key: String,
    /// Answer file for an installer.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub preseed_url: String,
}

/// A libvirt domain.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema, PartialEq, Eq)]
pub struct DomainStatus {
    /// libvirt's name of it.
    pub name: String,
    /// libvirt's UUID of it.
    pub uuid: String,
    /// libvirt's type: kvm, qemu, lxc.
    #[serde(rename = "type")]
    pub type_: String,
}

/// Observed addresses.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema, PartialEq, Eq)]
pub struct Addresses {
    /// IPv4.
    #[serde(default)]
    #[schemars(extend("x-kubernetes-list-type" = "atomic"))]
    pub ipv4: Vec<String>,
    /// IPv6, link-local ones left out.
    #[serde(default)]
    #[schemars(extend("x-kubernetes-list-type" = "atomic"))]
    pub ipv6: Vec<String>,
}

/// An observed interface.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema, PartialEq, Eq)]
pub struct InterfaceStatus {
    /// Name in the spec.
    pub name: String,
    /// MAC address.
    #[serde(default)]
    pub mac: String,
    /// IPv4 addresses.
    #[serde(default)]
    #[schemars(extend("x-kubernetes-list-type" = "atomic"))]
    pub ipv4: Vec<String>,
    /// IPv6 addresses.
    #[serde(default)]
    #[schemars(extend("x-kubernetes-list-type" = "atomic"))]
    pub ipv6: Vec<String>,
}

/// A disk and its file.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct DiskStatus {
    /// Name in the spec, or "root".
    pub name: String,
    /// Path on the host.
    pub path: String,
    /// Size in MiB.
    #[serde(rename = "sizeMiB")]
    pub size_mib: i64,
    /// Detached: no longer in the spec, kept until the Instance is deleted.
    #[serde(default)]
    pub detached: bool,
}

/// How the last start spent its time, in milliseconds.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Timings {
    /// Fetching the image; 0 from the cache.
    #[serde(default)]
    pub image_ms: i64,
    /// Making disks and seed, and defining the domain.
    #[serde(default)]
    pub define_ms: i64,
    /// libvirt's start call.
    #[serde(default)]
    pub start_ms: i64,
    /// From the start call to the guest agent's first answer; absent until it came.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent_ms: Option<i64>,
}

impl Instance {
    /// The wire name: `spec.displayName`, or `metadata.name` of objects made with kubectl.
    #[must_use]
    pub fn wire_name(&self) -> &str {
        self.spec
            .display_name
            .as_deref()
            .or(self.metadata.name.as_deref())
            .unwrap_or_default()
    }

    /// Whether this object stands for a group of launched children and has no domain of its own.
    #[must_use]
    pub fn is_launch_parent(&self) -> bool {
        let resolved = self
            .status
            .as_ref()
            .and_then(|s| s.resolved.as_ref())
            .and_then(|r| r.launch);
        resolved.or(self.spec.launch).is_some_and(|l| l.max > 1)
    }
}
