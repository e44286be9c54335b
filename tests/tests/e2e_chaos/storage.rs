//! Images that are wrong, and a disk that is full.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use kube::Api;
use kube::api::{DeleteParams, PostParams};
use serde_json::{Value, json};
use virtshell_crds::{Host, Image};
use virtshell_tests::farm::{IMAGE, NAMESPACE, PrivateHost};

use crate::story::{Story, begin, domain, guest, is_ready, said, with};

/// The host with little room.
const TIGHT: &str = "tight";
/// Its data directory: room for the disks of three guests, and beyond [`KEPT_MIB`] for two images.
const TIGHT_MIB: u32 = 832;
/// What the agent keeps free, in MiB.
const KEPT_MIB: u64 = 512;

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
    story.farm.host(TIGHT).sh("rm -f /srv/virtshell/filler*")?;
    let cleared = story.clear().await;
    story.farm.remove(TIGHT);
    let hosts: Api<Host> = Api::all(story.client.clone());
    hosts.delete(TIGHT, &DeleteParams::default()).await?;
    told?;
    cleared?;
    story.end().await
}

async fn full_disk(story: &Story) -> Result<()> {
    let tight = story.farm.host(TIGHT);
    let here = |spec: Value| with(spec, json!({"host": TIGHT}));
    story.create("writer", here(guest())).await?;
    story.booted("writer").await?;
    let writer = domain(&story.get("writer").await?)?;
    let pid = tight.sh(&format!("cat /run/libvirt/qemu/{writer}.pid"))?;

    // Something else fills the disk. First there is less room than an image needs beside what the agent keeps free.
    image(story, "another", json!({"downloadUrl": other_image(tight)?})).await?;
    fill(tight, "first", free(tight)? - KEPT_MIB - 8)?;
    let another = here(with(guest(), json!({"image": "another"})));
    story.create("late", another.clone()).await?;
    let refused = |i: &_| said(i, "ImageReady").starts_with("False ");
    let (late, _) = story.until("late", "refused", refused).await?;
    let why = said(&late, "ImageReady");
    ensure!(why.contains("MiB are free"), "{why}");

    // Then so little that no new Instance comes here.
    fill(tight, "second", 100)?;
    story
        .host_until(TIGHT, "nearly full", |h| {
            host_says(h, "StorageHealthy").starts_with("False NearlyFull")
                && host_says(h, "Schedulable").starts_with("False NoRoom")
        })
        .await?;
    story.create("later", another).await?;
    let refused = |i: &_| said(i, "Scheduled").starts_with("False ");
    let (later, _) = story.until("later", "refused", refused).await?;
    let why = said(&later, "Scheduled");
    ensure!(why.contains("nearly full"), "{why}");
    ensure!(
        is_ready(&story.get("writer").await?),
        "the one that was there is well"
    );

    // Now really full, and the guest writes.
    fill(tight, "third", free(tight)? - 4)?;
    tight.in_guest(
        &writer,
        "(yes data | head -c 12000000 >/data/big; sync; touch /data/done) >/dev/null 2>&1 &",
    )?;
    let failed = |i: &_| said(i, "Ready").starts_with("False StorageFull");
    let (paused, _) = story
        .until("writer", "suspended for want of room", failed)
        .await?;
    ensure!(
        said(&paused, "Ready").contains("make room"),
        "{}",
        said(&paused, "Ready")
    );
    // Twice the pace at which the agent looks at the Host, and at what is blocked.
    tokio::time::sleep(Duration::from_secs(5)).await;
    let state = tight.sh(&format!("virsh -q domstate {writer}"))?;
    ensure!(
        state == "paused",
        "a resume into a full disk would end in another pause: {state}"
    );

    let resumed = story.events("writer").await?;
    ensure!(
        !resumed.iter().any(|(reason, _)| reason == "DomainResumed"),
        "{resumed:?}"
    );

    // Room again: everything heals without a hand, and nothing is lost.
    tight.sh("rm /srv/virtshell/filler-*")?;
    story
        .host_until(TIGHT, "healthy", |h| {
            host_says(h, "StorageHealthy").starts_with("True")
        })
        .await?;
    story.ready("writer").await?;
    story.ready("late").await?;
    story.ready("later").await?;
    ensure!(
        tight.sh(&format!("cat /run/libvirt/qemu/{writer}.pid"))? == pid,
        "the same process went on"
    );
    tight.in_guest(
        &writer,
        "for i in $(seq 200); do [ ! -e /data/done ] || break; sleep 0.1; done; [ -e /data/done ]",
    )?;
    let sum = tight.in_guest(&writer, "sha256sum </data/big")?;
    ensure!(
        sum == tight.sh("yes data | head -c 12000000 | sha256sum")?,
        "what the guest wrote is there"
    );
    story.delete("late").await?;
    story.delete("later").await?;
    remove_image(story, "another").await
}

/// URL of a copy of the guest image with other content, so that the cache does not have it.
fn other_image(host: &PrivateHost) -> Result<String> {
    let file = host.folder().join("other.qcow2").display().to_string();
    host.sh(&format!(
        "qemu-img convert -c -O qcow2 $(ls /srv/virtshell/images/* | grep -v json) {file}"
    ))?;
    Ok(format!("file://{file}"))
}

/// Takes so many MiB of a host's data directory.
fn fill(host: &PrivateHost, name: &str, mib: u64) -> Result<()> {
    host.sh(&format!("fallocate -l {mib}M /srv/virtshell/filler-{name}"))
        .map(drop)
}

/// MiB that are free in a host's data directory.
fn free(host: &PrivateHost) -> Result<u64> {
    let mib = host.sh("df --output=avail -BM /srv/virtshell | tail -n 1 | tr -dc 0-9")?;
    Ok(mib.parse()?)
}
