//! What guests boot from beside a disk image: a kernel of their own, an installer; and the way into one that has no agent.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use virtshell_tests::farm::NAMESPACE;
use virtshell_tests::{repository, wait_for};

use crate::story::{HOST, LIMIT, Story, begin, domain, guest, with};

/// What `hack/guest-image.sh` prints for an option.
fn part(option: &str) -> Result<String> {
    let printed = Command::new(repository().join("hack/guest-image.sh"))
        .arg(option)
        .output()?;
    ensure!(
        printed.status.success(),
        "{}",
        String::from_utf8_lossy(&printed.stderr)
    );
    Ok(String::from_utf8(printed.stdout)?.trim().to_owned())
}

fn image(story: &Story, name: &str, spec: &Value) -> Result<()> {
    let image = json!({
        "apiVersion": virtshell_crds::API_VERSION, "kind": "Image",
        "metadata": {"name": name, "namespace": NAMESPACE}, "spec": spec,
    });
    let kubectl = story.farm.control_plane().kubectl();
    kubectl
        .ok_with(["apply", "-f", "-"], &image.to_string())
        .map(drop)
}

/// Guards: an Image's kernel, initial RAM disk and command line are what the guest boots, with no disk of its own to boot
/// from; a guest whose agent never answers is reached by SSH with the key that its seed brought, at the address that
/// libvirt leased. Seen to fail: with `choose` never taking SSH the Task ends by its time limit.
#[tokio::test]
async fn a_kernel_boots_directly_and_without_an_agent_ssh_leads_into_the_guest() -> Result<()> {
    let Some(story) = begin().await? else {
        return Ok(());
    };
    let cmdline = format!("{} noagent told=by-the-image", part("--cmdline")?);
    let boot = json!({
        "kernelUrl": format!("file://{}", part("--kernel")?),
        "initrdUrl": format!("file://{}", part("--initrd")?),
        "cmdline": cmdline,
    });
    image(&story, "kernel", &json!({"type": "disk", "boot": boot}))?;
    let spec = with(
        guest(),
        json!({"image": "kernel", "interfaces": [{"name": "eth0", "network": "default"}]}),
    );
    story.create("direct", spec).await?;
    story.ready("direct").await?;
    story
        .until("direct", "at an address", |i| {
            i.status
                .iter()
                .filter_map(|s| s.addresses.as_ref())
                .any(|a| !a.ipv4.is_empty())
        })
        .await?;
    // An agent has two minutes from the start of its guest until another way is taken.
    let limit = Duration::from_mins(4);
    let seen = story
        .by_task("direct", "hostname; cat /proc/cmdline", limit)
        .await?;
    ensure!(seen == format!("direct\n{cmdline}"), "{seen}");
    let seen = story.get("direct").await?;
    let answers = super::story::said(&seen, "AgentConnected");
    ensure!(
        !answers.starts_with("True"),
        "nobody but SSH was there: {answers}"
    );
    // The key of the host is known now: the second command is by the same way, and quick.
    let again = story.by_task("direct", "echo $HOME", LIMIT).await?;
    ensure!(again == "/root", "{again}");
    story.end().await
}

/// Guards: type iso has an empty disk, the medium and the answer file with its placeholders filled in; the installer's
/// power-off is the start of what it installed. Seen to fail: with the medium before the disk in the boot order the
/// installer begins anew for ever.
#[tokio::test]
async fn an_installer_finds_its_answers_and_what_it_installed_boots() -> Result<()> {
    let Some(story) = begin().await? else {
        return Ok(());
    };
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR"))?;
    let answers: PathBuf = folder.path().join("answers.cfg");
    std::fs::write(
        &answers,
        "host {{hostname}}\nzone {{timezone}}\nuser {{username}} {{pwhash}}\nkept {{other}}\n",
    )?;
    let spec = json!({
        "type": "iso", "timezone": "Europe/Madrid",
        "downloadUrl": format!("file://{}", part("--iso")?), "preseedUrl": format!("file://{}", answers.display()),
    });
    image(&story, "installer", &spec)?;
    let spec = with(
        guest(),
        json!({"image": "installer", "memoryMiB": 192, "vars": {"username": "operator", "pwhash": "$6$salt$hash"}}),
    );
    story.create("installed", spec).await?;
    // The guest that installs has an agent too: what was installed is what runs after its power-off.
    let told = story.event("installed", "DomainStopped").await?;
    ensure!(told.contains("started again"), "{told}");
    story.booted("installed").await?;
    let name = domain(&story.get("installed").await?)?;
    let inside = async |line: &'static str| {
        wait_for(
            line,
            LIMIT,
            async || story.host().in_guest(&name, line),
            |said: &String| !said.is_empty(),
        )
        .await
    };
    let medium = inside("[ -d /install ] && echo installer || echo installed").await?;
    ensure!(medium == "installed", "{medium}");
    let answers = inside("mount -r /dev/vda1 /mnt && cat /mnt/answers.cfg").await?;
    ensure!(
        answers == "host installed\nzone Europe/Madrid\nuser operator $6$salt$hash\nkept {{other}}",
        "{answers}"
    );
    story.end().await
}

/// Guards: what `deletionPolicy: RetainDisks` keeps is the disks, with what the guest wrote, and no more than that.
#[tokio::test]
async fn retained_disks_stay_with_their_content() -> Result<()> {
    let Some(story) = begin().await? else {
        return Ok(());
    };
    let spec = with(
        guest(),
        json!({"deletionPolicy": "RetainDisks", "disks": [{"name": "data", "sizeMiB": 16}], "host": HOST}),
    );
    story.create("keeper", spec).await?;
    story.booted("keeper").await?;
    let name = domain(&story.get("keeper").await?)?;
    story
        .host()
        .in_guest(&name, "echo kept >/dev/vdc; sync; blockdev --flushbufs /dev/vdc")?;
    let disks: Vec<String> = story
        .get("keeper")
        .await?
        .status
        .context("it has a status")?
        .disks
        .into_iter()
        .map(|disk| disk.path)
        .collect();
    ensure!(disks.len() == 2, "{disks:?}");
    story.delete("keeper").await?;
    ensure!(!story.domains()?.contains(&name), "the domain is gone");
    let left = story.host().sh(&format!(
        "find {}/vm -type f | sort",
        story.host().data().display()
    ))?;
    let mut expected = disks.clone();
    expected.sort();
    ensure!(left.lines().eq(expected.iter()), "{left}");
    let data = disks
        .iter()
        .find(|path| path.contains("data"))
        .context("the data disk")?;
    let content = story.host().sh(&format!(
        "qemu-img convert -O raw {data} /tmp/kept && head -c 5 /tmp/kept; rm -f /tmp/kept {data}"
    ))?;
    ensure!(content.trim_end() == "kept", "{content}");
    // What was retained is the administrator's, who removes it.
    story
        .host()
        .sh(&format!("rm -r {}/vm/*", story.host().data().display()))?;
    story.end().await
}
