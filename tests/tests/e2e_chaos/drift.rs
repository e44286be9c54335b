//! An administrator's hand: domains stopped, suspended, undefined, redefined; files and networks removed.

use anyhow::{Result, ensure};
use serde_json::json;
use virtshell_crds::PowerState;

use crate::story::{begin, blank, domain, is_ready, said, with};

/// Guards: what was done to a running domain is heard by event, repaired, and told.
#[tokio::test]
async fn a_destroyed_and_a_suspended_domain_run_again() -> Result<()> {
    let Some(story) = begin().await? else {
        return Ok(());
    };
    story.create("drift", blank()).await?;
    let name = domain(&story.ready("drift").await?)?;
    let first = story.qemu("drift").await?;

    story.virsh(&format!("destroy {name}"))?;
    story.event("drift", "DomainStopped").await?;
    story.ready("drift").await?;
    let second = story.qemu("drift").await?;
    ensure!(second != first, "it was started again");

    story.virsh(&format!("suspend {name}"))?;
    story.event("drift", "DomainSuspended").await?;
    story.ready("drift").await?;
    ensure!(story.virsh(&format!("domstate {name}"))? == "running");
    ensure!(story.qemu("drift").await? == second, "resumed, not restarted");
    story.end().await
}

/// Guards: a running domain that lost its definition gets it back without a restart; one that is gone is made again,
/// on the disk that it had.
#[tokio::test]
async fn an_undefined_domain_is_defined_again() -> Result<()> {
    let Some(story) = begin().await? else {
        return Ok(());
    };
    story.create("drift", blank()).await?;
    let name = domain(&story.ready("drift").await?)?;
    let pid = story.qemu("drift").await?;
    let uuid = story.virsh(&format!("domuuid {name}"))?;
    let disk = "stat -c %i /srv/virtshell/vm/*/root.qcow2";
    let inode = story.host().sh(disk)?;

    story.virsh(&format!("undefine {name}"))?;
    story.event("drift", "DomainUndefined").await?;
    story.ready("drift").await?;
    ensure!(
        story.virsh("list --persistent --name")?.contains(&name),
        "it is persistent again"
    );
    ensure!(story.qemu("drift").await? == pid, "and was not restarted");

    story
        .host()
        .sh(&format!("virsh -q undefine {name} && virsh -q destroy {name}"))?;
    story
        .until("drift", "running again", |i| {
            is_ready(i) && i.status.as_ref().and_then(|s| s.power_state) == Some(PowerState::Running)
        })
        .await?;
    let again = story.qemu("drift").await?;
    ensure!(again != pid && story.virsh(&format!("domuuid {name}"))? == uuid);
    ensure!(story.host().sh(disk)? == inode, "on the disk that it had");
    story.end().await
}

/// Guards: a definition that somebody edited is not what was asked; it is put right, and told.
#[tokio::test]
async fn a_redefined_domain_gets_its_memory_back() -> Result<()> {
    let Some(story) = begin().await? else {
        return Ok(());
    };
    story.create("drift", blank()).await?;
    let name = domain(&story.ready("drift").await?)?;
    let pid = story.qemu("drift").await?;
    let memory = format!("dumpxml --inactive {name} | grep -E '<(memory|currentMemory)'");
    let asked = story.virsh(&memory)?;
    let redefine = format!(
        "virsh -q dumpxml --inactive {name} | sed -E 's/>32768</>65536</' >/run/edited.xml && virsh -q define /run/edited.xml"
    );

    // While it runs, and while it is stopped.
    story.host().sh(&redefine)?;
    story.event("drift", "DomainEdited").await?;
    story.until_virsh(&memory, |seen| seen == asked).await?;
    story.ready("drift").await?;
    ensure!(story.qemu("drift").await? == pid, "repaired without a restart");

    story.edit("drift", json!({"powerState": "Stopped"})).await?;
    story.ready("drift").await?;
    story.host().sh(&redefine)?;
    story.until_virsh(&memory, |seen| seen == asked).await?;
    story.end().await
}

/// Guards: data that is gone is not replaced by an empty disk; the reader is told, and what was put back is used.
#[tokio::test]
async fn a_removed_disk_is_told_and_one_put_back_is_used() -> Result<()> {
    let Some(story) = begin().await? else {
        return Ok(());
    };
    story
        .create("drift", with(blank(), json!({"powerState": "Stopped"})))
        .await?;
    story.ready("drift").await?;
    let disk = story.host().sh("ls /srv/virtshell/vm/*/root.qcow2")?;
    story.host().sh(&format!("mv {disk} /srv/virtshell/aside"))?;

    story.edit("drift", json!({"powerState": "Running"})).await?;
    let (told, _) = story
        .until("drift", "without its disk", |i| {
            said(i, "Ready").starts_with("False DiskMissing")
        })
        .await?;
    ensure!(
        said(&told, "Ready").contains("put it back"),
        "{}",
        said(&told, "Ready")
    );
    story.event("drift", "DiskMissing").await?;
    ensure!(
        !story.host().try_sh(&format!("test -e {disk}"))?.success,
        "no disk was made in its place"
    );

    story.host().sh(&format!("mv /srv/virtshell/aside {disk}"))?;
    story
        .edit("drift", json!({"description": "the disk is back"}))
        .await?;
    story.ready("drift").await?;
    story.end().await
}

/// Guards: a network that an administrator removed is named as what is missing; a running guest stays up, and a start
/// succeeds when the network is back.
#[tokio::test]
async fn a_removed_network_is_named_and_its_return_heals() -> Result<()> {
    let Some(story) = begin().await? else {
        return Ok(());
    };
    for name in ["runs", "starts"] {
        story.create(name, blank()).await?;
        story.ready(name).await?;
    }
    let pid = story.qemu("runs").await?;
    story.edit("starts", json!({"powerState": "Stopped"})).await?;
    story.ready("starts").await?;
    story.host().sh("virsh -q net-dumpxml default >/run/default.xml && virsh -q net-destroy default && virsh -q net-undefine default")?;

    story.edit("starts", json!({"powerState": "Running"})).await?;
    let (told, _) = story
        .until("starts", "without its network", |i| {
            said(i, "Ready").starts_with("False NetworkMissing")
        })
        .await?;
    ensure!(
        said(&told, "Ready").contains("default"),
        "{}",
        said(&told, "Ready")
    );
    story.event("starts", "NetworkMissing").await?;
    ensure!(story.qemu("runs").await? == pid, "the one that runs stays up");

    story.host().sh("virsh -q net-define /run/default.xml && virsh -q net-autostart default && virsh -q net-start default")?;
    story.ready("starts").await?;
    ensure!(story.qemu("runs").await? == pid);
    story.end().await
}
