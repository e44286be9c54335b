//! Downloads that outlive the agent that began them.

use std::time::{Duration, SystemTime};

use virtshell_crds::instance::ResolvedImage;

use super::server::{Reply, Request, Server};
use super::{Bench, disk_image, noise, sha256};
use crate::node::storage::{CachedImage, StorageError};

/// Runs an agent in a runtime of its own that ends while the download has not: what a stop of the process leaves.
fn killed_while_fetching(bench: &Bench, image: &ResolvedImage) {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let storage = bench.open();
        let fetching = tokio::time::timeout(Duration::from_millis(500), storage.ensure_image(image)).await;
        assert!(fetching.is_err(), "it hangs in the middle");
    });
    runtime.shutdown_timeout(Duration::from_secs(5));
}

/// An agent that begins, ends in the middle, and one that is started after it; what the second one got, and what the
/// server was asked.
fn through_a_restart(
    between: impl FnOnce(&Bench),
    declared: Option<&[u8]>,
    reply: impl Fn(&Request, usize) -> Reply + Send + Sync + 'static,
) -> (Result<CachedImage, StorageError>, Vec<Request>, Bench) {
    // Agents come and go, the server stays.
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let server = runtime.block_on(Server::start(reply));
    let bench = Bench::new();
    let mut image = disk_image(&server.url("/d"));
    image.sha256 = declared.map(sha256).unwrap_or_default();
    killed_while_fetching(&bench, &image);
    between(&bench);
    let fetched = runtime.block_on(async { bench.open().ensure_image(&image).await });
    (fetched, server.requests(), bench)
}

const LONG: usize = 6 << 20;
const HALF: usize = LONG / 2;

/// The first answer stops in the middle for long; all are ranged.
fn first_hangs(request: &Request, before: usize, content: &[u8], etag: &str) -> Reply {
    Reply {
        pause: Duration::from_secs(if before == 0 { 3600 } else { 0 }),
        ..Reply::ranged(request, content, etag)
    }
}

#[test]
fn the_next_agent_goes_on_where_the_last_one_was() {
    let mut content = noise(LONG);
    // A hole where the first part ends: it is there all the same.
    content[1 << 20..HALF].fill(0);
    let body = content.clone();
    let (fetched, requests, bench) = through_a_restart(
        |_| {},
        None,
        move |request, before| first_hangs(request, before, &body, "\"v1\""),
    );
    assert_eq!(std::fs::read(fetched.unwrap().path).unwrap(), content);
    let from = requests[1].from().expect("it asks for the rest");
    assert!((1 << 20..=HALF).contains(&from), "{from}");
    assert_eq!(
        (requests.len(), requests[1].if_range.as_deref()),
        (2, Some("\"v1\""))
    );
    assert_eq!(bench.names("parts").len(), 0);
}

#[test]
fn content_that_changed_meanwhile_is_fetched_anew() {
    let new = noise(2 << 20);
    let body = new.clone();
    let (fetched, requests, _bench) = through_a_restart(
        |_| {},
        None,
        move |request, before| {
            let (content, etag) = if before == 0 {
                (vec![1; LONG], "\"v1\"")
            } else {
                (body.clone(), "\"v2\"")
            };
            first_hangs(request, before, &content, etag)
        },
    );
    assert_eq!(fetched.unwrap().sha256, sha256(&new));
    assert!(requests[1].from().is_some() && requests[1].if_range.is_some());
}

#[test]
fn without_a_validator_or_a_checksum_there_is_nothing_to_go_on_with() {
    let content = noise(LONG);
    let body = content.clone();
    let (fetched, requests, _bench) = through_a_restart(
        |bench| assert_eq!(bench.names("parts").len(), 1, "no note"),
        None,
        move |_, before| Reply {
            pause: Duration::from_secs(if before == 0 { 3600 } else { 0 }),
            ..Reply::new(200, &body)
        },
    );
    assert_eq!(fetched.unwrap().sha256, sha256(&content));
    assert_eq!(requests[1].range, None);
}

#[test]
fn a_damaged_part_under_a_declared_checksum_is_fetched_once_more() {
    let content = noise(LONG);
    let body = content.clone();
    let (fetched, requests, _bench) = through_a_restart(
        |bench| {
            let part = bench.names("parts").remove(0);
            let part = bench.data().join("parts").join(part);
            let mut bytes = std::fs::read(&part).unwrap();
            bytes[77] ^= 1;
            std::fs::write(&part, bytes).unwrap();
        },
        Some(&content),
        move |request, before| first_hangs(request, before, &body, "\"v1\""),
    );
    assert_eq!(fetched.unwrap().sha256, sha256(&content));
    let starts: Vec<bool> = requests.iter().map(|request| request.from().is_some()).collect();
    assert_eq!(starts, [false, true, false]);
}

#[test]
fn only_what_its_note_calls_certain_is_believed() {
    let content = noise(LONG);
    let body = content.clone();
    let (fetched, requests, _bench) = through_a_restart(
        |bench| {
            // What a power failure leaves: a length without content behind the last sync.
            let part = bench.names("parts").remove(0);
            let part = std::fs::File::options()
                .write(true)
                .open(bench.data().join("parts").join(part))
                .unwrap();
            part.set_len(LONG as u64).unwrap();
        },
        None,
        move |request, before| first_hangs(request, before, &body, "\"v1\""),
    );
    assert_eq!(fetched.unwrap().sha256, sha256(&content));
    assert!(requests[1].from().is_some_and(|from| from <= HALF));
}

#[tokio::test]
async fn a_network_that_fails_for_long_leaves_a_part_for_the_next_try() {
    let content = noise(4 << 20);
    let body = content.clone();
    let server = Server::start(move |request, before| {
        if before == 0 {
            Reply::ranged(request, &body, "\"v1\"").cut_at(2 << 20)
        } else if before < 5 {
            Reply::new(503, b"later")
        } else {
            Reply::ranged(request, &body, "\"v1\"")
        }
    })
    .await;
    let bench = Bench::new();
    let storage = bench.open();
    let image = disk_image(&server.url("/d"));
    let error = storage.ensure_image(&image).await.expect_err("four failures");
    assert!(error.is_transient());
    let cached = loop {
        if let Ok(cached) = storage.ensure_image(&image).await {
            break cached;
        }
    };
    assert_eq!(cached.sha256, sha256(&content));
    assert_eq!(server.requests().last().unwrap().from(), Some(2 << 20));
}

#[tokio::test]
async fn what_nobody_goes_on_with_is_removed_and_strangers_stay() {
    let bench = Bench::new();
    drop(bench.open());
    let parts = bench.data().join("parts");
    let name = |digit: &str| digit.repeat(64);
    let note = r#"{"url":"http://x/","sha256":null,"validator":"v","bytes":0}"#;
    for (file, content) in [
        (name("a"), "part"),
        (format!("{}.json", name("a")), note),
        (name("b"), "without a note"),
        (name("c"), "with a note that says nothing"),
        (format!("{}.json", name("c")), "{"),
        (format!("{}.json", name("d")), note),
        ("mine.txt".to_owned(), "not ours"),
        (".tmp-x".to_owned(), "half a note"),
    ] {
        std::fs::write(parts.join(file), content).unwrap();
    }
    drop(bench.open());
    let kept = [name("a"), format!("{}.json", name("a")), "mine.txt".to_owned()];
    assert_eq!(bench.names("parts"), kept);
    let old = SystemTime::now() - Duration::from_hours(25);
    std::fs::File::open(parts.join(name("a")))
        .unwrap()
        .set_modified(old)
        .unwrap();
    drop(bench.open());
    assert_eq!(bench.names("parts"), ["mine.txt"]);
}
