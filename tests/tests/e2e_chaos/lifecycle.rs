//! Ways through a machine's life that only a real libvirt and a moment of bad luck show.

use anyhow::{Context, Result, ensure};
use kube::Api;
use kube::api::{DeleteParams, PostParams};
use serde_json::json;
use virtshell_crds::Image;
use virtshell_tests::farm::{IMAGE, NAMESPACE};
use virtshell_tests::wait_for;

use crate::story::{LIMIT, Story, begin, blank, domain, guest, is_ready, with};

/// How often libvirt has started a domain, by its log of it.
fn starts(story: &Story, domain: &str) -> Result<usize> {
    let log = format!("grep -c 'starting up libvirt' /var/log/libvirt/qemu/{domain}.log");
    Ok(story.host().sh(&log)?.trim().parse()?)
}

/// Guards: a restart token is done once, also by an agent that is killed between the stop and the start.
#[tokio::test]
async fn a_restart_that_kills_the_agent_in_between_happens_once() -> Result<()> {
    let Some(story) = begin().await? else {
        return Ok(());
    };
    story.create("again", blank()).await?;
    let name = domain(&story.ready("again").await?)?;
    let old = story.qemu("again").await?;
    let agent = story.host().folder().join("run/agent");
    story.host().sh(&format!(
        "(while kill -0 {old} 2>/dev/null; do sleep 0.002; done; kill -9 $(cut -d ' ' -f 1 {}); touch /run/in-between) >/dev/null 2>&1 &",
        agent.display()
    ))?;
    story.edit("again", json!({"restartToken": "once"})).await?;
    let look = async || story.host().try_sh("rm /run/in-between").map(|done| done.success);
    wait_for("the agent to be killed", LIMIT, look, |killed| *killed).await?;
    // And once more, when all is done: what was restarted is not restarted by the next one either.
    for _ in 0..2 {
        story.host().start_agent()?;
        let restarted = |i: &virtshell_crds::Instance| {
            let done = i.status.as_ref().map(|s| s.last_restart_token.as_str());
            is_ready(i) && done == Some("once")
        };
        story.until("again", "restarted", restarted).await?;
        ensure!(story.qemu("again").await? != old, "it is another process");
        ensure!(starts(&story, &name)? == 2, "{} starts", starts(&story, &name)?);
        story.host().signal_agent("KILL")?;
    }
    story.host().start_agent()?;
    story.end().await
}

/// Guards: what hangs on a definition goes with it: libvirt refuses to undefine a domain that has a saved memory image or
/// snapshots, unless it is told to take them along.
#[tokio::test]
async fn a_saved_domain_with_snapshots_goes_with_all_of_it() -> Result<()> {
    let Some(story) = begin().await? else {
        return Ok(());
    };
    story
        .create("saved", with(blank(), json!({"powerState": "Stopped"})))
        .await?;
    let name = domain(&story.ready("saved").await?)?;
    story.host().signal_agent("KILL")?;
    story.host().sh(&format!(
        "virsh -q dumpxml {name} >/run/domain.xml
         (echo '<domainsnapshot><name>before</name><state>shutoff</state><creationTime>1</creationTime>'; cat /run/domain.xml
          echo '</domainsnapshot>') >/run/snapshot.xml
         virsh -q snapshot-create {name} /run/snapshot.xml --redefine
         mkdir -p /var/lib/libvirt/qemu/save && touch /var/lib/libvirt/qemu/save/{name}.save"
    ))?;
    ensure!(
        story
            .virsh(&format!("snapshot-list {name} --name"))?
            .contains("before")
    );
    let everywhere = DeleteParams::default();
    story.instances.delete("saved", &everywhere).await?;
    story.host().start_agent()?;
    let gone = async || story.instances.get_opt("saved").await;
    wait_for("saved to be gone", LIMIT, gone, Option::is_none).await?;
    let left =
        format!("find /var/lib/libvirt/qemu /etc/libvirt/qemu -name '*{name}*' -not -path '*/channel/*'");
    ensure!(story.host().sh(&left)?.is_empty(), "{}", story.host().sh(&left)?);
    story.end().await
}

/// Guards: disks that are to be retained outlive their Instance, and nothing else of it does.
#[tokio::test]
async fn retained_disks_stay_when_their_instance_goes() -> Result<()> {
    let Some(story) = begin().await? else {
        return Ok(());
    };
    let spec = json!({"deletionPolicy": "RetainDisks", "disks": [{"name": "data", "sizeMiB": 8}]});
    story.create("keeps", with(blank(), spec)).await?;
    let instance = story.ready("keeps").await?;
    let uid = instance.metadata.uid.context("an Instance has a uid")?;
    story.delete("keeps").await?;
    ensure!(story.domains()?.is_empty(), "no domain is left");
    let left = story.host().sh(&format!("cd /srv/virtshell/vm/{uid} && ls"))?;
    let mut left: Vec<&str> = left.split_whitespace().collect();
    left.sort_unstable();
    ensure!(left == ["disk-data.qcow2", "root.qcow2"], "{left:?}");
    story.host().sh(&format!("rm -r /srv/virtshell/vm/{uid}"))?;
    story.end().await
}

/// Guards: guests with autostart come up with their host, before its agent does; one that is to be stopped does not.
#[tokio::test]
async fn autostart_brings_guests_up_before_the_agent() -> Result<()> {
    let Some(story) = begin().await? else {
        return Ok(());
    };
    for name in ["up", "down"] {
        story
            .create(name, with(blank(), json!({"autostart": true})))
            .await?;
        story.ready(name).await?;
    }
    story.edit("down", json!({"powerState": "Stopped"})).await?;
    story.ready("down").await?;
    let up = domain(&story.get("up").await?)?;
    let flagged = story.virsh("list --all --autostart --name")?;
    ensure!(flagged.trim() == up, "{flagged}");
    story.host().cut_power()?;
    story.host().power_on()?;
    let running = story
        .until_virsh("list --name", |list| !list.trim().is_empty())
        .await?;
    ensure!(running.trim() == up, "{running}");
    let pid = story.qemu("up").await?;
    story.host().start_agent()?;
    story.ready("up").await?;
    ensure!(story.qemu("up").await? == pid, "the agent takes it as it is");
    story.end().await
}

/// Guards: a machine boots a kernel that its Image names, without a disk to boot from.
#[tokio::test]
async fn a_kernel_is_booted_directly() -> Result<()> {
    let Some(story) = begin().await? else {
        return Ok(());
    };
    let images: Api<Image> = Api::namespaced(story.client.clone(), NAMESPACE);
    let disk = images.get(IMAGE).await?.spec.download_url.context("a URL")?;
    let beside = |file: &str| disk.replace("guest.qcow2", file);
    let image = json!({
        "apiVersion": virtshell_crds::API_VERSION, "kind": "Image",
        "metadata": {"name": "kernel", "namespace": NAMESPACE},
        "spec": {"type": "disk", "boot": {
            "kernelUrl": beside("vmlinuz"), "initrdUrl": beside("initrd.img"),
            "cmdline": "console=ttyS0 quiet tsc=reliable no_timer_check our.mark=1"}},
    });
    images
        .create(&PostParams::default(), &serde_json::from_value(image)?)
        .await?;
    story
        .create("direct", with(guest(), json!({"image": "kernel"})))
        .await?;
    story.booted("direct").await?;
    let name = domain(&story.get("direct").await?)?;
    let said = story.host().in_guest(&name, "cat /proc/cmdline")?;
    ensure!(said.contains("our.mark=1"), "{said}");
    story.delete("direct").await?;
    images.delete("kernel", &DeleteParams::default()).await?;
    story.end().await
}
