//! Images that nothing uses go, and no other.

use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime};

use virtshell_crds::image::{Boot, ImageType};
use virtshell_crds::instance::{Driver, ResolvedImage};

use super::server::{Reply, Server};
use super::{Bench, UID, disk_image, file_url, image, noise, run};
use crate::node::storage::{CacheLimits, Storage};

/// A storage that keeps nothing that was not used for an hour.
fn impatient() -> Bench {
    let mut bench = Bench::new();
    bench.options.cache = CacheLimits {
        max_mib: 0,
        max_idle: Duration::from_hours(1),
    };
    bench
}

/// Two hours without use, for every image of the cache.
fn time_passes(bench: &Bench) {
    for entry in std::fs::read_dir(bench.data().join("images")).unwrap() {
        let file = std::fs::File::open(entry.unwrap().path()).unwrap();
        file.set_modified(SystemTime::now() - Duration::from_hours(2))
            .unwrap();
    }
}

async fn evict(storage: &Storage, files: Vec<PathBuf>) -> usize {
    storage.evict_images(files, Instant::now()).await.unwrap().len()
}

/// An image of `name`'s own content.
fn source(bench: &Bench, name: &str) -> ResolvedImage {
    let content = [name.as_bytes(), &noise(1 << 20)].concat();
    disk_image(&file_url(&bench.file(name, &content)))
}

#[tokio::test]
async fn an_unused_image_goes_with_all_that_was_made_of_it() {
    let bench = impatient();
    let tree = bench.dir.path().join("tree");
    std::fs::create_dir_all(tree.join("etc")).unwrap();
    let packed = bench.dir.path().join("root.tar");
    let arguments = ["-C", tree.to_str().unwrap(), "-cf", packed.to_str().unwrap(), "."];
    run("tar", &arguments);
    let storage = bench.open();
    let root = image(ImageType::LxcContainer, &file_url(&packed));
    drop(storage.ensure_image(&root).await.unwrap());
    drop(storage.ensure_image(&source(&bench, "a")).await.unwrap());
    assert_eq!(evict(&storage, vec![]).await, 0, "they were used just now");
    time_passes(&bench);
    assert_eq!(evict(&storage, vec![]).await, 2);
    bench.assert_nothing_cached();
    assert_eq!(storage.cached_images().len(), 0);
    // And it comes again when it is wanted again.
    let again = storage.ensure_image(&root).await.unwrap();
    assert!(again.path.exists() && again.root_template.unwrap().exists());
}

#[tokio::test]
async fn a_disk_keeps_what_it_rests_on_even_when_the_agent_forgot_both() {
    let bench = impatient();
    let storage = bench.open();
    let base = storage.ensure_image(&source(&bench, "a")).await.unwrap();
    storage
        .create_root_disk(UID, Some(&base), Driver::Qemu, 8)
        .await
        .unwrap();
    drop((storage, base));
    let storage = bench.open();
    time_passes(&bench);
    assert_eq!(evict(&storage, vec![]).await, 0, "the Instance's own disk");
    std::fs::rename(
        bench.data().join("vm").join(UID),
        bench.dir.path().join("elsewhere"),
    )
    .unwrap();
    // A disk of somebody else's on top of that disk, which only a domain names.
    let (moved, top) = ("elsewhere/root.qcow2", bench.dir.path().join("top.qcow2"));
    let moved = bench.dir.path().join(moved);
    run(
        "qemu-img",
        &[
            "create",
            "-q",
            "-f",
            "qcow2",
            "-F",
            "qcow2",
            "-b",
            moved.to_str().unwrap(),
            top.to_str().unwrap(),
        ],
    );
    time_passes(&bench);
    assert_eq!(evict(&storage, vec![top]).await, 0, "a chain that libvirt names");
    let link = bench.dir.path().join("link");
    let cached = storage.cached_images().remove(0);
    std::os::unix::fs::symlink(&cached.path, &link).unwrap();
    time_passes(&bench);
    assert_eq!(
        evict(&storage, vec![link]).await,
        0,
        "the image itself, by another name"
    );
    // The last use was a moment ago: it is not old yet.
    assert_eq!(evict(&storage, vec![]).await, 0);
    time_passes(&bench);
    assert_eq!(evict(&storage, vec!["/no/such/disk".into()]).await, 1);
}

#[tokio::test]
async fn a_chain_that_cannot_be_read_keeps_everything() {
    let bench = impatient();
    let storage = bench.open();
    drop(storage.ensure_image(&source(&bench, "a")).await.unwrap());
    time_passes(&bench);
    // Says that its backing file's name is behind its end.
    let mut broken = vec![0; 80];
    broken[..8].copy_from_slice(b"QFI\xfb\0\0\0\x03");
    broken[8..16].copy_from_slice(&4096_u64.to_be_bytes());
    broken[16..20].copy_from_slice(&20_u32.to_be_bytes());
    let broken = bench.file("broken.qcow2", &broken);
    let refused = storage.evict_images(vec![broken], Instant::now()).await;
    assert!(refused.is_err());
    assert_eq!(storage.cached_images().len(), 1);
}

#[tokio::test]
async fn what_was_just_handed_out_stays() {
    let bench = impatient();
    let storage = bench.open();
    let kernel = bench.file("kernel", &noise(4096));
    let mut with_kernel = source(&bench, "a");
    with_kernel.boot = Some(Boot {
        kernel_url: file_url(&kernel),
        ..Boot::default()
    });
    let handed = storage.ensure_image(&with_kernel).await.unwrap();
    let boot = storage.ensure_boot(&with_kernel).await.unwrap().unwrap();
    time_passes(&bench);
    assert_eq!(evict(&storage, vec![]).await, 0, "held");
    let asked = Instant::now();
    let (path, kernel) = (handed.path.clone(), boot.kernel.clone());
    drop((handed, boot));
    time_passes(&bench);
    let none = storage.evict_images(vec![], asked).await.unwrap();
    assert_eq!(none.len(), 0, "its reference may be younger than the question");
    time_passes(&bench);
    assert_eq!(evict(&storage, vec![]).await, 2);
    assert!(!path.exists() && !kernel.exists());
}

#[tokio::test]
async fn a_fetch_that_nobody_waits_for_any_more_is_not_disturbed() {
    let server = Server::start(|_, _| Reply {
        pause: Duration::from_millis(300),
        ..Reply::new(200, &noise(1 << 20))
    })
    .await;
    let mut bench = impatient();
    bench.options.cache.max_idle = Duration::from_nanos(1);
    let storage = bench.open();
    let image = disk_image(&server.url("/d"));
    let given_up = tokio::time::timeout(Duration::from_millis(50), storage.ensure_image(&image)).await;
    assert!(given_up.is_err());
    for _ in 0..40 {
        evict(&storage, vec![]).await;
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert!(storage.image_progress(&image).is_some());
    let cached = storage.ensure_image(&image).await.unwrap();
    assert_eq!(server.requests().len(), 1);
    evict(&storage, vec![]).await;
    assert!(cached.path.exists());
}

#[tokio::test]
async fn without_room_the_longest_unused_go() {
    let mut bench = Bench::new();
    bench.options.cache.max_mib = 2;
    let storage = bench.open();
    for name in ["a", "b", "c"] {
        drop(storage.ensure_image(&source(&bench, name)).await.unwrap());
    }
    time_passes(&bench);
    // Its last use is the newest.
    let kept = storage.ensure_image(&source(&bench, "a")).await.unwrap();
    assert!(evict(&storage, vec![]).await >= 1);
    assert!(kept.path.exists());
    assert!(storage.cached_images().len() < 3);
}
