//! Whose a domain is.

use anyhow::{Context, Result, ensure};
use kube::ResourceExt;
use kube::api::{DeleteParams, Patch, PatchParams};
use serde_json::json;

use crate::story::{HOST, begin, blank, domain, said, with};

/// Guards: a domain without our metadata is never touched, also not when it has our name, also not when our Instance is
/// deleted; the reader is told which domain is in the way.
#[tokio::test]
async fn a_foreign_domain_with_our_name_blocks_and_is_not_touched() -> Result<()> {
    let Some(story) = begin().await? else {
        return Ok(());
    };
    story
        .create("taken", with(blank(), json!({"powerState": "Stopped"})))
        .await?;
    let name = domain(&story.ready("taken").await?)?;
    // The agent repairs within milliseconds, so it must not look while the domains change places.
    story.host().signal_agent("STOP")?;
    let xml = format!(
        "<domain type='qemu'><name>{name}</name><memory unit='MiB'>32</memory><os><type>hvm</type></os></domain>"
    );
    let swapped = story.host().sh(&format!(
        "virsh -q undefine {name} && echo \"{xml}\" >/run/foreign.xml && virsh -q define /run/foreign.xml && virsh -q start {name}"
    ));
    story.host().signal_agent("CONT")?;
    swapped?;
    let foreign = story.virsh(&format!("dumpxml {name}"))?;

    story.edit("taken", json!({"powerState": "Running"})).await?;
    let (blocked, _) = story
        .until("taken", "blocked", |i| {
            said(i, "Ready").starts_with("False DomainNameTaken")
        })
        .await?;
    ensure!(
        said(&blocked, "Ready").contains(&name),
        "{}",
        said(&blocked, "Ready")
    );
    let told = story.event("taken", "DomainNameTaken").await?;
    ensure!(told.contains(&name), "{told}");
    story
        .host_until(HOST, "listing it as foreign", |host| {
            host.status
                .iter()
                .any(|s| s.foreign_domains.iter().any(|d| d.name == name))
        })
        .await?;
    story.delete("taken").await?;
    ensure!(
        story.virsh(&format!("dumpxml {name}"))? == foreign,
        "it is as it was"
    );
    story.virsh(&format!("destroy {name}"))?;
    story.virsh(&format!("undefine {name}"))?;
    story.end().await
}

/// Guards: a domain whose Instance is gone is listed, runs on, and is neither removed nor started again, by libvirt's
/// autostart neither.
#[tokio::test]
async fn a_domain_whose_instance_was_abandoned_is_listed_as_orphan() -> Result<()> {
    let Some(story) = begin().await? else {
        return Ok(());
    };
    story
        .create("left", with(blank(), json!({"autostart": true})))
        .await?;
    let instance = story.ready("left").await?;
    let (name, uid) = (domain(&instance)?, instance.uid().context("a uid")?);
    let qemu = story.qemu("left").await?;
    ensure!(story.virsh("list --all --autostart --name")?.contains(&name));

    // The agent must not be the one that removes the finalizer: an administrator gives the Instance up while it is away.
    story.host().signal_agent("KILL")?;
    story.instances.delete("left", &DeleteParams::default()).await?;
    let refused = json!({"metadata": {"finalizers": null}});
    let patch = PatchParams::default();
    let plain = story
        .instances
        .patch("left", &patch, &Patch::Merge(&refused))
        .await;
    ensure!(plain.is_err(), "without the annotation the finalizer stays");
    let abandoned = json!({"metadata": {"annotations": {"virtshell.io/abandon": uid}, "finalizers": null}});
    story
        .instances
        .patch("left", &patch, &Patch::Merge(&abandoned))
        .await?;
    ensure!(story.instances.get_opt("left").await?.is_none());

    story.host().start_agent()?;
    story
        .host_until(HOST, "listing the orphan", |host| {
            host.status
                .iter()
                .any(|s| s.orphan_domains.iter().any(|d| d.name == name && d.uid == uid))
        })
        .await?;
    ensure!(story.all_qemus()?.contains(&qemu), "it runs on");
    ensure!(
        !story.virsh("list --all --autostart --name")?.contains(&name),
        "autostart is cleared"
    );
    story.virsh(&format!("destroy {name}"))?;
    tokio::time::sleep(std::time::Duration::from_secs(2)).await;
    ensure!(
        story.virsh(&format!("domstate {name}"))? == "shut off",
        "it is not started"
    );
    story.virsh(&format!("undefine {name}"))?;
    story
        .host_until(HOST, "without orphans", |host| {
            host.status.iter().all(|s| s.orphan_domains.is_empty())
        })
        .await?;
    story.end().await
}

/// Guards: with a domain goes what libvirt keeps of it, which would be in the way of a later one of that name: saved memory
/// and snapshots, also those that VirtShell did not make. Seen to fail: an undefine that only asks for NVRAM is refused for ever.
#[tokio::test]
async fn a_deleted_instance_leaves_nothing_in_libvirt() -> Result<()> {
    let Some(story) = begin().await? else {
        return Ok(());
    };
    story.create("saved", blank()).await?;
    let name = domain(&story.ready("saved").await?)?;
    let kept = |what: &str| {
        let line = format!("find /var/lib/libvirt/qemu/{what} -name '*{name}*'");
        story.host().sh(&line)
    };
    // The agent would start it again.
    story.host().signal_agent("STOP")?;
    let saved = story
        .virsh(&format!("snapshot-create-as {name} before"))
        .and_then(|_| story.virsh(&format!("managedsave {name}")));
    let asked = story.instances.delete("saved", &DeleteParams::default()).await;
    let (memory, snapshots) = (kept("save")?, kept("snapshot")?);
    story.host().signal_agent("CONT")?;
    saved?;
    asked?;
    ensure!(
        !memory.is_empty() && !snapshots.is_empty(),
        "memory: {memory}, snapshots: {snapshots}"
    );
    story.clear().await?;
    ensure!(!story.domains()?.contains(&name));
    let left = [kept("save")?, kept("snapshot")?].concat();
    ensure!(left.is_empty(), "{left}");
    story.end().await
}
