//! Task: asynchronous work; TaskAssignment: the part of it that one host does.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::instance::PowerState;
use crate::rules;

/// Asynchronous work.
#[derive(CustomResource, KubeSchema, Clone, Debug, Default, Deserialize, Serialize, PartialEq)]
#[kube(
    group = "virtshell.io",
    version = "v1alpha1",
    kind = "Task",
    namespaced,
    status = "TaskStatus",
    derive = "PartialEq",
    derive = "Default",
    shortname = "vst",
    category = "virtshell",
    doc = "Asynchronous work, or with manual: true a record that a client keeps.",
    printcolumn(name = "Type", type_ = "string", json_path = ".spec.type"),
    printcolumn(name = "State", type_ = "string", json_path = ".status.state"),
    printcolumn(name = "Stage", type_ = "string", json_path = ".status.stage"),
    printcolumn(name = "Log", type_ = "string", json_path = ".status.log"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    validation = rules::short_name(),
)]
#[serde(rename_all = "camelCase")]
pub struct TaskSpec {
    /// What is done, for people.
    #[schemars(length(min = 1, max = 4096))]
    pub description: String,
    /// The kind of work, in the REST API's words: create_instance, start_instance, execute_command, ... A record may say
    /// anything.
    #[serde(default, rename = "type", skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 255))]
    pub type_: String,
    /// A record made by a client: no controller acts on it, but for removing it when it ended long ago, as every Task.
    #[serde(default)]
    pub manual: bool,
    /// What it is done to.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 1000), extend("x-kubernetes-list-type" = "atomic"))]
    pub targets: Vec<TaskTarget>,
    /// Parameters, by type.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub params: Option<TaskParams>,
    /// Seconds until unfinished work counts as failed.
    #[serde(default = "default_timeout")]
    #[schemars(range(min = 1, max = 604_800))]
    pub timeout_seconds: i32,
    /// Raise it to run again.
    #[serde(default)]
    #[schemars(range(min = 0))]
    pub retry: i32,
}

fn default_timeout() -> i32 {
    3600
}

/// What a task is done to.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema, PartialEq, Eq)]
pub struct TaskTarget {
    /// Kind of the object.
    #[schemars(length(min = 1, max = 63))]
    pub kind: String,
    /// metadata.name of the object.
    #[schemars(length(min = 1, max = 63))]
    pub name: String,
    /// uid of the object.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub uid: Option<String>,
}

/// Parameters of a task; which ones count depends on its type.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct TaskParams {
    /// execute_command: run by `sh -lc` as root in each target.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 65_536))]
    pub command: Option<String>,
    /// copy_files: metadata.name of the File.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub file: Option<String>,
    /// copy_files: every File of this folder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024))]
    pub folder: Option<String>,
    /// copy_files: which Files of the folder, by metadata.name; empty = all that are in it then. The REST API names those that
    /// the caller may read, so that what comes into the folder later is not copied.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 1024), inner(length(min = 1, max = 63)), extend("x-kubernetes-list-type" = "atomic"))]
    pub files: Vec<String>,
    /// copy_files: where to; expanded by the guest's shell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 4096))]
    pub destination: Option<String>,
    /// copy_files: owner of the copy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 64))]
    pub owner: Option<String>,
    /// copy_files: group of the copy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 64))]
    pub group: Option<String>,
    /// copy_files: mode of the copy, octal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = "^[0-7]{3,4}$"))]
    pub mode: Option<String>,
    /// install_packages, upgrade_packages, remove_packages: package words; empty on upgrade = the whole system.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256), inner(length(max = 255), regex(pattern = "^[A-Za-z0-9][A-Za-z0-9.+:_~@/-]*$")), extend("x-kubernetes-list-type" = "atomic"))]
    pub packages: Vec<String>,
    /// start_instance, stop_instance, restart_instance: the power state that the task asks for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub power: Option<PowerState>,
}

/// The state of a task.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize, JsonSchema, PartialEq, Eq)]
pub enum TaskState {
    /// Nobody has taken it.
    #[default]
    Pending,
    /// Somebody works on it.
    InProgress,
    /// Done.
    Succeeded,
    /// Not done; the log says why.
    Failed,
}

/// What is true of a Task.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct TaskStatus {
    /// The generation that this status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// The state.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<TaskState>,
    /// A finer progress word.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub stage: String,
    /// The latest summary.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub log: String,
    /// When it was taken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Time>,
    /// When it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished_at: Option<Time>,
    /// When the state last changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_update: Option<Time>,
    /// The retry that this status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_retry: Option<i32>,
    /// Targets by outcome.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub counts: Option<TaskCounts>,
    /// Generations of the targets that the task's own write gave, by metadata.name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub generations: Vec<TargetGeneration>,
    /// Hosts (metadata.name) that were given their part of this attempt. A part is given once: a command is never run twice.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "set"))]
    pub hosts: Vec<String>,
    /// Targets of this attempt that no host was given, and why.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub refused: Vec<RefusedTarget>,
    /// Previous states, oldest first, at most 100.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "atomic"))]
    pub history: Vec<TaskHistory>,
    /// Accepted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
}

/// Targets by outcome.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema, PartialEq, Eq)]
pub struct TaskCounts {
    /// All of them.
    pub targets: i32,
    /// Those that are done.
    pub succeeded: i32,
    /// Those that failed.
    pub failed: i32,
}

/// The generation of a target that a task's write gave.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema, PartialEq, Eq)]
pub struct TargetGeneration {
    /// metadata.name of the target.
    pub name: String,
    /// Its generation after the write.
    pub generation: i64,
}

/// A target that no host was given.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema, PartialEq, Eq)]
pub struct RefusedTarget {
    /// metadata.name of the target.
    pub name: String,
    /// Why, in the REST API's words.
    pub message: String,
}

/// A previous state.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema, PartialEq)]
pub struct TaskHistory {
    /// The state.
    pub state: TaskState,
    /// Since when.
    pub at: Time,
    /// The summary at that time.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub log: String,
}

/// The part of a Task that one host does.
#[derive(CustomResource, KubeSchema, Clone, Debug, Default, Deserialize, Serialize, PartialEq)]
#[kube(
    group = "virtshell.io",
    version = "v1alpha1",
    kind = "TaskAssignment",
    namespaced,
    status = "TaskAssignmentStatus",
    derive = "PartialEq",
    derive = "Default",
    shortname = "vsta",
    category = "virtshell",
    selectable = ".spec.host",
    doc = "The part of a Task that one host does, made by the controller. One per task, host and attempt.",
    printcolumn(name = "Task", type_ = "string", json_path = ".spec.task.name"),
    printcolumn(name = "Host", type_ = "string", json_path = ".spec.host"),
    printcolumn(name = "Type", type_ = "string", json_path = ".spec.type"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    validation = rules::short_name(),
)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = rules::field_rule("self == oldSelf", "spec", "cannot change once set"))]
pub struct TaskAssignmentSpec {
    /// The Task.
    pub task: TaskRef,
    /// metadata.name of the Host.
    #[schemars(length(min = 1, max = 63))]
    pub host: String,
    /// The Task's retry counter.
    #[schemars(range(min = 0))]
    pub attempt: i32,
    /// The kind of work.
    #[serde(rename = "type")]
    #[schemars(length(min = 1, max = 255))]
    pub type_: String,
    /// Parameters, by type.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub params: Option<TaskParams>,
    /// Seconds until unfinished work counts as failed.
    #[schemars(range(min = 1, max = 604_800))]
    pub timeout_seconds: i32,
    /// Targets on this host.
    #[schemars(length(min = 1, max = 1000), extend("x-kubernetes-list-type" = "atomic"))]
    pub targets: Vec<AssignedTarget>,
}

/// The Task an assignment belongs to.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema, PartialEq, Eq)]
pub struct TaskRef {
    /// metadata.name.
    #[schemars(length(min = 1, max = 63))]
    pub name: String,
    /// uid.
    #[schemars(length(min = 1, max = 64))]
    pub uid: String,
}

/// An Instance on the host.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema, PartialEq, Eq)]
pub struct AssignedTarget {
    /// metadata.name.
    #[schemars(length(min = 1, max = 63))]
    pub name: String,
    /// uid.
    #[schemars(length(min = 1, max = 64))]
    pub uid: String,
}

/// What is true of a TaskAssignment; written by the host's agent alone.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct TaskAssignmentStatus {
    /// The generation that this status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Outcome per target.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["uid"]))]
    pub results: Vec<TargetResult>,
    /// Accepted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
}

/// The outcome of one target.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct TargetResult {
    /// uid of the Instance.
    pub uid: String,
    /// metadata.name of the Instance.
    pub name: String,
    /// How far it is. Started is written before the command starts: a started command is never started again.
    pub state: TargetState,
    /// Why it failed, one word.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// Exit code of the command.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// Output of the command, standard output and error together.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub output: String,
    /// Whether the output was cut.
    #[serde(default)]
    pub truncated: bool,
}

/// How far a target is.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize, JsonSchema, PartialEq, Eq)]
pub enum TargetState {
    /// Not begun.
    #[default]
    Pending,
    /// Begun.
    Started,
    /// Done.
    Succeeded,
    /// Not done.
    Failed,
}

impl Task {
    /// The status, or what its maker said that it is until that is written.
    #[must_use]
    pub fn shown_status(&self) -> TaskStatus {
        let written = self.status.as_ref().filter(|status| status.state.is_some());
        written.cloned().unwrap_or_else(|| {
            let annotations = self.metadata.annotations.as_ref();
            let said = annotations.and_then(|a| a.get(crate::ANNOTATION_INITIAL_STATUS));
            said.and_then(|text| serde_json::from_str(text).ok())
                .unwrap_or_default()
        })
    }
}
