//! The VirtShell API: custom resources of group `virtshell.io`, and the pure rules every part agrees on.
//!
//! No I/O and no Kubernetes client here. [`instance`], [`host`] and their siblings hold one kind each; their doc
//! comments are what `kubectl explain` prints. [`names`] derives object names from wire names, [`resolve`] says where an
//! Instance gets its values, [`permissions`] who may do what, [`condition`] keeps conditions by the Kubernetes
//! convention. `crdgen` (this crate's binary) writes `manifests/crds/` from these types.

#![allow(
    clippy::doc_markdown,
    reason = "doc comments are what kubectl explain prints, which shows backticks as they are"
)]

pub mod condition;
pub mod environment;
pub mod file;
pub mod file_ref;
pub mod group;
pub mod host;
pub mod image;
pub mod instance;
pub mod launch;
pub mod manifests;
pub mod names;
pub mod permissions;
pub mod provisioner;
pub mod resolve;
mod rules;
pub mod section;
pub mod task;
pub mod user;
pub mod words;

pub use environment::{Environment, EnvironmentSpec, EnvironmentStatus};
pub use file::{File, FileContent, FileSpec, FileStatus};
pub use group::{Group, GroupMember, GroupSpec, GroupStatus};
pub use host::{Host, HostSpec, HostStatus, HostType};
pub use image::{Boot, Image, ImageSpec, ImageStatus, ImageType};
pub use instance::{Driver, Instance, InstanceSpec, InstanceStatus, Launch, Phase, PowerState};
pub use provisioner::{Dependency, Provisioner, ProvisionerSpec, ProvisionerStatus};
pub use section::{Section, SectionSpec, SectionStatus};
pub use task::{
    Task, TaskAssignment, TaskAssignmentSpec, TaskAssignmentStatus, TaskParams, TaskSpec, TaskState,
    TaskStatus,
};
pub use user::{User, UserSpec, UserStatus, UserType};

/// The API group of every kind.
pub const GROUP: &str = "virtshell.io";
/// The API version of every kind.
pub const VERSION: &str = "v1alpha1";
/// `group/version`, as in `apiVersion`.
pub const API_VERSION: &str = "virtshell.io/v1alpha1";

/// Finalizer of an Instance that has a host: held until its node has removed the domain.
pub const FINALIZER_DOMAIN: &str = "virtshell.io/domain";
/// Finalizer of a launch parent: held until its children are gone.
pub const FINALIZER_LAUNCH: &str = "virtshell.io/launch";
/// Finalizer of a Host, Section or Environment while something refers to it.
pub const FINALIZER_IN_USE: &str = "virtshell.io/in-use";

/// Field manager of the controller's writes.
pub const MANAGER_CONTROLLER: &str = "virtshell-controller";
/// Field manager under which the controller marks the Instances of a silent host.
pub const MANAGER_CONTROLLER_LOST: &str = "virtshell-controller-lost";
/// Field manager of the gateway's writes.
pub const MANAGER_GATEWAY: &str = "virtshell-gateway";

/// Annotation with the uuid of the user who created the object through REST.
pub const ANNOTATION_CREATED_BY: &str = "virtshell.io/created-by";
/// Annotation with the creation time in microseconds since the epoch: `creationTimestamp` has only seconds.
pub const ANNOTATION_CREATED_AT: &str = "virtshell.io/created-at";
/// Annotation with the time (epoch seconds) of the last change made through REST.
pub const ANNOTATION_MODIFIED_AT: &str = "virtshell.io/modified-at";
/// Annotation with the uuid of the user who made the last change through REST.
pub const ANNOTATION_MODIFIED_BY: &str = "virtshell.io/modified-by";
/// Annotation with the id (`X-Request-Id`) of the REST request that made the object, or was the last to change it: of a Task the
/// one that asked for it. The parts of a Task and the Events about an object carry it too.
pub const ANNOTATION_REQUEST_ID: &str = "virtshell.io/request-id";
/// Annotation that lets an administrator drop the finalizer of an Instance; its value must be the Instance's uid.
pub const ANNOTATION_ABANDON: &str = "virtshell.io/abandon";
/// Annotation with the metadata.name of the Task that REST announced for this Instance.
pub const ANNOTATION_CREATE_TASK: &str = "virtshell.io/create-task";
/// Annotation with the status (JSON) that a client gave its manual Task: status is a second write, which whoever finds the
/// Task without it can make up for.
pub const ANNOTATION_INITIAL_STATUS: &str = "virtshell.io/initial-status";

/// Annotation of a launch child with the generation of its parent that it was last made to follow.
pub const ANNOTATION_LAUNCH_GENERATION: &str = "virtshell.io/launch-generation";
/// Annotation of a launch child with what that generation asked of it, as JSON: what an edit of the parent is compared with, so that
/// it passes on what was edited and nothing else.
pub const ANNOTATION_LAUNCH_SPEC: &str = "virtshell.io/launch-spec";

/// Annotation by which an administrator says that a host is gone for good; its value must be the Host's uid.
pub const ANNOTATION_CONFIRM_GONE: &str = "virtshell.io/confirm-gone";

/// Label with the first 16 hex digits of SHA-256 of the wire name; see [`names::name_hash`].
pub const LABEL_NAME_HASH: &str = "virtshell.io/name-hash";
/// Label with the wire name, when it is a valid label value.
pub const LABEL_NAME: &str = "virtshell.io/name";
/// Label of launch children: `metadata.name` of the parent.
pub const LABEL_LAUNCH_PARENT: &str = "virtshell.io/launch-parent";
/// Label of the Secrets the gateway may read: those with users' keys.
pub const LABEL_CREDENTIALS: &str = "virtshell.io/credentials";

/// XML namespace of the metadata element that makes a libvirt domain ours.
pub const DOMAIN_METADATA_NAMESPACE: &str = "https://virtshell.io/domain/v1";

/// Permissions of an object that names none: everything for everybody.
pub const DEFAULT_PERMISSIONS: &str = "xwrxwrxwr";

/// Field manager of the node agent that serves `host`.
#[must_use]
pub fn node_manager(host: &str) -> String {
    format!("virtshell-node:{host}")
}

/// Name of the Lease by which the agent of `host` shows that it lives, in the operator's namespace.
#[must_use]
pub fn host_lease(host: &str) -> String {
    format!("virtshell-host-{host}")
}

/// Name of the service account of the agent that serves `host`, in the operator's namespace.
#[must_use]
pub fn host_account(host: &str) -> String {
    format!("virtshell-host-{host}")
}

/// Audience of the tokens with which node agents ask the gateway for the content of stored files.
pub const GATEWAY_AUDIENCE: &str = "virtshell-gateway";

/// Audience of the tokens with which callers ask the agent of `host` for live bytes: one that was shown to a node is of no use elsewhere.
#[must_use]
pub fn node_audience(host: &str) -> String {
    format!("virtshell-node:{host}")
}
