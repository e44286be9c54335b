//! What hosts, sections, environments and groups show of others, kept up to date as these come, change and go.

use kube::ResourceExt;
use kube::api::DeleteParams;
use serde_json::json;
use virtshell_crds::host::Allocated;
use virtshell_crds::{Environment, Group, Host, Instance, Section, User};
use virtshell_tests::wait::SOON;
use virtshell_tests::wait_for;

use crate::world::World;

/// Waits until a Section and the Environment `f` have these hosts, by the names people know.
async fn until_listed(
    w: &World,
    section: &str,
    of_section: &[&str],
    of_environment: &[&str],
) -> anyhow::Result<()> {
    let sections = w.sections();
    let has = |s: &Section| s.status.as_ref().is_some_and(|s| s.hosts == of_section);
    let what = format!("the section to have {of_section:?}");
    let look = async || sections.get(section).await;
    let seen = wait_for(&what, SOON, look, has).await?;
    let status = seen.status.unwrap();
    assert_eq!(status.observed_generation, seen.metadata.generation);
    let what = format!("to have {of_environment:?}");
    let has = |e: &Environment| e.status.as_ref().is_some_and(|s| s.hosts == of_environment);
    let seen = w.until("f", &what, has).await?;
    assert_eq!(seen.status.unwrap().observed_generation, seen.metadata.generation);
    Ok(())
}

#[tokio::test]
async fn a_section_and_an_environment_list_their_hosts() -> anyhow::Result<()> {
    let w = World::with_hosts("hosts-of", 2).await?;
    let section = w.section("s", json!({})).await?;
    let (one, two) = (w.nodes[0].host.as_str(), w.nodes[1].host.as_str());
    let spec = json!({"section": section, "hosts": [two, "nobody"]});
    w.create::<Environment>("f", spec).await?;
    until_listed(&w, &section, &[], &[two]).await?;
    w.edit_host(0, json!({"section": section})).await?;
    until_listed(&w, &section, &[one], &[one, two]).await?;
    // The names people know are shown, in order.
    let renamed = format!("{two}-z");
    w.edit_host(0, json!({"displayName": renamed})).await?;
    until_listed(&w, &section, &[&renamed], &[two, &renamed]).await?;
    // In both ways, and shown once.
    w.edit_host(1, json!({"section": section})).await?;
    until_listed(&w, &section, &[two, &renamed], &[two, &renamed]).await?;
    w.hosts().delete(one, &DeleteParams::default()).await?;
    until_listed(&w, &section, &[two], &[two]).await?;
    w.edit_host(1, json!({"section": null})).await?;
    until_listed(&w, &section, &[], &[two]).await?;
    w.patch::<Environment>("f", json!({"spec": {"hosts": []}}))
        .await?;
    until_listed(&w, &section, &[], &[]).await
}

#[tokio::test]
async fn a_host_and_an_environment_count_their_instances() -> anyhow::Result<()> {
    let w = World::with_hosts("counts", 2).await?;
    let hosts = w.hosts();
    let counted = async |name: &str, instances: i32, memory_mib: i64, disk_mib: i64| {
        let expected = Allocated {
            cpus: instances,
            memory_mib,
            disk_mib,
            instances,
        };
        let look = async || hosts.get(name).await;
        let has = |h: &Host| h.status.as_ref().and_then(|s| s.allocated.as_ref()) == Some(&expected);
        wait_for("what is allocated", SOON, look, has).await
    };
    let counted_by_environment = async |count: i32| {
        let has = |e: &Environment| e.status.as_ref().is_some_and(|s| s.instances == Some(count));
        w.until("e", &format!("to count {count}"), has).await
    };
    let (first, second) = (&w.nodes[0].host, &w.nodes[1].host);
    for name in ["a", "b"] {
        w.running(name, 0).await?;
    }
    w.running("c", 1).await?;
    // A pin is no place: it has no room, and takes none.
    let pinned = json!({"blank": true, "environment": "e", "host": second, "memoryMiB": 100_000});
    w.create::<Instance>("refused", pinned).await?;
    counted(first, 2, 128, 128).await?;
    counted(second, 1, 64, 64).await?;
    counted_by_environment(4).await?;
    w.patch::<Instance>("a", json!({"spec": {"memoryMiB": 256, "diskMiB": 100}}))
        .await?;
    counted(first, 2, 64 + 256, 64 + 100).await?;
    w.remove("a", 0).await?;
    counted(first, 1, 64, 64).await?;
    counted_by_environment(3).await?;
    w.remove("b", 0).await?;
    counted(first, 0, 0, 0).await?;
    counted(second, 1, 64, 64).await?;
    counted_by_environment(2).await?;
    Ok(())
}

#[tokio::test]
async fn a_group_lists_its_members() -> anyhow::Result<()> {
    let w = World::with_hosts("members", 0).await?;
    let user = json!({"type": "regular", "login": "x"});
    let uid = async |name: &str| -> anyhow::Result<String> {
        Ok(w.api::<User>().get(name).await?.uid().unwrap_or_default())
    };
    let listed = async |members: &[(&str, &str)]| {
        let has = |g: &Group| {
            let members_of = g.status.iter().flat_map(|s| &s.members);
            let seen: Vec<_> = members_of.map(|m| (m.name.as_str(), m.uid.as_str())).collect();
            seen == members
        };
        w.until("g", &format!("to have {members:?}"), has).await
    };
    // Whom it names may come later.
    w.create::<Group>("g", json!({"displayName": "team", "users": ["zoe"]}))
        .await?;
    listed(&[("zoe", "")]).await?;
    w.create::<User>("zoe", user.clone()).await?;
    let zoe = uid("zoe").await?;
    listed(&[("zoe", &zoe)]).await?;
    // A user may name the group instead.
    let mut joins = user.clone();
    joins["groups"] = json!(["team"]);
    w.create::<User>("ann", joins).await?;
    let ann = uid("ann").await?;
    listed(&[("ann", &ann), ("zoe", &zoe)]).await?;
    w.patch::<User>("ann", json!({"spec": {"groups": []}})).await?;
    listed(&[("zoe", &zoe)]).await?;
    w.patch::<Group>("g", json!({"spec": {"users": [ann]}})).await?;
    let seen = listed(&[("ann", &ann)]).await?;
    assert_eq!(seen.status.unwrap().observed_generation, seen.metadata.generation);
    w.delete::<User>("ann").await?;
    listed(&[(&ann, "")]).await?;
    Ok(())
}
