//! A namespace with an Environment and simulated hosts of its own, under one controller for all tests of this binary.

use std::fmt::Debug;

use anyhow::Context;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::{Api, Client, ResourceExt};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::sync::OnceCell;
use virtshell_crds::condition::{self, SCHEDULED};
use virtshell_crds::{Host, HostSpec, Instance, Section, Task, TaskAssignment};
use virtshell_tests::identity::SimulatedNode;
use virtshell_tests::program::operator;
use virtshell_tests::wait::SOON;
use virtshell_tests::{ControlPlane, Controller, wait_for};

/// A namespace with an Environment `e` that has hosts of its own.
pub struct World {
    /// The namespace.
    pub namespace: String,
    /// A full administrator.
    pub admin: Client,
    /// The hosts, in the order they were asked for.
    pub nodes: Vec<SimulatedNode>,
}

/// What kinds of this suite have in common.
pub trait Object:
    kube::Resource<DynamicType = (), Scope = kube::core::NamespaceResourceScope>
    + Clone
    + Debug
    + Serialize
    + DeserializeOwned
{
}

impl<K> Object for K where
    K: kube::Resource<DynamicType = (), Scope = kube::core::NamespaceResourceScope>
        + Clone
        + Debug
        + Serialize
        + DeserializeOwned
{
}

impl World {
    /// With `hosts` hosts, each with 8 GiB and the driver kvm, ready.
    pub async fn with_hosts(stem: &str, hosts: usize) -> anyhow::Result<Self> {
        let control_plane = ControlPlane::shared()?;
        let namespace = control_plane.namespace(stem).await?;
        controller(control_plane).await?;
        let names: Vec<String> = (0..hosts).map(|n| format!("{namespace}-host-{n}")).collect();
        let mut world = Self {
            admin: control_plane.admin().await?,
            namespace,
            nodes: Vec::new(),
        };
        world
            .create::<virtshell_crds::Environment>("e", json!({"hosts": names}))
            .await?;
        for name in names {
            let node = SimulatedNode::join(
                control_plane,
                &name,
                HostSpec {
                    enabled: true,
                    ..HostSpec::default()
                },
            )
            .await?;
            node.report_host(json!({
                "capacity": {"cpus": 8, "memoryMiB": 8192, "diskMiB": 100_000}, "drivers": ["kvm"],
                "conditions": [condition("Ready", "True", 1)],
            }))
            .await?;
            world.nodes.push(node);
        }
        Ok(world)
    }

    /// Objects of a kind, as an administrator.
    pub fn api<K: Object>(&self) -> Api<K> {
        Api::namespaced(self.admin.clone(), &self.namespace)
    }

    /// Hosts, as an administrator.
    pub fn hosts(&self) -> Api<Host> {
        Api::all(self.admin.clone())
    }

    /// Sections, as an administrator.
    pub fn sections(&self) -> Api<Section> {
        Api::all(self.admin.clone())
    }

    /// A Section of this world alone; returns its name.
    pub async fn section(&self, stem: &str, spec: Value) -> anyhow::Result<String> {
        let name = format!("{}-{stem}", self.namespace);
        let section = Section::new(&name, serde_json::from_value(spec)?);
        self.sections().create(&PostParams::default(), &section).await?;
        Ok(name)
    }

    /// Edits the spec of the host `node`.
    pub async fn edit_host(&self, node: usize, spec: Value) -> anyhow::Result<()> {
        let patch = Patch::Merge(json!({"spec": spec}));
        let name = &self.nodes[node].host;
        self.hosts().patch(name, &PatchParams::default(), &patch).await?;
        Ok(())
    }

    /// Asks an object to go.
    pub async fn delete<K: Object>(&self, name: &str) -> anyhow::Result<()> {
        self.api::<K>().delete(name, &DeleteParams::default()).await?;
        Ok(())
    }

    /// Deletes an Instance on the host `node`, whose agent lets it go.
    pub async fn remove(&self, name: &str, node: usize) -> anyhow::Result<()> {
        self.delete::<Instance>(name).await?;
        self.nodes[node].release(&self.namespace, name).await?;
        self.until_gone::<Instance>(name).await
    }

    /// Creates an object, as an administrator with kubectl does.
    pub async fn create<K: Object>(&self, name: &str, spec: Value) -> anyhow::Result<K> {
        let object: K = serde_json::from_value(json!({
            "apiVersion": K::api_version(&()), "kind": K::kind(&()), "metadata": {"name": name}, "spec": spec,
        }))?;
        Ok(self.api().create(&PostParams::default(), &object).await?)
    }

    /// Merges a patch into an object.
    pub async fn patch<K: Object>(&self, name: &str, patch: Value) -> anyhow::Result<K> {
        let patch = Patch::Merge(patch);
        Ok(self.api().patch(name, &PatchParams::default(), &patch).await?)
    }

    /// Waits until an object is as it should be.
    pub async fn until<K: Object>(
        &self,
        name: &str,
        what: &str,
        enough: impl Fn(&K) -> bool,
    ) -> anyhow::Result<K> {
        let api = self.api::<K>();
        wait_for(
            &format!("{name} {what}"),
            SOON,
            async || api.get(name).await,
            enough,
        )
        .await
    }

    /// Waits until an object is gone.
    pub async fn until_gone<K: Object>(&self, name: &str) -> anyhow::Result<()> {
        let api = self.api::<K>();
        let what = format!("{name} to be gone");
        wait_for(&what, SOON, async || api.get_opt(name).await, Option::is_none).await?;
        Ok(())
    }

    /// A new Instance, pinned to a host; its agent reports that it runs.
    pub async fn running(&self, name: &str, node: usize) -> anyhow::Result<Instance> {
        let host = &self.nodes[node].host;
        let spec = json!({"blank": true, "environment": "e", "host": host, "memoryMiB": 64, "diskMiB": 64});
        self.create::<Instance>(name, spec).await?;
        self.until(name, "to be placed", is_scheduled).await?;
        self.report(name, "Running").await
    }

    /// The agent of an Instance reports that it is `phase`, Running, Stopped or Failed, at the generation that it is at now.
    pub async fn report(&self, name: &str, phase: &str) -> anyhow::Result<Instance> {
        let instance = self.api::<Instance>().get(name).await?;
        let host = instance.spec.host.as_deref().context("it has a host")?;
        let node = self
            .nodes
            .iter()
            .find(|n| n.host == host)
            .context("a host of ours")?;
        let generation = instance.metadata.generation.unwrap_or_default();
        let status = json!({
            "observedGeneration": generation, "phase": phase, "host": host, "provisioned": phase != "Failed",
            "powerState": if phase == "Stopped" { "Stopped" } else { "Running" },
            "addresses": {"ipv4": ["10.0.0.9"], "ipv6": []},
            "lastRestartToken": instance.spec.restart_token,
            "conditions": [condition("Ready", if phase == "Failed" { "False" } else { "True" }, generation)],
        });
        Ok(node.report_instance(&self.namespace, name, status).await?)
    }

    /// Waits for the part of a Task that a host was given in an attempt, as that host sees it.
    pub async fn part(&self, task: &str, node: usize, attempt: i32) -> anyhow::Result<TaskAssignment> {
        let what = format!("attempt {attempt} of {task} to be given to host {node}");
        let look = async || self.nodes[node].assignments(&self.namespace).await;
        let is_meant = |part: &&TaskAssignment| part.spec.task.name == task && part.spec.attempt == attempt;
        let parts = wait_for(&what, SOON, look, |parts| parts.iter().any(|p| is_meant(&p))).await?;
        parts
            .into_iter()
            .find(|part| is_meant(&part))
            .context("it was there")
    }

    /// A host reports on the targets of its part: (name, what the result says).
    pub async fn results(
        &self,
        node: usize,
        part: &TaskAssignment,
        results: &[(&str, Value)],
    ) -> anyhow::Result<()> {
        let results: Vec<Value> = results
            .iter()
            .map(|(name, said)| {
                let target = part.spec.targets.iter().find(|t| t.name == *name);
                let mut result = json!({"name": name, "uid": target.map(|t| &t.uid)});
                result
                    .as_object_mut()
                    .unwrap()
                    .extend(said.as_object().cloned().unwrap_or_default());
                result
            })
            .collect();
        self.nodes[node]
            .report_assignment(&self.namespace, &part.name_any(), json!({"results": results}))
            .await?;
        Ok(())
    }

    /// A Task, with targets by name.
    pub async fn task(&self, name: &str, targets: &[&str], spec: Value) -> anyhow::Result<Task> {
        let targets: Vec<Value> = targets
            .iter()
            .map(|name| json!({"kind": "Instance", "name": name}))
            .collect();
        let mut object = json!({"description": name, "targets": targets});
        object
            .as_object_mut()
            .unwrap()
            .extend(spec.as_object().cloned().unwrap_or_default());
        self.create(name, object).await
    }
}

/// Whether the controller has placed it.
pub fn is_scheduled(instance: &Instance) -> bool {
    instance
        .status
        .as_ref()
        .is_some_and(|s| condition::is_true(&s.conditions, SCHEDULED))
}

/// `status/reason: message` of a condition.
pub fn said(conditions: &[Condition], type_: &str) -> String {
    let condition = condition::find(conditions, type_);
    condition
        .map(|c| format!("{}/{}: {}", c.status, c.reason, c.message))
        .unwrap_or_default()
}

fn condition(type_: &str, status: &str, generation: i64) -> Value {
    json!({
        "type": type_, "status": status, "reason": "Simulated", "message": "", "observedGeneration": generation,
        "lastTransitionTime": "2026-01-01T00:00:00Z",
    })
}

/// One controller for all tests, ended with this process.
async fn controller(control_plane: &'static ControlPlane) -> anyhow::Result<()> {
    static CONTROLLER: OnceCell<Controller> = OnceCell::const_new();
    let start = async || Controller::start(control_plane, &operator()?, "controller").await;
    CONTROLLER.get_or_try_init(start).await.map(drop)
}
