//! What is asked to go while something needs it: a Section, an Environment and a Host stay, and say who does, until the last
//! is gone; an Image and a Provisioner go at once, for those who need them have copies.

use kube::Api;
use kube::api::DeleteParams;
use serde_json::json;
use virtshell_crds::condition::ACCEPTED;
use virtshell_crds::{Environment, FINALIZER_IN_USE, Host, Image, Instance, Provisioner, Section};
use virtshell_tests::wait::SOON;
use virtshell_tests::wait_for;

use crate::world::{World, is_scheduled, said};

const IN_USE: &str = "InUse";

/// Waits until a cluster-scoped object, `None` once it is gone, is as it should be.
async fn until<K>(api: &Api<K>, name: &str, enough: impl Fn(&Option<K>) -> bool) -> anyhow::Result<()>
where
    K: Clone + std::fmt::Debug + serde::de::DeserializeOwned,
{
    wait_for(name, SOON, async || api.get_opt(name).await, enough).await?;
    Ok(())
}

fn is_held(finalizers: Option<&Vec<String>>) -> bool {
    finalizers.is_some_and(|list| list.iter().any(|f| f == FINALIZER_IN_USE))
}

#[tokio::test]
async fn a_section_stays_until_no_environment_refers_to_it() -> anyhow::Result<()> {
    let w = World::with_hosts("section-in-use", 0).await?;
    let (sections, name) = (w.sections(), w.section("s", json!({})).await?);
    for environment in ["a", "b"] {
        w.create::<Environment>(environment, json!({"section": name}))
            .await?;
    }
    let held = |s: &Option<Section>| {
        s.as_ref()
            .is_some_and(|s| is_held(s.metadata.finalizers.as_ref()))
    };
    until(&sections, &name, held).await?;
    sections.delete(&name, &DeleteParams::default()).await?;
    let says = |by: &str| {
        let words = format!("True/InUse: section {name} is in use: {by}");
        move |s: &Option<Section>| {
            let status = s.as_ref().and_then(|s| s.status.as_ref());
            status.is_some_and(|s| said(&s.conditions, IN_USE) == words)
        }
    };
    until(&sections, &name, says("enviroment a")).await?;
    w.delete::<Environment>("a").await?;
    until(&sections, &name, says("enviroment b")).await?;
    // One that is edited needs it no more either.
    w.patch::<Environment>("b", json!({"spec": {"section": null}}))
        .await?;
    until(&sections, &name, Option::is_none).await
}

#[tokio::test]
async fn an_environment_stays_until_it_has_no_instance() -> anyhow::Result<()> {
    let w = World::with_hosts("environment-in-use", 1).await?;
    w.running("one", 0).await?;
    // It needs the Environment without having got anything from it.
    let unplaced = json!({"blank": true, "environment": "e", "memoryMiB": 100_000});
    w.create::<Instance>("two", unplaced).await?;
    let held = |e: &Environment| is_held(e.metadata.finalizers.as_ref());
    w.until("e", "to be held", held).await?;
    w.delete::<Environment>("e").await?;
    let says = |words: &'static str| {
        move |e: &Environment| {
            let status = e.status.as_ref();
            status.is_some_and(|s| said(&s.conditions, IN_USE) == words)
        }
    };
    let both = "True/InUse: enviroment e is in use: 2 instances, one among them";
    w.until("e", "to say who uses it", says(both)).await?;
    w.delete::<Instance>("two").await?;
    let one = "True/InUse: enviroment e is in use: instance one";
    w.until("e", "to be used by one", says(one)).await?;
    w.delete::<Instance>("one").await?;
    // The node has not let it go.
    tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    w.api::<Environment>().get("e").await?;
    w.nodes[0].release(&w.namespace, "one").await?;
    w.until_gone::<Environment>("e").await
}

#[tokio::test]
async fn a_host_stays_until_no_instance_is_on_it() -> anyhow::Result<()> {
    let w = World::with_hosts("host-in-use", 1).await?;
    let (hosts, name) = (w.hosts(), w.nodes[0].host.clone());
    w.running("one", 0).await?;
    let held = |h: &Option<Host>| {
        h.as_ref()
            .is_some_and(|h| is_held(h.metadata.finalizers.as_ref()))
    };
    until(&hosts, &name, held).await?;
    hosts.delete(&name, &DeleteParams::default()).await?;
    let words = format!("True/InUse: host {name} is in use: instance one");
    let says = |h: &Option<Host>| {
        let status = h.as_ref().and_then(|h| h.status.as_ref());
        status.is_some_and(|s| said(&s.conditions, IN_USE) == words)
    };
    until(&hosts, &name, says).await?;
    // Nobody else comes.
    let pinned = json!({"blank": true, "environment": "e", "host": name, "memoryMiB": 64});
    w.create::<Instance>("late", pinned).await?;
    let words = format!("host {name}: disabled");
    let refused = |i: &Instance| i.status.as_ref().is_some_and(|s| s.message == words);
    w.until("late", "to be refused", refused).await?;
    w.remove("one", 0).await?;
    until(&hosts, &name, Option::is_none).await
}

#[tokio::test]
async fn an_image_and_a_provisioner_go_at_once_and_instances_go_on() -> anyhow::Result<()> {
    let w = World::with_hosts("copies", 1).await?;
    let url = "http://127.0.0.1:9/i";
    w.create::<Image>("i", json!({"type": "disk", "downloadUrl": url}))
        .await?;
    let spec = json!({
        "image": "i", "memoryMiB": 64, "diskMiB": 64, "tags": ["web"], "builder": "https://x/r", "executor": "sh run",
    });
    w.create::<Provisioner>("p", spec).await?;
    let spec = json!({"provisioner": "p", "environment": "e"});
    w.create::<Instance>("runs", spec.clone()).await?;
    w.until("runs", "to be placed", is_scheduled).await?;
    let before = w.report("runs", "Running").await?;
    let mut big = spec;
    big["memoryMiB"] = json!(100_000);
    w.create::<Instance>("waits", big).await?;
    let is_frozen = |i: &Instance| i.status.as_ref().is_some_and(|s| s.resolved.is_some());
    w.until("waits", "to be accepted", is_frozen).await?;

    w.delete::<Image>("i").await?;
    w.delete::<Provisioner>("p").await?;
    w.until_gone::<Image>("i").await?;
    w.until_gone::<Provisioner>("p").await?;
    // One is edited, and the other gets a host only now.
    let smaller = json!({"spec": {"memoryMiB": 128}});
    let edited = w.patch::<Instance>("runs", smaller.clone()).await?;
    w.patch::<Instance>("waits", smaller).await?;
    let is_seen = |i: &Instance| {
        let resolved = i.status.as_ref().and_then(|s| s.resolved.as_ref());
        resolved.is_some_and(|r| r.memory_mib == Some(128))
    };
    let runs = w.until("runs", "to be looked at", is_seen).await?;
    w.until("waits", "to be placed", is_scheduled).await?;
    let waits = w.until("waits", "to be looked at", is_seen).await?;
    assert_eq!(runs.metadata.generation, edited.metadata.generation);
    let mut kept = before.status.and_then(|s| s.resolved).unwrap();
    kept.memory_mib = Some(128);
    for instance in [runs, waits] {
        let status = instance.status.unwrap();
        assert_eq!(said(&status.conditions, ACCEPTED), "True/Valid: ");
        assert_eq!(status.resolved.as_ref(), Some(&kept));
        assert_eq!(status.tags, ["web"]);
    }
    assert_eq!(kept.image.unwrap().url, url);
    Ok(())
}
