//! The agent is killed; the API server is away.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::json;
use virtshell_tests::farm::PrivateHost;
use virtshell_tests::wait_for;

use crate::story::{HOST, LIMIT, begin, blank, domain, with};

/// Guards: half-made creations are recognised (temporary files removed, finished files and domains used) and finished,
/// each once.
#[tokio::test]
async fn an_agent_killed_in_the_middle_of_twenty_creations_makes_each_once() -> Result<()> {
    let Some(story) = begin().await? else {
        return Ok(());
    };
    let names: Vec<String> = (0..20).map(|n| format!("many-{n}")).collect();
    let host = story.farm.host(HOST);
    let (data, half) = (
        host.data().display(),
        "for dir in vm/*/; do echo half >$dir/.tmp-half.qcow2; done",
    );
    kill_at(host, 2)?;
    for name in &names {
        story
            .create(name, with(blank(), json!({"powerState": "Stopped"})))
            .await?;
    }
    let first = killed(host).await?;
    ensure!(
        first < names.len(),
        "the kill came too late to prove anything: {first} were made"
    );
    // Again, so that a start also meets what the one before left; and the worst moment leaves half a file.
    host.sh(&format!("cd {data} && {half}"))?;
    kill_at(host, first + 3)?;
    // It may be killed before it is ready.
    let _ = host.start_agent();
    killed(host).await?;
    host.start_agent()?;
    for name in &names {
        story.ready(name).await?;
    }
    ensure!(
        story.domains()? == story.domains_asked_for().await?,
        "one domain each"
    );
    let files = host.sh("find /srv/virtshell -name '.tmp-*'")?;
    ensure!(files.is_empty(), "temporary files are left: {files}");
    let roots = story.host().sh("ls /srv/virtshell/vm/*/root.qcow2 | wc -l")?;
    ensure!(roots == "20", "{roots} root disks");
    story.end().await
}

/// Kills the agent as soon as `least` Instances have files. It is quick, so who kills it looks from beside it.
fn kill_at(host: &PrivateHost, least: usize) -> Result<()> {
    let line = format!(
        "rm -f /run/killed; (until [ $(ls {vm} 2>/dev/null | wc -l) -ge {least} ]; do sleep 0.01; done; \
         kill -9 $(cut -d ' ' -f 1 {agent}); ls {vm} | wc -l >/run/killed.new; mv /run/killed.new /run/killed) >/dev/null 2>&1 &",
        vm = host.data().join("vm").display(),
        agent = host.folder().join("run/agent").display(),
    );
    host.sh(&line).map(drop)
}

/// Waits until that has happened; returns how many Instances had files then.
async fn killed(host: &PrivateHost) -> Result<usize> {
    let look = async || host.sh("cat /run/killed");
    Ok(wait_for("the agent to be killed", LIMIT, look, |_| true)
        .await?
        .parse()?)
}

/// Guards: guests need no API server, nor does the repair of what happens to them; on its return there is one list, no
/// stampede, and status and Events tell what happened meanwhile.
#[tokio::test]
async fn guests_run_on_without_the_api_server_and_all_is_told_on_its_return() -> Result<()> {
    let Some(story) = begin().await? else {
        return Ok(());
    };
    let names = ["stays", "destroyed", "removed"];
    for name in names {
        story.create(name, blank()).await?;
    }
    let mut domains = Vec::new();
    for name in names {
        domains.push(domain(&story.ready(name).await?)?);
    }
    let stays = story.qemu("stays").await?;

    story.farm.control_plane().stop_api_server()?;
    story.virsh(&format!("destroy {}", domains[1]))?;
    story.virsh(&format!(
        "destroy {0} && virsh -q undefine {0} || true",
        domains[2]
    ))?;
    let began = Instant::now();
    for domain in &domains[1..] {
        while !story
            .host()
            .try_sh(&format!("virsh -q domstate {domain} | grep -x running"))?
            .success
        {
            ensure!(
                began.elapsed() < Duration::from_secs(20),
                "{domain} is not repaired without the API server"
            );
        }
    }
    ensure!(
        story.all_qemus()?.contains(&stays),
        "the one that nobody touched runs on"
    );

    story.farm.control_plane().start_api_server()?;
    let back = Instant::now();
    for name in names {
        story
            .edit(name, json!({"description": "told after the return"}))
            .await?;
        story.ready(name).await?;
    }
    ensure!(
        back.elapsed() < Duration::from_secs(45),
        "served again after {:?}",
        back.elapsed()
    );
    ensure!(story.qemu("stays").await? == stays);
    story.event("destroyed", "DomainStopped").await?;
    // Of the agent and the controller, each with one watch that begins with one list; a retry of each is fine.
    let requests = story.requests("instances", &["LIST", "WATCH"])?;
    ensure!(
        requests <= 8,
        "{requests} lists and watches of Instances after the return"
    );
    story.end().await
}
