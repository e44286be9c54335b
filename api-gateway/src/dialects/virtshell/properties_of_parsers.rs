//! Whatever a client sends, the parsers answer: they never panic, never grow beyond their bounds, and what they accept
//! holds what they promise.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::body::{Body, Bytes};
use futures::StreamExt as _;
use proptest::prelude::*;
use proptest::test_runner::TestCaseError;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use virtshell_crds::file_ref::path_of;
use virtshell_crds::permissions;

use super::error::Rejection;
use super::routes::ROUTES;
use super::shape::{Reader, observe};
use super::upload::{Form, Upload};
use super::values::Fields;
use super::{selector, sizes};
use crate::auth::{date, signature};
use crate::blobs::{Blobs, Place};
use crate::service::selection::{Selector, matches};

/// Any JSON, with the words of the grammar more often than others.
fn value() -> impl Strategy<Value = Value> {
    let text = prop_oneof![
        any::<String>(),
        "[a-z_]{0,4}(\\[[0-9]{0,5}[:-]?[0-9]{0,22}\\]|\\*|\\]|\\[){0,4}[a-z]{0,3}",
        "[0-9]{0,22}[-:]?[0-9]{0,22}",
        "[a-z]{0,600}(\\[[0-9]{1,3}[:-][0-9]{3}\\]){1,2}",
    ];
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        text.prop_map(Value::from),
    ];
    let word = prop_oneof![
        Just("name"),
        Just("range"),
        Just("pattern"),
        Just("tag"),
        Just("uuid"),
        Just("ip"),
        Just("other")
    ];
    leaf.prop_recursive(3, 24, 6, move |inner| {
        let member = (word.clone().prop_map(str::to_owned), inner.clone());
        prop_oneof![
            proptest::collection::vec(inner, 0..6).prop_map(Value::from),
            proptest::collection::vec(member, 0..4)
                .prop_map(|members| Value::Object(members.into_iter().collect())),
        ]
    })
}

fn body(members: &[(&str, Value)]) -> Map<String, Value> {
    members
        .iter()
        .map(|(name, value)| ((*name).to_owned(), value.clone()))
        .collect()
}

/// A refusal is the caller's to correct.
fn is_answered<T>(outcome: &Result<T, Rejection>) -> Result<(), TestCaseError> {
    if let Err(rejection) = outcome {
        prop_assert!(matches!(rejection.status().as_u16(), 400 | 501), "{rejection:?}");
        prop_assert!(rejection.message().len() < 4096 && !rejection.message().is_empty());
    }
    Ok(())
}

proptest! {
    #[test]
    fn selectors(instances in value(), tags in value()) {
        let body = body(&[("instances", instances), ("tags", tags)]);
        let read = selector::read(Fields::of(&body));
        is_answered(&read)?;
        // All that the patterns of a request stand for, however many patterns there are and however long.
        let names: Vec<String> = read
            .into_iter()
            .flatten()
            .filter_map(|selector| if let Selector::Matching(names) = selector { Some(names) } else { None })
            .flatten()
            .collect();
        prop_assert!(names.iter().all(|name| !name.contains(['[', ']'])));
        prop_assert!(names.len() <= 1000);
        prop_assert!(names.iter().map(String::len).sum::<usize>() <= 1000 * (255 + 128));
    }

    #[test]
    fn a_range_is_all_of_its_numbers(first in 0_u32..5000, count in 1_u32..200, prefix in "[a-z]{0,5}") {
        let last = first + count - 1;
        let body = body(&[("instances", json!({"name": &prefix, "range": format!("[{first}-{last}]")}))]);
        let expected: Vec<String> = (first..=last).map(|n| format!("{prefix}{n}")).collect();
        if prefix.is_empty() {
            prop_assert!(selector::read(Fields::of(&body)).is_err());
        } else {
            prop_assert_eq!(selector::read(Fields::of(&body)), Ok(vec![Selector::Matching(expected)]));
        }
    }

    #[test]
    fn a_star_matches_what_was_left_out(parts in proptest::collection::vec("[ab]{0,3}", 1..5), gaps in "[ab]{0,8}") {
        let pattern = parts.join("*");
        prop_assert!(matches(&pattern, &parts.join(&gaps)) || parts.len() == 1);
        let (wider, text) = (format!("*{pattern}*"), format!("{gaps}{}{gaps}", parts.join("")));
        prop_assert!(matches(&wider, &text));
    }

    #[test]
    fn sizes_are_whole_mib_within_their_range(text in "\\PC{0,24}|\\s*[0-9]{0,20}(\\.[0-9]{0,20})?\\s*[kmgtKMGT]?i?[bB]?\\s*") {
        for size in [sizes::HOST_MEMORY, sizes::HOST_CAPACITY, sizes::PROVISIONER_MEMORY, sizes::PROVISIONER_DISK,
            sizes::INSTANCE_MEMORY, sizes::INSTANCE_DISK]
        {
            if let Ok(mib) = size.parse(&text) {
                prop_assert!(mib >= 1, "{} {}", text, mib);
            }
        }
    }

    #[test]
    fn values_of_any_type(value in value()) {
        let body = body(&[("f", value.clone()), ("cpus", value.clone()), ("launch", value.clone()), ("driver", value.clone()),
            ("type", value)]);
        let fields = Fields::of(&body);
        is_answered(&fields.string(&["f"]))?;
        is_answered(&fields.boolean("f"))?;
        is_answered(&fields.integer("f", 1, 9))?;
        is_answered(&fields.cpus())?;
        is_answered(&fields.launch())?;
        is_answered(&fields.driver())?;
        is_answered(&fields.host_type("f"))?;
        is_answered(&fields.image_type())?;
        is_answered(&fields.reference(&["f"]))?;
        is_answered(&fields.references(&["f"]))?;
        is_answered(&fields.ipv4(&["f"], true))?;
        is_answered(&fields.ipv6("f"))?;
        is_answered(&fields.size("f", sizes::INSTANCE_MEMORY))?;
    }

    #[test]
    fn bodies_of_every_route(route in any::<prop::sample::Index>(), values in proptest::collection::vec(value(), 40)) {
        let abouts = ROUTES.iter().map(|route| (route.about)());
        let readers: Vec<Reader> = abouts.flat_map(|about| [about.json, about.form]).flatten().map(|reads| reads.reader).collect();
        let reader = *route.get(&readers);
        let members = observe(reader).members;
        let names = members.iter().flat_map(|member| &member.names);
        let body = names.zip(values).map(|(name, value)| ((*name).to_owned(), value)).collect();
        is_answered(&reader(Fields::of(&body)))?;
    }

    #[test]
    fn permission_strings(text in "\\PC{0,12}|-?[rwx_-]{8,10}") {
        let letters = text.strip_prefix('-').filter(|_| text.len() == 10).unwrap_or(&text);
        let twice = |triplet: &[u8]| (1..triplet.len()).any(|n| b"rwx".contains(&triplet[n]) && triplet[..n].contains(&triplet[n]));
        let valid = letters.len() == 9
            && letters.bytes().all(|b| b"rwx-_".contains(&b))
            && !letters.as_bytes().chunks(3).any(twice);
        prop_assert_eq!(permissions::parse(&text).is_ok(), valid, "{}", text);
    }

    #[test]
    fn file_references(text in "\\PC{0,64}|(https?:/{0,3})?[a-z:<>]{0,8}(/(files|file|a|)){0,5}/?[a-z]{0,4}") {
        let path = path_of(&text);
        prop_assert!(text.contains(path) && !path.starts_with('/') && !path.ends_with('/'));
    }

    #[test]
    fn headers_of_authentication(header in "\\PC{0,64}", secret in "\\PC{0,32}", body in any::<Vec<u8>>()) {
        if let Some((user, signature)) = signature::split(&header) {
            prop_assert!(!user.is_empty() && !signature.is_empty() && !user.contains(':'));
        }
        let signed = signature::Signed { method: "GET", host: &header, date: &secret, ..signature::Signed::default() };
        prop_assert!(signed.is_signed_with(&secret, &signed.sign(&secret)));
        let _ = (signed.is_signed_with(&secret, &header), signature::is_md5_of(&header, &body), date::parse(&header));
    }

    #[test]
    fn any_multipart_body(bytes in any::<Vec<u8>>(), step in 1_usize..64) {
        let read = read_form(&bytes, step, 1 << 16);
        is_answered(&read.map(drop))?;
    }

    #[test]
    fn a_form_is_the_same_in_any_steps(
        fields in proptest::collection::btree_map("[a-z]{1,8}_", "[ -~]{0,64}", 0..4),
        content in any::<Vec<u8>>(),
        step in 1_usize..64,
        cut in any::<prop::sample::Index>(),
    ) {
        let mut bytes = Vec::new();
        for (name, text) in &fields {
            bytes.extend(format!("--b0und4ry\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\n{text}\r\n").bytes());
        }
        bytes.extend(b"--b0und4ry\r\nContent-Disposition: form-data; name=\"file\"; filename=\"n\"\r\n\r\n");
        bytes.extend(&content);
        bytes.extend(b"\r\n--b0und4ry--\r\n");
        let form = read_form(&bytes, step, 1 << 16).map_err(|rejection| TestCaseError::fail(rejection.message()))?;
        let seen: Vec<(&String, &str)> = form.fields.iter().map(|(name, text)| (name, text.as_str().unwrap())).collect();
        prop_assert_eq!(seen, fields.iter().map(|(name, text)| (name, text.as_str())).collect::<Vec<_>>());
        let file = form.file.unwrap();
        prop_assert_eq!((file.name.as_deref(), file.content.size), (Some("n"), content.len() as u64));
        prop_assert_eq!(file.content.sha256, hex::encode(Sha256::digest(&content)));
        // Broken off anywhere before its end, or larger than allowed, it is refused.
        let cut = cut.index(bytes.len() - 4);
        prop_assert!(read_form(&bytes[..cut], step, 1 << 16).is_err());
        prop_assert!(read_form(&bytes, step, bytes.len() as u64 - 1).is_err());
    }
}

#[test]
fn a_part_that_does_not_begin_is_not_read_to_its_end() {
    let content_of = |head: &str, more: &str| {
        let mut bytes = head.as_bytes().to_vec();
        bytes.extend(more.as_bytes().repeat(1 << 20));
        bytes
    };
    for (head, more) in [
        ("", "x"),
        ("--b0und4ry", " "),
        ("--b0und4ry\r\nX-Header: ", "x"),
        (
            "--b0und4ry\r\nContent-Disposition: form-data; name=\"a\"\r\n\r\nb\r\n--b0und4ry\r\nX: ",
            "x",
        ),
    ] {
        for step in [256, 4096] {
            let bytes = content_of(head, more);
            let taken = Arc::new(AtomicUsize::new(0));
            let read = read_counted(&bytes, step, 1 << 30, &taken);
            let refusal = Rejection::BadBody("a part of it does not begin within 16 KiB");
            assert_eq!(read.err(), Some(refusal), "{head}");
            // Nor held, then.
            assert!(taken.load(Ordering::Relaxed) <= 17 * 1024 + 2 * step, "{head}");
        }
    }
    // The piece that a head comes in may be as large as it likes.
    let file = "--b0und4ry\r\nContent-Disposition: form-data; name=\"a\"\r\n\r\n";
    let mut bytes = format!("{file}b\r\n").repeat(8).into_bytes();
    bytes.extend(format!("{file}{}\r\n--b0und4ry--", "x".repeat(8000)).bytes());
    bytes.extend(vec![b'x'; 1 << 20]);
    assert!(read_form(&bytes, bytes.len(), 1 << 30).is_ok());
}

/// Reads a form that comes in steps of this size.
fn read_form(bytes: &[u8], step: usize, limit: u64) -> Result<Form, Rejection> {
    read_counted(bytes, step, limit, &Arc::default())
}

/// The same; `taken` counts how much of it was asked for.
fn read_counted(bytes: &[u8], step: usize, limit: u64, taken: &Arc<AtomicUsize>) -> Result<Form, Rejection> {
    let taken = taken.clone();
    let steps: Vec<Bytes> = bytes.chunks(step).map(Bytes::copy_from_slice).collect();
    let steps = futures::stream::iter(steps).map(move |step| {
        taken.fetch_add(step.len(), Ordering::Relaxed);
        Ok::<_, Infallible>(step)
    });
    let body = Body::from_stream(steps);
    let upload = Upload::new(body, "b0und4ry".to_owned(), None, limit);
    // Nothing here is so large that it is written there.
    let blobs = Blobs::open(&Place::Directory("/nonexistent".into())).unwrap();
    tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .unwrap()
        .block_on(upload.read(|| blobs.intake()))
}
