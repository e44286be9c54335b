//! What the controller keeps in order beside Instances: names, nodes, keys, and namespaces that go.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Namespace, Node, Secret};
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt};
use serde_json::{Value, json};
use virtshell_crds::condition::ACCEPTED;
use virtshell_crds::{Environment, File, Host, Image, Instance, LABEL_CREDENTIALS, User};
use virtshell_tests::wait::SOON;
use virtshell_tests::wait_for;

use crate::world::{World, is_scheduled, said};

/// `False/Reason: message` or `True/Valid: ` of the condition Accepted.
fn accepted(status: Option<Value>) -> String {
    let conditions = status.unwrap_or_default()["conditions"].clone();
    let conditions: Vec<_> = serde_json::from_value(conditions).unwrap_or_default();
    said(&conditions, ACCEPTED)
}

#[tokio::test]
async fn the_oldest_keeps_a_name_until_it_goes() -> anyhow::Result<()> {
    let w = World::with_hosts("names", 0).await?;
    let image = json!({"type": "disk", "displayName": "Debian 12"});
    let valid = "True/Valid: ";
    w.create::<Image>("a", image.clone()).await?;
    // Creation times have whole seconds; of one second, the first by name counts.
    w.create::<Image>("b", image).await?;
    let says = |words: &'static str| move |i: &Image| accepted(i.status.as_ref().map(|s| json!(s))) == words;
    w.until("a", "to have the name", says(valid)).await?;
    w.until(
        "b",
        "to be refused",
        says("False/NameConflict: image Debian 12 already exists (object a)"),
    )
    .await?;
    w.patch::<Image>("a", json!({"spec": {"displayName": "Debian 13"}}))
        .await?;
    w.until("b", "to have the name", says(valid)).await?;

    // A file's name has its folder.
    let file = |folder: &str| json!({"displayName": "my.cnf", "folder": folder, "content": {"inline": ""}});
    for (name, folder) in [("one", "mysql"), ("other", "mysql/old"), ("two", "mysql")] {
        w.create::<File>(name, file(folder)).await?;
    }
    let says = |words: &'static str| move |f: &File| accepted(f.status.as_ref().map(|s| json!(s))) == words;
    let refused = says("False/NameConflict: file mysql/my.cnf already exists (object one)");
    w.until("two", "to be refused", refused).await?;
    w.until("other", "to have its name", says(valid)).await?;
    w.api::<File>().delete("one", &DeleteParams::default()).await?;
    w.until("two", "to have the name", says(valid)).await?;

    // An object's name is its wire name where it has no other.
    w.create::<Environment>("f", json!({"displayName": "e"})).await?;
    let says =
        |words: &'static str| move |e: &Environment| accepted(e.status.as_ref().map(|s| json!(s))) == words;
    let refused = says("False/NameConflict: enviroment e already exists (object e)");
    w.until("f", "to be refused", refused).await?;
    // Others refer to it by its name, so that changes only while it means another object.
    let rename = |name: &str| json!({"spec": {"displayName": name}});
    w.create::<Environment>("g", json!({"displayName": "e"})).await?;
    w.until("g", "to be refused", |e: &Environment| {
        accepted(e.status.as_ref().map(|s| json!(s))).contains("NameConflict")
    })
    .await?;
    w.patch::<Environment>("g", rename("renamed")).await?;
    w.until("g", "to have a name", says(valid)).await?;
    let again = w.patch::<Environment>("g", rename("again")).await;
    let again = again.map(drop).expect_err("it has its name").to_string();
    anyhow::ensure!(
        again.contains("Field displayName: cannot change once set"),
        "{again}"
    );
    w.api::<Environment>()
        .delete("e", &DeleteParams::default())
        .await?;
    w.until("f", "to have the name", says(valid)).await?;
    Ok(())
}

#[tokio::test]
async fn a_host_with_the_name_of_another_gets_nothing() -> anyhow::Result<()> {
    let w = World::with_hosts("twins", 2).await?;
    let (first, second) = (w.nodes[0].host.clone(), w.nodes[1].host.clone());
    let hosts: Api<Host> = Api::all(w.admin.clone());
    let rename = json!({"spec": {"displayName": first}});
    hosts
        .patch(&second, &PatchParams::default(), &Patch::Merge(rename))
        .await?;
    let words = format!("False/NameConflict: host {first} already exists (object {first})");
    let look = async || hosts.get(&second).await;
    let said = |h: &Host| accepted(h.status.as_ref().map(|s| json!(s)));
    wait_for("the second to be refused", SOON, look, |h| said(h) == words).await?;
    let pinned = json!({"blank": true, "environment": "e", "host": second, "memoryMiB": 64});
    w.create::<Instance>("pinned", pinned).await?;
    let words = format!("host {second}: with the name of another host");
    let refused = |i: &Instance| i.status.as_ref().is_some_and(|s| s.message == words);
    w.until("pinned", "to be refused", refused).await?;
    let renamed = json!({"spec": {"displayName": null, "section": "nowhere"}});
    hosts
        .patch(&second, &PatchParams::default(), &Patch::Merge(renamed))
        .await?;
    w.until("pinned", "to be placed", is_scheduled).await?;
    let words = "False/SectionNotFound: section nowhere not found";
    wait_for("the section to be missed", SOON, look, |h| said(h) == words).await?;
    Ok(())
}

#[tokio::test]
async fn a_host_is_on_the_node_of_its_name() -> anyhow::Result<()> {
    let w = World::with_hosts("nodes", 1).await?;
    let name = w.nodes[0].host.clone();
    let nodes: Api<Node> = Api::all(w.admin.clone());
    let node: Node = serde_json::from_value(json!({"metadata": {"name": name}}))?;
    nodes.create(&PostParams::default(), &node).await?;
    let hosts: Api<Host> = Api::all(w.admin.clone());
    let look = async || hosts.get(&name).await;
    let is_there = |h: &Host| h.spec.node_name.as_deref() == Some(name.as_str());
    wait_for("the host's node to be known", SOON, look, is_there).await?;
    nodes.delete(&name, &DeleteParams::default()).await?;
    Ok(())
}

/// Waits until a User shows an access key id that is meant.
async fn until_keyed(
    w: &World,
    name: &str,
    limit: Duration,
    meant: impl Fn(&str) -> bool,
) -> anyhow::Result<User> {
    let users = w.api::<User>();
    let look = async || users.get(name).await;
    let has = |u: &User| u.status.as_ref().is_some_and(|s| meant(&s.access_key_id));
    wait_for("a user's keys", limit, look, has).await
}

/// The controller looks at keys once a minute: it may read a Secret by its name, not watch them all.
const NEXT_LOOK: Duration = SOON.saturating_add(Duration::from_mins(1));

#[tokio::test]
async fn a_user_without_keys_gets_some_and_others_when_they_were_deleted() -> anyhow::Result<()> {
    let w = World::with_hosts("keys", 0).await?;
    w.create::<User>("ann", json!({"type": "regular", "login": "ann"}))
        .await?;
    let user = until_keyed(&w, "ann", SOON, |id| !id.is_empty()).await?;
    let status = user.status.clone().unwrap();
    assert_eq!(said(&status.conditions, ACCEPTED), "True/Valid: ");
    let secrets: Api<Secret> = Api::namespaced(w.admin.clone(), &w.namespace);
    let made = secrets.get("user-ann").await?;
    let data = made.data.as_ref().unwrap();
    assert_eq!(data["accessKeyId"].0, status.access_key_id.as_bytes());
    assert_eq!(data["secretAccessKey"].0.len(), 40);
    assert_eq!(
        made.labels()[LABEL_CREDENTIALS],
        "true",
        "the gateway may read it"
    );
    assert_eq!(made.owner_references()[0].uid, user.uid().unwrap());

    // The controller's own writes bring it back to the user for a moment: that is not what is meant here.
    tokio::time::sleep(Duration::from_secs(3)).await;
    secrets.delete("user-ann", &DeleteParams::default()).await?;
    let old = &status.access_key_id;
    until_keyed(&w, "ann", NEXT_LOOK, |id| !id.is_empty() && id != old).await?;
    secrets.get("user-ann").await?;

    // They go with their user.
    w.delete::<User>("ann").await?;
    let look = async || secrets.get_opt("user-ann").await;
    wait_for("the keys to go", SOON, look, Option::is_none).await?;
    Ok(())
}

#[tokio::test]
async fn keys_that_a_user_names_are_waited_for_and_never_made() -> anyhow::Result<()> {
    let w = World::with_hosts("own-keys", 0).await?;
    let spec = json!({"type": "regular", "login": "bob", "credentialsSecret": "own"});
    w.create::<User>("bob", spec).await?;
    let refused = |u: &User| {
        accepted(u.status.as_ref().map(|s| json!(s))) == "False/SecretNotFound: secret own not found"
    };
    w.until("bob", "to miss the secret", refused).await?;
    let secrets: Api<Secret> = Api::namespaced(w.admin.clone(), &w.namespace);
    let own: Secret = serde_json::from_value(json!({
        "metadata": {"name": "own", "labels": {LABEL_CREDENTIALS: "true"}},
        "stringData": {"accessKeyId": "BOB", "secretAccessKey": "secret"},
    }))?;
    let own = secrets.create(&PostParams::default(), &own).await?;
    let user = until_keyed(&w, "bob", NEXT_LOOK, |id| id == "BOB").await?;
    assert_eq!(said(&user.status.unwrap().conditions, ACCEPTED), "True/Valid: ");
    assert_eq!(
        secrets.get("own").await?.resource_version(),
        own.resource_version()
    );
    assert!(secrets.get_opt("user-bob").await?.is_none());
    Ok(())
}

#[tokio::test]
async fn a_namespace_that_is_deleted_goes() -> anyhow::Result<()> {
    let w = World::with_hosts("namespace", 1).await?;
    w.running("single", 0).await?;
    w.create::<Instance>("unplaced", json!({"blank": true, "environment": "nowhere"}))
        .await?;
    let group = json!({"blank": true, "environment": "e", "memoryMiB": 64, "launch": {"min": 1, "max": 2}});
    w.create::<Instance>("group", group).await?;
    let launched = |i: &Instance| i.status.as_ref().is_some_and(|s| s.children.len() == 2);
    w.until("group", "to be launched", launched).await?;
    w.task(
        "t",
        &["single"],
        json!({"type": "execute_command", "params": {"command": "true"}}),
    )
    .await?;
    w.part("t", 0, 0).await?;
    w.create::<User>("ann", json!({"type": "regular", "login": "ann"}))
        .await?;

    let namespaces: Api<Namespace> = Api::all(w.admin.clone());
    namespaces.delete(&w.namespace, &DeleteParams::default()).await?;
    let instances = w.api::<Instance>();
    let look = async || -> kube::Result<Option<Namespace>> {
        // What agents do when they see a deletion.
        for instance in instances.list(&ListParams::default()).await? {
            let (meta, name) = (
                &instance.metadata,
                instance.metadata.name.clone().unwrap_or_default(),
            );
            let held = meta
                .finalizers
                .iter()
                .flatten()
                .any(|f| f == virtshell_crds::FINALIZER_DOMAIN);
            if meta.deletion_timestamp.is_some() && held && instance.spec.host.is_some() {
                w.nodes[0].release(&w.namespace, &name).await?;
            }
        }
        namespaces.get_opt(&w.namespace).await
    };
    wait_for("the namespace to be gone", SOON * 2, look, Option::is_none).await?;
    Ok(())
}
