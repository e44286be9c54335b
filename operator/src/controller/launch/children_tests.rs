//! The children of any launch, made beside whoever is there and by controllers that are killed in between.

use serde_json::json;

use super::*;
use crate::controller::testing::Random;

/// Instances by metadata.name, as the API server has them.
type Server = BTreeMap<String, Instance>;

fn some_name(random: &mut Random) -> String {
    let letters: Vec<char> = "aZ9-_ .é1".chars().collect();
    let length = if random.below(4) == 0 {
        240
    } else {
        random.below(12) + 1
    };
    let letter = |random: &mut Random| letters[random.below(letters.len() as u64) as usize];
    (0..length).map(|_| letter(random)).collect()
}

fn launch_of(name: &str, uid: &str, max: i32) -> Instance {
    let object = json!({
        "apiVersion": "virtshell.io/v1alpha1", "kind": "Instance",
        "metadata": {"name": names::object_name(name), "namespace": "n", "uid": uid, "generation": 1},
        "spec": {"displayName": name, "blank": true, "launch": {"min": 1, "max": max}},
    });
    serde_json::from_value(object).unwrap()
}

/// Some who have the object's name of a child, and a name of their own or that of the child.
fn neighbours(random: &mut Random, parent: &Instance, max: i32, may_take_names: bool) -> Server {
    let mut there = Server::new();
    for n in 1..=max {
        if random.below(6) != 0 {
            continue;
        }
        let meant = child(parent, n, random.below(2) as u32 + 1);
        let takes = may_take_names && random.below(4) == 0;
        let name = if takes {
            meant.wire_name().to_owned()
        } else {
            format!("was called otherwise {n}")
        };
        let mut other = launch_of(&name, "another", 1);
        other.metadata.name = meant.metadata.name;
        there.insert(other.name_any(), other);
    }
    there
}

/// Makes what is missing as [`super::super::create`] does, with so many creations to live. `None` = it was killed; else the
/// names of all, or the one that is taken.
fn make(
    server: &mut Server,
    parent: &Instance,
    max: i32,
    mut left: u64,
) -> Option<Result<Vec<String>, String>> {
    let wires: Vec<String> = (1..=max)
        .map(|n| launch::child_name(parent.wire_name(), n))
        .collect();
    let is_taken = |wire: &&String| {
        let namesake = |i: &Instance| i.wire_name() == wire.as_str() && !is_child(i, parent);
        server.values().any(namesake)
    };
    if let Some(taken) = wires.iter().find(is_taken) {
        return Some(Err(taken.clone()));
    }
    let mut all = Vec::new();
    'children: for n in 1..=max {
        for candidate in 1..=4 {
            let child = child(parent, n, candidate);
            let name = child.name_any();
            match server.get(&name).map(|there| found(there, &child, parent)) {
                None => {
                    left = left.checked_sub(1)?;
                    server.insert(name.clone(), child);
                }
                Some(Found::Child) => {}
                Some(Found::Renamed) => continue,
                Some(Found::Taken) => return Some(Err(child.wire_name().to_owned())),
            }
            all.push(name);
            continue 'children;
        }
        return Some(Err(format!("no name for {n}")));
    }
    Some(Ok(all))
}

#[test]
fn every_child_is_made_once_under_a_name_of_its_own() {
    for seed in 0..2000 {
        let random = &mut Random::new(seed);
        let max = random.below(12) as i32 + 1;
        let parent = launch_of(&some_name(random), "ours", max);
        let before = neighbours(random, &parent, max, seed % 2 == 0);
        let mut server = before.clone();
        let mut lives = 0;
        let answer = loop {
            lives += 1;
            assert!(lives < 50, "seed {seed}: it does not come to an end");
            // Every life makes one at least.
            if let Some(answer) = make(&mut server, &parent, max, random.below(4) + 1) {
                break answer;
            }
        };
        let mut at_once = before.clone();
        assert_eq!(
            make(&mut at_once, &parent, max, u64::MAX),
            Some(answer.clone()),
            "seed {seed}"
        );
        let made = server.values().filter(|i| is_child(i, &parent));
        let Ok(all) = answer else {
            assert_eq!(made.count(), 0, "seed {seed}: all or nothing");
            continue;
        };
        let made: Vec<String> = made.map(Instance::name_any).collect();
        let mut sorted = all.clone();
        sorted.sort();
        assert_eq!(
            made, sorted,
            "seed {seed}: as many as are asked for, each with its own name"
        );
        assert_eq!(made.len(), max as usize, "seed {seed}");
        for (name, n) in all.iter().zip(1..) {
            let made = &server[name];
            assert_eq!(
                made.wire_name(),
                launch::child_name(parent.wire_name(), n),
                "seed {seed}"
            );
            assert_eq!(
                launch::parent_name(made.wire_name()),
                Some(parent.wire_name()),
                "seed {seed}"
            );
            let is_label = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
            assert!(
                name.len() <= 63 && name.chars().all(is_label),
                "seed {seed}: {name}"
            );
        }
        let neighbour = before
            .iter()
            .all(|(name, there)| server[name].metadata.uid == there.metadata.uid);
        assert!(neighbour, "seed {seed}: nobody else was touched");
        // Looking again makes nothing and says the same.
        assert_eq!(make(&mut server, &parent, max, 0), Some(Ok(all)), "seed {seed}");
    }
}

#[test]
fn a_group_counts_whom_it_has_in_whatever_order() {
    let phases = ["Pending", "Creating", "Running", "Stopped", "Failed"];
    for seed in 0..2000 {
        let random = &mut Random::new(seed);
        let max = random.below(6) as i32 + 1;
        let launch = Launch {
            min: random.below(max as u64) as i32 + 1,
            max,
        };
        let parent = launch_of("web", "ours", max);
        let (mut placed, mut ready) = (0, 0);
        // Some were deleted.
        let numbers: Vec<i32> = (1..=max).filter(|_| random.below(5) != 0).collect();
        let mut children: Vec<Instance> = Vec::new();
        for n in numbers {
            let mut holds = |type_: &str, count: &mut i32| {
                let holds = random.below(2) == 0;
                *count += i32::from(holds);
                json!({
                    "type": type_, "status": if holds { "True" } else { "False" }, "reason": "R", "message": "",
                    "lastTransitionTime": "2026-01-01T00:00:00Z",
                })
            };
            let conditions = [holds(SCHEDULED, &mut placed), holds(READY, &mut ready)];
            let phase = phases[random.below(5) as usize];
            let mut child = child(&parent, n, 1);
            child.status = serde_json::from_value(json!({"phase": phase, "conditions": conditions})).unwrap();
            children.push(child);
        }
        let total = children.len() as i32;
        let seen = group(launch, &children);
        let words = format!("{placed} of {total} instances have a host");
        assert_eq!(
            seen.scheduled,
            (Status::from(placed == total), words),
            "seed {seed}"
        );
        let words = format!("{ready} of {total} instances are ready, {} must be", launch.min);
        assert_eq!(
            seen.ready,
            (Status::from(ready >= launch.min), words),
            "seed {seed}"
        );
        children.reverse();
        let again = group(launch, &children);
        assert_eq!(
            (again.phase, again.scheduled, again.ready),
            (seen.phase, seen.scheduled, seen.ready),
            "seed {seed}"
        );
    }
}
