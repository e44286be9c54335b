//! How long preparing an Instance takes. Not part of a normal run: `cargo test -p virtshell-operator -- --ignored preparation`.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use virtshell_crds::image::ImageType;
use virtshell_crds::instance::Driver;

use super::{Bench, disk_image, file_url, image, run};
use crate::node::storage::Seed;

const INSTANCES: usize = 50;

fn percentile(times: &mut [Duration], percent: usize) -> Duration {
    times.sort();
    times[times.len() * percent / 100]
}

fn report(what: &str, mut times: Vec<Duration>) {
    let (half, most) = (percentile(&mut times, 50), percentile(&mut times, 95));
    println!("{what}: P50 {half:.1?}, P95 {most:.1?}, {} times", times.len());
}

fn seed(n: usize) -> Seed {
    Seed {
        hostname: format!("i-{n}"),
        timezone: "UTC".into(),
        ..Seed::default()
    }
}

#[tokio::test]
#[ignore = "a measurement"]
async fn preparation_of_virtual_machines() {
    let bench = Bench::new();
    let storage = bench.open();
    let path = bench.dir.path().join("base.qcow2");
    run(
        "qemu-img",
        &["create", "-q", "-f", "qcow2", path.to_str().unwrap(), "2G"],
    );
    let base = storage.ensure_image(&disk_image(&file_url(&path))).await.unwrap();
    let (mut cached, mut disks, mut seeds, mut both) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for n in 0..INSTANCES {
        let uid = format!("u-{n}");
        let start = Instant::now();
        storage.ensure_image(&disk_image(&file_url(&path))).await.unwrap();
        cached.push(start.elapsed());
        let start = Instant::now();
        storage
            .create_root_disk(&uid, Some(&base), Driver::Kvm, 10_240)
            .await
            .unwrap();
        disks.push(start.elapsed());
        let start = Instant::now();
        storage.create_seed(&uid, &seed(n)).await.unwrap();
        seeds.push(start.elapsed());
        let (uid, seed) = (format!("v-{n}"), seed(n));
        let start = Instant::now();
        let root = storage.create_root_disk(&uid, Some(&base), Driver::Kvm, 10_240);
        let (root, seed) = tokio::join!(root, storage.create_seed(&uid, &seed));
        both.push(start.elapsed());
        root.unwrap();
        seed.unwrap();
    }
    report("image from the cache", cached);
    report("overlay", disks);
    report("seed", seeds);
    report("overlay and seed at once", both);
}

#[tokio::test]
#[ignore = "a measurement"]
async fn preparation_of_containers() {
    let archive = std::env::var("VIRTSHELL_LXC_ROOT").expect("VIRTSHELL_LXC_ROOT names a root archive");
    let bench = Bench::new();
    let storage = bench.open();
    let start = Instant::now();
    let url = file_url(&PathBuf::from(archive));
    let root = storage
        .ensure_image(&image(ImageType::LxcContainer, &url))
        .await
        .unwrap();
    println!("template of {} MiB: {:.1?}", root.virtual_mib(), start.elapsed());
    let mut times = Vec::new();
    for n in 0..INSTANCES / 5 {
        let start = Instant::now();
        storage
            .create_root_with_seed(&format!("u-{n}"), Some(&root), 10_240, &seed(n))
            .await
            .unwrap();
        times.push(start.elapsed());
    }
    report("root of a container", times);
}
