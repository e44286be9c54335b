//! Work inside guests: who is given what, and what becomes of the Task.

use std::time::Duration;

use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kube::ResourceExt;
use kube::api::{ListParams, Patch, PatchParams};
use serde_json::{Value, json};
use virtshell_crds::{Instance, Task, TaskAssignment, TaskState};

use crate::world::World;

fn command() -> Value {
    json!({"type": "execute_command", "params": {"command": "true"}})
}

fn is_in(state: TaskState) -> impl Fn(&Task) -> bool {
    move |task| task.status.as_ref().and_then(|s| s.state) == Some(state)
}

fn log(task: &Task) -> &str {
    task.status.as_ref().map(|s| s.log.as_str()).unwrap_or_default()
}

#[tokio::test]
async fn every_host_does_its_part_and_the_task_counts() -> anyhow::Result<()> {
    let w = World::with_hosts("task-parts", 2).await?;
    let a = w.running("a", 0).await?;
    w.running("b", 0).await?;
    w.running("c", 1).await?;
    w.running("d", 1).await?;
    w.report("d", "Stopped").await?;
    let task = w.task("t", &["a", "b", "c", "d"], command()).await?;

    let one = w.part("t", 0, 0).await?;
    assert_eq!(
        one.spec
            .targets
            .iter()
            .map(|t| t.name.as_str())
            .collect::<Vec<_>>(),
        ["a", "b"]
    );
    assert_eq!(Some(&one.spec.targets[0].uid), a.metadata.uid.as_ref());
    assert_eq!(one.owner_references()[0].uid, task.metadata.uid.clone().unwrap());
    assert_eq!(one.spec.params, task.spec.params);
    let two = w.part("t", 1, 0).await?;
    assert_eq!(
        two.spec.targets.len(),
        1,
        "d does not run: {:?}",
        two.spec.targets
    );

    w.results(
        0,
        &one,
        &[
            ("a", json!({"state": "Started"})),
            ("b", json!({"state": "Pending"})),
        ],
    )
    .await?;
    let executing = |t: &Task| t.status.as_ref().is_some_and(|s| s.stage == "executing");
    w.until("t", "to be executed", executing).await?;
    let done = json!({"state": "Succeeded", "exitCode": 0, "output": "x"});
    w.results(0, &one, &[("a", done.clone()), ("b", done.clone())])
        .await?;
    let counted = |t: &Task| {
        let counts = t.status.as_ref().and_then(|s| s.counts.clone());
        counts.is_some_and(|c| (c.succeeded, c.failed) == (2, 1))
    };
    let task = w.until("t", "to have counted host 0", counted).await?;
    assert!(is_in(TaskState::InProgress)(&task), "{:?}", task.status);
    w.results(1, &two, &[("c", done)]).await?;
    let ended = w.until("t", "to have failed", is_in(TaskState::Failed)).await?;
    assert_eq!(
        log(&ended),
        "3 of 4 targets succeeded; d: instance d is not running"
    );
    let status = ended.status.unwrap();
    assert!(status.finished_at.is_some() && status.started_at.is_some());
    assert!(!status.history.is_empty());

    // Its parts go with it.
    w.api::<Task>()
        .delete("t", &kube::api::DeleteParams::default())
        .await?;
    w.until_gone::<TaskAssignment>(&one.name_any()).await
}

#[tokio::test]
async fn another_try_is_another_part_and_success_needs_every_target() -> anyhow::Result<()> {
    let w = World::with_hosts("task-retry", 1).await?;
    w.running("a", 0).await?;
    w.running("b", 0).await?;
    w.task("t", &["a", "b"], command()).await?;
    let first = w.part("t", 0, 0).await?;
    let (done, failed) = (
        json!({"state": "Succeeded", "exitCode": 0}),
        json!({"state": "Failed", "exitCode": 3}),
    );
    w.results(0, &first, &[("a", done.clone()), ("b", failed)])
        .await?;
    let ended = w.until("t", "to have failed", is_in(TaskState::Failed)).await?;
    assert_eq!(log(&ended), "1 of 2 targets succeeded; b: exit code 3");

    w.patch::<Task>("t", json!({"spec": {"retry": 1}})).await?;
    let second = w.part("t", 0, 1).await?;
    assert_ne!(first.name_any(), second.name_any());
    w.results(0, &second, &[("a", done.clone()), ("b", done)]).await?;
    let ended = w.until("t", "to succeed", is_in(TaskState::Succeeded)).await?;
    assert_eq!(log(&ended), "2 of 2 targets succeeded");
    let status = ended.status.unwrap();
    assert!(
        status.history.iter().any(|h| h.log.contains("exit code 3")),
        "{:?}",
        status.history
    );
    assert_eq!(status.observed_retry, Some(1));
    // What the first try gave stays readable.
    w.api::<TaskAssignment>().get(&first.name_any()).await?;
    Ok(())
}

#[tokio::test]
async fn a_host_that_says_nothing_is_given_up_and_does_nothing_later() -> anyhow::Result<()> {
    let w = World::with_hosts("task-timeout", 2).await?;
    w.running("a", 0).await?;
    w.running("b", 1).await?;
    let mut spec = command();
    spec["timeoutSeconds"] = json!(3);
    w.task("t", &["a", "b"], spec).await?;
    let (mute, begun) = (w.part("t", 0, 0).await?, w.part("t", 1, 0).await?);
    w.results(1, &begun, &[("b", json!({"state": "Started"}))])
        .await?;
    let ended = w.until("t", "to time out", is_in(TaskState::Failed)).await?;
    assert!(
        log(&ended).starts_with("0 of 2 targets succeeded; Timeout: not done after 3 s"),
        "{}",
        log(&ended)
    );
    // What no host has begun is taken back; what one has begun stays, for its result.
    w.until_gone::<TaskAssignment>(&mute.name_any()).await?;
    w.api::<TaskAssignment>().get(&begun.name_any()).await?;
    Ok(())
}

#[tokio::test]
async fn a_target_that_goes_counts_as_failed() -> anyhow::Result<()> {
    let w = World::with_hosts("task-deleted", 1).await?;
    w.running("a", 0).await?;
    w.running("b", 0).await?;
    w.task("t", &["a", "b", "missing"], command()).await?;
    let part = w.part("t", 0, 0).await?;
    w.api::<Instance>()
        .delete("b", &kube::api::DeleteParams::default())
        .await?;
    w.nodes[0].release(&w.namespace, "b").await?;
    w.results(0, &part, &[("a", json!({"state": "Succeeded", "exitCode": 0}))])
        .await?;
    let ended = w.until("t", "to have failed", is_in(TaskState::Failed)).await?;
    assert_eq!(
        log(&ended),
        "1 of 3 targets succeeded; b: instance b was deleted; missing: instance missing not found"
    );
    Ok(())
}

#[tokio::test]
async fn work_on_one_instance_is_done_in_order() -> anyhow::Result<()> {
    let w = World::with_hosts("task-order", 1).await?;
    w.running("a", 0).await?;
    w.task("t1", &["a"], command()).await?;
    w.task("t2", &["a"], json!({"type": "stop_instance"})).await?;
    w.task("t3", &["a"], command()).await?;
    let part = w.part("t1", 0, 0).await?;
    let waits = |t: &Task| log(t).contains("waits for earlier work");
    w.until("t2", "to wait", waits).await?;
    w.until("t3", "to wait", waits).await?;
    assert_eq!(w.nodes[0].assignments(&w.namespace).await?.len(), 1);
    w.results(0, &part, &[("a", json!({"state": "Succeeded", "exitCode": 0}))])
        .await?;
    w.until("t1", "to succeed", is_in(TaskState::Succeeded)).await?;
    let stops = |i: &Instance| i.spec.power_state == virtshell_crds::PowerState::Stopped;
    w.until("a", "to be asked to stop", stops).await?;
    w.report("a", "Stopped").await?;
    w.until("t2", "to succeed", is_in(TaskState::Succeeded)).await?;
    let ended = w.until("t3", "to have failed", is_in(TaskState::Failed)).await?;
    assert_eq!(
        log(&ended),
        "0 of 1 targets succeeded; a: instance a is not running"
    );
    Ok(())
}

#[tokio::test]
async fn finished_work_goes_after_its_time() -> anyhow::Result<()> {
    let w = World::with_hosts("task-expiry", 0).await?;
    for name in ["old", "young"] {
        w.task(name, &["nobody"], command()).await?;
        w.until(name, "to have failed", is_in(TaskState::Failed)).await?;
    }
    let api = w.api::<Task>();
    let patch = json!({"status": {"finishedAt": "2020-01-01T00:00:00Z"}});
    api.patch_status(
        "old",
        &kube::api::PatchParams::default(),
        &kube::api::Patch::Merge(patch),
    )
    .await?;
    w.until_gone::<Task>("old").await?;
    api.get("young").await?;
    Ok(())
}

#[tokio::test]
async fn records_that_ended_long_ago_go() -> anyhow::Result<()> {
    let w = World::with_hosts("task-records", 0).await?;
    let day = |days: i64| Timestamp::now() - SignedDuration::from_hours(24 * days);
    for (name, status) in [
        ("ended", json!({"state": "Failed", "finishedAt": day(8)})),
        ("written", json!({"state": "Succeeded", "lastUpdate": day(8)})),
        ("recent", json!({"state": "Succeeded", "finishedAt": day(6)})),
        ("open", json!({"state": "InProgress", "lastUpdate": day(8)})),
    ] {
        w.task(name, &[], json!({"type": "mine", "manual": true})).await?;
        let patch = Patch::Merge(json!({ "status": status }));
        w.api::<Task>()
            .patch_status(name, &PatchParams::default(), &patch)
            .await?;
    }
    w.until_gone::<Task>("ended").await?;
    w.until_gone::<Task>("written").await?;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let left = w.api::<Task>().list(&ListParams::default()).await?;
    let left: Vec<String> = left.iter().map(ResourceExt::name_any).collect();
    assert_eq!(left, ["open", "recent"]);
    Ok(())
}
