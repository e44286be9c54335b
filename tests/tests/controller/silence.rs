//! Hosts that are not heard of: nothing of theirs is started elsewhere or forgotten, until somebody who knows says so.

use std::time::Duration;

use k8s_openapi::api::core::v1::Event;
use kube::api::{DeleteParams, ListParams, ObjectList, Patch, PatchParams};
use kube::{Api, ResourceExt};
use serde_json::json;
use virtshell_crds::condition::{self, READY, SCHEDULED};
use virtshell_crds::{ANNOTATION_CONFIRM_GONE, Host, Instance, Task, TaskState};
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

/// An administrator says of a host that it is gone: the one of this uid, without one the one that is there.
async fn confirm_gone(w: &World, host: &str, uid: Option<&str>) -> anyhow::Result<()> {
    let hosts: Api<Host> = Api::all(w.admin.clone());
    let there = hosts.get(host).await?.metadata.uid;
    let uid = uid.map(ToOwned::to_owned).or(there);
    let patch = json!({"metadata": {"annotations": {ANNOTATION_CONFIRM_GONE: uid}}});
    hosts
        .patch(host, &PatchParams::default(), &Patch::Merge(patch))
        .await?;
    Ok(())
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
    let lost = &w.nodes[0].host;
    confirm_gone(&w, lost, Some("an earlier host's")).await?;
    tokio::time::sleep(Duration::from_secs(1)).await;
    instances.get("lost").await?;
    confirm_gone(&w, lost, None).await?;
    w.until_gone::<Instance>("lost").await?;
    // A host that lives does its own deletions, whatever is said of it.
    confirm_gone(&w, &node.host, None).await?;
    instances.delete("back", &DeleteParams::default()).await?;
    tokio::time::sleep(Duration::from_secs(2)).await;
    instances.get("back").await?;
    node.release(&w.namespace, "back").await?;
    w.until_gone::<Instance>("back").await
}

#[tokio::test]
async fn a_host_that_was_said_to_be_gone_and_returns_gets_work_again() -> anyhow::Result<()> {
    let w = World::with_hosts("returns", 1).await?;
    let node = &w.nodes[0];
    w.running("guest", 0).await?;
    let instances = w.api::<Instance>();
    let is_unknown = |i: &Instance| said(i, READY) == "Unknown/HostSilent";
    let look = async || instances.get("guest").await;
    wait_for("the host to be silent", LATE, look, is_unknown).await?;
    confirm_gone(&w, &node.host, None).await?;
    let command = json!({"type": "execute_command", "params": {"command": "true"}});
    w.task("before", &["guest"], command.clone()).await?;
    let has_failed = |t: &Task| t.status.as_ref().and_then(|s| s.state) == Some(TaskState::Failed);
    let refused = w.until("before", "to be refused", has_failed).await?;
    let words = format!("0 of 1 targets succeeded; guest: host {} is gone", node.host);
    assert_eq!(refused.status.map(|s| s.log), Some(words));

    node.renew().await?;
    let hosts: Api<Host> = Api::all(w.admin.clone());
    let look = async || hosts.get(&node.host).await;
    let is_taken_back = |h: &Host| !h.annotations().contains_key(ANNOTATION_CONFIRM_GONE);
    wait_for("the word to be taken back", SOON, look, is_taken_back).await?;
    let events: Api<Event> = Api::default_namespaced(w.admin.clone());
    let of_host = ListParams::default().fields(&format!("involvedObject.name={}", node.host));
    let look = async || events.list(&of_host).await;
    let is_told = |list: &ObjectList<Event>| {
        let mut reasons = list.iter().filter_map(|event| event.reason.as_deref());
        reasons.any(|reason| reason == "HostNotGone")
    };
    wait_for("an Event that tells it", SOON, look, is_told).await?;
    w.report("guest", "Running").await?;
    w.task("after", &["guest"], command).await?;
    let part = w.part("after", 0, 0).await?;
    let done = json!({"state": "Succeeded", "exitCode": 0});
    w.results(0, &part, &[("guest", done)]).await?;
    let has_succeeded = |t: &Task| t.status.as_ref().and_then(|s| s.state) == Some(TaskState::Succeeded);
    w.until("after", "to succeed", has_succeeded).await?;
    Ok(())
}
