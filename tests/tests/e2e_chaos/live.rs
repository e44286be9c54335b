//! Edits of a running guest: what reaches it at once, what waits for a restart, and what it sees of either.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use virtshell_crds::Instance;
use virtshell_tests::wait_for;

use crate::story::{LIMIT, Story, begin, domain, guest, is_ready, said, with};

/// Runs a command in a guest, by its agent.
async fn inside(story: &Story, name: &str, command: &str) -> Result<String> {
    story.host().in_guest(&domain(&story.get(name).await?)?, command)
}

/// Waits until the guest itself sees something.
async fn until_inside(story: &Story, name: &str, command: &str, expected: &str) -> Result<()> {
    wait_for(
        &format!("{command} in {name} to print {expected}"),
        LIMIT,
        async || inside(story, name, command).await,
        |seen| seen == expected,
    )
    .await
    .map(drop)
}

fn restart_required(instance: &Instance) -> Vec<String> {
    instance
        .status
        .as_ref()
        .map(|s| s.restart_required.clone())
        .unwrap_or_default()
}

fn is_converged(instance: &Instance) -> bool {
    is_ready(instance)
        && said(instance, "Converged").starts_with("True")
        && restart_required(instance).is_empty()
}

fn nic(name: &str, model: &str) -> Value {
    json!({"name": name, "network": "default", "model": model})
}

/// Guards: an edit reaches the running guest in place, at every field that can change live; the same QEMU runs
/// throughout.
#[tokio::test]
async fn edits_reach_a_running_guest() -> Result<()> {
    let Some(story) = begin().await? else {
        return Ok(());
    };
    let spec = with(
        guest(),
        json!({"maxCpus": 2, "memoryMiB": 160, "maxMemoryMiB": 256, "interfaces": [nic("eth0", "virtio")]}),
    );
    story.create("live", spec).await?;
    story.booted("live").await?;
    let pid = story.qemu("live").await?;
    let name = domain(&story.get("live").await?)?;
    let converged = async |what: &str| story.until("live", what, is_converged).await.map(drop);

    story.edit("live", json!({"memoryMiB": 200})).await?;
    converged("larger").await?;
    story
        .until_virsh(&format!("dommemstat {name}"), |seen| {
            seen.contains(&format!("actual {}", 200 << 10))
        })
        .await?;

    story.edit("live", json!({"cpus": 2})).await?;
    converged("with two CPUs").await?;
    until_inside(
        &story,
        "live",
        "ls -d /sys/devices/system/cpu/cpu[0-9] | wc -l",
        "2",
    )
    .await?;

    story.edit("live", json!({"diskMiB": 300})).await?;
    converged("with a larger root").await?;
    until_inside(
        &story,
        "live",
        "cat /sys/block/vda/size",
        &(300 * 2048).to_string(),
    )
    .await?;

    // A disk comes with its name, goes, and comes back with what was written to it.
    let find =
        "for d in /sys/block/vd*; do [ \"$(cat $d/serial 2>/dev/null)\" = data ] && basename $d; done; true";
    story
        .edit("live", json!({"disks": [{"name": "data", "sizeMiB": 16}]}))
        .await?;
    converged("with a disk").await?;
    let disk = wait_for(
        "the disk in the guest",
        LIMIT,
        async || inside(&story, "live", find).await,
        |d| !d.is_empty(),
    )
    .await?;
    inside(&story, "live", &format!("printf kept > /dev/{disk}; sync")).await?;
    story
        .edit("live", json!({"disks": [{"name": "data", "sizeMiB": 32}]}))
        .await?;
    converged("with a larger disk").await?;
    until_inside(
        &story,
        "live",
        &format!("cat /sys/block/{disk}/size"),
        &(32 * 2048).to_string(),
    )
    .await?;
    story.edit("live", json!({"disks": []})).await?;
    converged("without the disk").await?;
    until_inside(&story, "live", find, "").await?;
    let status = story.get("live").await?.status.context("a status")?;
    ensure!(
        status.disks.iter().any(|d| d.name == "data" && d.detached),
        "{:?}",
        status.disks
    );
    story
        .edit("live", json!({"disks": [{"name": "data", "sizeMiB": 32}]}))
        .await?;
    converged("with the disk again").await?;
    let disk = wait_for(
        "the disk in the guest",
        LIMIT,
        async || inside(&story, "live", find).await,
        |d| !d.is_empty(),
    )
    .await?;
    until_inside(&story, "live", &format!("head -c 4 /dev/{disk}"), "kept").await?;

    ensure!(story.qemu("live").await? == pid, "one QEMU throughout");
    story.end().await
}

/// Guards: interfaces come and go while the guest runs, and one that somebody took away comes back.
#[tokio::test]
async fn interfaces_of_a_running_guest_come_and_go() -> Result<()> {
    let Some(story) = begin().await? else {
        return Ok(());
    };
    let spec = with(guest(), json!({"interfaces": [nic("eth0", "virtio")]}));
    story.create("live", spec).await?;
    story.booted("live").await?;
    let pid = story.qemu("live").await?;
    let name = domain(&story.get("live").await?)?;
    let converged = async |what: &str| story.until("live", what, is_converged).await.map(drop);
    let cards = "ls /sys/class/net | grep -c eth; true";
    story
        .edit(
            "live",
            json!({"interfaces": [nic("eth0", "virtio"), nic("eth1", "virtio")]}),
        )
        .await?;
    converged("with two interfaces").await?;
    until_inside(&story, "live", cards, "2").await?;
    let status = story.get("live").await?.status.context("a status")?;
    let mac = &status
        .interfaces
        .iter()
        .find(|i| i.name == "eth1")
        .context("eth1")?
        .mac;
    story.virsh(&format!("detach-interface {name} network --mac {mac} --live"))?;
    story.event("live", "DomainChanged").await?;
    converged("with two interfaces again").await?;
    story
        .edit("live", json!({"interfaces": [nic("eth0", "virtio")]}))
        .await?;
    converged("with one interface").await?;
    until_inside(&story, "live", cards, "1").await?;

    ensure!(story.qemu("live").await? == pid, "one QEMU throughout");
    story.end().await
}

/// Guards: what cannot change while a guest runs is listed, is not done, and is there after a restart; and devices stay
/// where they were.
#[tokio::test]
async fn what_cannot_change_now_waits_for_a_restart() -> Result<()> {
    let Some(story) = begin().await? else {
        return Ok(());
    };
    let disks = json!([{"name": "one", "sizeMiB": 16}, {"name": "two", "sizeMiB": 16}]);
    story
        .create("later", with(guest(), json!({"disks": disks})))
        .await?;
    story.booted("later").await?;
    let pid = story.qemu("later").await?;
    let name = domain(&story.get("later").await?)?;
    let place =
        format!("dumpxml {name} | grep -A 12 disk-two | grep -o \"<target dev='[a-z]*'\\|<address[^>]*\"");
    let before = story.virsh(&place)?;

    let edit = json!({"cpus": 2, "maxCpus": 2, "maxMemoryMiB": 256, "hostname": "renamed", "disks": [{"name": "two", "sizeMiB": 16}],
        "consoles": {"serial": true, "vnc": {"listen": "127.0.0.1"}}});
    story.edit("later", edit).await?;
    let expected = ["consoles", "cpus", "hostname", "maxCpus", "maxMemoryMiB"];
    let (waiting, _) = story
        .until("later", "waiting for a restart", |i| {
            is_ready(i) && restart_required(i) == expected
        })
        .await?;
    ensure!(
        said(&waiting, "Converged").starts_with("False RestartRequired"),
        "{}",
        said(&waiting, "Converged")
    );
    tokio::time::sleep(Duration::from_secs(2)).await;
    ensure!(story.qemu("later").await? == pid, "not before it is asked for");

    story
        .edit("later", json!({"restartToken": "now", "restartMode": "Force"}))
        .await?;
    story.until("later", "restarted", is_converged).await?;
    ensure!(story.qemu("later").await? != pid);
    ensure!(
        story.virsh(&place)? == before,
        "the second disk stays where it was: {before}"
    );
    story.booted("later").await?;
    until_inside(&story, "later", "hostname", "renamed").await?;
    until_inside(&story, "later", "nproc", "2").await?;
    story.end().await
}
