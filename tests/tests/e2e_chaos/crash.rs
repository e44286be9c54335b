//! QEMU dies, or the kernel in it.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::json;

use crate::story::{LIMIT, begin, blank, domain, guest, is_ready, said};

/// Guards: the end of a guest is heard and repaired within a second plus a start, and told; a guest that does not stay
/// up is not started in a loop.
#[tokio::test]
async fn a_killed_qemu_is_started_again_and_one_that_keeps_dying_ever_later() -> Result<()> {
    let Some(story) = begin().await? else {
        return Ok(());
    };
    story.create("dies", blank()).await?;
    let domain = domain(&story.ready("dies").await?)?;

    let mut pauses = Vec::new();
    let mut backed_off = false;
    // Two ends are repaired at once; then the pauses are 1, 2, 4, ... s, counted from the start.
    for _ in 0..7 {
        let old = story.qemu("dies").await?;
        story.host().sh(&format!("kill -9 {old}"))?;
        let killed = Instant::now();
        loop {
            ensure!(killed.elapsed() < LIMIT, "it is not started again");
            let now = story.get("dies").await?;
            let ready = said(&now, "Ready");
            ensure!(!ready.starts_with("Unknown"), "{ready}");
            backed_off |= ready.starts_with("False CrashLoopBackOff");
            // The status may still speak of the run before; and one that is killed in its start has not ended another time.
            let another = story.qemu("dies").await.is_ok_and(|new| new != old);
            if is_ready(&now) && another && story.virsh(&format!("domstate {domain}"))? == "running" {
                break;
            }
        }
        pauses.push(killed.elapsed());
    }
    ensure!(backed_off, "Ready said CrashLoopBackOff between two starts");
    ensure!(
        pauses[0] < Duration::from_secs(4),
        "the first repair is quick: {pauses:?}"
    );
    ensure!(
        pauses[6] > Duration::from_secs(2) && pauses[6] > pauses[1],
        "later ones wait: {pauses:?}"
    );
    let told = story.event("dies", "DomainCrashed").await?;
    ensure!(told.contains("started again"), "{told}");
    story.end().await
}

/// Guards: a guest whose kernel panicked stands still and uses a CPU for nothing; it says so, is told of, and starts again.
/// Without its panic device it stays as it is.
#[tokio::test]
async fn a_guest_that_panics_is_started_again() -> Result<()> {
    let Some(story) = begin().await? else {
        return Ok(());
    };
    story.create("panics", guest()).await?;
    story.booted("panics").await?;
    let domain = domain(&story.get("panics").await?)?;
    let old = story.qemu("panics").await?;
    // Its agent answers before all drivers are there.
    let panic = "until grep -q pvpanic /proc/modules; do sleep 1; done; echo c >/proc/sysrq-trigger";
    let command = json!({"execute": "guest-exec", "arguments": {"path": "/bin/sh", "arg": ["-c", panic]}});
    story.virsh(&format!("qemu-agent-command {domain} '{command}'"))?;
    let told = story.event("panics", "DomainCrashed").await?;
    ensure!(
        told.contains("panicked") && told.contains("started again"),
        "{told}"
    );
    story.until("panics", "running again", is_ready).await?;
    story.booted("panics").await?;
    ensure!(story.qemu("panics").await? != old, "it is another process");
    story.end().await
}
