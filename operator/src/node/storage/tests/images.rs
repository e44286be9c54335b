//! What may be an image, and how the cache finds it again.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::time::Duration;

use virtshell_crds::image::{Boot, ImageType};

use super::server::{Reply, Server};
use super::{Bench, disk_image, file_url, image, noise, run, sha256};
use crate::node::storage::ImageFormat;

#[tokio::test]
async fn files_of_the_host_need_the_flag() {
    let mut bench = Bench::new();
    let path = bench.file("d.raw", &noise(5000));
    bench.options.allow_file_images = false;
    let error = bench
        .open()
        .ensure_image(&disk_image(&file_url(&path)))
        .await
        .expect_err("not allowed");
    assert_eq!(
        (error.reason(), error.is_transient()),
        ("FileImagesNotAllowed", false)
    );
    bench.assert_nothing_cached();
    bench.options.allow_file_images = true;
    let cached = bench
        .open()
        .ensure_image(&disk_image(&file_url(&path)))
        .await
        .unwrap();
    assert_eq!(cached.sha256, sha256(&noise(5000)));
    let mode = std::fs::metadata(&cached.path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o644, "QEMU's user reads it");
}

#[tokio::test]
async fn a_changed_file_is_taken_anew_and_a_removed_one_stays_cached() {
    let bench = Bench::new();
    let storage = bench.open();
    let path = bench.file("d.raw", &noise(5000));
    let image = disk_image(&file_url(&path));
    let first = storage.ensure_image(&image).await.unwrap();
    bench.file("d.raw", &noise(6000));
    let second = storage.ensure_image(&image).await.unwrap();
    assert_eq!(second.sha256, sha256(&noise(6000)));
    assert!(first.path.exists(), "disks may rest on it");
    std::fs::remove_file(&path).unwrap();
    assert_eq!(storage.ensure_image(&image).await.unwrap(), second);
}

#[tokio::test]
async fn no_file_is_named() {
    let bench = Bench::new();
    let storage = bench.open();
    for path in ["/no/such/file.raw", "/proc"] {
        let error = storage
            .ensure_image(&disk_image(&format!("file://{path}")))
            .await
            .expect_err(path);
        assert_eq!(
            (error.reason(), error.is_transient()),
            ("ImageNotFound", false),
            "{error}"
        );
        assert!(error.to_string().contains(path), "{error}");
    }
    bench.assert_nothing_cached();
}

/// Guards: whoever reads a Host sees the checksums of its images; they must not open what others fetched.
#[tokio::test]
async fn a_checksum_opens_nothing_whose_url_one_cannot_name() {
    let server = Server::start(|request, _| match request.path.as_str() {
        "/secret" => Reply::new(200, &noise(5000)),
        _ => Reply::new(404, b""),
    })
    .await;
    let bench = Bench::new();
    let storage = bench.open();
    storage
        .ensure_image(&disk_image(&server.url("/secret")))
        .await
        .unwrap();
    let mut declared = disk_image(&server.url("/guess"));
    declared.sha256 = sha256(&noise(5000));
    let error = storage.ensure_image(&declared).await.expect_err("not theirs");
    assert_eq!(error.reason(), "ImageNotFound");
    // Nor does it join somebody's fetch that is under way.
    let under_way = Server::start(|_, _| Reply {
        pause: Duration::from_millis(300),
        ..Reply::new(200, &noise(6000))
    })
    .await;
    let (mut theirs, mut ours) = (disk_image(&under_way.url("/secret")), declared.clone());
    (theirs.sha256, ours.sha256) = (sha256(&noise(6000)), sha256(&noise(6000)));
    let (theirs, ours) = tokio::join!(storage.ensure_image(&theirs), storage.ensure_image(&ours));
    assert_eq!(theirs.unwrap().sha256, sha256(&noise(6000)));
    assert_eq!(ours.expect_err("not theirs").reason(), "ImageNotFound");
}

#[tokio::test]
async fn the_same_content_from_another_url_is_fetched_and_stored_once() {
    let server = Server::start(|_, _| Reply::new(200, &noise(5000))).await;
    let bench = Bench::new();
    let storage = bench.open();
    let mut image = disk_image(&server.url("/a"));
    let first = storage.ensure_image(&image).await.unwrap();
    // What the URL gave is what is declared: nothing to fetch.
    image.sha256 = sha256(&noise(5000));
    assert_eq!(storage.ensure_image(&image).await.unwrap(), first);
    assert_eq!(server.requests().len(), 1);
    for declared in ["", &image.sha256] {
        let mut other = disk_image(&server.url("/b"));
        other.sha256 = declared.to_owned();
        assert_eq!(storage.ensure_image(&other).await.unwrap(), first);
    }
    assert_eq!(server.requests().len(), 2);
    assert_eq!(bench.names("images").len(), 2, "content and its description");
}

#[tokio::test]
async fn an_older_release_of_a_url_stays_known_while_it_is_here() {
    let server = Server::start(|_, before| Reply::new(200, &noise(5000 + before))).await;
    let bench = Bench::new();
    let storage = bench.open();
    let mut image = disk_image(&server.url("/latest"));
    let releases = [sha256(&noise(5000)), sha256(&noise(5001))];
    for _ in 0..2 {
        for release in &releases {
            image.sha256.clone_from(release);
            assert_eq!(storage.ensure_image(&image).await.unwrap().sha256, *release);
        }
    }
    drop(storage);
    image.sha256.clone_from(&releases[0]);
    let again = bench.open().ensure_image(&image).await.unwrap();
    assert_eq!((again.sha256, server.requests().len()), (releases[0].clone(), 2));
}

#[tokio::test]
async fn content_that_was_removed_or_cut_is_fetched_again() {
    let server = Server::start(|_, _| Reply::new(200, &noise(5000))).await;
    let bench = Bench::new();
    let storage = bench.open();
    let image = disk_image(&server.url("/a"));
    let cached = storage.ensure_image(&image).await.unwrap();
    std::fs::remove_file(&cached.path).unwrap();
    assert_eq!(storage.cached_images(), []);
    storage.ensure_image(&image).await.unwrap();
    std::fs::OpenOptions::new()
        .write(true)
        .open(&cached.path)
        .unwrap()
        .set_len(10)
        .unwrap();
    storage.ensure_image(&image).await.unwrap();
    assert_eq!(server.requests().len(), 3);
    assert_eq!(std::fs::read(&cached.path).unwrap(), noise(5000));
}

#[tokio::test]
async fn a_description_that_cannot_be_read_costs_a_download_only() {
    let server = Server::start(|_, _| Reply::new(200, &noise(5000))).await;
    let bench = Bench::new();
    let image = disk_image(&server.url("/a"));
    let cached = bench.open().ensure_image(&image).await.unwrap();
    std::fs::write(cached.path.with_extension("json"), "{").unwrap();
    assert_eq!(bench.open().ensure_image(&image).await.unwrap(), cached);
    assert_eq!(server.requests().len(), 2);
}

#[tokio::test]
async fn qcow2_images_are_inspected() {
    let bench = Bench::new();
    let storage = bench.open();
    let path = |name: &str| bench.dir.path().join(name).to_str().unwrap().to_owned();
    run(
        "qemu-img",
        &["create", "-q", "-f", "qcow2", &path("good.qcow2"), "5G"],
    );
    let good = storage
        .ensure_image(&disk_image(&file_url(path("good.qcow2").as_ref())))
        .await
        .unwrap();
    assert_eq!((good.format, good.virtual_mib()), (ImageFormat::Qcow2, 5120));

    run(
        "qemu-img",
        &[
            "create",
            "-q",
            "-f",
            "qcow2",
            "-b",
            "/etc/hostname",
            "-F",
            "raw",
            &path("backing.qcow2"),
        ],
    );
    let data = format!("data_file={}", path("data.raw"));
    run(
        "qemu-img",
        &[
            "create",
            "-q",
            "-f",
            "qcow2",
            "-o",
            &data,
            &path("external.qcow2"),
            "1G",
        ],
    );
    run(
        "qemu-img",
        &["create", "-q", "-f", "qcow2", &path("huge.qcow2"), "5T"],
    );
    std::fs::write(
        path("damaged.qcow2"),
        &std::fs::read(path("good.qcow2")).unwrap()[..200],
    )
    .unwrap();
    for (name, word) in [
        ("backing.qcow2", "backing file"),
        ("external.qcow2", "external data file"),
        ("huge.qcow2", "5242880 MiB"),
        ("damaged.qcow2", "cut short"),
    ] {
        let error = storage
            .ensure_image(&disk_image(&file_url(path(name).as_ref())))
            .await
            .expect_err(name);
        assert_eq!(
            (error.reason(), error.is_transient()),
            ("ImageFormatRefused", false),
            "{error}"
        );
        assert!(error.to_string().contains(word), "{name}: {error}");
    }
    assert_eq!(storage.cached_images(), [good]);
}

#[tokio::test]
async fn types_are_held_to_their_content() {
    let bench = Bench::new();
    let storage = bench.open();
    let page = bench.file("page", b"<!DOCTYPE html><html>Download here</html>");
    let raw = bench.file("raw", &noise(100_000));
    run("gzip", &["-k", raw.to_str().unwrap()]);
    let gz = bench.dir.path().join("raw.gz");
    let seed = bench.file("iso", &crate::node::storage::Seed::default().render("u").iso());
    for (type_, path, word) in [
        (ImageType::Disk, &page, "web page"),
        (ImageType::Iso, &raw, "type iso"),
        (ImageType::LxcContainer, &raw, "lxc-container"),
        (ImageType::LxcContainer, &gz, "no complete tar archive"),
        (ImageType::Disk, &gz, "decompress the disk"),
        (ImageType::DockerContainer, &raw, "docker-container"),
    ] {
        let error = storage
            .ensure_image(&image(type_, &file_url(path)))
            .await
            .expect_err(word);
        assert!(error.to_string().contains(word), "{error}");
    }
    let iso = storage
        .ensure_image(&image(ImageType::Iso, &file_url(&seed)))
        .await
        .unwrap();
    assert!(iso.is_medium());
    assert_eq!(bench.names("roots"), Vec::<String>::new(), "no half-made roots");
}

#[tokio::test]
async fn kernel_and_ram_disk_are_cached_too() {
    let server = Server::start(|request, _| Reply::new(200, request.path.as_bytes())).await;
    let bench = Bench::new();
    let storage = bench.open();
    let mut image = disk_image("");
    assert_eq!(storage.ensure_boot(&image).await.unwrap(), None);
    image.boot = Some(Boot {
        kernel_url: server.url("/vmlinuz"),
        initrd_url: server.url("/initrd"),
        cmdline: String::new(),
    });
    for _ in 0..2 {
        let boot = storage.ensure_boot(&image).await.unwrap().unwrap();
        assert_eq!(std::fs::read(boot.kernel).unwrap(), b"/vmlinuz");
        assert_eq!(std::fs::read(boot.initrd.unwrap()).unwrap(), b"/initrd");
    }
    assert_eq!(server.requests().len(), 2);
}

#[tokio::test]
async fn holes_of_a_raw_file_stay_holes() {
    let bench = Bench::new();
    let path = bench.file("sparse.raw", &noise(5000));
    std::fs::OpenOptions::new()
        .write(true)
        .open(&path)
        .unwrap()
        .set_len(16 << 20)
        .unwrap();
    let cached = bench
        .open()
        .ensure_image(&disk_image(&file_url(&path)))
        .await
        .unwrap();
    let metadata = std::fs::metadata(&cached.path).unwrap();
    assert_eq!(metadata.len(), 16 << 20);
    assert!(metadata.blocks() * 512 < 1 << 20, "{} blocks", metadata.blocks());
    assert_eq!(sha256(&std::fs::read(&cached.path).unwrap()), cached.sha256);
}
