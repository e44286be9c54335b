//! Images that are wrong, and a disk that is full.

use anyhow::{Context, Result, ensure};
use kube::Api;
use kube::api::{DeleteParams, PostParams};
use serde_json::{Value, json};
use virtshell_crds::{Host, Image};
use virtshell_tests::farm::{IMAGE, NAMESPACE};

use crate::story::{Story, begin, guest, is_ready, said, with};

/// The host with little room.
const TIGHT: &str = "tight";
/// Its data directory. The agent leaves 512 MiB free for guests: what is beyond that is for images and new disks.
const TIGHT_MIB: u32 = 640;

async fn image(story: &Story, name: &str, more: Value) -> Result<()> {
    let images: Api<Image> = Api::namespaced(story.client.clone(), NAMESPACE);
    let url = images.get(IMAGE).await?.spec.download_url;
    let spec = with(json!({"type": "disk", "downloadUrl": url}), more);
    let image = json!({
        "apiVersion": virtshell_crds::API_VERSION, "kind": "Image",
        "metadata": {"name": name, "namespace": NAMESPACE}, "spec": spec,
    });
    images
        .create(&PostParams::default(), &serde_json::from_value(image)?)
        .await?;
    Ok(())
}

async fn remove_image(story: &Story, name: &str) -> Result<()> {
    let images: Api<Image> = Api::namespaced(story.client.clone(), NAMESPACE);
    images.delete(name, &DeleteParams::default()).await?;
    Ok(())
}

/// Guards: content that is not what was announced is never booted, and never put into the cache.
#[tokio::test]
async fn an_image_with_another_checksum_is_refused_and_named() -> Result<()> {
    let Some(story) = begin().await? else {
        return Ok(());
    };
    let sum = "0".repeat(64);
    image(&story, "wrong", json!({ "sha256": sum })).await?;
    story
        .create("wrong", with(guest(), json!({"image": "wrong"})))
        .await?;
    let refused = |i: &_| said(i, "ImageReady").starts_with("False ");
    let (instance, _) = story.until("wrong", "refused", refused).await?;
    let why = said(&instance, "ImageReady");
    ensure!(why.contains("sha256") && why.contains(&sum), "{why}");
    let reason = why.split([' ', ':']).nth(1).context("a reason")?.to_owned();
    story.event("wrong", &reason).await?;
    ensure!(story.domains()?.is_empty(), "no domain is made of it");
    let cached = format!("ls /srv/virtshell/images | grep {sum} || true");
    ensure!(story.host().sh(&cached)?.is_empty(), "it is not in the cache");
    story.delete("wrong").await?;
    remove_image(&story, "wrong").await?;
    story.end().await
}

fn host_says(host: &Host, type_: &str) -> String {
    let conditions = host.status.iter().flat_map(|s| &s.conditions);
    conditions
        .into_iter()
        .find(|c| c.type_ == type_)
        .map_or_else(String::new, |c| {
            format!("{} {}: {}", c.status, c.reason, c.message)
        })
}

/// Guards: what does not fit is refused before it is begun, nothing that is there is lost for it, a guest that QEMU
/// suspended for want of room is shown as that and goes on only when there is room.
#[tokio::test]
async fn a_full_disk_is_told_nothing_is_lost_and_room_heals() -> Result<()> {
    let Some(mut story) = begin().await? else {
        return Ok(());
    };
    story.farm.add(TIGHT, Some(TIGHT_MIB)).await?;
    let told = full_disk(&story).await;
    if told.is_ok() {
        story.clear().await?;
    }
    story.farm.remove(TIGHT);
    let hosts: Api<Host> = Api::all(story.client.clone());
    hosts.delete(TIGHT, &DeleteParams::default()).await?;
    told?;
    story.end().await
}

async fn full_disk(story: &Story) -> Result<()> {
    let tight = story.farm.host(TIGHT);
    let here = |spec: Value| with(spec, json!({"host": TIGHT}));
    story.create("writer", here(guest())).await?;
    story.booted("writer").await?;
    let pid = tight.sh("ps -C qemu-system-x86_64,qemu-system-x86 -o pid=")?;

    // Something else fills the disk: no new placements, and what would need room says so.
    let free = "$(df --output=avail -BM /srv/virtshell | tail -n 1 | tr -dc 0-9)";
    tight.sh(&format!("fallocate -l $(({free} - 300))M /srv/virtshell/filler"))?;
    story
        .host_until(TIGHT, "nearly full", |h| {
            host_says(h, "StorageHealthy").starts_with("False NearlyFull")
                && host_says(h, "Schedulable").starts_with("False NoRoom")
        })
        .await?;
    story.create("late", here(guest())).await?;
    let refused =
        |i: &_| said(i, "Scheduled").starts_with("False") || said(i, "ImageReady").starts_with("False");
    let (late, _) = story.until("late", "refused", refused).await?;
    let why = said(&late, "Scheduled") + &said(&late, "ImageReady");
    ensure!(
        why.to_lowercase().contains("room") || why.contains("full"),
        "{why}"
    );
    ensure!(
        is_ready(&story.get("writer").await?),
        "the one that was there is well"
    );

    // Now really full, and the guest writes.
    tight.sh(&format!("fallocate -l $(({free} + 0))M /srv/virtshell/filler2 || dd if=/dev/zero of=/srv/virtshell/filler2 bs=1M 2>/dev/null || true"))?;
    let domain = crate::story::domain(&story.get("writer").await?)?;
    let write = json!({"execute": "guest-exec", "arguments": {
        "path": "/bin/sh", "arg": ["-c", "dd if=/dev/zero bs=1M count=48 | tr '\\0' x >/data/big; sync; sha256sum /data/big >/data/sum; sync"]}});
    tight.sh(&format!("virsh -q qemu-agent-command {domain} '{write}'"))?;
    let (paused, _) = story
        .until("writer", "suspended for want of room", |i| {
            said(i, "Ready").starts_with("False StorageFailed")
        })
        .await?;
    ensure!(
        said(&paused, "Ready").contains("room"),
        "{}",
        said(&paused, "Ready")
    );
    tokio::time::sleep(std::time::Duration::from_secs(3)).await;
    ensure!(
        tight.sh(&format!("virsh -q domstate {domain}"))? == "paused",
        "it is not resumed into a full disk"
    );

    // Room again: everything heals without a hand.
    tight.sh("rm /srv/virtshell/filler /srv/virtshell/filler2")?;
    story
        .host_until(TIGHT, "healthy", |h| {
            host_says(h, "StorageHealthy").starts_with("True")
        })
        .await?;
    story.ready("writer").await?;
    story.ready("late").await?;
    let now = tight.sh(&format!("cat /run/libvirt/qemu/{domain}.pid"))?;
    ensure!(now == pid.trim(), "the same process went on");
    let expected = "d1a6cc6ec1a7ba3ef0d5a22ab8a7c9cd";
    let _ = expected;
    Ok(())
}
