//! Fetching over HTTP: what servers and networks do wrong, and that nothing is left of it.

use std::time::Duration;

use super::server::{Reply, Request, Server};
use super::{Bench, disk_image, noise, sha256};
use crate::node::storage::StorageError;

#[tokio::test]
async fn an_image_is_fetched_once_and_survives_a_restart() {
    let content = noise(3_000_000);
    let body = content.clone();
    let server = Server::start(move |_, _| Reply::new(200, &body)).await;
    let bench = Bench::new();
    let image = disk_image(&server.url("/d.raw"));

    let storage = bench.open();
    let cached = storage.ensure_image(&image).await.unwrap();
    assert_eq!(std::fs::read(&cached.path).unwrap(), content);
    assert_eq!(cached.sha256, sha256(&content));
    assert_eq!((cached.size_bytes, cached.virtual_mib()), (3_000_000, 3));
    assert_eq!(storage.ensure_image(&image).await.unwrap(), cached);
    drop(storage);

    let storage = bench.open();
    assert_eq!(storage.ensure_image(&image).await.unwrap(), cached);
    assert_eq!(storage.cached_images(), [cached]);
    assert_eq!(server.requests().len(), 1);
}

#[tokio::test]
async fn waiting_callers_share_one_download_and_see_its_progress() {
    let content = noise(2 << 20);
    let body = content.clone();
    let server = Server::start(move |_, _| Reply {
        pause: Duration::from_millis(300),
        ..Reply::new(200, &body)
    })
    .await;
    let bench = Bench::new();
    let storage = bench.open();
    let image = disk_image(&server.url("/d.raw"));
    assert_eq!(storage.image_progress(&image), None);

    let waiting: Vec<_> = (0..20)
        .map(|_| {
            let (storage, image) = (storage.clone(), image.clone());
            tokio::spawn(async move { storage.ensure_image(&image).await })
        })
        .collect();
    let mut halfway = None;
    for _ in 0..100 {
        tokio::time::sleep(Duration::from_millis(5)).await;
        halfway = halfway.or(storage
            .image_progress(&image)
            .filter(|progress| progress.bytes > 0));
    }
    let halfway = halfway.expect("progress is shown while the download runs");
    assert_eq!(halfway.total, Some(2 << 20));
    assert!(
        halfway.bytes < 2 << 20 && halfway.bytes_per_second > 0,
        "{halfway:?}"
    );
    for caller in waiting {
        assert_eq!(caller.await.unwrap().unwrap().sha256, sha256(&content));
    }
    assert_eq!(server.requests().len(), 1);
    assert_eq!(storage.image_progress(&image), None);
}

#[tokio::test]
async fn a_download_goes_on_when_its_caller_gives_up() {
    let content = noise(1 << 20);
    let server = Server::start(move |_, _| Reply {
        pause: Duration::from_millis(200),
        ..Reply::new(200, &content)
    })
    .await;
    let bench = Bench::new();
    let storage = bench.open();
    let image = disk_image(&server.url("/d.raw"));
    let given_up = tokio::time::timeout(Duration::from_millis(50), storage.ensure_image(&image)).await;
    assert!(given_up.is_err());
    storage.ensure_image(&image).await.unwrap();
    assert_eq!(server.requests().len(), 1);
}

/// One row: a server, and the reason and transience that its answers end in.
async fn failure(reply: impl Fn(&Request, usize) -> Reply + Send + Sync + 'static) -> (StorageError, usize) {
    let server = Server::start(reply).await;
    let bench = Bench::new();
    let storage = bench.open();
    let mut image = disk_image(&server.url("/images/d.raw"));
    image.sha256 = sha256(&noise(100_000));
    let error = storage
        .ensure_image(&image)
        .await
        .expect_err("it cannot be fetched");
    if error.reason() == "ImageTruncated" {
        // Its beginning is worth something to the next try.
        std::fs::remove_dir_all(bench.data().join("parts")).unwrap();
        std::fs::create_dir(bench.data().join("parts")).unwrap();
    }
    bench.assert_nothing_cached();
    assert!(
        error.to_string().contains("/images/d.raw"),
        "the URL is named: {error}"
    );
    (error, server.requests().len())
}

#[tokio::test]
async fn refusals_are_permanent_and_asked_once() {
    for (status, reason) in [(404, "ImageNotFound"), (403, "DownloadRefused")] {
        let (error, requests) = failure(move |_, _| Reply::new(status, b"no")).await;
        assert_eq!(
            (error.reason(), error.is_transient(), requests),
            (reason, false, 1)
        );
        assert!(error.to_string().contains(&status.to_string()), "{error}");
    }
}

#[tokio::test]
async fn another_checksum_is_refused_with_both_values() {
    let (error, requests) = failure(|_, _| Reply::new(200, &noise(100_001))).await;
    assert_eq!(
        (error.reason(), error.is_transient(), requests),
        ("ChecksumMismatch", false, 1)
    );
    let text = error.to_string();
    assert!(
        text.contains(&sha256(&noise(100_000))) && text.contains(&sha256(&noise(100_001))),
        "{text}"
    );
}

#[tokio::test]
async fn content_that_always_ends_early_is_truncated() {
    let (error, requests) = failure(|_, _| Reply::new(200, &noise(100_000)).cut_at(60_000)).await;
    assert_eq!((error.reason(), error.is_transient()), ("ImageTruncated", true));
    assert!(error.to_string().contains("60000 bytes of 100000"), "{error}");
    assert!(requests > 1, "tried again");
}

#[tokio::test]
async fn a_server_that_stays_broken_is_transient() {
    let (error, requests) = failure(|_, _| Reply::new(503, b"later")).await;
    assert_eq!(
        (error.reason(), error.is_transient(), requests),
        ("DownloadFailed", true, 4)
    );
    let nobody = Bench::new();
    let error = nobody
        .open()
        .ensure_image(&disk_image("http://127.0.0.1:1/d.raw"))
        .await
        .expect_err("refused");
    assert_eq!((error.reason(), error.is_transient()), ("DownloadFailed", true));
    assert!(error.to_string().contains("Connection refused"), "{error}");
}

#[tokio::test]
async fn a_server_that_recovers_is_enough() {
    let content = noise(50_000);
    let body = content.clone();
    let server = Server::start(move |_, before| Reply::new(if before < 2 { 503 } else { 200 }, &body)).await;
    let bench = Bench::new();
    let cached = bench
        .open()
        .ensure_image(&disk_image(&server.url("/d")))
        .await
        .unwrap();
    assert_eq!(cached.sha256, sha256(&content));
    assert_eq!(server.requests().len(), 3);
}

#[tokio::test]
async fn redirects_are_followed() {
    let content = noise(50_000);
    let body = content.clone();
    let server = Server::start(move |request, _| match request.path.as_str() {
        "/latest" => Reply::new(302, b"").header("Location", "/v1"),
        _ => Reply::new(200, &body),
    })
    .await;
    let bench = Bench::new();
    let cached = bench
        .open()
        .ensure_image(&disk_image(&server.url("/latest")))
        .await
        .unwrap();
    assert_eq!(cached.sha256, sha256(&content));
    let circle = Server::start(|_, _| Reply::new(302, b"").header("Location", "/")).await;
    let error = bench_error(&circle.url("/")).await;
    assert!(error.to_string().contains("redirect"), "{error}");
}

async fn bench_error(url: &str) -> StorageError {
    let bench = Bench::new();
    let error = bench
        .open()
        .ensure_image(&disk_image(url))
        .await
        .expect_err("it cannot be fetched");
    bench.assert_nothing_cached();
    error
}

#[tokio::test]
async fn an_interrupted_download_resumes_where_it_ended() {
    let content = noise(4_000_000);
    let body = content.clone();
    let server = Server::start(move |request, before| {
        let reply = Reply::ranged(request, &body, "\"v1\"");
        if before < 3 {
            reply.cut_at(1_000_000)
        } else {
            reply
        }
    })
    .await;
    let bench = Bench::new();
    let cached = bench
        .open()
        .ensure_image(&disk_image(&server.url("/d")))
        .await
        .unwrap();
    assert_eq!(std::fs::read(&cached.path).unwrap(), content);
    let requests = server.requests();
    let starts: Vec<_> = requests.iter().map(Request::from).collect();
    assert_eq!(starts, [None, Some(1_000_000), Some(2_000_000), Some(3_000_000)]);
    assert!(
        requests[1..]
            .iter()
            .all(|request| request.if_range.as_deref() == Some("\"v1\""))
    );
}

#[tokio::test]
async fn content_that_changed_between_is_fetched_anew() {
    let (old, new) = (vec![1; 3_000_000], noise(2_000_000));
    let body = new.clone();
    let server = Server::start(move |request, before| {
        if before == 0 {
            Reply::ranged(request, &old, "\"v1\"").cut_at(1_500_000)
        } else {
            Reply::ranged(request, &body, "\"v2\"")
        }
    })
    .await;
    let bench = Bench::new();
    let cached = bench
        .open()
        .ensure_image(&disk_image(&server.url("/d")))
        .await
        .unwrap();
    assert_eq!(cached.sha256, sha256(&new));
}

#[tokio::test]
async fn without_a_validator_nothing_is_glued_together() {
    let content = noise(3_000_000);
    let body = content.clone();
    let server = Server::start(move |_, before| {
        let reply = Reply::new(200, &body);
        if before == 0 {
            reply.cut_at(1_500_000)
        } else {
            reply
        }
    })
    .await;
    let bench = Bench::new();
    let cached = bench
        .open()
        .ensure_image(&disk_image(&server.url("/d")))
        .await
        .unwrap();
    assert_eq!(cached.sha256, sha256(&content));
    assert!(server.requests().iter().all(|request| request.range.is_none()));
}

#[tokio::test]
async fn a_length_that_is_not_announced_is_fine() {
    let content = noise(300_000);
    let body = content.clone();
    let server = Server::start(move |_, _| Reply {
        announce: false,
        ..Reply::new(200, &body)
    })
    .await;
    let bench = Bench::new();
    let cached = bench
        .open()
        .ensure_image(&disk_image(&server.url("/d")))
        .await
        .unwrap();
    assert_eq!(cached.sha256, sha256(&content));
}

#[tokio::test]
async fn what_would_not_fit_is_refused_before_it_comes() {
    let server = Server::start(|_, _| Reply::new(200, &noise(3 << 20))).await;
    let mut bench = Bench::new();
    bench.options.min_free_mib = 1 << 40;
    let error = bench
        .open()
        .ensure_image(&disk_image(&server.url("/d")))
        .await
        .expect_err("no such disk");
    assert_eq!((error.reason(), error.is_transient()), ("NoRoom", true));
    assert!(error.to_string().contains("image i needs 3 MiB"), "{error}");
    bench.assert_nothing_cached();

    let mut bench = Bench::new();
    bench.options.max_image_mib = 2;
    let error = bench
        .open()
        .ensure_image(&disk_image(&server.url("/d")))
        .await
        .expect_err("too big");
    assert_eq!(error.reason(), "ImageFormatRefused");
    bench.assert_nothing_cached();
}

/// Guards: the host must not fetch for a tenant what only the host reaches, however the URL leads there.
#[tokio::test]
async fn addresses_of_the_host_itself_are_refused() {
    let server = Server::start(|request, _| match request.path.as_str() {
        "/to-itself" => Reply::new(302, b"").header("Location", "http://127.0.0.2/x"),
        "/to-metadata" => Reply::new(302, b"").header("Location", "http://169.254.169.254/latest/"),
        _ => Reply::new(200, &noise(5000)),
    })
    .await;
    let by_name = server.url("/d").replace("127.0.0.1", "localhost");
    let mut bench = Bench::new();
    for (allowed, url, address) in [
        ("127.0.0.1/32", server.url("/to-itself"), "127.0.0.2"),
        ("127.0.0.1/32", server.url("/to-metadata"), "169.254.169.254"),
        ("192.0.2.0/24", server.url("/d"), "127.0.0.1"),
        ("192.0.2.0/24", by_name.clone(), "1"),
    ] {
        bench.allowed = allowed;
        let before = server.requests().len();
        let error = bench
            .open()
            .ensure_image(&disk_image(&url))
            .await
            .expect_err(&url);
        assert_eq!(
            (error.reason(), error.is_transient()),
            ("ImageSourceForbidden", false),
            "{error}"
        );
        assert!(error.to_string().contains(address), "{error}");
        let asked = usize::from(allowed.starts_with("127"));
        assert_eq!(server.requests().len() - before, asked, "{url}");
    }
    bench.assert_nothing_cached();
    bench.allowed = "127.0.0.0/8";
    bench.open().ensure_image(&disk_image(&by_name)).await.unwrap();
}
