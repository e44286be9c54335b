//! Launch groups: several Instances that one stands for.

use std::time::Duration;

use kube::ResourceExt;
use kube::api::{DeleteParams, ListParams};
use serde_json::{Value, json};
use virtshell_crds::condition::{self, READY};
use virtshell_crds::{Instance, PowerState, Task, TaskState};
use virtshell_tests::wait_for;

use crate::world::{World, is_scheduled};

fn spec(min: i32, max: i32) -> Value {
    json!({
        "blank": true, "environment": "e", "memoryMiB": 64, "diskMiB": 64, "launch": {"min": min, "max": max},
        "cloudInit": {"userData": "#cloud-config"},
    })
}

fn children(parent: &Instance) -> Vec<String> {
    parent
        .status
        .as_ref()
        .map(|s| s.children.clone())
        .unwrap_or_default()
}

fn is_ready(instance: &Instance) -> bool {
    let status = instance.status.as_ref();
    status.is_some_and(|s| condition::is_true(&s.conditions, READY))
}

fn is_in(state: TaskState) -> impl Fn(&Task) -> bool {
    move |task| task.status.as_ref().and_then(|s| s.state) == Some(state)
}

/// A launch whose children were all placed.
async fn launch(w: &World, name: &str, min: i32, max: i32) -> anyhow::Result<Vec<String>> {
    w.create::<Instance>(name, spec(min, max)).await?;
    let launched = |i: &Instance| children(i).len() == max as usize;
    let parent = w.until(name, "to be launched", launched).await?;
    for child in children(&parent) {
        w.until(&child, "to be placed", is_scheduled).await?;
    }
    Ok(children(&parent))
}

#[tokio::test]
async fn children_are_made_once_and_go_with_their_parent() -> anyhow::Result<()> {
    let w = World::with_hosts("launch-life", 1).await?;
    let names = launch(&w, "web", 2, 3).await?;
    let instances = w.api::<Instance>();
    for (n, name) in names.iter().enumerate() {
        let child = instances.get(name).await?;
        assert_eq!(child.spec.display_name, Some(format!("web_{}", n + 1)));
        let user_data = child.spec.cloud_init.and_then(|c| c.user_data);
        assert_eq!(user_data.as_deref(), Some("#cloud-config"));
    }
    let parent = instances.get("web").await?;
    assert_eq!(parent.spec.host, None);
    assert_eq!(parent.finalizers(), ["virtshell.io/launch"]);

    for name in &names[..2] {
        w.report(name, "Running").await?;
    }
    let parent = w.until("web", "to be ready with two of three", is_ready).await?;
    let generation = parent.metadata.generation;
    assert_eq!(parent.status.unwrap().observed_generation, generation);

    // One that is deleted alone stays away.
    instances.delete(&names[0], &DeleteParams::default()).await?;
    w.nodes[0].release(&w.namespace, &names[0]).await?;
    w.until_gone::<Instance>(&names[0]).await?;
    w.until("web", "to miss one", |i| !is_ready(i)).await?;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(instances.get_opt(&names[0]).await?.is_none());
    assert_eq!(children(&instances.get("web").await?), names);

    instances.delete("web", &DeleteParams::default()).await?;
    for name in &names[1..] {
        w.until::<Instance>(name, "to be deleted", |i| i.metadata.deletion_timestamp.is_some())
            .await?;
        assert!(instances.get_opt("web").await?.is_some(), "the parent goes last");
        w.nodes[0].release(&w.namespace, name).await?;
    }
    w.until_gone::<Instance>("web").await
}

#[tokio::test]
async fn what_a_parent_is_asked_for_its_children_are() -> anyhow::Result<()> {
    let w = World::with_hosts("launch-power", 1).await?;
    let names = launch(&w, "web", 1, 2).await?;
    for name in &names {
        w.report(name, "Running").await?;
    }
    let in_state = |state| move |i: &Instance| i.spec.power_state == state;
    // One is stopped on its own: no edit of something else starts it.
    w.patch::<Instance>(&names[0], json!({"spec": {"powerState": "Stopped"}}))
        .await?;
    w.patch::<Instance>("web", json!({"spec": {"memoryMiB": 128}}))
        .await?;
    for name in &names {
        w.until::<Instance>(name, "to have more memory", |i| i.spec.memory_mib == Some(128))
            .await?;
    }
    in_state(PowerState::Stopped)(&w.api::<Instance>().get(&names[0]).await?)
        .then_some(())
        .unwrap();

    w.patch::<Instance>("web", json!({"spec": {"powerState": "Stopped"}}))
        .await?;
    w.until(&names[1], "to be asked to stop", in_state(PowerState::Stopped))
        .await?;
    w.patch::<Instance>("web", json!({"spec": {"powerState": "Running"}}))
        .await?;
    for name in &names {
        w.until(name, "to be asked to start", in_state(PowerState::Running))
            .await?;
    }
    // A Task on the parent is done to its children.
    for name in &names {
        w.report(name, "Running").await?;
    }
    w.task("stop", &["web"], json!({"type": "stop_instance"})).await?;
    for name in &names {
        w.until(name, "to be stopped by the task", in_state(PowerState::Stopped))
            .await?;
        w.report(name, "Stopped").await?;
    }
    let task = w.until("stop", "to succeed", is_in(TaskState::Succeeded)).await?;
    assert_eq!(task.status.unwrap().counts.map(|c| c.targets), Some(2));
    Ok(())
}

#[tokio::test]
async fn a_launch_succeeds_with_min_of_max() -> anyhow::Result<()> {
    let w = World::with_hosts("launch-min", 1).await?;
    // Room for three of four.
    let mut big = spec(2, 4);
    big["memoryMiB"] = json!(2500);
    w.create::<Instance>("web", big).await?;
    w.task("create", &["web"], json!({"type": "create_instance"}))
        .await?;
    let launched = |i: &Instance| children(i).len() == 4;
    w.until("web", "to be launched", launched).await?;
    let api = w.api::<Instance>();
    let look = async || api.list(&ListParams::default()).await;
    let list = wait_for("three to be placed", virtshell_tests::wait::SOON, look, |list| {
        list.iter()
            .filter(|i| i.spec.host.is_some() && is_scheduled(i))
            .count()
            == 3
    })
    .await?;
    let placed: Vec<String> = list
        .iter()
        .filter(|i| i.spec.host.is_some())
        .map(ResourceExt::name_any)
        .collect();
    w.report(&placed[0], "Running").await?;
    w.report(&placed[1], "Running").await?;
    let log = |t: &Task| t.status.as_ref().map(|s| s.log.clone()).unwrap_or_default();
    let task = w
        .until("create", "to count two", |t| log(t) == "2 of 4 run")
        .await?;
    assert!(is_in(TaskState::InProgress)(&task), "the third is on its way");
    w.report(&placed[2], "Running").await?;
    w.until("create", "to succeed", is_in(TaskState::Succeeded))
        .await?;
    Ok(())
}

#[tokio::test]
async fn a_name_that_is_taken_is_said() -> anyhow::Result<()> {
    let w = World::with_hosts("launch-taken", 0).await?;
    let taken = json!({"blank": true, "environment": "e", "displayName": "web_2"});
    w.create::<Instance>(&virtshell_crds::names::object_name("web_2"), taken)
        .await?;
    w.create::<Instance>("web", spec(1, 2)).await?;
    let refused = |i: &Instance| {
        let status = i.status.as_ref();
        let accepted = status.and_then(|s| condition::find(&s.conditions, condition::ACCEPTED));
        accepted.is_some_and(|c| c.reason == "NameConflict" && c.message == "instance web_2 already exists")
    };
    w.until("web", "to be refused", refused).await?;
    // It heals when the name is free.
    w.patch::<Instance>(
        &virtshell_crds::names::object_name("web_2"),
        json!({"spec": {"displayName": "other"}}),
    )
    .await?;
    let launched = |i: &Instance| i.status.as_ref().is_some_and(|s| s.children.len() == 2);
    w.until("web", "to be launched", launched).await?;
    Ok(())
}
