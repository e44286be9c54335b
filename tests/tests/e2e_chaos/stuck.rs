//! A QEMU that does not answer: SIGSTOP, as a hung storage or a debugger would do it.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::json;
use virtshell_crds::PowerState;

use crate::story::{LIMIT, Story, begin, blank, domain, guest, is_ready, said};

/// How long a stop and a start of another guest takes: both change power state, and end Ready.
async fn stop_and_start(story: &Story, name: &str) -> Result<Duration> {
    let began = Instant::now();
    for power in [PowerState::Stopped, PowerState::Running] {
        story.edit(name, json!({ "powerState": power })).await?;
        let arrived = |i: &_| is_ready(i) && power_of(i) == Some(power);
        story.until(name, "there", arrived).await?;
    }
    Ok(began.elapsed())
}

fn power_of(instance: &virtshell_crds::Instance) -> Option<PowerState> {
    instance.status.as_ref().and_then(|s| s.power_state)
}

/// Guards: each call has a deadline and one is in flight per domain; a stuck guest is shown as that, costs others
/// nothing, and is well again when it answers.
#[tokio::test]
async fn a_stuck_qemu_is_shown_and_costs_the_others_nothing() -> Result<()> {
    let Some(story) = begin().await? else {
        return Ok(());
    };
    for name in ["stuck", "other"] {
        story.create(name, blank()).await?;
    }
    for name in ["stuck", "other"] {
        story.ready(name).await?;
    }
    let alone = stop_and_start(&story, "other").await?;
    let pid = story.qemu("stuck").await?;
    story.host().sh(&format!("kill -STOP {pid}"))?;
    // Something is asked of it, and it does not answer.
    story.edit("stuck", json!({"powerState": "Paused"})).await?;
    let (_, seen) = story
        .until("stuck", "known to be stuck", |i| {
            said(i, "Ready").starts_with("Unknown GuestStuck")
        })
        .await?;
    ensure!(seen < Duration::from_secs(40), "{seen:?}");
    let beside = stop_and_start(&story, "other").await?;
    ensure!(
        beside < alone * 3 + Duration::from_secs(1),
        "beside a stuck guest {beside:?}, alone {alone:?}"
    );

    story.host().sh(&format!("kill -CONT {pid}"))?;
    story
        .until("stuck", "paused", |i| {
            is_ready(i) && power_of(i) == Some(PowerState::Paused)
        })
        .await?;
    ensure!(story.qemu("stuck").await? == pid, "it is the same process");
    story.end().await
}

/// Guards: calls that do not come back cannot use up the connections: libvirtd serves five requests of a connection at a
/// time, so six stuck guests would hang a shared one.
#[tokio::test]
async fn six_stuck_at_once_do_not_exhaust_the_connections() -> Result<()> {
    stuck_at_once(6, &["Unknown GuestStuck"]).await
}

/// Guards: calls that do not come back cannot use up libvirtd itself, which has twenty workers for all its connections.
/// Those that would take its last ones are not made, and their guests say so.
#[tokio::test]
async fn twenty_five_stuck_at_once_do_not_exhaust_libvirtd() -> Result<()> {
    stuck_at_once(25, &["Unknown GuestStuck", "Unknown HypervisorBusy"]).await
}

/// So many guests hang and are asked for something. Another stops and starts as fast as before, and theirs is said to be
/// unknown, for one of these reasons.
async fn stuck_at_once(many: usize, reasons: &[&str]) -> Result<()> {
    let Some(story) = begin().await? else {
        return Ok(());
    };
    let stuck: Vec<String> = (0..many).map(|n| format!("stuck-{n}")).collect();
    for name in stuck.iter().map(String::as_str).chain(["other"]) {
        story.create(name, blank()).await?;
    }
    let mut pids = Vec::new();
    for name in &stuck {
        story.ready(name).await?;
        pids.push(story.qemu(name).await?);
    }
    story.ready("other").await?;
    let alone = stop_and_start(&story, "other").await?;
    story.host().sh(&format!("kill -STOP {}", pids.join(" ")))?;
    for name in &stuck {
        story.edit(name, json!({"powerState": "Paused"})).await?;
    }
    let first = stop_and_start(&story, "other").await?;
    for name in &stuck {
        story
            .until(name, "known to be stuck", |i| {
                reasons.iter().any(|reason| said(i, "Ready").starts_with(reason))
            })
            .await?;
    }
    let later = stop_and_start(&story, "other").await?;
    story.host().sh(&format!("kill -CONT {}", pids.join(" ")))?;
    let bound = alone * 3 + Duration::from_secs(1);
    ensure!(
        first < bound && later < bound,
        "alone {alone:?}, beside {many} {first:?} and {later:?}"
    );
    for name in &stuck {
        story
            .until(name, "paused", |i| {
                is_ready(i) && power_of(i) == Some(PowerState::Paused)
            })
            .await?;
    }
    story.end().await
}

/// Guards: a guest agent that took a command and does not answer keeps neither the work in other guests nor any change of
/// its own guest; the guest is ready, its agent is not.
#[tokio::test]
async fn a_hung_guest_agent_is_shown_and_holds_nothing_up() -> Result<()> {
    let Some(story) = begin().await? else {
        return Ok(());
    };
    for name in ["mute", "other"] {
        story.create(name, guest()).await?;
    }
    for name in ["mute", "other"] {
        story.booted(name).await?;
    }
    // Its parent would start another one in its place.
    let mute = "kill -STOP $(pidof qemu-ga)";
    let domain = domain(&story.get("mute").await?)?;
    let _ = story.host().sh(&format!(
        r#"virsh -q -c qemu:///system qemu-agent-command --timeout 5 {domain} '{{"execute": "guest-exec",
           "arguments": {{"path": "/bin/sh", "arg": ["-c", "{mute}"]}}}}'"#
    ));
    let asked = story.by_task("mute", "echo heard", LIMIT);
    let beside = async {
        let began = Instant::now();
        let mut answers = Vec::new();
        for _ in 0..3 {
            answers.push(story.by_task("other", "echo heard", LIMIT).await?);
        }
        anyhow::Ok((answers, began.elapsed()))
    };
    let (asked, beside) = tokio::join!(asked, beside);
    ensure!(asked.is_err(), "an agent that is stopped answered: {asked:?}");
    let (answers, took) = beside?;
    ensure!(
        answers == ["heard"; 3] && took < LIMIT / 2,
        "{answers:?} after {took:?}"
    );
    let (shown, _) = story
        .until("mute", "without an agent", |i| {
            !said(i, "AgentConnected").starts_with("True")
        })
        .await?;
    ensure!(is_ready(&shown), "{}", said(&shown, "Ready"));
    story.edit("mute", json!({"powerState": "Stopped"})).await?;
    story
        .until("mute", "stopped", |i| power_of(i) == Some(PowerState::Stopped))
        .await?;
    story.end().await
}
