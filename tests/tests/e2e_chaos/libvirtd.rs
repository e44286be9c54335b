//! libvirtd is killed and comes back.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use kube::ResourceExt;
use virtshell_crds::{Host, condition};

use crate::story::{HOST, LIMIT, begin, blank, guest, is_ready, said};

/// Guards: a connection that is lost makes Instances Unknown, never absent or stopped, and its return is a look, not a
/// repair.
// Seen to fail: with `NoGoal::Silent` reported as a failure that is not `unknown`, Ready became False.
#[tokio::test]
async fn libvirtd_killed_under_running_guests_disturbs_none() -> Result<()> {
    let Some(story) = begin().await? else {
        return Ok(());
    };
    let names = ["one", "two", "three"];
    for name in names {
        story.create(name, guest()).await?;
    }
    for name in names {
        story.ready(name).await?;
    }
    let before = story.all_qemus()?;
    ensure!(before.len() == 3, "{before:?}");
    let started: Vec<_> = started_at(&story, &names).await?;

    story.host().kill_libvirtd()?;
    let killed = Instant::now();
    for name in names {
        let (instance, _) = story.until(name, "no longer known", |i| !is_ready(i)).await?;
        let ready = said(&instance, "Ready");
        ensure!(
            ready.starts_with("Unknown HypervisorUnreachable"),
            "{name}: {ready}"
        );
        let status = instance.status.unwrap_or_default();
        ensure!(status.domain.is_some(), "{name}: what was known stays");
    }
    ensure!(
        killed.elapsed() < Duration::from_secs(10),
        "{:?}",
        killed.elapsed()
    );
    ensure!(story.all_qemus()? == before, "guests run on without libvirtd");

    story.host().start_libvirtd()?;
    let back = Instant::now();
    for name in names {
        story.ready(name).await?;
    }
    // The pause between two tries to connect has grown to at most 15 s.
    ensure!(back.elapsed() < Duration::from_secs(20), "{:?}", back.elapsed());
    ensure!(story.all_qemus()? == before, "the same processes");
    ensure!(
        started_at(&story, &names).await? == started,
        "nothing was started"
    );
    story.end().await
}

/// Guards: a libvirtd that neither answers nor ends is noticed, by keepalive and by a question now and then that is not
/// answered (either alone is enough), and is Unknown, not absent; when it goes on, nothing has happened to the guests.
#[tokio::test]
async fn libvirtd_that_hangs_is_noticed_and_disturbs_no_guest() -> Result<()> {
    let Some(story) = begin().await? else {
        return Ok(());
    };
    story.create("held", blank()).await?;
    story.ready("held").await?;
    let before = story.all_qemus()?;
    story.host().sh("kill -STOP $(cat /run/libvirtd.pid)")?;
    let unknown = story
        .until("held", "no longer known", |i| {
            said(i, "Ready").starts_with("Unknown HypervisorUnreachable")
        })
        .await;
    let cut = story
        .host_until(HOST, "without libvirt", |host| {
            connected(host).is_some_and(|status| status != "True")
        })
        .await;
    // It goes on also where that was not seen: the next story needs it.
    story.host().sh("kill -CONT $(cat /run/libvirtd.pid)")?;
    unknown?;
    cut?;
    story.ready("held").await?;
    story
        .host_until(HOST, "with libvirt", |host| connected(host) == Some("True"))
        .await?;
    ensure!(story.all_qemus()? == before, "the same process");
    story.end().await
}

fn connected(host: &Host) -> Option<&str> {
    let conditions = host.status.iter().flat_map(|status| &status.conditions);
    let mut conditions = conditions.filter(|c| c.type_ == condition::LIBVIRT_CONNECTED);
    conditions.next().map(|c| c.status.as_str())
}

/// Guards: what nobody told, because there was no libvirtd to tell it, the look after its return finds and repairs.
#[tokio::test]
async fn a_guest_that_ends_while_nobody_listens_is_started_again() -> Result<()> {
    let Some(story) = begin().await? else {
        return Ok(());
    };
    for name in ["ends", "stays"] {
        story.create(name, blank()).await?;
    }
    for name in ["ends", "stays"] {
        story.ready(name).await?;
    }
    let (ends, stays) = (story.qemu("ends").await?, story.qemu("stays").await?);
    story.host().kill_libvirtd()?;
    story.host().sh(&format!("kill -9 {ends}"))?;
    story.host().start_libvirtd()?;
    story.ready("ends").await?;
    story.event("ends", "DomainCrashed").await?;
    let after = story.all_qemus()?;
    ensure!(
        after.len() == 2 && after.contains(&stays) && !after.contains(&ends),
        "{ends} and {stays} became {after:?}"
    );
    story.end().await
}

async fn started_at(story: &crate::story::Story, names: &[&str]) -> Result<Vec<String>> {
    let mut list = Vec::new();
    for name in names {
        let status = story.get(name).await?.status.unwrap_or_default();
        list.push(format!("{:?}", status.started_at));
    }
    Ok(list)
}

/// Guards: a creation that libvirtd's end interrupts is recognised by what it left, and finished once. (A QEMU whose start
/// libvirtd had not finished is killed by the next libvirtd itself; one that was Ready must stay.)
#[tokio::test]
async fn libvirtd_killed_in_the_middle_of_creations_leaves_each_made_once() -> Result<()> {
    let Some(story) = begin().await? else {
        return Ok(());
    };
    let names: Vec<String> = (0..6).map(|n| format!("made-{n}")).collect();
    for name in &names {
        story.create(name, blank()).await?;
    }
    let mut up = Vec::new();
    let began = Instant::now();
    while up.is_empty() {
        ensure!(began.elapsed() < LIMIT, "no creation was finished");
        up = story.all().await?;
        up.retain(is_ready);
    }
    story.host().kill_libvirtd()?;
    ensure!(up.len() < names.len(), "the kill came too late to prove anything");
    let mut before = Vec::new();
    for instance in &up {
        before.push(story.qemu(&instance.name_any()).await?);
    }
    story.host().start_libvirtd()?;
    for name in &names {
        story.ready(name).await?;
    }
    let after = story.all_qemus()?;
    ensure!(
        after.len() == names.len() && before.iter().all(|pid| after.contains(pid)),
        "ready before: {before:?}, now: {after:?}"
    );
    ensure!(story.domains()? == story.domains_asked_for().await?);
    story.end().await
}
