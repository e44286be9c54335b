//! What an Instance refers to and is not there: it says so in the REST API's words, and is placed once that is there. Nobody
//! has to touch the Instance, or start anything again.

use serde_json::{Value, json};
use virtshell_crds::condition::{ACCEPTED, SCHEDULED};
use virtshell_crds::{Environment, Image, Instance, Provisioner};

use crate::world::{World, is_scheduled, said};

fn says(type_: &'static str, words: &str) -> impl Fn(&Instance) -> bool {
    move |instance| {
        let status = instance.status.as_ref();
        status.is_some_and(|s| said(&s.conditions, type_) == words)
    }
}

async fn refused(w: &World, name: &str, words: &str) -> anyhow::Result<Instance> {
    w.until(name, "to be refused", says(ACCEPTED, &format!("False/{words}")))
        .await
}

fn image() -> Value {
    json!({"type": "disk", "downloadUrl": "http://127.0.0.1:9/i"})
}

#[tokio::test]
async fn every_missing_reference_is_named_and_heals_by_itself() -> anyhow::Result<()> {
    let w = World::with_hosts("healing", 1).await?;
    let section = format!("{}-later", w.namespace);
    let hosts = [&w.nodes[0].host];
    w.create::<Environment>("sectioned", json!({"section": section, "hosts": hosts}))
        .await?;
    let said_of_section = format!("SectionNotFound: section {section} not found");
    let has_said = |e: &Environment| {
        let status = e.status.as_ref();
        status.is_some_and(|s| said(&s.conditions, ACCEPTED) == format!("False/{said_of_section}"))
    };
    w.until("sectioned", "to miss its section", has_said).await?;
    let table = [
        (
            "image",
            json!({"image": "later_1"}),
            "ImageNotFound: image later_1 not found",
        ),
        (
            "disk-image",
            json!({"blank": true, "disks": [{"name": "data", "image": "later_2"}]}),
            "ImageNotFound: image later_2 not found",
        ),
        (
            "provisioner",
            json!({"provisioner": "later"}),
            "ProvisionerNotFound: provisioner later not found",
        ),
        (
            "environment",
            json!({"blank": true, "environment": "later"}),
            "EnvironmentNotFound: enviroment later not found",
        ),
        (
            "section",
            json!({"blank": true, "environment": "sectioned"}),
            &said_of_section,
        ),
        (
            "source",
            json!({"cloneFrom": {"name": "later"}}),
            "SourceNotFound: instance later not found",
        ),
    ];
    for (name, mut spec, _) in table.clone() {
        let environment = spec["environment"].as_str().unwrap_or("e").to_owned();
        spec["environment"] = json!(environment);
        spec["memoryMiB"] = json!(64);
        spec["diskMiB"] = json!(64);
        w.create::<Instance>(name, spec).await?;
    }
    for (name, _, words) in &table {
        let instance = refused(&w, name, words).await?;
        assert_eq!(instance.spec.host, None, "{name}");
        assert_eq!(instance.metadata.finalizers, None, "{name}: it may go at once");
        let status = instance.status.unwrap();
        assert_eq!(Some(status.message.as_str()), words.split_once(": ").map(|w| w.1));
        assert_eq!(said(&status.conditions, SCHEDULED), "False/NotAccepted: ");
    }

    // By wire name, as by metadata.name.
    let mut first = image();
    first["displayName"] = json!("later_1");
    w.create::<Image>("later-1", first).await?;
    w.until("image", "to be placed", is_scheduled).await?;
    refused(&w, "disk-image", "ImageNotFound: image later_2 not found").await?;
    let mut second = image();
    second["displayName"] = json!("later_2");
    w.create::<Image>("later-2", second).await?;
    w.until("disk-image", "to be placed", is_scheduled).await?;
    w.create::<Provisioner>("later", json!({"image": "later_3"}))
        .await?;
    refused(&w, "provisioner", "ImageNotFound: image later_3 not found").await?;
    w.patch::<Provisioner>("later", json!({"spec": {"image": "later_1"}}))
        .await?;
    w.until("provisioner", "to be placed", is_scheduled).await?;
    w.create::<Environment>("later", json!({"hosts": hosts})).await?;
    w.until("environment", "to be placed", is_scheduled).await?;
    w.section("later", json!({"namespaces": ["another"]})).await?;
    let words = format!(
        "SectionNotAllowed: section {section} is not for namespace {}",
        w.namespace
    );
    refused(&w, "section", &words).await?;
    let opened = kube::api::Patch::Merge(json!({"spec": {"namespaces": []}}));
    w.sections()
        .patch(&section, &kube::api::PatchParams::default(), &opened)
        .await?;
    w.until("section", "to be placed", is_scheduled).await?;
    w.running("later", 0).await?;
    w.until("source", "to be placed", is_scheduled).await?;
    Ok(())
}

#[tokio::test]
async fn an_edit_that_makes_no_sense_waits_and_undoes_nothing() -> anyhow::Result<()> {
    let w = World::with_hosts("healing-edit", 1).await?;
    let before = w.running("vm", 0).await?;
    let disk = json!({"spec": {"disks": [{"name": "data", "image": "later"}]}});
    let edited = w.patch::<Instance>("vm", disk).await?;
    let seen = refused(&w, "vm", "ImageNotFound: image later not found").await?;
    assert_eq!(seen.spec.host, before.spec.host);
    let (status, was) = (seen.status.unwrap(), before.status.unwrap());
    assert_eq!(said(&status.conditions, SCHEDULED), "True/Placed: ");
    assert_eq!(status.resolved, was.resolved);
    w.create::<Image>("later", image()).await?;
    let healed = w
        .until("vm", "to be accepted", says(ACCEPTED, "True/Valid: "))
        .await?;
    assert_eq!(healed.metadata.generation, edited.metadata.generation);
    let resolved = healed.status.and_then(|s| s.resolved).unwrap();
    assert_eq!(resolved.disk_images["data"].name, "later");
    Ok(())
}
