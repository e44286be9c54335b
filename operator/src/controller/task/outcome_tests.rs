#![expect(
    clippy::needless_pass_by_value,
    reason = "JSON literals read better as arguments"
)]
#![expect(clippy::too_many_lines, reason = "tables")]

use serde_json::{Value, json};

use super::*;
use crate::controller::testing::Random;

fn instance(spec: Value, status: Value) -> Instance {
    let mut full = json!({"blank": true});
    full.as_object_mut()
        .unwrap()
        .extend(spec.as_object().unwrap().clone());
    serde_json::from_value(json!({
        "apiVersion": "virtshell.io/v1alpha1", "kind": "Instance",
        "metadata": {"name": "vm", "uid": "u", "generation": 5}, "spec": full, "status": status,
    }))
    .unwrap()
}

fn said(list: &[(&str, &str, &str)]) -> Value {
    let condition = |(type_, status, message): &(&str, &str, &str)| json!({"type": type_, "status": status, "reason": "R", "message": message, "lastTransitionTime": "2026-01-01T00:00:00Z"});
    json!(list.iter().map(condition).collect::<Vec<_>>())
}

fn judge(work: Work, instance: Option<&Instance>, written: Option<i64>) -> Standing {
    let target = Target {
        name: "vm",
        instance,
        written,
        must_wait: false,
    };
    standing(work, "t", false, &target)
}

const PLACED: [(&str, &str, &str); 2] = [("Accepted", "True", ""), ("Scheduled", "True", "")];

#[test]
fn creating_goes_through_the_stages_of_the_rest_api() {
    let placed = |more: &[(&str, &str, &str)]| said(&[&PLACED, more].concat());
    for (rule, status, expected) in [
        ("nobody looked", json!({}), pending("dispatching", "")),
        (
            "refused",
            json!({"conditions": said(&[("Accepted", "False", "image x not found"), ("Scheduled", "False", "")])}),
            pending("dispatching", "image x not found"),
        ),
        (
            "no room",
            json!({"conditions": said(&[("Accepted", "True", ""), ("Scheduled", "False", "0/1 hosts: 1 disabled")])}),
            pending("dispatching", "0/1 hosts: 1 disabled"),
        ),
        (
            "placed",
            json!({"conditions": placed(&[])}),
            working("dispatched", ""),
        ),
        (
            "fetching",
            json!({"host": "h", "conditions": placed(&[("ImageReady", "False", "12 of 480 MiB"), ("Ready", "False", "")])}),
            working("setting up", "12 of 480 MiB"),
        ),
        (
            "making",
            json!({"host": "h", "phase": "Creating", "conditions": placed(&[("ImageReady", "True", ""), ("Ready", "False", "")])}),
            working("creating", ""),
        ),
        (
            "building",
            json!({"host": "h", "phase": "Provisioning", "message": "m", "conditions": placed(&[("Ready", "False", "")])}),
            working("provisioning", "m"),
        ),
        (
            "ready",
            json!({"host": "h", "conditions": placed(&[("Ready", "True", "")])}),
            Standing::Succeeded,
        ),
        (
            "failed",
            json!({"host": "h", "phase": "Failed", "message": "no such network", "conditions": placed(&[("Ready", "False", "")])}),
            Standing::Failed("no such network".into()),
        ),
    ] {
        assert_eq!(
            judge(Work::Create, Some(&instance(json!({}), status)), None),
            expected,
            "{rule}"
        );
    }
    assert_eq!(
        judge(Work::Create, None, None),
        Standing::Failed("instance vm not found".into())
    );
}

#[test]
fn power_succeeds_when_the_node_agrees_at_the_written_generation() {
    let superseded =
        || Standing::Failed("Superseded: the instance was asked for something else meanwhile".into());
    let status = |generation: i64, power: &str, token: &str| json!({"host": "h", "observedGeneration": generation, "powerState": power, "lastRestartToken": token, "conditions": said(&PLACED)});
    let running = || json!({"powerState": "Running"});
    let stopped = || json!({"powerState": "Stopped"});
    let restarted = |token: &str| json!({"powerState": "Running", "restartToken": token});
    for (rule, work, spec, status, written, expected) in [
        (
            "not yet written",
            Work::Start,
            stopped(),
            status(5, "Stopped", ""),
            None,
            Standing::Act,
        ),
        (
            "running",
            Work::Start,
            running(),
            status(5, "Running", ""),
            Some(5),
            Standing::Succeeded,
        ),
        (
            "an older report",
            Work::Start,
            running(),
            status(4, "Running", ""),
            Some(5),
            working("executing", ""),
        ),
        (
            "not yet running",
            Work::Start,
            running(),
            status(5, "Stopped", ""),
            Some(5),
            working("executing", ""),
        ),
        (
            "stopped meanwhile",
            Work::Start,
            stopped(),
            status(5, "Stopped", ""),
            Some(4),
            superseded(),
        ),
        (
            "stopped",
            Work::Stop,
            stopped(),
            status(5, "Stopped", ""),
            Some(5),
            Standing::Succeeded,
        ),
        (
            "paused is not stopped",
            Work::Stop,
            stopped(),
            status(5, "Paused", ""),
            Some(5),
            working("executing", ""),
        ),
        (
            "never placed",
            Work::Stop,
            stopped(),
            json!({}),
            Some(5),
            Standing::Succeeded,
        ),
        (
            "placed, and its node has said nothing yet",
            Work::Stop,
            json!({"powerState": "Stopped", "host": "h"}),
            json!({"conditions": said(&PLACED)}),
            Some(5),
            working("executing", ""),
        ),
        (
            "restarted",
            Work::Restart,
            restarted("t"),
            status(5, "Running", "t"),
            Some(5),
            Standing::Succeeded,
        ),
        (
            "restart not done",
            Work::Restart,
            restarted("t"),
            status(5, "Running", "s"),
            Some(5),
            working("executing", ""),
        ),
        (
            "another restart",
            Work::Restart,
            restarted("s"),
            status(5, "Running", "s"),
            Some(5),
            superseded(),
        ),
        (
            "the node failed",
            Work::Start,
            running(),
            json!({"host": "h", "phase": "Failed", "message": "no kvm", "observedGeneration": 5, "conditions": said(&PLACED)}),
            Some(5),
            Standing::Failed("no kvm".into()),
        ),
        (
            "it failed before we asked",
            Work::Start,
            running(),
            json!({"host": "h", "phase": "Failed", "message": "no kvm", "observedGeneration": 4, "conditions": said(&PLACED)}),
            Some(5),
            working("executing", ""),
        ),
    ] {
        assert_eq!(
            judge(work, Some(&instance(spec, status)), written),
            expected,
            "{rule}"
        );
    }
    let vm = instance(running(), json!({}));
    let waits = Target {
        name: "vm",
        instance: Some(&vm),
        written: None,
        must_wait: true,
    };
    assert!(matches!(
        standing(Work::Stop, "t", false, &waits),
        Standing::Pending(_)
    ));
}

#[test]
fn deleting_and_updating() {
    let vm = instance(
        json!({}),
        json!({"observedGeneration": 4, "conditions": said(&PLACED)}),
    );
    let mut going = vm.clone();
    going.metadata.deletion_timestamp = Some(serde_json::from_value(json!("2026-01-01T00:00:00Z")).unwrap());
    let refused = instance(
        json!({}),
        json!({"conditions": said(&[("Accepted", "False", "image y not found")])}),
    );
    for (rule, work, target, written, expected) in [
        ("gone", Work::Delete, None, None, Standing::Succeeded),
        ("going", Work::Delete, Some(&going), None, working("deleting", "")),
        (
            "not yet asked to go",
            Work::Delete,
            Some(&vm),
            None,
            Standing::Act,
        ),
        (
            "no start while going",
            Work::Start,
            Some(&going),
            Some(5),
            Standing::Failed("instance vm is being deleted".into()),
        ),
        (
            "no start of nothing",
            Work::Start,
            None,
            Some(5),
            Standing::Failed("instance vm not found".into()),
        ),
        ("an update to note", Work::Update, Some(&vm), None, Standing::Act),
        (
            "an update on its way",
            Work::Update,
            Some(&vm),
            Some(5),
            working("dispatched", ""),
        ),
        (
            "an update that arrived",
            Work::Update,
            Some(&vm),
            Some(4),
            Standing::Succeeded,
        ),
        (
            "an update refused",
            Work::Update,
            Some(&refused),
            Some(5),
            Standing::Failed("image y not found".into()),
        ),
    ] {
        assert_eq!(judge(work, target, written), expected, "{rule}");
    }
}

#[test]
fn a_task_ends_with_its_last_target() {
    let named = |list: Vec<Standing>| -> Vec<(String, Standing)> {
        list.into_iter()
            .zip('a'..)
            .map(|(s, name)| (name.to_string(), s))
            .collect()
    };
    let (ok, bad) = (|| Standing::Succeeded, || Standing::Failed("no".to_owned()));
    for (rule, list, overdue, state, log) in [
        (
            "all waiting",
            vec![pending("dispatching", "no room")],
            false,
            TaskState::Pending,
            "no room",
        ),
        (
            "one of three",
            vec![ok(), working("executing", ""), bad()],
            false,
            TaskState::InProgress,
            "1 of 3",
        ),
        (
            "all done",
            vec![ok(), ok()],
            false,
            TaskState::Succeeded,
            "2 of 2",
        ),
        ("the only one", vec![ok()], false, TaskState::Succeeded, ""),
        (
            "one failed",
            vec![ok(), bad()],
            false,
            TaskState::Failed,
            "1 of 2 failed: b: no",
        ),
        ("the only one failed", vec![bad()], false, TaskState::Failed, "no"),
        (
            "too late",
            vec![ok(), pending("dispatching", "no room")],
            true,
            TaskState::Failed,
            "Timeout: not done after 9 s; last: no room",
        ),
        ("late but done", vec![ok()], true, TaskState::Succeeded, ""),
        ("without targets", vec![], false, TaskState::Succeeded, ""),
    ] {
        let outcome = outcome(&named(list), overdue, 9);
        assert_eq!((outcome.state, outcome.log.as_str()), (state, log), "{rule}");
        assert!(
            outcome.counts.succeeded + outcome.counts.failed <= outcome.counts.targets,
            "{rule}"
        );
    }
}

#[test]
fn a_launch_succeeds_when_enough_run_and_nobody_is_on_the_way() {
    let (run, fails) = (Standing::Succeeded, Standing::Failed("no".into()));
    let waits = pending("dispatching", "0/1 hosts");
    let unseen = pending("dispatching", "");
    let comes = working("creating", "");
    let launch = Launch { min: 2, max: 3 };
    for (rule, children, expected) in [
        ("all run", vec![&run, &run, &run], run.clone()),
        ("one waits", vec![&run, &waits, &run], run.clone()),
        ("one failed", vec![&fails, &run, &run], run.clone()),
        ("one was deleted", vec![&run, &run], run.clone()),
        (
            "one comes",
            vec![&run, &run, &comes],
            working("creating", "2 of 3 run"),
        ),
        (
            "one was not looked at",
            vec![&run, &run, &unseen],
            working("dispatching", "2 of 3 run"),
        ),
        (
            "too many wait",
            vec![&run, &waits, &fails],
            pending("dispatching", "b: 0/1 hosts"),
        ),
        (
            "one waits, one comes",
            vec![&waits, &waits, &comes],
            working("creating", "0 of 3 run"),
        ),
        (
            "too many failed",
            vec![&fails, &comes, &fails],
            Standing::Failed("1 of 3 can run, 2 must: a: no; c: no".into()),
        ),
        (
            "too many were deleted",
            vec![&run],
            Standing::Failed("1 of 3 can run, 2 must: ".into()),
        ),
    ] {
        let names = ["a", "b", "c"].map(str::to_owned);
        let children: Vec<_> = names.into_iter().zip(children.into_iter().cloned()).collect();
        assert_eq!(launched(launch, &children), expected, "{rule}");
    }
}

fn any_standing(random: &mut Random) -> Standing {
    match random.below(6) {
        0 => Standing::Act,
        1 => pending("dispatching", if random.below(2) == 0 { "" } else { "no room" }),
        2 => working("creating", ""),
        3 => Standing::Failed("no".to_owned()),
        _ => Standing::Succeeded,
    }
}

fn some_standings(random: &mut Random) -> Vec<(String, Standing)> {
    (0..=random.below(5))
        .map(|n| (n.to_string(), any_standing(random)))
        .collect()
}

/// Whatever targets show: a Task succeeds only if all do, ends only when all have or it is late, and loses no target.
#[test]
fn a_task_is_what_its_targets_are() {
    for seed in 0..5000 {
        let random = &mut Random::new(seed);
        let mut targets = some_standings(random);
        let overdue = random.below(4) == 0;
        let whole = outcome(&targets, overdue, 60);
        let count = |is: &dyn Fn(&Standing) -> bool| targets.iter().filter(|(_, s)| is(s)).count() as i32;
        let succeeded = count(&|s| *s == Standing::Succeeded);
        let failed = count(&|s| matches!(s, Standing::Failed(_)));
        let total = targets.len() as i32;
        let unfinished = total - succeeded - failed;
        let idle = count(&|s| matches!(s, Standing::Act | Standing::Pending(_)));
        let expected = match (unfinished, failed) {
            (0, 0) => TaskState::Succeeded,
            (0, _) => TaskState::Failed,
            _ if overdue => TaskState::Failed,
            _ if idle == total => TaskState::Pending,
            _ => TaskState::InProgress,
        };
        assert_eq!(whole.state, expected, "seed {seed}: {targets:?}");
        let given_up = if overdue { unfinished } else { 0 };
        let counts = &whole.counts;
        assert_eq!(
            (counts.targets, counts.succeeded, counts.failed),
            (total, succeeded, failed + given_up),
            "seed {seed}"
        );
        targets.reverse();
        let again = outcome(&targets, overdue, 60);
        assert_eq!(
            (again.state, again.counts),
            (whole.state, whole.counts),
            "seed {seed}"
        );
    }
}

/// Whatever children show: a launch fails exactly when too few are left that can run, and succeeds exactly when enough run and
/// nobody is on the way.
#[test]
fn a_launch_is_what_its_children_are() {
    for seed in 0..5000 {
        let random = &mut Random::new(seed);
        let children = some_standings(random);
        let max = children.len() as i32;
        let min = random.below(max as u64) as i32 + 1;
        let count = |is: &dyn Fn(&Standing) -> bool| children.iter().filter(|(_, s)| is(s)).count() as i32;
        let done = count(&|s| *s == Standing::Succeeded);
        let failed = count(&|s| matches!(s, Standing::Failed(_)));
        let waiting = count(&|s| matches!(s, Standing::Pending(p) if !p.log.is_empty()));
        let on_the_way = max - done - failed - waiting;
        let whole = launched(Launch { min, max }, &children);
        assert_eq!(
            matches!(whole, Standing::Failed(_)),
            max - failed < min,
            "seed {seed}: {children:?}"
        );
        assert_eq!(
            whole == Standing::Succeeded,
            max - failed >= min && on_the_way == 0 && done >= min,
            "seed {seed}: {children:?}"
        );
    }
}
