//! Root file systems of containers, looked at with e2fsprogs.

use std::path::{Path, PathBuf};

use virtshell_crds::image::ImageType;
use virtshell_crds::instance::Driver;

use super::{Bench, UID, disk_image, file_url, image, noise, run};
use crate::node::storage::{CachedImage, DiskFormat, Seed, Storage};

/// A small root, packed: busybox-like layout with a user's file and a link.
fn archive(bench: &Bench, extension: &str, flag: &str) -> PathBuf {
    let tree = bench.dir.path().join("tree");
    for dir in ["etc", "sbin", "home/u"] {
        std::fs::create_dir_all(tree.join(dir)).unwrap();
    }
    std::fs::write(tree.join("etc/hostname"), "from-the-image\n").unwrap();
    std::fs::write(tree.join("sbin/init"), noise(200_000)).unwrap();
    std::fs::write(tree.join("home/u/file"), "hello\n").unwrap();
    let _ = std::os::unix::fs::symlink("/sbin/init", tree.join("init"));
    let packed = bench.dir.path().join(format!("root.{extension}"));
    run(
        "tar",
        &[
            "-C",
            tree.to_str().unwrap(),
            "--owner=1000",
            "--group=1001",
            flag,
            "-cf",
            packed.to_str().unwrap(),
            ".",
        ],
    );
    packed
}

async fn cached(bench: &Bench, storage: &Storage) -> CachedImage {
    let packed = archive(bench, "tar.gz", "-z");
    storage
        .ensure_image(&image(ImageType::LxcContainer, &file_url(&packed)))
        .await
        .unwrap()
}

fn debugfs(image: &Path, command: &str) -> String {
    run("debugfs", &["-R", command, image.to_str().unwrap()])
}

fn seed() -> Seed {
    Seed {
        hostname: "web".into(),
        user_data: Some("#!/bin/sh\necho hi\n".into()),
        ..Seed::default()
    }
}

#[tokio::test]
async fn a_container_gets_its_own_root_with_its_seed() {
    let bench = Bench::new();
    let storage = bench.open();
    let image = cached(&bench, &storage).await;
    let disk = storage
        .create_root_with_seed(UID, Some(&image), 2000, &seed())
        .await
        .unwrap();
    assert_eq!((disk.format, disk.virtual_mib), (DiskFormat::Raw, 2000));
    run("e2fsck", &["-fn", disk.path.to_str().unwrap()]);
    assert_eq!(debugfs(&disk.path, "cat /etc/hostname"), "web\n");
    assert_eq!(debugfs(&disk.path, "cat /home/u/file"), "hello\n");
    let at = "/var/lib/cloud/seed/nocloud";
    assert_eq!(
        debugfs(&disk.path, &format!("cat {at}/user-data")),
        "#!/bin/sh\necho hi\n"
    );
    assert!(debugfs(&disk.path, &format!("cat {at}/meta-data")).contains(UID));
    assert!(debugfs(&disk.path, &format!("stat {at}/user-data")).contains("Mode:  0600"));
    assert!(debugfs(&disk.path, "stat /init").contains("Fast link dest: \"/sbin/init\""));
    let blocks = std::os::unix::fs::MetadataExt::blocks(&std::fs::metadata(&disk.path).unwrap()) * 512;
    assert!(blocks < 64 << 20, "sparse: {blocks} bytes stored");
    assert_eq!(storage.observe(UID).await.unwrap().root, Some(disk.clone()));
    if nix::unistd::geteuid().is_root() {
        let stat = debugfs(&disk.path, "stat /home/u/file");
        assert!(
            stat.contains("User:  1000") && stat.contains("Group:  1001"),
            "{stat}"
        );
    } else {
        println!("NOT CHECKED: owners are kept only by root");
    }

    let again = storage
        .create_root_with_seed(UID, Some(&image), 3000, &Seed::default())
        .await
        .unwrap();
    assert_eq!(again, disk, "made once");
    let other = storage
        .create_root_disk("u-2", Some(&image), Driver::Lxc, 1)
        .await
        .unwrap();
    assert_eq!(other.virtual_mib, image.virtual_mib(), "never below the image's");
    run("e2fsck", &["-fn", other.path.to_str().unwrap()]);
}

#[tokio::test]
async fn every_compression_becomes_a_template_once() {
    let bench = Bench::new();
    let storage = bench.open();
    for (extension, flag) in [
        ("tar", "--no-auto-compress"),
        ("tar.gz", "-z"),
        ("tar.xz", "-J"),
        ("tar.zst", "--zstd"),
    ] {
        let url = file_url(&archive(&bench, extension, flag));
        let image = image(ImageType::LxcContainer, &url);
        let cached = storage.ensure_image(&image).await.expect(extension);
        let template = cached.root_template.clone().unwrap();
        let inode = |path: &Path| std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(path).unwrap());
        let made = inode(&template);
        assert_eq!(storage.ensure_image(&image).await.unwrap(), cached);
        assert_eq!(inode(&template), made, "{extension}");
        assert_eq!(debugfs(&template, "cat /home/u/file"), "hello\n", "{extension}");
    }
    assert_eq!(bench.names("roots").len(), 4, "no half-made ones");
}

#[tokio::test]
async fn a_container_s_disk_grows() {
    let bench = Bench::new();
    let storage = bench.open();
    let image = cached(&bench, &storage).await;
    let disk = storage
        .create_root_disk(UID, Some(&image), Driver::Lxc, 100)
        .await
        .unwrap();
    assert_eq!(
        storage.grow_disk(UID, "root", 300_000).await.unwrap().virtual_mib,
        300_000
    );
    run("e2fsck", &["-fn", disk.path.to_str().unwrap()]);
    let statistics = debugfs(&disk.path, "show_super_stats -h");
    let blocks = statistics
        .lines()
        .find_map(|line| line.strip_prefix("Block count:"))
        .unwrap();
    assert_eq!(blocks.trim(), (300_000_u64 * 256).to_string());
}

#[tokio::test]
async fn an_empty_root_and_images_for_the_other_driver() {
    let bench = Bench::new();
    let storage = bench.open();
    let empty = storage
        .create_root_disk(UID, None, Driver::Lxc, 500)
        .await
        .unwrap();
    assert_eq!(empty.virtual_mib, 500);
    run("e2fsck", &["-fn", empty.path.to_str().unwrap()]);

    let archive = cached(&bench, &storage).await;
    let error = storage
        .create_root_disk("u-2", Some(&archive), Driver::Kvm, 10)
        .await
        .expect_err("an archive");
    assert!(error.to_string().contains("needs a qcow2 or raw disk"), "{error}");
    let raw = bench.file("d.raw", &noise(5000));
    let raw = storage.ensure_image(&disk_image(&file_url(&raw))).await.unwrap();
    let error = storage
        .create_root_disk("u-3", Some(&raw), Driver::Lxc, 10)
        .await
        .expect_err("a disk");
    assert!(error.to_string().contains("container_resource"), "{error}");
}

#[tokio::test]
async fn an_archive_that_unpacks_to_too_much_leaves_nothing() {
    let mut bench = Bench::new();
    bench.options.max_virtual_mib = 1;
    let storage = bench.open();
    let tree = bench.dir.path().join("tree");
    std::fs::create_dir_all(&tree).unwrap();
    std::fs::write(tree.join("zeros"), vec![0; 8 << 20]).unwrap();
    let packed = archive(&bench, "tar.xz", "-J");
    let error = storage
        .ensure_image(&image(ImageType::LxcContainer, &file_url(&packed)))
        .await
        .expect_err("8 MiB in a few kB");
    assert!(error.to_string().contains("more than 1 MiB"), "{error}");
    assert_eq!(bench.names("roots"), Vec::<String>::new());
}

#[tokio::test]
async fn a_seed_is_written_anew_without_damage() {
    let bench = Bench::new();
    let storage = bench.open();
    let image = cached(&bench, &storage).await;
    let root = storage
        .create_root_with_seed(UID, Some(&image), 64, &seed())
        .await
        .unwrap();
    for name in ["first", "second", "third"] {
        let seed = Seed {
            hostname: name.into(),
            ..seed()
        };
        storage.write_root_seed(UID, &seed).await.unwrap();
        let path = root.path.to_str().unwrap();
        run("e2fsck", &["-f", "-n", path]);
        assert!(debugfs(&root.path, "cat /etc/hostname").starts_with(name));
    }
}
