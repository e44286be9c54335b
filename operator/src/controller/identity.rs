//! Who the agent of a host is, and what it may read.
//!
//! Each Host gets a service account in the operator's namespace, bound to the cluster role `virtshell-node`, with the right
//! to make tokens for itself and to keep its Lease. Secrets that hold user data of its Instances are named, one by one,
//! in a Role per namespace. Everything is owned by the Host and goes with it.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::{Mutex, PoisonError};

use k8s_openapi::api::rbac::v1::Role;
use kube::api::{Api, DynamicObject, ListParams, Patch, PatchParams};
use kube::core::{ApiResource, GroupVersionKind};
use kube::{Resource, ResourceExt};
use serde_json::{Value, json};
use virtshell_crds::{Host, Instance, MANAGER_CONTROLLER, host_account, host_lease};

use super::context::{Context, cluster_key};
use super::ledger;
use super::write::Error;

/// Cluster role of every host's agent; part of the manifests.
pub const NODE_ROLE: &str = "virtshell-node";
/// Label of what belongs to the identity of a host: its metadata.name.
const LABEL_HOST: &str = "virtshell.io/host";

/// What was made since this process began to lead.
#[derive(Default)]
pub struct Identities {
    /// Hosts (uid) whose account and roles are there.
    hosts: Mutex<HashSet<String>>,
    /// Secrets that the agent of a host may read, by host and namespace.
    secrets: Mutex<HashMap<(String, String), BTreeSet<String>>>,
}

impl Identities {
    /// The Host is gone, and what it owned with it.
    pub fn forget_host(&self, host: &str) {
        locked(&self.secrets).retain(|(h, _), _| h != host);
    }
}

/// Makes the account of a host and what it needs, unless done already.
pub async fn ensure_host(ctx: &Context, host: &Host) -> Result<(), Error> {
    let uid = host.uid().unwrap_or_default();
    if !locked(&ctx.identities.hosts).contains(&uid) {
        for object in account(host, &ctx.namespace) {
            apply(ctx, &object).await?;
        }
        recall(ctx, host).await?;
        locked(&ctx.identities.hosts).insert(uid);
    }
    for (namespace, secrets) in secrets_in_use(ctx, host) {
        set_secrets(ctx, host, &namespace, secrets).await?;
    }
    Ok(())
}

/// Learns what an earlier leader has allowed, so that it can be taken back.
async fn recall(ctx: &Context, host: &Host) -> Result<(), Error> {
    let name = host.name_any();
    let role = secrets_role(&name);
    let api: Api<Role> = Api::all(ctx.client.clone());
    let listed = api
        .list(&ListParams::default().labels(&format!("{LABEL_HOST}={name}")))
        .await
        .map_err(Error::api(format!("list the roles of host {name}")))?;
    for present in listed.items.into_iter().filter(|r| r.name_any() == role) {
        let rules = present.rules.iter().flatten();
        let secrets = rules
            .filter_map(|rule| rule.resource_names.clone())
            .flatten()
            .collect();
        let key = (name.clone(), present.namespace().unwrap_or_default());
        locked(&ctx.identities.secrets).entry(key).or_insert(secrets);
    }
    Ok(())
}

/// Lets the agent of `host` read the Secret with the Instance's user data, if there is one.
pub async fn allow_secret(ctx: &Context, instance: &Instance, host: &str) -> Result<(), Error> {
    let Some(secret) = user_data_secret(instance) else {
        return Ok(());
    };
    let Some(host) = ctx.hosts.get(&cluster_key(host)) else {
        return Ok(());
    };
    let namespace = instance.namespace().unwrap_or_default();
    let mut secrets = secrets_in_use(ctx, &host).remove(&namespace).unwrap_or_default();
    secrets.insert(secret.to_owned());
    set_secrets(ctx, &host, &namespace, secrets).await
}

/// The Secrets of a host's Instances by namespace; namespaces that had some before are there, too.
fn secrets_in_use(ctx: &Context, host: &Host) -> BTreeMap<String, BTreeSet<String>> {
    let name = host.name_any();
    let mut namespaces: BTreeMap<String, BTreeSet<String>> = locked(&ctx.identities.secrets)
        .keys()
        .filter(|(h, _)| *h == name)
        .map(|(_, namespace)| (namespace.clone(), BTreeSet::new()))
        .collect();
    let there = ctx.instances_on(&name);
    for instance in there.iter().filter_map(|key| ctx.instances.get(key)) {
        if ledger::bound_host(&instance) == Some(&name)
            && let Some(secret) = user_data_secret(&instance)
        {
            let namespace = instance.namespace().unwrap_or_default();
            namespaces.entry(namespace).or_default().insert(secret.to_owned());
        }
    }
    namespaces
}

fn user_data_secret(instance: &Instance) -> Option<&str> {
    let seed = instance.spec.cloud_init.as_ref()?;
    seed.user_data_from.as_ref().map(|from| from.secret.as_str())
}

async fn set_secrets(
    ctx: &Context,
    host: &Host,
    namespace: &str,
    secrets: BTreeSet<String>,
) -> Result<(), Error> {
    let key = (host.name_any(), namespace.to_owned());
    if locked(&ctx.identities.secrets).get(&key) == Some(&secrets) {
        return Ok(());
    }
    for object in secret_access(host, &ctx.namespace, namespace, &secrets) {
        apply(ctx, &object).await?;
    }
    locked(&ctx.identities.secrets).insert(key, secrets);
    Ok(())
}

const RBAC: &str = "rbac.authorization.k8s.io";

fn account(host: &Host, namespace: &str) -> Vec<Value> {
    let name = host.name_any();
    let account = host_account(&name);
    let meta = |namespaced: bool| metadata(host, &account, namespaced.then_some(namespace));
    let subjects = json!([{"kind": "ServiceAccount", "name": account, "namespace": namespace}]);
    vec![
        json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": meta(true)}),
        json!({
            "apiVersion": format!("{RBAC}/v1"), "kind": "ClusterRoleBinding", "metadata": meta(false),
            "roleRef": {"apiGroup": RBAC, "kind": "ClusterRole", "name": NODE_ROLE},
            "subjects": subjects,
        }),
        json!({
            "apiVersion": format!("{RBAC}/v1"), "kind": "Role", "metadata": meta(true),
            "rules": [
                {"apiGroups": [""], "resources": ["serviceaccounts/token"], "verbs": ["create"], "resourceNames": [account]},
                {"apiGroups": ["coordination.k8s.io"], "resources": ["leases"], "verbs": ["get", "update", "patch"], "resourceNames": [host_lease(&name)]},
                // A name cannot be given for create; the admission policy allows only the host's own.
                {"apiGroups": ["coordination.k8s.io"], "resources": ["leases"], "verbs": ["create"]},
            ],
        }),
        json!({
            "apiVersion": format!("{RBAC}/v1"), "kind": "RoleBinding", "metadata": meta(true),
            "roleRef": {"apiGroup": RBAC, "kind": "Role", "name": account},
            "subjects": subjects,
        }),
    ]
}

/// A Role without any name would allow every Secret: an empty set is a Role without rules.
fn secret_access(host: &Host, operator: &str, namespace: &str, secrets: &BTreeSet<String>) -> Vec<Value> {
    let account = host_account(&host.name_any());
    let name = secrets_role(&host.name_any());
    let rules = if secrets.is_empty() {
        json!([])
    } else {
        json!([{"apiGroups": [""], "resources": ["secrets"], "verbs": ["get"], "resourceNames": secrets}])
    };
    let meta = metadata(host, &name, Some(namespace));
    vec![
        json!({"apiVersion": format!("{RBAC}/v1"), "kind": "Role", "metadata": meta, "rules": rules}),
        json!({
            "apiVersion": format!("{RBAC}/v1"), "kind": "RoleBinding", "metadata": meta,
            "roleRef": {"apiGroup": RBAC, "kind": "Role", "name": name},
            "subjects": [{"kind": "ServiceAccount", "name": account, "namespace": operator}],
        }),
    ]
}

/// Not the account's own name: in the operator's namespace that Role is there already.
fn secrets_role(host: &str) -> String {
    format!("{}-secrets", host_account(host))
}

fn metadata(host: &Host, name: &str, namespace: Option<&str>) -> Value {
    let mut metadata = json!({
        "name": name,
        "labels": {"app.kubernetes.io/managed-by": MANAGER_CONTROLLER, LABEL_HOST: host.name_any()},
        "ownerReferences": host.controller_owner_ref(&()).into_iter().collect::<Vec<_>>(),
    });
    if let Some(namespace) = namespace {
        metadata["namespace"] = json!(namespace);
    }
    metadata
}

/// Makes an object as it is to be; one that is so already costs a read alone, so a new leader writes nothing anew.
async fn apply(ctx: &Context, object: &Value) -> Result<(), Error> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let (version, kind) = (text(&object["apiVersion"]), text(&object["kind"]));
    let (group, version) = version.split_once('/').unwrap_or(("", &version));
    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, &kind));
    let name = text(&object["metadata"]["name"]);
    let api: Api<DynamicObject> = match object["metadata"]["namespace"].as_str() {
        Some(namespace) => Api::namespaced_with(ctx.client.clone(), namespace, &resource),
        None => Api::all_with(ctx.client.clone(), &resource),
    };
    let present = api
        .get_opt(&name)
        .await
        .map_err(Error::api(format!("read {kind} {name}")))?;
    if present.is_some_and(|present| has_all(&json!(present), object)) {
        return Ok(());
    }
    api.patch(
        &name,
        &PatchParams::apply(MANAGER_CONTROLLER).force(),
        &Patch::Apply(object),
    )
    .await
    .map_err(Error::api(format!("make {kind} {name}")))?;
    ctx.metrics.wrote("Identity");
    Ok(())
}

/// Whether `present` says all that `wanted` does. Lists are compared whole.
fn has_all(present: &Value, wanted: &Value) -> bool {
    match (present, wanted) {
        (Value::Object(present), Value::Object(wanted)) => wanted
            .iter()
            .all(|(field, wanted)| present.get(field).is_some_and(|present| has_all(present, wanted))),
        (Value::Array(present), Value::Array(wanted)) => {
            present.len() == wanted.len() && present.iter().zip(wanted).all(|(p, w)| has_all(p, w))
        }
        (present, wanted) => present == wanted,
    }
}

fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_secret_means_no_rule() {
        let host: Host = serde_json::from_value(json!({
            "apiVersion": "virtshell.io/v1alpha1", "kind": "Host", "metadata": {"name": "h", "uid": "u"}, "spec": {},
        }))
        .unwrap();
        assert_eq!(
            secret_access(&host, "sys", "ns", &BTreeSet::new())[0]["rules"],
            json!([])
        );
        let some = secret_access(&host, "sys", "ns", &BTreeSet::from(["s".to_owned()]));
        assert_eq!(some[0]["rules"][0]["resourceNames"], json!(["s"]));
        assert_eq!(some[1]["subjects"][0]["namespace"], "sys");
        for object in account(&host, "sys").iter().chain(&some) {
            assert_eq!(object["metadata"]["ownerReferences"][0]["uid"], "u");
        }
    }
    #[test]
    fn an_object_is_as_wanted_when_it_says_all_of_it() {
        let wanted = json!({"metadata": {"name": "n"}, "rules": [{"verbs": ["get"]}]});
        for (rule, present, expected) in [
            ("the same", wanted.clone(), true),
            (
                "with what the server adds",
                json!({"metadata": {"name": "n", "uid": "u"}, "rules": [{"verbs": ["get"], "apiGroups": [""]}]}),
                true,
            ),
            (
                "a right too many",
                json!({"metadata": {"name": "n"}, "rules": [{"verbs": ["get"]}, {"verbs": ["list"]}]}),
                false,
            ),
            (
                "another right",
                json!({"metadata": {"name": "n"}, "rules": [{"verbs": ["list"]}]}),
                false,
            ),
            ("no rights", json!({"metadata": {"name": "n"}}), false),
        ] {
            assert_eq!(has_all(&present, &wanted), expected, "{rule}");
        }
    }
}
