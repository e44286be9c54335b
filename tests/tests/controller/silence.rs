//! Hosts that are not heard of: nothing of theirs is started elsewhere or forgotten, until somebody who knows says so.

use std::time::Duration;

use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams};
use serde_json::json;
use virtshell_crds::condition::{self, READY, SCHEDULED};
use virtshell_crds::{ANNOTATION_CONFIRM_GONE, Host, Instance};
use virtshell_tests::wait::SOON;
use virtshell_tests::wait_for;

use crate::world::{World, is_scheduled};

/// Longer than a host may be silent: 40 s.
const LATE: Duration = Duration::from_mins(2);

/// `status/reason` of a condition.
fn said(instance: &Instance, type_: &str) -> String {
    let status = instance.status.as_ref();
    let condition = status.and_then(|s| condition::find(&s.conditions, type_));
    condition
        .map(|c| format!("{}/{}", c.status, c.reason))
        .unwrap_or_default()
}

#[tokio::test]
async fn a_silent_host_keeps_its_instances_until_it_is_said_to_be_gone() -> anyhow::Result<()> {
    let w = World::with_hosts("silence", 2).await?;
    w.running("lost", 0).await?;
    w.running("back", 1).await?;
    let instances = w.api::<Instance>();
    for name in ["lost", "back"] {
        let look = async || instances.get(name).await;
        let is_unknown = |i: &Instance| said(i, READY) == "Unknown/HostSilent";
        let silent = wait_for("the host to be silent", LATE, look, is_unknown).await?;
        assert!(is_scheduled(&silent), "it is where it was");
    }
    w.create::<Instance>("new", json!({"blank": true, "environment": "e", "memoryMiB": 64}))
        .await?;
    // Hosts of other tests fall out for another reason.
    let said_so = |message: &str| message.starts_with("0/") && message.ends_with("2 not ready");
    let nowhere = |i: &Instance| i.status.as_ref().is_some_and(|s| said_so(&s.message));
    w.until("new", "to have no host", nowhere).await?;

    // Its report alone is no sign of life; the Lease is, and nothing else happens after it.
    let node = &w.nodes[1];
    let ready = json!({
        "type": READY, "status": "True", "reason": "Simulated", "message": "",
        "lastTransitionTime": "2026-01-01T00:00:00Z",
    });
    let capacity = json!({"cpus": 8, "memoryMiB": 8192, "diskMiB": 100_000});
    node.report_host(json!({"capacity": capacity, "drivers": ["kvm"], "conditions": [ready]}))
        .await?;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(said(&instances.get("new").await?, SCHEDULED).starts_with("False/"));
    node.renew().await?;
    let placed = w.until("new", "to be placed", is_scheduled).await?;
    assert_eq!(placed.spec.host.as_deref(), Some(node.host.as_str()));
    w.report("back", "Running").await?;
    w.until("back", "to be ready", |i: &Instance| {
        said(i, READY) == "True/Simulated"
    })
    .await?;

    instances.delete("lost", &DeleteParams::default()).await?;
    let hosts: Api<Host> = Api::all(w.admin.clone());
    let lost = &w.nodes[0].host;
    let uid = hosts.get(lost).await?.metadata.uid;
    let confirm = async |uid: Option<String>| {
        let patch = json!({"metadata": {"annotations": {ANNOTATION_CONFIRM_GONE: uid}}});
        hosts
            .patch(lost, &PatchParams::default(), &Patch::Merge(patch))
            .await
    };
    confirm(Some("an earlier host's".to_owned())).await?;
    tokio::time::sleep(Duration::from_secs(1)).await;
    instances.get("lost").await?;
    confirm(uid).await?;
    w.until_gone::<Instance>("lost").await?;
    // A host that lives does its own deletions, whatever is said of it.
    let look = async || hosts.get(&node.host).await;
    let known = wait_for("the other host", SOON, look, |h: &Host| h.metadata.uid.is_some()).await?;
    let patch = json!({"metadata": {"annotations": {ANNOTATION_CONFIRM_GONE: known.metadata.uid}}});
    hosts
        .patch(&node.host, &PatchParams::default(), &Patch::Merge(patch))
        .await?;
    instances.delete("back", &DeleteParams::default()).await?;
    tokio::time::sleep(Duration::from_secs(2)).await;
    instances.get("back").await?;
    node.release(&w.namespace, "back").await?;
    w.until_gone::<Instance>("back").await
}
