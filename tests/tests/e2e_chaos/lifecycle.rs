//! A restart that is interrupted, and a host that comes up: what is done once, and by whom.

use anyhow::{Result, ensure};
use serde_json::json;
use virtshell_tests::wait_for;

use crate::story::{LIMIT, Story, begin, blank, domain, is_ready, with};

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
