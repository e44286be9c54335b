//! On which Kubernetes node a Host is: `spec.nodeName`, filled where a Node has the Host's name or one of its addresses.
//!
//! A pod may take over the identity of the Hosts on its own node, so only what an administrator wrote counts here, never what an
//! agent reports; and a doubt is left to people.

use k8s_openapi::api::core::v1::Node;
use kube::ResourceExt;
use kube::api::Api;
use serde_json::json;
use virtshell_crds::Host;

use super::context::Context;
use super::write::{self, Error};

/// Fills `spec.nodeName` when it is empty and there is no doubt. Returns the Host as it is then, where that was a write.
pub async fn fill(ctx: &Context, host: &Host) -> Result<Option<Host>, Error> {
    if host.spec.node_name.is_some() || host.metadata.deletion_timestamp.is_some() {
        return Ok(None);
    }
    let nodes = ctx.nodes.all();
    let Some(node) = matching(host, nodes.iter().map(|node| &**node)) else {
        return Ok(None);
    };
    let name = host.name_any();
    let api: Api<Host> = Api::all(ctx.client.clone());
    let patched = write::patch_as_read(&api, host, json!({"spec": {"nodeName": node}}))
        .await
        .map_err(Error::api(format!("say on which node host {name} is")))?;
    ctx.metrics.wrote("Host");
    tracing::info!(host.name = name, node.name = node, "a host is on a node");
    Ok(Some(patched))
}

/// The one Node of the Host's name, else the one that has an address of its spec.
fn matching<'a>(host: &Host, nodes: impl Iterator<Item = &'a Node> + Clone) -> Option<String> {
    let named = nodes
        .clone()
        .find(|node| node.metadata.name == host.metadata.name);
    if let Some(node) = named {
        return node.metadata.name.clone();
    }
    let spec = &host.spec;
    let own = [
        &spec.local_ipv4,
        &spec.local_ipv6,
        &spec.public_ipv4,
        &spec.public_ipv6,
    ];
    let has = |node: &&Node| {
        let addresses = node.status.iter().flat_map(|s| s.addresses.iter().flatten());
        addresses
            .filter(|a| a.type_ == "InternalIP" || a.type_ == "ExternalIP")
            .any(|a| !a.address.is_empty() && own.contains(&&a.address))
    };
    let mut found = nodes.filter(has);
    match (found.next(), found.next()) {
        (Some(node), None) => node.metadata.name.clone(),
        (Some(_) | None, _) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_on_the_node_of_its_name_or_address() {
        let node = |name: &str, addresses: &[(&str, &str)]| -> Node {
            let list: Vec<_> = addresses
                .iter()
                .map(|(type_, address)| json!({"type": type_, "address": address}))
                .collect();
            serde_json::from_value(json!({"metadata": {"name": name}, "status": {"addresses": list}}))
                .unwrap()
        };
        let nodes = [
            node("n1", &[("InternalIP", "10.0.0.1"), ("ExternalIP", "1.1.1.1")]),
            node("n2", &[("InternalIP", "10.0.0.2"), ("Hostname", "10.0.0.3")]),
            node("n3", &[("InternalIP", "10.0.0.2")]),
        ];
        for (rule, name, ipv4, public, expected) in [
            ("name", "n2", "", "", Some("n2")),
            ("name before address", "n2", "10.0.0.1", "", Some("n2")),
            ("address", "h", "10.0.0.1", "", Some("n1")),
            ("public address", "h", "", "1.1.1.1", Some("n1")),
            ("two have it", "h", "10.0.0.2", "", None),
            ("a host name is no address", "h", "10.0.0.3", "", None),
            ("no address", "h", "", "", None),
        ] {
            let host: Host = serde_json::from_value(json!({
                "apiVersion": "virtshell.io/v1alpha1", "kind": "Host", "metadata": {"name": name},
                "spec": {"localIPv4": ipv4, "publicIPv4": public},
            }))
            .unwrap();
            assert_eq!(matching(&host, nodes.iter()).as_deref(), expected, "{rule}");
        }
    }
}
