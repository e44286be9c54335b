#![expect(
    clippy::needless_pass_by_value,
    clippy::too_many_lines,
    reason = "a table reads best flat, with its values in place"
)]

use super::*;
use crate::controller::pulse::HostState::{Alive, Gone, Silent};
use serde_json::{Value, json};
use virtshell_crds::task::TaskCounts;

fn task(type_: &str, params: Value, targets: &[&str]) -> Task {
    let targets: Vec<Value> = targets
        .iter()
        .map(|name| json!({"kind": "Instance", "name": name}))
        .collect();
    serde_json::from_value(json!({
        "apiVersion": "virtshell.io/v1alpha1", "kind": "Task", "metadata": {"name": "t", "uid": "t"},
        "spec": {"description": "d", "type": type_, "params": params, "targets": targets},
    }))
    .unwrap()
}

pub(super) fn command(targets: &[&str]) -> Task {
    task("execute_command", json!({"command": "true"}), targets)
}

/// An Instance that runs on `host`, with `patch` over it.
pub(super) fn instance(name: &str, host: &str, patch: &Value) -> Instance {
    let mut object = json!({
        "apiVersion": "virtshell.io/v1alpha1", "kind": "Instance", "metadata": {"name": name, "uid": format!("uid-{name}")},
        "spec": {"blank": true, "host": host},
        "status": {"powerState": "Running", "conditions": [
            {"type": "Scheduled", "status": "True", "reason": "Placed", "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"},
        ]},
    });
    merge(&mut object, patch);
    serde_json::from_value(object).unwrap()
}

fn merge(into: &mut Value, patch: &Value) {
    match (into, patch) {
        (Value::Object(into), Value::Object(patch)) => {
            for (key, value) in patch {
                merge(into.entry(key.clone()).or_insert(Value::Null), value);
            }
        }
        (into, patch) => *into = patch.clone(),
    }
}

fn seen<'a>(target: &'a TaskTarget, instance: Option<&'a Instance>) -> Seen<'a> {
    Seen {
        target,
        name: &target.name,
        instance,
        given: None,
        host: HostState::Alive,
        is_busy: false,
    }
}

fn failed(words: &str) -> Standing {
    Standing::Failed(words.to_owned())
}

fn assigned(name: &str) -> AssignedTarget {
    AssignedTarget {
        name: name.to_owned(),
        uid: format!("uid-{name}"),
    }
}

#[test]
fn every_target_is_given_to_its_host_or_refused() {
    let task = command(&["a"]);
    let target = &task.spec.targets[0];
    let plain = instance("a", "h", &json!({}));
    let going = instance(
        "a",
        "h",
        &json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}}),
    );
    let stopped = instance("a", "h", &json!({"status": {"powerState": "Stopped"}}));
    let unknown = instance("a", "h", &json!({"status": {"powerState": null}}));
    let pinned = instance("a", "h", &json!({"status": {"conditions": []}}));
    let unplaced = instance("a", "h", &json!({"spec": {"host": null}}));
    let fresh = TaskStatus::default();
    let asked = TaskStatus {
        hosts: vec!["h".to_owned()],
        ..TaskStatus::default()
    };
    let refused = TaskStatus {
        refused: vec![RefusedTarget {
            name: "a".to_owned(),
            message: "it was not".to_owned(),
        }],
        ..TaskStatus::default()
    };
    let here = |i| seen(target, Some(i));
    for (rule, status, seen, standing) in [
        ("runs", &fresh, here(&plain), working("dispatched", "")),
        (
            "host is silent",
            &fresh,
            Seen {
                host: HostState::Silent,
                ..here(&plain)
            },
            working("dispatched", ""),
        ),
        (
            "host is gone",
            &fresh,
            Seen {
                host: HostState::Gone,
                ..here(&plain)
            },
            failed("host h is gone"),
        ),
        (
            "is not there",
            &fresh,
            seen(target, None),
            failed("instance a not found"),
        ),
        (
            "goes",
            &fresh,
            here(&going),
            failed("instance a is being deleted"),
        ),
        (
            "does not run",
            &fresh,
            here(&stopped),
            failed("instance a is not running"),
        ),
        (
            "may not run",
            &fresh,
            here(&unknown),
            failed("instance a is not running"),
        ),
        (
            "has no host",
            &fresh,
            here(&unplaced),
            failed("instance a is not running: it has no host yet"),
        ),
        (
            "its pin is not checked yet",
            &fresh,
            here(&pinned),
            failed("instance a is not running: it has no host yet"),
        ),
        (
            "earlier work goes on",
            &fresh,
            Seen {
                is_busy: true,
                ..here(&stopped)
            },
            pending("dispatching", "waits for earlier work on the instance"),
        ),
        (
            "a host is asked once",
            &asked,
            here(&plain),
            failed("host h was given its part of this task without a"),
        ),
        ("a refusal stays", &refused, here(&plain), failed("it was not")),
    ] {
        let plan = plan(&task, status, &[seen]);
        let gives = standing == working("dispatched", "");
        assert_eq!(plan.standings, [("a".to_owned(), standing.clone())], "{rule}");
        let parts: Vec<_> = plan.parts.into_iter().collect();
        assert_eq!(
            parts,
            if gives {
                vec![("h".to_owned(), vec![assigned("a")])]
            } else {
                vec![]
            },
            "{rule}"
        );
        let expected = match standing {
            Standing::Failed(message) => vec![RefusedTarget {
                name: "a".to_owned(),
                message,
            }],
            Standing::Act | Standing::Pending(_) | Standing::Working(_) | Standing::Succeeded => vec![],
        };
        assert_eq!(plan.refused, expected, "{rule}");
    }
}

/// A host and an Instance may have one name.
#[test]
fn what_is_said_of_another_kind_of_target_is_not_said_of_an_instance() {
    let mut task = command(&["a", "a"]);
    task.spec.targets[0].kind = "Host".to_owned();
    let plain = instance("a", "h", &json!({}));
    let targets: Vec<Seen<'_>> = task.spec.targets.iter().map(|t| seen(t, Some(&plain))).collect();
    let plan = plan(&task, &TaskStatus::default(), &targets);
    assert_eq!(plan.refused, []);
    let standings: Vec<Standing> = plan.standings.into_iter().map(|(_, standing)| standing).collect();
    assert_eq!(
        standings,
        [failed("Host a is not an instance"), working("dispatched", "")]
    );
    assert_eq!(plan.parts["h"], [assigned("a")]);
}

#[test]
fn what_the_parameters_lack_is_said_before_a_host_is_asked() {
    let runs = instance("a", "h", &json!({}));
    for (type_, params, words) in [
        ("execute_command", json!({"command": "true"}), None),
        (
            "execute_command",
            Value::Null,
            Some("command field was not provided"),
        ),
        ("copy_files", json!({"file": "f", "destination": "/"}), None),
        ("copy_files", json!({"folder": "f", "destination": "/"}), None),
        (
            "copy_files",
            json!({"file": "f"}),
            Some("destination field was not provided"),
        ),
        (
            "copy_files",
            json!({"destination": "/"}),
            Some("give exactly one of file and folder"),
        ),
        (
            "copy_files",
            json!({"destination": "/", "file": "f", "folder": "f"}),
            Some("give exactly one of file and folder"),
        ),
        ("install_packages", json!({"packages": ["vim"]}), None),
        (
            "install_packages",
            json!({}),
            Some("packages field was not provided"),
        ),
        (
            "remove_packages",
            json!({}),
            Some("packages field was not provided"),
        ),
        ("upgrade_packages", json!({}), None),
    ] {
        let task = task(type_, params.clone(), &["a"]);
        let plan = plan(
            &task,
            &TaskStatus::default(),
            &[seen(&task.spec.targets[0], Some(&runs))],
        );
        assert_eq!(plan.parts.is_empty(), words.is_some(), "{type_} {params}");
        assert_eq!(
            plan.refused.first().map(|r| r.message.as_str()),
            words,
            "{type_} {params}"
        );
        assert!(is_guest_work(type_));
    }
}

#[test]
fn a_host_is_given_its_part_whole_and_once() {
    let task = command(&["a", "b", "c", "a"]);
    let on = |name, host| instance(name, host, &json!({}));
    let (a, b, c) = (on("a", "one"), on("b", "one"), on("c", "two"));
    let instances = [&a, &b, &c, &a];
    let looks = |busy: &str| -> Vec<Seen<'_>> {
        task.spec
            .targets
            .iter()
            .zip(instances)
            .map(|(target, instance)| Seen {
                is_busy: target.name == busy,
                ..seen(target, Some(instance))
            })
            .collect()
    };
    let all = plan(&task, &TaskStatus::default(), &looks(""));
    assert_eq!(
        all.parts,
        BTreeMap::from([
            ("one".to_owned(), vec![assigned("a"), assigned("b")]),
            ("two".to_owned(), vec![assigned("c")]),
        ])
    );
    let some = plan(&task, &TaskStatus::default(), &looks("b"));
    assert_eq!(
        some.parts,
        BTreeMap::from([("two".to_owned(), vec![assigned("c")])])
    );
    let stages: Vec<_> = some.standings.iter().map(|(_, s)| s.clone()).collect();
    assert_eq!(
        stages,
        [
            pending("dispatching", "waits for earlier work on host one"),
            pending("dispatching", "waits for earlier work on the instance"),
            working("dispatched", ""),
            pending("dispatching", "waits for earlier work on host one"),
        ]
    );
    // What an assignment shows counts before the status does: who made it may not have come so far.
    let mut later = looks("");
    later[0].given = Some(Given {
        host: "one",
        result: None,
    });
    let plan = plan(&task, &TaskStatus::default(), &later[..3]);
    assert_eq!(plan.parts.keys().collect::<Vec<_>>(), ["two"]);
    assert_eq!(
        plan.standings[1].1,
        failed("host one was given its part of this task without b")
    );
}

#[test]
fn what_was_given_is_as_far_as_its_host_says() {
    let task = command(&["a"]);
    let target = &task.spec.targets[0];
    let plain = instance("a", "h", &json!({}));
    let result = |state: &str, reason: &str, code: Option<i32>| -> TargetResult {
        serde_json::from_value(
            json!({"uid": "uid-a", "name": "a", "state": state, "reason": reason, "exitCode": code}),
        )
        .unwrap()
    };
    let runs = Some(&plain);
    for (rule, result, host, instance, expected) in [
        ("nothing yet", None, Alive, runs, working("dispatched", "")),
        (
            "pending",
            Some(result("Pending", "", None)),
            Alive,
            runs,
            working("dispatched", ""),
        ),
        (
            "started",
            Some(result("Started", "", None)),
            Alive,
            runs,
            working("executing", ""),
        ),
        (
            "silent before",
            None,
            Silent,
            runs,
            working("dispatched", "host h is silent"),
        ),
        (
            "silent while it runs",
            Some(result("Started", "", None)),
            Silent,
            runs,
            working("executing", "host h is silent"),
        ),
        (
            "gone",
            Some(result("Started", "", None)),
            Gone,
            runs,
            failed("host h is gone"),
        ),
        ("gone before", None, Gone, runs, failed("host h is gone")),
        (
            "deleted",
            Some(result("Started", "", None)),
            Alive,
            None,
            failed("instance a was deleted"),
        ),
        (
            "done",
            Some(result("Succeeded", "", Some(0))),
            Alive,
            runs,
            Standing::Succeeded,
        ),
        (
            "done, then gone",
            Some(result("Succeeded", "", Some(0))),
            Gone,
            None,
            Standing::Succeeded,
        ),
        (
            "exit code",
            Some(result("Failed", "", Some(3))),
            Alive,
            runs,
            failed("exit code 3"),
        ),
        (
            "reason",
            Some(result("Failed", "Interrupted", None)),
            Alive,
            runs,
            failed("Interrupted"),
        ),
        (
            "no words",
            Some(result("Failed", "", None)),
            Gone,
            None,
            failed("failed"),
        ),
    ] {
        let seen = Seen {
            given: Some(Given {
                host: "h",
                result: result.as_ref(),
            }),
            host,
            ..seen(target, instance)
        };
        let plan = plan(&task, &TaskStatus::default(), &[seen]);
        assert_eq!(plan.standings, [("a".to_owned(), expected)], "{rule}");
        assert!(plan.parts.is_empty() && plan.refused.is_empty(), "{rule}");
    }
}

#[test]
fn the_summary_counts_targets_and_says_what_failed() {
    let named = |standings: &[Standing]| -> Vec<(String, Standing)> {
        let names = ["a", "b", "c", "d"].map(str::to_owned);
        names.into_iter().zip(standings.iter().cloned()).collect()
    };
    let ok = Standing::Succeeded;
    let at_work = working("executing", "host h is silent");
    for (standings, overdue, state, log) in [
        (
            vec![ok.clone()],
            false,
            TaskState::Succeeded,
            "1 of 1 targets succeeded",
        ),
        (
            vec![ok.clone(); 4],
            true,
            TaskState::Succeeded,
            "4 of 4 targets succeeded",
        ),
        (
            vec![ok.clone(), ok.clone(), failed("exit code 1"), ok.clone()],
            false,
            TaskState::Failed,
            "3 of 4 targets succeeded; c: exit code 1",
        ),
        (
            vec![ok.clone(), at_work.clone()],
            false,
            TaskState::InProgress,
            "1 of 2",
        ),
        (
            vec![failed("x"), at_work],
            true,
            TaskState::Failed,
            "0 of 2 targets succeeded; a: x; Timeout: not done after 60 s; last: host h is silent",
        ),
        (
            vec![failed("x")],
            false,
            TaskState::Failed,
            "0 of 1 targets succeeded; a: x",
        ),
    ] {
        let outcome = outcome(&named(&standings), overdue, 60);
        assert_eq!((outcome.state, outcome.log.as_str()), (state, log));
        let succeeded = standings.iter().filter(|s| **s == ok).count() as i32;
        assert_eq!(
            (outcome.counts.targets, outcome.counts.succeeded),
            (standings.len() as i32, succeeded)
        );
        let ended = matches!(state, TaskState::Succeeded | TaskState::Failed);
        let TaskCounts {
            targets,
            succeeded,
            failed,
        } = outcome.counts;
        assert_eq!(targets == succeeded + failed, ended);
    }
}
