//! Whatever an Instance asks for and whatever it refers to: its values are decided once.

use serde_json::{Value, json};

use super::tests::object;
use super::*;
use crate::controller::launch::group;
use crate::controller::testing::Random;

const RUNS: u64 = 3000;

fn one_of<'a>(random: &mut Random, words: &[&'a str]) -> &'a str {
    words[random.below(words.len() as u64) as usize]
}

/// Mostly there: what is missing is refused, and says nothing about values.
fn likely<T>(random: &mut Random, value: T) -> Option<T> {
    (random.below(16) != 0).then_some(value)
}

/// Fields that are often left out.
fn some(random: &mut Random, fields: &[(&str, Value)]) -> Value {
    let there = fields.iter().filter(|_| random.below(2) == 0);
    Value::Object(
        there
            .map(|(name, value)| ((*name).to_owned(), value.clone()))
            .collect(),
    )
}

fn size(random: &mut Random) -> Value {
    json!(random.below(4000) + 1)
}

fn any_image(random: &mut Random, name: &str) -> Arc<Image> {
    let url = format!("http://x/{}", random.below(100));
    let fields = [
        ("containerResource", json!(format!("{url}/root"))),
        ("sha256", json!("e3b0c4")),
        ("timezone", json!("America/Bogota")),
        ("sshKey", json!(format!("key {}", random.below(9)))),
        ("boot", json!({"kernelUrl": url, "cmdline": "quiet"})),
    ];
    let mut spec = some(random, &fields);
    spec["type"] = json!(one_of(
        random,
        &["disk", "disk", "iso", "lxc-container", "docker-container"]
    ));
    spec["downloadUrl"] = json!(likely(random, url));
    object("Image", name, spec)
}

fn any_provisioner(random: &mut Random) -> Arc<Provisioner> {
    let fields = [
        ("cpus", size(random)),
        ("memoryMiB", size(random)),
        ("diskMiB", size(random)),
        ("image", json!("i")),
        ("driver", json!(one_of(random, &["kvm", "lxc", "docker"]))),
        ("launch", json!({"min": 1, "max": random.below(4) + 1})),
        ("tags", json!([one_of(random, &["web", "db"]), "made"])),
        ("depends", json!([{"provisioner": one_of(random, &["q", "r"])}])),
        ("builder", json!(format!("https://x/{}", random.below(9)))),
        ("executor", json!("sh run")),
    ];
    object("Provisioner", "p", some(random, &fields))
}

/// An Instance that has just been asked for.
fn asked(random: &mut Random) -> Instance {
    let fields = [
        ("cpus", size(random)),
        ("memoryMiB", size(random)),
        ("diskMiB", size(random)),
        ("image", json!("i")),
        ("provisioner", json!("p")),
        ("driver", json!(one_of(random, &["kvm", "qemu", "lxc"]))),
        ("blank", json!(true)),
        ("launch", json!({"min": 1, "max": random.below(4) + 1})),
        ("tags", json!([one_of(random, &["web", "own"])])),
        ("disks", json!([{"name": "a", "image": "j"}, {"name": "b"}])),
    ];
    Arc::unwrap_or_clone(object("Instance", "vm", some(random, &fields)))
}

/// What it refers to, as it may be at some time.
fn at_some_time(random: &mut Random, of: &Instance) -> References {
    let provisioner = of.spec.provisioner.as_ref().and_then(|_| {
        let made = any_provisioner(random);
        likely(random, made)
    });
    let image_name = resolve::image_name(&of.spec, provisioner.as_deref().map(|p| &p.spec));
    let image = image_name.and_then(|name| {
        let made = any_image(random, name);
        likely(random, made)
    });
    let disks = of.spec.disks.iter().filter_map(|disk| {
        let made = any_image(random, disk.image.as_deref()?);
        Some((disk.name.clone(), likely(random, made)?))
    });
    let disk_images = disks.collect();
    let environment = object(
        "Environment",
        "default",
        json!({"displayName": one_of(random, &["default", "e"])}),
    );
    References {
        environment: likely(random, environment),
        provisioner,
        image,
        disk_images,
        ..References::default()
    }
}

/// The Instance once the controller has written what it was accepted with.
fn written(instance: &Instance, acceptance: &Acceptance) -> Instance {
    let status = json!({
        "resolved": acceptance.resolved, "tags": acceptance.tags,
        "conditions": [{
            "type": "Accepted", "status": "True", "reason": "Valid", "message": "",
            "observedGeneration": instance.metadata.generation, "lastTransitionTime": "2026-01-01T00:00:00Z",
        }],
    });
    Instance {
        status: serde_json::from_value(status).unwrap(),
        ..instance.clone()
    }
}

/// Runs `check` on Instances that were accepted, with what each was accepted with; most are.
fn for_accepted(check: impl Fn(u64, &mut Random, &Instance, &Acceptance)) {
    let mut accepted = 0;
    for seed in 0..RUNS {
        let random = &mut Random::new(seed);
        let instance = asked(random);
        let refs = at_some_time(random, &instance);
        let answer = accept(&instance, &refs);
        assert_eq!(
            accept(&instance, &refs),
            answer,
            "seed {seed}: the same answer for the same question"
        );
        match answer {
            Ok(acceptance) => {
                accepted += 1;
                check(seed, random, &written(&instance, &acceptance), &acceptance);
            }
            Err(refusal) => assert!(!refusal.message.is_empty(), "seed {seed}"),
        }
    }
    assert!(accepted > RUNS / 4, "only {accepted} of {RUNS} say something");
}

#[test]
fn nothing_that_happens_to_what_it_refers_to_changes_an_accepted_instance() {
    for_accepted(|seed, random, instance, acceptance| {
        for refs in [at_some_time(random, instance), References::default()] {
            assert_eq!(accept(instance, &refs).as_ref(), Ok(acceptance), "seed {seed}");
        }
    });
}

#[test]
fn an_edit_changes_the_sizes_that_it_names_and_nothing_else() {
    for_accepted(|seed, random, instance, acceptance| {
        let mut edited = instance.clone();
        edited.metadata.generation = Some(3);
        let sizes = [
            ("cpus", size(random)),
            ("memoryMiB", size(random)),
            ("diskMiB", size(random)),
        ];
        let sizes = some(random, &sizes);
        let mut spec = json!(edited.spec);
        for name in ["cpus", "memoryMiB", "diskMiB"] {
            spec[name] = sizes[name].clone();
        }
        edited.spec = serde_json::from_value(spec).unwrap();
        let refs = at_some_time(random, instance);
        let seen = accept(&edited, &refs).unwrap();
        let mut expected = json!(acceptance.resolved);
        for (name, value) in sizes.as_object().unwrap() {
            expected[name] = value.clone();
        }
        assert_eq!(json!(seen.resolved), expected, "seed {seed}");
        for tag in &edited.spec.tags {
            assert!(seen.tags.contains(&tag.0), "seed {seed}");
        }
    });
}

#[test]
fn a_disk_that_is_added_takes_its_image_as_it_is_then_and_the_others_keep_theirs() {
    for_accepted(|seed, random, instance, acceptance| {
        let mut edited = instance.clone();
        edited.metadata.generation = Some(3);
        let mut spec = json!(edited.spec);
        spec["disks"] = json!([{"name": "a", "image": "j"}, {"name": "c", "image": "k"}]);
        edited.spec = serde_json::from_value(spec).unwrap();
        let refs = at_some_time(random, &edited);
        let Ok(seen) = accept(&edited, &refs) else {
            return;
        };
        let images = &seen.resolved.disk_images;
        let driver = acceptance.resolved.driver.unwrap();
        let now = |disk: &str| resolve::resolved_image(named(&refs.disk_images[disk]), driver).unwrap();
        let first = acceptance.resolved.disk_images.get("a").cloned();
        assert_eq!(images["a"], first.unwrap_or_else(|| now("a")), "seed {seed}");
        assert_eq!(images["c"], now("c"), "seed {seed}");
        assert_eq!(images.len(), 2, "seed {seed}");
        assert_eq!(seen.resolved.image, acceptance.resolved.image, "seed {seed}");
    });
}

#[test]
fn children_have_the_values_of_their_parent_whatever_there_is_when_they_are_made() {
    for_accepted(|seed, random, parent, acceptance| {
        let child = group::child(parent, 1, 1);
        let refs = References {
            parent: Some(Arc::new(parent.clone())),
            ..at_some_time(random, &child)
        };
        let seen = accept(&child, &refs).unwrap();
        let expected = Resolved {
            launch: Some(Launch::default()),
            ..acceptance.resolved.clone()
        };
        assert_eq!(seen.resolved, expected, "seed {seed}");
        assert_eq!(seen.tags, acceptance.tags, "seed {seed}");
    });
}
