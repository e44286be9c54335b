//! Identities that are not the administrator's: what RBAC and the admission policies forbid is forbidden to them.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::api::core::v1::ServiceAccount;
use k8s_openapi::api::rbac::v1::ClusterRoleBinding;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::api::{ListParams, Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::{Value, json};
use virtshell_crds::{Host, HostSpec, Instance, TaskAssignment, host_account, host_lease, node_manager};

use crate::kubectl::Outcome;
use crate::{ControlPlane, control_plane};

/// The operator's own namespace.
pub const SYSTEM: &str = "virtshell-system";

/// A service account: a client and a kubeconfig with its token, good for an hour.
#[derive(Clone)]
pub struct Account {
    /// A client of the test's runtime.
    pub client: Client,
    /// For programs and `kubectl`.
    pub kubeconfig: PathBuf,
}

impl ControlPlane {
    /// The service account `name` of `namespace`, which exists.
    ///
    /// # Errors
    /// When there is no such account.
    pub async fn account(&self, namespace: &str, name: &str) -> anyhow::Result<Account> {
        self.account_with(namespace, name, &[]).await
    }

    /// As [`Self::account`], with a token that is bound to the Kubernetes node `node`, as that of a pod there is.
    ///
    /// # Errors
    /// When there is no such account or node.
    pub async fn account_on_node(&self, namespace: &str, name: &str, node: &str) -> anyhow::Result<Account> {
        let bound = ["--bound-object-kind=Node", "--bound-object-name", node];
        self.account_with(namespace, name, &bound).await
    }

    async fn account_with(&self, namespace: &str, name: &str, options: &[&str]) -> anyhow::Result<Account> {
        let arguments = ["create", "token", name, "-n", namespace, "--duration=1h"];
        let kubectl = self.kubectl();
        // A policy with parameters refuses every token until the API server has found their kind, for up to 30 s.
        let waits = |outcome: &Outcome| outcome.stderr.contains("not yet synced to use for admission");
        let outcome = crate::wait_for(
            "the policies' parameters to be known",
            crate::wait::SOON.max(Duration::from_mins(1)),
            async || kubectl.run(arguments.iter().chain(options), ""),
            |outcome| !waits(outcome),
        )
        .await?;
        anyhow::ensure!(
            outcome.success,
            "no token for {namespace}/{name}: {}",
            outcome.stderr
        );
        let token = outcome.stdout;
        let file = format!("{namespace}.{name}{}.kubeconfig", options.last().unwrap_or(&""));
        let kubeconfig = self.directory().join(file);
        write_kubeconfig(&self.kubeconfig(), token.trim(), &kubeconfig)?;
        Ok(Account {
            client: control_plane::client(&kubeconfig).await?,
            kubeconfig,
        })
    }
}

impl std::fmt::Debug for Account {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Account")
            .field("kubeconfig", &self.kubeconfig)
            .finish_non_exhaustive()
    }
}

/// Writes `target`: the cluster of `admin`, with `token` as identity.
fn write_kubeconfig(admin: &Path, token: &str, target: &Path) -> anyhow::Result<()> {
    let mut config: serde_yaml::Value = serde_yaml::from_str(&std::fs::read_to_string(admin)?)?;
    let user = config
        .get_mut("users")
        .and_then(|users| users.get_mut(0))
        .and_then(|user| user.get_mut("user"))
        .context("the administrator's kubeconfig has a user")?;
    *user = serde_yaml::to_value(json!({ "token": token }))?;
    std::fs::write(target, serde_yaml::to_string(&config)?)?;
    Ok(())
}

/// A node agent played by the test: it has the account and the rights of a host's agent, and no libvirt.
pub struct SimulatedNode {
    /// Name of its Host.
    pub host: String,
    /// The account of its host.
    pub account: Account,
}

impl SimulatedNode {
    /// Joins as `host`: makes the account and binds the role, which is the controller's work and stays as it is when it
    /// has done it, and, as that account, the Host and its Lease.
    ///
    /// # Errors
    /// Whatever the API server answers.
    pub async fn join(control_plane: &ControlPlane, host: &str, spec: HostSpec) -> anyhow::Result<Self> {
        let admin = control_plane.admin().await?;
        let name = host_account(host);
        let account: ServiceAccount = serde_json::from_value(json!({"metadata": {"name": name}}))?;
        create(&Api::namespaced(admin.clone(), SYSTEM), &account).await?;
        let binding: ClusterRoleBinding = serde_json::from_value(json!({
            "metadata": {"name": name},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "virtshell-node"},
            "subjects": [{"kind": "ServiceAccount", "namespace": SYSTEM, "name": name}],
        }))?;
        create(&Api::all(admin), &binding).await?;
        let node = Self {
            host: host.to_owned(),
            account: control_plane.account(SYSTEM, &name).await?,
        };
        // RBAC is taken up from a watch: the first request may come too early.
        let host_object = Host::new(host, spec);
        crate::wait_for(
            "the new account to have its role",
            crate::wait::SOON,
            async || create(&node.hosts(), &host_object).await,
            |()| true,
        )
        .await?;
        node.renew().await?;
        Ok(node)
    }

    /// Renews its Lease, as an agent does every 10 s.
    ///
    /// # Errors
    /// Whatever the API server answers.
    pub async fn renew(&self) -> kube::Result<()> {
        let lease = Lease {
            metadata: kube::api::ObjectMeta {
                name: Some(host_lease(&self.host)),
                ..Default::default()
            },
            spec: Some(LeaseSpec {
                holder_identity: Some(self.host.clone()),
                lease_duration_seconds: Some(40),
                renew_time: Some(MicroTime(k8s_openapi::jiff::Timestamp::now())),
                ..LeaseSpec::default()
            }),
        };
        let leases: Api<Lease> = Api::namespaced(self.account.client.clone(), SYSTEM);
        let params = PatchParams::apply(&node_manager(&self.host)).force();
        leases
            .patch(&host_lease(&self.host), &params, &Patch::Apply(&lease))
            .await?;
        Ok(())
    }

    /// Reports `status` of its Host: all that an agent owns there.
    ///
    /// # Errors
    /// Whatever the API server answers.
    pub async fn report_host(&self, status: Value) -> kube::Result<Host> {
        self.apply_status(&self.hosts(), &self.host, "Host", status).await
    }

    /// Reports `status` of an Instance: all that an agent owns there.
    ///
    /// # Errors
    /// Whatever the API server answers; Forbidden for an Instance of another host.
    pub async fn report_instance(
        &self,
        namespace: &str,
        name: &str,
        status: Value,
    ) -> kube::Result<Instance> {
        self.apply_status(&self.instances(namespace), name, "Instance", status)
            .await
    }

    /// The parts of Tasks that its host was given in a namespace, as an agent sees them.
    ///
    /// # Errors
    /// Whatever the API server answers.
    pub async fn assignments(&self, namespace: &str) -> kube::Result<Vec<TaskAssignment>> {
        let own = ListParams::default().fields(&format!("spec.host={}", self.host));
        let api: Api<TaskAssignment> = Api::namespaced(self.account.client.clone(), namespace);
        Ok(api.list(&own).await?.items)
    }

    /// Reports `status` of a `TaskAssignment`: all that an agent owns there.
    ///
    /// # Errors
    /// Whatever the API server answers; Forbidden for an assignment of another host.
    pub async fn report_assignment(
        &self,
        namespace: &str,
        name: &str,
        status: Value,
    ) -> kube::Result<TaskAssignment> {
        let api = Api::namespaced(self.account.client.clone(), namespace);
        self.apply_status(&api, name, "TaskAssignment", status).await
    }

    /// Takes the finalizer away from an Instance, as an agent does when the domain is gone.
    ///
    /// # Errors
    /// Whatever the API server answers; Forbidden for an Instance of another host.
    pub async fn release(&self, namespace: &str, name: &str) -> kube::Result<Instance> {
        self.instances(namespace)
            .patch(
                name,
                &PatchParams::default(),
                &Patch::Merge(json!({"metadata": {"finalizers": null}})),
            )
            .await
    }

    /// Instances of a namespace, with the rights of the agent.
    #[must_use]
    pub fn instances(&self, namespace: &str) -> Api<Instance> {
        Api::namespaced(self.account.client.clone(), namespace)
    }

    fn hosts(&self) -> Api<Host> {
        Api::all(self.account.client.clone())
    }

    async fn apply_status<K>(&self, api: &Api<K>, name: &str, kind: &str, status: Value) -> kube::Result<K>
    where
        K: Clone + std::fmt::Debug + serde::de::DeserializeOwned,
    {
        let object = json!({
            "apiVersion": virtshell_crds::API_VERSION, "kind": kind, "metadata": {"name": name}, "status": status,
        });
        let params = PatchParams::apply(&node_manager(&self.host)).force();
        api.patch_status(name, &params, &Patch::Apply(&object)).await
    }
}

/// Creates an object; one that is there already stays as it is.
async fn create<K>(api: &Api<K>, object: &K) -> kube::Result<()>
where
    K: Clone + std::fmt::Debug + serde::Serialize + serde::de::DeserializeOwned,
{
    match api.create(&PostParams::default(), object).await {
        Err(kube::Error::Api(status)) if status.is_already_exists() => Ok(()),
        other => other.map(|_| ()),
    }
}
