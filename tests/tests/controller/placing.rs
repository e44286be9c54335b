//! Where Instances go after what happened meanwhile: room became free, or the controller that bound them died.

use k8s_openapi::api::core::v1::Event;
use kube::Api;
use kube::api::{DeleteParams, ListParams, ObjectList, Patch, PatchParams};
use serde_json::json;
use virtshell_crds::condition::{self, OVERCOMMITTED};
use virtshell_crds::{Environment, FINALIZER_DOMAIN, Host, Instance, MANAGER_CONTROLLER};
use virtshell_tests::identity::SYSTEM;
use virtshell_tests::wait::SOON;
use virtshell_tests::{ControlPlane, wait_for};

use crate::world::{World, is_scheduled};

#[tokio::test]
async fn room_that_becomes_free_goes_to_those_who_wait() -> anyhow::Result<()> {
    let w = World::with_hosts("room", 2).await?;
    let instances = w.api::<Instance>();
    let placed = async |count: usize| {
        let look = async || {
            let all = instances.list(&ListParams::default()).await?;
            kube::Result::<usize>::Ok(all.iter().filter(|i| is_scheduled(i)).count())
        };
        wait_for(&format!("{count} to be placed"), SOON, look, |seen| {
            *seen == count
        })
        .await
    };
    // Each takes a whole host.
    let spec = json!({"blank": true, "environment": "e", "memoryMiB": 8000});
    for name in ["a", "b", "c", "d", "e"] {
        w.create::<Instance>(name, spec.clone()).await?;
    }
    placed(2).await?;
    // Both hosts at once; and a small one of them alone, beside a big one that is older.
    let there = instances.list(&ListParams::default()).await?;
    for name in there
        .iter()
        .filter(|i| is_scheduled(i))
        .filter_map(|i| i.metadata.name.as_deref())
    {
        instances.delete(name, &DeleteParams::default()).await?;
        let host = instances.get(name).await?.spec.host.unwrap_or_default();
        let node = w.nodes.iter().find(|node| node.host == host);
        node.unwrap().release(&w.namespace, name).await?;
    }
    placed(2).await?;
    let small = json!({"blank": true, "environment": "e", "memoryMiB": 4000});
    w.create::<Instance>("small", small).await?;
    let refused = |i: &Instance| i.status.as_ref().is_some_and(|s| s.message.starts_with("0/"));
    w.until("small", "to be refused", refused).await?;
    let there = instances.list(&ListParams::default()).await?;
    let shrinks = there.iter().find(|i| is_scheduled(i)).unwrap();
    w.patch::<Instance>(
        shrinks.metadata.name.as_deref().unwrap(),
        json!({"spec": {"memoryMiB": 2000}}),
    )
    .await?;
    w.until("small", "to be placed", is_scheduled).await?;
    Ok(())
}

#[tokio::test]
async fn an_edit_beyond_what_its_host_has_is_made_and_said() -> anyhow::Result<()> {
    let w = World::with_hosts("overcommit", 1).await?;
    let spec = json!({"blank": true, "environment": "e", "memoryMiB": 4000, "diskMiB": 64});
    for name in ["a", "b"] {
        w.create::<Instance>(name, spec.clone()).await?;
        w.until(name, "to be placed", is_scheduled).await?;
    }
    let hosts: Api<Host> = Api::all(w.admin.clone());
    let look = async || hosts.get(&w.nodes[0].host).await;
    let is_over = |host: &Host| {
        let status = host.status.as_ref();
        status.is_some_and(|s| condition::is_true(&s.conditions, OVERCOMMITTED))
    };
    w.patch::<Instance>("a", json!({"spec": {"memoryMiB": 6000}}))
        .await?;
    wait_for("the host to say so", SOON, look, is_over).await?;
    let words = format!(
        "this edit is more than host {} has left: its Instances take 10000 MiB of memory (it has 8192 MiB)",
        w.nodes[0].host
    );
    let events: Api<Event> = w.api();
    let look_at_events = async || events.list(&ListParams::default()).await;
    let is_told = |list: &ObjectList<Event>| list.iter().any(|e| e.message.as_ref() == Some(&words));
    wait_for("an Event that tells it", SOON, look_at_events, is_told).await?;
    // Nothing more goes there until it is undone.
    let small = json!({"blank": true, "environment": "e", "memoryMiB": 64, "diskMiB": 64});
    w.create::<Instance>("small", small).await?;
    let refused = |i: &Instance| {
        let message = i.status.as_ref().map(|s| s.message.as_str());
        message.is_some_and(|m| m.ends_with("1 not enough memory (need 64 MiB, most free -1808 MiB)"))
    };
    w.until("small", "to be refused", refused).await?;
    w.patch::<Instance>("a", json!({"spec": {"memoryMiB": 4000}}))
        .await?;
    w.until("small", "to be placed", is_scheduled).await?;
    wait_for("the host to have enough", SOON, look, |host| !is_over(host)).await?;
    Ok(())
}

#[tokio::test]
async fn a_binding_whose_controller_died_before_it_told_the_node_is_made_anew() -> anyhow::Result<()> {
    let w = World::with_hosts("half-bound", 2).await?;
    let (unfit, fit) = (&w.nodes[0].host, &w.nodes[1].host);
    let hosts: Api<Host> = Api::all(w.admin.clone());
    let disable = Patch::Merge(json!({"spec": {"enabled": false}}));
    hosts.patch(unfit, &PatchParams::default(), &disable).await?;
    // Their Environment is not there yet, so the controller that runs leaves them as they are.
    let spec = json!({"blank": true, "environment": "later", "memoryMiB": 64});
    w.create::<Instance>("chosen", spec.clone()).await?;
    let mut pinned = spec;
    pinned["host"] = json!(unfit);
    w.create::<Instance>("pinned", pinned).await?;
    let account = ControlPlane::shared()?
        .account(SYSTEM, "virtshell-controller")
        .await?;
    let as_controller: Api<Instance> = Api::namespaced(account.client, &w.namespace);
    let bind = Patch::Merge(json!({"metadata": {"finalizers": [FINALIZER_DOMAIN]}, "spec": {"host": unfit}}));
    let params = PatchParams {
        field_manager: Some(MANAGER_CONTROLLER.to_owned()),
        ..PatchParams::default()
    };
    for name in ["chosen", "pinned"] {
        as_controller.patch(name, &params, &bind).await?;
    }
    w.create::<Environment>("later", json!({"hosts": [unfit, fit]}))
        .await?;
    let chosen = w.until("chosen", "to be placed", is_scheduled).await?;
    assert_eq!(chosen.spec.host.as_ref(), Some(fit));
    let words = format!("host {unfit}: disabled");
    let refused = |i: &Instance| i.status.as_ref().is_some_and(|s| s.message == words);
    let pinned = w.until("pinned", "to be refused", refused).await?;
    assert_eq!(pinned.spec.host.as_ref(), Some(unfit));
    Ok(())
}
