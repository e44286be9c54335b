#![expect(
    clippy::needless_pass_by_value,
    reason = "JSON literals read better as arguments"
)]

use std::collections::BTreeSet;

use super::*;
use crate::controller::testing::Random;
use serde_json::{Value, json};

fn provisioner(name: &str, depends: &[&str]) -> Arc<Provisioner> {
    let depends: Vec<Value> = depends.iter().map(|name| json!({"provisioner": name})).collect();
    let object = json!({
        "apiVersion": "virtshell.io/v1alpha1", "kind": "Provisioner", "metadata": {"name": name, "uid": format!("uid-{name}")},
        "spec": {"depends": depends},
    });
    Arc::new(serde_json::from_value(object).unwrap())
}

#[test]
fn a_walk_finds_the_way_back_and_what_is_missing() {
    for (rule, provisioners, expected) in [
        ("none", vec![("a", vec![])], Ok(())),
        (
            "a chain",
            vec![("a", vec!["b"]), ("b", vec!["c"]), ("c", vec![])],
            Ok(()),
        ),
        (
            "a diamond is no cycle",
            vec![
                ("a", vec!["b", "c"]),
                ("b", vec!["d"]),
                ("c", vec!["d"]),
                ("d", vec![]),
            ],
            Ok(()),
        ),
        (
            "itself",
            vec![("a", vec!["a"])],
            Err(Flaw::Cycle(vec!["a".into(), "a".into()])),
        ),
        (
            "the way to the cycle is no part of it",
            vec![("a", vec!["b"]), ("b", vec!["c"]), ("c", vec!["b"])],
            Err(Flaw::Cycle(vec!["b".into(), "c".into(), "b".into()])),
        ),
        (
            "the first in list order",
            vec![("a", vec!["b", "x"]), ("b", vec!["y"])],
            Err(Flaw::Missing("y".into())),
        ),
    ] {
        let all: Vec<_> = provisioners
            .iter()
            .map(|(name, depends)| provisioner(name, depends))
            .collect();
        let find = |name: &str| all.iter().find(|p| p.name_any() == name).cloned();
        assert_eq!(walk(&all[0], &find), expected, "{rule}");
    }
}

/// A flaw is found exactly when there is one, and the way it names is there.
#[test]
fn whatever_depends_on_whatever_a_walk_ends_with_the_truth() {
    for seed in 0..3000 {
        let random = &mut Random::new(seed);
        let count = random.below(7) + 1;
        let all: Vec<_> = (0..count)
            .map(|n| {
                // The last name is nobody's.
                let depends: Vec<_> = (0..random.below(3))
                    .map(|_| {
                        let names = count + u64::from(random.below(4) == 0);
                        random.below(names).to_string()
                    })
                    .collect();
                let depends: Vec<_> = depends.iter().map(String::as_str).collect();
                provisioner(&n.to_string(), &depends)
            })
            .collect();
        let find = |name: &str| all.iter().find(|p| p.name_any() == name).cloned();
        let names = |p: &Provisioner| -> Vec<String> {
            p.spec.depends.iter().map(|d| d.provisioner.clone()).collect()
        };
        // Who can be reached from whom, by as many steps as there are provisioners.
        let reached = |from: &str| {
            let mut reached: Vec<String> = names(&find(from).unwrap());
            for _ in 0..count {
                let more = reached.iter().filter_map(|name| find(name));
                let more: Vec<String> = more.flat_map(|p| names(&p)).collect();
                reached.extend(more);
                reached.sort();
                reached.dedup();
            }
            reached
        };
        let from_start = reached("0");
        let is_missing = from_start.iter().any(|name| find(name).is_none());
        let circles = |name: &str| find(name).is_some() && reached(name).iter().any(|n| n == name);
        let has_cycle = circles("0") || from_start.iter().any(|name| circles(name));
        let is_way = |path: &[String]| {
            let step = |step: &[String]| names(&find(&step[0]).unwrap()).contains(&step[1]);
            path.len() > 1 && path.first() == path.last() && path.windows(2).all(step)
        };
        let around = circle(&all[0], &find);
        assert_eq!(around.is_some(), circles("0"), "seed {seed}");
        if let Some(path) = around {
            assert!(is_way(&path) && path[0] == "0", "seed {seed}: {path:?}");
        }
        match walk(&all[0], &find) {
            Ok(()) => assert!(!is_missing && !has_cycle, "seed {seed}"),
            Err(Flaw::Missing(name)) => {
                assert!(find(&name).is_none() && from_start.contains(&name), "seed {seed}");
            }
            Err(Flaw::Cycle(path)) => {
                assert!(is_way(&path), "seed {seed}: {path:?}");
            }
        }
    }
}

#[test]
fn a_chain_may_be_long() {
    let all: Vec<_> = (0..20_000)
        .map(|n| provisioner(&n.to_string(), &[&(n + 1).to_string()]))
        .collect();
    let find = |name: &str| all.get(name.parse::<usize>().ok()?).cloned();
    assert_eq!(walk(&all[0], &find), Err(Flaw::Missing("20000".to_owned())));
    assert_eq!(circle(&all[0], &find), None);
}

fn instance(name: &str, phase: &str, status: Value) -> Arc<Instance> {
    let ready = if phase == "Running" { "True" } else { "False" };
    let mut shown = json!({
        "phase": phase, "powerState": "Running", "addresses": {"ipv4": ["10.0.0.1", "10.0.0.2"], "ipv6": []},
        "conditions": [{"type": "Ready", "status": ready, "reason": "R", "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"}],
    });
    for (key, value) in status.as_object().into_iter().flatten() {
        shown[key] = value.clone();
    }
    let object = json!({
        "apiVersion": "virtshell.io/v1alpha1", "kind": "Instance", "metadata": {"name": name, "uid": name},
        "spec": {"blank": true, "displayName": format!("{name}_1")}, "status": shown,
    });
    Arc::new(serde_json::from_value(object).unwrap())
}

#[test]
fn the_first_that_does_not_run_decides() {
    let runs = |name| instance(name, "Running", json!({}));
    let met = |provisioner: &str, name: &str, ipv4: &str| MetDependency {
        provisioner: provisioner.to_owned(),
        name: name.to_owned(),
        ipv4: ipv4.to_owned(),
    };
    let comes = || instance("x", "Creating", json!({"message": "image"}));
    let fails = || instance("y", "Failed", json!({"message": "exit code 1"}));
    let stopped = || instance("z", "Running", json!({"powerState": "Stopped"}));
    let parent = || {
        instance(
            "p",
            "Running",
            json!({"resolved": {"launch": {"min": 1, "max": 2}}}),
        )
    };
    let homeless = || instance("h", "Running", json!({"addresses": null}));
    for (rule, db, mq, expected) in [
        (
            "both run",
            vec![runs("a")],
            vec![homeless()],
            Step::Met(vec![met("db", "a_1", "10.0.0.1"), met("mq", "h_1", "")]),
        ),
        (
            "one of several is enough",
            vec![fails(), comes(), runs("b")],
            vec![runs("a")],
            Step::Met(vec![met("db", "b_1", "10.0.0.1"), met("mq", "a_1", "10.0.0.1")]),
        ),
        ("the first is missing", vec![], vec![], Step::Make("db".into())),
        (
            "the second is missing",
            vec![runs("a")],
            vec![],
            Step::Make("mq".into()),
        ),
        (
            "in order",
            vec![comes()],
            vec![],
            Step::Wait("waits for instance x_1 (provisioner db): image".into()),
        ),
        (
            "one failed, another comes",
            vec![fails(), comes()],
            vec![],
            Step::Wait("waits for instance x_1 (provisioner db): image".into()),
        ),
        (
            "failed",
            vec![fails()],
            vec![],
            Step::Failed("dependency failed: instance y_1 (provisioner db): exit code 1".into()),
        ),
        (
            "ready and stopped is not running",
            vec![stopped()],
            vec![],
            Step::Wait("waits for instance z_1 (provisioner db)".into()),
        ),
        (
            "a launch parent has no guest",
            vec![parent()],
            vec![],
            Step::Wait("waits for instance p_1 (provisioner db)".into()),
        ),
    ] {
        let named = |name: &str| Dependency {
            provisioner: name.to_owned(),
            version: String::new(),
        };
        let (first, second) = (named("db"), named("mq"));
        assert_eq!(plan(&[(&first, db), (&second, mq)]), expected, "{rule}");
    }
}

/// Provisioners that may depend on those after them, and with `knots` on any: (name, what it depends on).
fn some_provisioners(random: &mut Random, knots: bool) -> Vec<Arc<Provisioner>> {
    let count = random.below(7) + 1;
    let after = |random: &mut Random, n: u64| {
        let below = if knots { count } else { count - n - 1 };
        (below > 0).then(|| (count - 1 - random.below(below)).to_string())
    };
    let one = |n: u64, random: &mut Random| {
        let depends: Vec<_> = (0..random.below(4)).filter_map(|_| after(random, n)).collect();
        provisioner(
            &n.to_string(),
            &depends.iter().map(String::as_str).collect::<Vec<_>>(),
        )
    };
    (0..count).map(|n| one(n, random)).collect()
}

/// Depth first, in the order of the lists, as a person would write it down; false = there is a cycle.
fn written_down(at: &str, all: &[Arc<Provisioner>], path: &mut Vec<String>, asked: &mut Vec<String>) -> bool {
    path.push(at.to_owned());
    let found = all.iter().find(|p| p.name_any() == at).unwrap();
    for next in found.spec.depends.iter().map(|d| &d.provisioner) {
        let known = asked.contains(next);
        asked.push(next.clone());
        if path.contains(next) || (!known && !written_down(next, all, path, asked)) {
            return false;
        }
    }
    path.pop();
    true
}

#[test]
fn a_walk_goes_depth_first_in_list_order_and_refuses_every_cycle() {
    let mut cycles = 0;
    for seed in 0..3000 {
        let all = some_provisioners(&mut Random::new(seed), seed % 2 == 0);
        let asked = std::cell::RefCell::new(vec!["0".to_owned()]);
        let find = |name: &str| {
            asked.borrow_mut().push(name.to_owned());
            all.iter().find(|p| p.name_any() == name).cloned()
        };
        let walked = walk(&all[0], &find);
        let mut expected = vec!["0".to_owned()];
        let has_end = written_down("0", &all, &mut vec![], &mut expected);
        assert_eq!(walked.is_ok(), has_end, "seed {seed}: {walked:?}");
        assert_eq!(asked.into_inner(), expected, "seed {seed}");
        cycles += u64::from(!has_end);
    }
    assert!((500..2000).contains(&cycles), "{cycles} cycles: too one-sided");
}

/// Several Instances wait for what they need, which is made as [`plan`] says, comes up some time and may fail on the way.
#[test]
fn whoever_waits_for_a_provisioner_shares_what_is_made_by_it() {
    for seed in 0..1000 {
        let random = &mut Random::new(seed);
        let all = some_provisioners(random, false);
        let depends = |name: &str| -> &[Dependency] {
            let found = all.iter().find(|p| p.name_any() == name);
            found.map(|p| p.spec.depends.as_slice()).unwrap_or_default()
        };
        // Who is there (its provisioner), and its Instance as others see it.
        let mut there: Vec<(String, Arc<Instance>)> = Vec::new();
        let mut asked: Vec<String> = vec!["0".to_owned(), "0".to_owned()];
        let mut runs = BTreeSet::new();
        let mut rounds = 0;
        while !(0..asked.len()).all(|n| runs.contains(&n)) {
            rounds += 1;
            assert!(
                rounds < 2000,
                "seed {seed}: {asked:?} do not come up, only {runs:?}"
            );
            let n = random.below(asked.len() as u64) as usize;
            let needs = depends(&asked[n]);
            let by = |name: &str| -> Vec<Arc<Instance>> {
                let made = there.iter().filter(|(by, _)| by == name);
                made.map(|(_, instance)| instance.clone()).collect()
            };
            let seen: Vec<_> = needs.iter().map(|d| (d, by(&d.provisioner))).collect();
            match plan(&seen) {
                Step::Make(name) => {
                    assert!(by(&name).is_empty(), "seed {seed}: {name} is there");
                    let earlier = needs.iter().take_while(|d| d.provisioner != name);
                    let is_up = |d: &Dependency| by(&d.provisioner).iter().any(|i| super::runs(i));
                    assert!(earlier.clone().all(is_up), "seed {seed}: {name} is not its turn");
                    let made = instance(&format!("i{}", asked.len()), "Pending", json!({}));
                    there.push((name.clone(), made));
                    asked.push(name);
                }
                Step::Wait(_) | Step::Failed(_) => {}
                Step::Met(met) => {
                    let names: Vec<_> = met.iter().map(|m| &m.provisioner).collect();
                    let expected: Vec<_> = needs.iter().map(|d| &d.provisioner).collect();
                    assert_eq!(names, expected, "seed {seed}");
                    // The first two are not what others depend on.
                    let phase = ["Creating", "Failed", "Running"][random.below(3) as usize];
                    if phase == "Running" {
                        runs.insert(n);
                    }
                    if let Some(place) = n
                        .checked_sub(2)
                        .filter(|_| phase == "Running" || !runs.contains(&n))
                    {
                        there[place].1 = instance(&format!("i{n}"), phase, json!({}));
                    }
                }
            }
        }
        let mut made: Vec<_> = asked[2..].to_vec();
        made.sort();
        made.dedup();
        assert_eq!(made.len(), asked.len() - 2, "seed {seed}: {asked:?}");
    }
}
