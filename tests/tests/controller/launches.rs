//! Launch groups: several Instances that one stands for.

use std::time::Duration;

use k8s_openapi::api::core::v1::Event;
use kube::api::{DeleteParams, ListParams, ObjectList};
use kube::{Api, ResourceExt};
use serde_json::{Value, json};
use virtshell_crds::condition::{self, READY};
use virtshell_crds::instance::{DeletionPolicy, StopMode};
use virtshell_crds::{Instance, PowerState, Task, TaskState};
use virtshell_tests::wait::SOON;
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

/// Whether its status speaks of its spec as it is now.
fn is_current(instance: &Instance) -> bool {
    let status = instance.status.as_ref();
    status.is_some_and(|s| s.observed_generation == instance.metadata.generation)
}

/// Status and reason of the condition, and its message.
fn accepted(instance: &Instance) -> (String, String) {
    let status = instance.status.as_ref();
    let accepted = status.and_then(|s| condition::find(&s.conditions, condition::ACCEPTED));
    let said = accepted.map(|c| (format!("{} {}", c.status, c.reason), c.message.clone()));
    said.unwrap_or_default()
}

fn is_in(state: TaskState) -> impl Fn(&Task) -> bool {
    move |task| task.status.as_ref().and_then(|s| s.state) == Some(state)
}

/// A launch whose children were all placed.
async fn launch(w: &World, name: &str, min: i32, max: i32) -> anyhow::Result<Vec<String>> {
    launch_as(w, name, spec(min, max)).await
}

/// A launch of this kind whose children were all placed.
async fn launch_as(w: &World, name: &str, spec: Value) -> anyhow::Result<Vec<String>> {
    w.create::<Instance>(name, spec).await?;
    let launched = |i: &Instance| !children(i).is_empty();
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
async fn an_edit_of_a_parent_is_the_same_edit_of_its_children() -> anyhow::Result<()> {
    let w = World::with_hosts("launch-edits", 1).await?;
    let mut spec = spec(1, 2);
    spec["maxMemoryMiB"] = json!(128);
    spec["maxCpus"] = json!(1);
    spec["tags"] = json!(["web"]);
    let names = launch_as(&w, "web", spec).await?;
    for name in &names {
        w.report(name, "Running").await?;
    }
    // The parent is told of more than its children were made with; one of them has something of its own.
    w.patch::<Instance>(
        &names[0],
        json!({"spec": {"tags": ["web", "canary"], "autostart": false}}),
    )
    .await?;
    let edit = json!({
        "memoryMiB": 512, "maxMemoryMiB": 512, "cpus": 2, "maxCpus": 4, "tags": ["web", "blue"], "owner": "tester",
        "permissions": "xwrx-r---", "vars": {"a": "b"}, "disks": [{"name": "data", "sizeMiB": 10}],
        "cloudInit": {"userData": "#cloud-config\n"}, "consoles": {"serial": false}, "shutdownGraceSeconds": 5,
    });
    w.patch::<Instance>("web", json!({ "spec": edit })).await?;
    for (name, autostart, tags) in [
        (&names[0], false, json!(["web", "canary", "blue"])),
        (&names[1], true, json!(["web", "blue"])),
    ] {
        let grown = |i: &Instance| i.spec.memory_mib == Some(512);
        let child = w.until::<Instance>(name, "to have more memory", grown).await?;
        let spec = json!(child.spec);
        for (field, value) in edit.as_object().into_iter().flatten() {
            let expected = match field.as_str() {
                "tags" => &tags,
                "disks" => &json!([{"name": "data", "sizeMiB": 10, "bus": "virtio"}]),
                _ => value,
            };
            assert_eq!(&spec[field], expected, "{field} of {name}");
        }
        assert_eq!(child.spec.autostart, autostart);
    }
    let parent = w.until("web", "to have passed it on", is_current).await?;
    assert_eq!(accepted(&parent), ("True Valid".to_owned(), String::new()));

    // What one of them cannot take is said, and done when it can.
    w.patch::<Instance>(
        &names[1],
        json!({"spec": {"memoryMiB": 700, "maxMemoryMiB": 700}}),
    )
    .await?;
    w.patch::<Instance>("web", json!({"spec": {"maxMemoryMiB": 600}}))
        .await?;
    let parent = w.until("web", "to have tried", is_current).await?;
    let words = "web_2: Field maxMemoryMiB: must not be below memoryMiB".to_owned();
    assert_eq!(accepted(&parent), ("False NotPassedOn".to_owned(), words.clone()));
    let events: Api<Event> = w.api();
    let look = async || events.list(&ListParams::default()).await;
    let is_told = |list: &ObjectList<Event>| list.iter().any(|e| e.message.as_ref() == Some(&words));
    wait_for("an Event that tells it", SOON, look, is_told).await?;
    w.patch::<Instance>(&names[1], json!({"spec": {"memoryMiB": 600}}))
        .await?;
    let heals = |i: &Instance| accepted(i).0 == "True Valid";
    w.until("web", "to have passed it on", heals).await?;
    for name in &names {
        let child = w.api::<Instance>().get(name).await?;
        assert_eq!(child.spec.max_memory_mib, Some(600));
    }
    let moved = w.patch::<Instance>("web", json!({"spec": {"host": "h"}})).await;
    let words = "Field host: is where a launch begins, and this one has begun";
    assert!(moved.is_err_and(|e| format!("{e:?}").contains(words)));
    Ok(())
}

#[tokio::test]
async fn what_is_asked_of_a_parent_just_before_it_is_deleted_holds() -> anyhow::Result<()> {
    let w = World::with_hosts("launch-retain", 1).await?;
    let names = launch(&w, "web", 1, 2).await?;
    // An edit that one child refuses is in the way of nothing.
    w.patch::<Instance>(&names[1], json!({"spec": {"memoryMiB": 200}}))
        .await?;
    let edit = json!({"maxMemoryMiB": 100, "deletionPolicy": "RetainDisks", "stopMode": "Force"});
    w.patch::<Instance>("web", json!({ "spec": edit })).await?;
    w.api::<Instance>()
        .delete("web", &DeleteParams::default())
        .await?;
    for name in &names {
        let is_deleted = |i: &Instance| i.metadata.deletion_timestamp.is_some();
        let child = w.until::<Instance>(name, "to be deleted", is_deleted).await?;
        assert_eq!(child.spec.deletion_policy, DeletionPolicy::RetainDisks);
        assert_eq!(child.spec.stop_mode, StopMode::Force);
        w.nodes[0].release(&w.namespace, name).await?;
    }
    w.until_gone::<Instance>("web").await
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
    let list = wait_for("three to be placed", SOON, look, |list| {
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
