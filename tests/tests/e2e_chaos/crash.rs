//! QEMU dies.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use crate::story::{LIMIT, begin, blank, domain, is_ready, said};

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
    let told = story.event("dies", "DomainStopped").await?;
    ensure!(told.contains("started again"), "{told}");
    story.end().await
}
