//! Provisioners that depend on others: what is made, shared, waited for and passed on.

use kube::api::ListParams;
use serde_json::{Value, json};
use virtshell_crds::condition::{self, ACCEPTED, SCHEDULED};
use virtshell_crds::{Image, Instance, Phase, Provisioner, Task, TaskState};

use crate::world::{World, is_scheduled};

/// A world with provisioners: (name, what it depends on).
async fn world(stem: &str, provisioners: &[(&str, &[&str])]) -> anyhow::Result<World> {
    let w = World::with_hosts(stem, 1).await?;
    w.create::<Image>(
        "i",
        json!({"type": "disk", "downloadUrl": "http://127.0.0.1:9/i"}),
    )
    .await?;
    for (name, depends) in provisioners {
        let depends: Vec<Value> = depends.iter().map(|name| json!({"provisioner": name})).collect();
        let spec = json!({"image": "i", "memoryMiB": 64, "diskMiB": 64, "depends": depends, "builder": "https://x/r", "executor": "sh run"});
        w.create::<Provisioner>(name, spec).await?;
    }
    Ok(w)
}

async fn instance(w: &World, name: &str, provisioner: &str) -> anyhow::Result<Instance> {
    let spec =
        json!({"provisioner": provisioner, "environment": "e", "owner": "me", "hostType": "GeneralPurpose"});
    w.create(name, spec).await
}

fn says(type_: &'static str, reason: &'static str, message: &str) -> impl Fn(&Instance) -> bool {
    move |instance| {
        let status = instance.status.as_ref();
        let condition = status.and_then(|s| condition::find(&s.conditions, type_));
        condition.is_some_and(|c| c.reason == reason && c.message == message)
    }
}

/// Status and message of `Accepted`.
fn accepted(provisioner: &Provisioner) -> (&str, &str) {
    let status = provisioner.status.as_ref();
    let condition = status.and_then(|s| condition::find(&s.conditions, ACCEPTED));
    condition.map_or(("", ""), |c| (&c.status, &c.message))
}

#[tokio::test]
async fn what_is_missing_is_made_once_and_waited_for() -> anyhow::Result<()> {
    let w = world(
        "depends",
        &[
            ("web", &["db", "mq"]),
            ("db", &["disk"]),
            ("disk", &[]),
            ("mq", &[]),
        ],
    )
    .await?;
    instance(&w, "one", "web").await?;
    instance(&w, "two", "web").await?;
    // Depth first: the deepest is placed alone.
    w.until("disk", "to be made and placed", is_scheduled).await?;
    let waits = says(
        SCHEDULED,
        "WaitingForDependencies",
        "waits for instance disk (provisioner disk)",
    );
    let db = w.until("db", "to wait", waits).await?;
    assert_eq!(db.spec.owner.as_deref(), Some("me"));
    assert_eq!(db.spec.environment.as_deref(), Some("e"));
    let api = w.api::<Instance>();
    assert!(api.get_opt("mq").await?.is_none(), "in list order: db first");
    w.report("disk", "Running").await?;
    w.until("db", "to be placed", is_scheduled).await?;
    w.report("db", "Running").await?;
    w.until("mq", "to be made and placed", is_scheduled).await?;
    assert!(!is_scheduled(&api.get("one").await?));
    w.report("mq", "Running").await?;
    for name in ["one", "two"] {
        let placed = w.until(name, "to be placed", is_scheduled).await?;
        let resolved = placed.status.and_then(|s| s.resolved).unwrap();
        let met: Vec<_> = resolved
            .dependencies
            .iter()
            .map(|d| (d.provisioner.as_str(), d.name.as_str(), d.ipv4.as_str()))
            .collect();
        assert_eq!(met, [("db", "db", "10.0.0.9"), ("mq", "mq", "10.0.0.9")]);
    }
    assert_eq!(api.list(&ListParams::default()).await?.items.len(), 5);
    Ok(())
}

#[tokio::test]
async fn a_failure_is_passed_up_and_healed() -> anyhow::Result<()> {
    let w = world("depends-fail", &[("web", &["db"]), ("db", &[])]).await?;
    instance(&w, "one", "web").await?;
    w.task("t", &["one"], json!({"type": "create_instance"})).await?;
    w.until("db", "to be placed", is_scheduled).await?;
    w.report("db", "Failed").await?;
    let failed = says(
        SCHEDULED,
        "DependencyFailed",
        "dependency failed: instance db (provisioner db)",
    );
    let one = w.until("one", "to fail", failed).await?;
    assert_eq!(one.status.and_then(|s| s.phase), Some(Phase::Failed));
    let is_failed = |t: &Task| t.status.as_ref().and_then(|s| s.state) == Some(TaskState::Failed);
    let task = w.until("t", "to fail", is_failed).await?;
    assert_eq!(
        task.status.unwrap().log,
        "dependency failed: instance db (provisioner db)"
    );
    w.report("db", "Running").await?;
    w.until("one", "to be placed", is_scheduled).await?;
    Ok(())
}

#[tokio::test]
async fn a_cycle_is_refused_with_its_path_until_it_is_cut() -> anyhow::Result<()> {
    let w = world("depends-cycle", &[("a", &["b"]), ("b", &["c"]), ("c", &["b"])]).await?;
    instance(&w, "one", "a").await?;
    let refused = says(
        ACCEPTED,
        "DependencyCycle",
        "provisioner b depends on itself: b -> c -> b",
    );
    w.until("one", "to be refused", refused).await?;
    // Each that waits for itself says so; the one that leads there does not.
    for (name, said) in [
        ("a", ("True", "")),
        ("b", ("False", "provisioner b depends on itself: b -> c -> b")),
        ("c", ("False", "provisioner c depends on itself: c -> b -> c")),
    ] {
        w.until(name, "to say what it is", |p| accepted(p) == said)
            .await?;
    }
    assert_eq!(
        w.api::<Instance>()
            .list(&ListParams::default())
            .await?
            .items
            .len(),
        1
    );
    w.patch::<Provisioner>("c", json!({"spec": {"depends": [{"provisioner": "d"}]}}))
        .await?;
    let refused = says(ACCEPTED, "ProvisionerNotFound", "provisioner d not found");
    w.until("one", "to miss d", refused).await?;
    for name in ["b", "c"] {
        w.until(name, "to make sense again", |p| accepted(p) == ("True", ""))
            .await?;
    }
    // Whose name it is matters, too.
    w.create::<Provisioner>(
        "e",
        json!({"displayName": "d", "depends": [{"provisioner": "c"}]}),
    )
    .await?;
    let around = ("False", "provisioner c depends on itself: c -> d -> c");
    w.until("c", "to wait for itself", |p| accepted(p) == around)
        .await?;
    w.patch::<Provisioner>("e", json!({"spec": {"displayName": "f"}}))
        .await?;
    w.until("c", "to make sense again", |p| accepted(p) == ("True", ""))
        .await?;
    w.patch::<Provisioner>("c", json!({"spec": {"depends": []}}))
        .await?;
    w.until("c", "to be made and placed", is_scheduled).await?;
    Ok(())
}

#[tokio::test]
async fn a_name_that_is_taken_gives_way_to_the_next() -> anyhow::Result<()> {
    let w = world("depends-name", &[("web", &["db"]), ("db", &[])]).await?;
    w.create::<Instance>("db", json!({"blank": true, "environment": "e"}))
        .await?;
    instance(&w, "one", "web").await?;
    let name = virtshell_crds::names::object_name("db_2");
    let made = w.until(&name, "to be made and placed", is_scheduled).await?;
    assert_eq!(made.spec.display_name.as_deref(), Some("db_2"));
    assert_eq!(made.spec.provisioner.as_deref(), Some("db"));
    Ok(())
}
