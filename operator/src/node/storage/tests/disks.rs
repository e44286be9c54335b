//! Disks and seeds: complete or absent, made once, removed without touching what is not ours.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use virtshell_crds::image::ImageType;
use virtshell_crds::instance::{Driver, ResolvedImage};

use super::{Bench, UID, disk_image, file_url, image, noise, run};
use crate::node::storage::{Answers, CachedImage, DiskFormat, ObservedFiles, Seed, Storage};

fn info(path: &Path) -> serde_json::Value {
    let text = run("qemu-img", &["info", "--output=json", path.to_str().unwrap()]);
    serde_json::from_str(&text).unwrap()
}

async fn base(bench: &Bench, storage: &Storage) -> CachedImage {
    let path = bench.dir.path().join("base.qcow2");
    run(
        "qemu-img",
        &["create", "-q", "-f", "qcow2", path.to_str().unwrap(), "300M"],
    );
    storage.ensure_image(&disk_image(&file_url(&path))).await.unwrap()
}

#[tokio::test]
async fn a_root_disk_is_an_overlay_of_the_larger_size() {
    let bench = Bench::new();
    let storage = bench.open();
    let base = base(&bench, &storage).await;
    for (uid, asked, expected) in [("u-1", 1000, 1000), ("u-2", 10, 300)] {
        let disk = storage
            .create_root_disk(uid, Some(&base), Driver::Kvm, asked)
            .await
            .unwrap();
        assert_eq!((disk.format, disk.virtual_mib), (DiskFormat::Qcow2, expected));
        let info = info(&disk.path);
        assert_eq!(info["virtual-size"], expected << 20);
        assert_eq!(info["backing-filename"], base.path.to_str().unwrap());
        assert_eq!(info["backing-filename-format"], "qcow2");
        assert_eq!(storage.observe(uid).await.unwrap().root, Some(disk));
    }
    run(
        "qemu-img",
        &["check", "-q", storage.files("u-1").root_qcow2.to_str().unwrap()],
    );
}

#[tokio::test]
async fn the_second_of_two_like_disks_is_what_qemu_img_would_make() {
    let bench = Bench::new();
    let storage = bench.open();
    let base = base(&bench, &storage).await;
    for (image, size) in [(Some(&base), 1000), (Some(&base), 400), (None, 1000)] {
        let mut made = Vec::new();
        for uid in ["u-1", "u-2", "u-3"] {
            let name = format!("data-{size}-{}", image.is_some());
            let disk = storage.create_disk(uid, &name, image, Some(size)).await.unwrap();
            run("qemu-img", &["check", "-q", disk.path.to_str().unwrap()]);
            made.push(std::fs::read(&disk.path).unwrap());
        }
        assert!(made[0] == made[1] && made[1] == made[2], "{size}");
        let (asked, path) = ((size << 20).to_string(), bench.dir.path().join("by-hand.qcow2"));
        let mut words = vec!["create", "-q", "-f", "qcow2"];
        if let Some(image) = image {
            words.extend(["-u", "-F", "qcow2", "-b", image.path.to_str().unwrap()]);
        }
        words.extend([path.to_str().unwrap(), &asked]);
        run("qemu-img", &words);
        assert!(made[1] == std::fs::read(&path).unwrap(), "{size}");
    }
}

#[tokio::test]
async fn raw_bases_media_and_blank_disks() {
    let bench = Bench::new();
    let storage = bench.open();
    let raw = bench.file("d.raw", &noise(1_000_001));
    let raw = storage.ensure_image(&disk_image(&file_url(&raw))).await.unwrap();
    let disk = storage
        .create_root_disk("u-1", Some(&raw), Driver::Qemu, 0)
        .await
        .unwrap();
    assert_eq!(info(&disk.path)["backing-filename-format"], "raw");
    assert_eq!(info(&disk.path)["virtual-size"], 1_000_448, "whole sectors");
    assert_eq!(disk.virtual_mib, 1);

    let iso = bench.file("i.iso", &Seed::default().render("u").iso());
    let iso = storage
        .ensure_image(&image(ImageType::Iso, &file_url(&iso)))
        .await
        .unwrap();
    for (uid, image) in [("u-2", Some(&iso)), ("u-3", None)] {
        let disk = storage
            .create_root_disk(uid, image, Driver::Kvm, 100)
            .await
            .unwrap();
        assert_eq!(info(&disk.path)["backing-filename"], serde_json::Value::Null);
        assert_eq!(disk.virtual_mib, 100);
    }
    let error = storage
        .create_root_disk("u-4", None, Driver::Kvm, 0)
        .await
        .expect_err("no size");
    assert_eq!(error.reason(), "DiskRefused");
    assert_eq!(storage.observe("u-4").await.unwrap(), ObservedFiles::default());
}

#[tokio::test]
async fn what_is_there_is_not_made_again() {
    let bench = Bench::new();
    let storage = bench.open();
    let base = base(&bench, &storage).await;
    let first = storage
        .create_root_disk(UID, Some(&base), Driver::Kvm, 400)
        .await
        .unwrap();
    let inode = std::fs::metadata(&first.path).unwrap().ino();
    let again = storage
        .create_root_disk(UID, Some(&base), Driver::Kvm, 900)
        .await
        .unwrap();
    assert_eq!(again, first);
    assert_eq!(std::fs::metadata(&first.path).unwrap().ino(), inode);
}

#[tokio::test]
async fn additional_disks() {
    let bench = Bench::new();
    let storage = bench.open();
    let base = base(&bench, &storage).await;
    let data = storage.create_disk(UID, "data", None, Some(64)).await.unwrap();
    let copy = storage.create_disk(UID, "copy", Some(&base), None).await.unwrap();
    assert_eq!((data.virtual_mib, copy.virtual_mib), (64, 300));
    let observed = storage.observe(UID).await.unwrap();
    assert_eq!(observed.disks.keys().collect::<Vec<_>>(), ["copy", "data"]);
    for name in ["root", "seed", "", "../x", "UP"] {
        let error = storage
            .create_disk(UID, name, None, Some(1))
            .await
            .expect_err(name);
        assert_eq!(error.reason(), "DiskRefused");
    }
    storage
        .create_disk(UID, "none", None, None)
        .await
        .expect_err("neither size nor image");
    storage
        .create_disk("../up", "d", None, Some(1))
        .await
        .expect_err("no uid");
}

#[tokio::test]
async fn disks_grow_and_never_shrink() {
    let bench = Bench::new();
    let storage = bench.open();
    let disk = storage
        .create_root_disk(UID, None, Driver::Kvm, 100)
        .await
        .unwrap();
    for _ in 0..2 {
        assert_eq!(
            storage.grow_disk(UID, "root", 250).await.unwrap().virtual_mib,
            250
        );
    }
    assert_eq!(info(&disk.path)["virtual-size"], 250 << 20);
    let error = storage.grow_disk(UID, "root", 100).await.expect_err("smaller");
    assert!(
        error.to_string().contains("250 MiB and cannot shrink to 100"),
        "{error}"
    );
    storage
        .grow_disk(UID, "data", 100)
        .await
        .expect_err("no such disk");
}

fn seed(hostname: &str) -> Seed {
    Seed {
        hostname: hostname.into(),
        ..Seed::default()
    }
}

#[tokio::test]
async fn a_seed_is_rewritten_only_when_it_says_something_else() {
    let bench = Bench::new();
    let storage = bench.open();
    let path = storage.files(UID).seed;
    storage.create_seed(UID, &seed("a")).await.unwrap();
    let inode = || std::fs::metadata(&path).unwrap().ino();
    let first = inode();
    storage.create_seed(UID, &seed("a")).await.unwrap();
    assert_eq!(inode(), first);
    storage.create_seed(UID, &seed("b")).await.unwrap();
    assert_ne!(inode(), first);
    let text = run(
        "isoinfo",
        &["-R", "-i", path.to_str().unwrap(), "-x", "/meta-data"],
    );
    assert!(
        text.contains("local-hostname: \"b\"") && text.contains(UID),
        "{text}"
    );
    let label = run("isoinfo", &["-d", "-i", path.to_str().unwrap()]);
    assert!(label.contains("Volume id: cidata"), "{label}");
    assert_eq!(
        std::fs::metadata(&path).unwrap().permissions().mode() & 0o777,
        0o600,
        "user data may be secret"
    );
    assert_eq!(storage.observe(UID).await.unwrap().seed, Some(path));
}

#[tokio::test]
async fn an_installation_gets_its_answers_and_no_other_image_does() {
    let bench = Bench::new();
    let storage = bench.open();
    let template = bench.file("preseed.cfg", b"host {{hostname}} in {{timezone}}\n");
    let answers = Answers {
        hostname: "web".into(),
        timezone: "America/Bogota".into(),
        ..Answers::default()
    };
    let with = |type_, url: String| ResolvedImage {
        preseed_url: url,
        ..image(type_, "http://127.0.0.1:9/never-asked")
    };
    let url = file_url(&template);
    let medium = storage.files(UID).answers;
    for (type_, url) in [(ImageType::Disk, url.clone()), (ImageType::Iso, String::new())] {
        storage
            .create_answers(UID, &with(type_, url), &answers)
            .await
            .unwrap();
        assert!(!medium.exists());
    }
    storage
        .create_answers(UID, &with(ImageType::Iso, url), &answers)
        .await
        .unwrap();
    let path = medium.to_str().unwrap();
    let text = run("isoinfo", &["-R", "-i", path, "-x", "/preseed.cfg"]);
    assert_eq!(text, "host web in America/Bogota\n");
    assert!(run("isoinfo", &["-d", "-i", path]).contains("Volume id: OEMDRV"));

    let missing = file_url(&template.with_file_name("none"));
    let error = storage
        .create_answers(UID, &with(ImageType::Iso, missing), &answers)
        .await
        .expect_err("no such file");
    assert!(error.to_string().contains("none"), "{error}");
    storage.remove(UID, false).await.unwrap();
    assert!(!medium.exists(), "it goes with the rest");
}

#[tokio::test]
async fn removal_spares_what_is_not_ours_and_may_be_repeated() {
    let bench = Bench::new();
    let storage = bench.open();
    storage.remove(UID, false).await.expect("absent is success");
    let make = async || {
        storage
            .create_root_disk(UID, None, Driver::Kvm, 10)
            .await
            .unwrap();
        storage.create_disk(UID, "data", None, Some(10)).await.unwrap();
        storage.create_seed(UID, &seed("a")).await.unwrap();
    };
    let dir = format!("vm/{UID}");
    make().await;
    storage.remove(UID, true).await.unwrap();
    assert_eq!(bench.names(&dir), ["disk-data.qcow2", "root.qcow2"]);

    make().await;
    let notes = storage.files(UID).dir.join("notes.txt");
    std::fs::write(&notes, "mine").unwrap();
    for _ in 0..2 {
        storage.remove(UID, false).await.unwrap();
        assert_eq!(bench.names(&dir), ["notes.txt"]);
    }
    std::fs::remove_file(notes).unwrap();
    storage.remove(UID, false).await.unwrap();
    assert!(!storage.files(UID).dir.exists());
}

#[tokio::test]
async fn half_made_files_are_invisible_and_go_at_the_next_start() {
    let bench = Bench::new();
    let storage = bench.open();
    storage
        .create_root_disk(UID, None, Driver::Kvm, 10)
        .await
        .unwrap();
    let dir = storage.files(UID).dir;
    std::fs::write(dir.join(".tmp-abc"), "half").unwrap();
    std::fs::create_dir(bench.data().join("roots/.tmp-tree")).unwrap();
    std::fs::write(bench.data().join("roots/.tmp-tree/f"), "half").unwrap();
    std::fs::write(bench.data().join("images/.tmp-x"), "half").unwrap();
    let observed = storage.observe(UID).await.unwrap();
    assert!(observed.root.is_some() && observed.seed.is_none() && observed.disks.is_empty());
    drop(storage);
    bench.open();
    assert_eq!(bench.names(&format!("vm/{UID}")), ["root.qcow2"]);
    assert_eq!(bench.names("roots"), Vec::<String>::new());
    assert_eq!(bench.names("images"), Vec::<String>::new());
}

#[tokio::test]
async fn one_agent_per_data_directory() {
    let bench = Bench::new();
    let storage = bench.open();
    let error = bench.try_open().err().expect("in use");
    assert_eq!(error.reason(), "DataDirInUse");
    drop(storage);
    bench.open();
    for dir in ["images", "urls", "roots", "vm"] {
        let mode = std::fs::metadata(bench.data().join(dir))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o711, "{dir}: QEMU's user passes");
    }
}

#[tokio::test]
async fn room_is_told() {
    let bench = Bench::new();
    let room = bench.open().room().await.unwrap();
    assert!(room.total_mib >= room.free_mib && room.total_mib > 0, "{room:?}");
    assert_eq!(room.keep_mib, 1);
}
