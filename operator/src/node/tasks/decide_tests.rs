use virtshell_crds::instance::InstanceSpec;
use virtshell_crds::task::TaskRef;
use virtshell_crds::{InstanceStatus, TaskAssignmentSpec, TaskAssignmentStatus};

use PowerState::{Paused, Running, Stopped};
use TargetState::{Failed, Pending, Started, Succeeded};

use super::*;
use crate::node::goal::DomainType;

/// Seconds after the epoch.
fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(seconds).unwrap()
}

/// An assignment with time until 100 s after its creation, and the states that its targets have.
fn assignment(
    name: &str,
    created: i64,
    noted: Option<u64>,
    targets: &[(&str, Option<TargetState>)],
) -> Arc<TaskAssignment> {
    let of = |name: &str| AssignedTarget {
        name: name.to_owned(),
        uid: name.to_owned(),
    };
    let results = targets.iter().filter_map(|(name, state)| {
        let mut result = super::super::result::started(&of(name));
        result.state = (*state)?;
        Some(result)
    });
    let mut assignment = TaskAssignment::new(
        name,
        TaskAssignmentSpec {
            task: TaskRef::default(),
            host: "h".into(),
            type_: "execute_command".into(),
            timeout_seconds: 100,
            targets: targets.iter().map(|(name, _)| of(name)).collect(),
            ..TaskAssignmentSpec::default()
        },
    );
    assignment.metadata.uid = Some(name.to_owned());
    assignment.metadata.namespace = Some("n".into());
    assignment.metadata.creation_timestamp =
        Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(at(created)));
    assignment.metadata.annotations =
        noted.map(|n| [(ANNOTATION_CREATED_AT.to_owned(), n.to_string())].into());
    assignment.status = Some(TaskAssignmentStatus {
        results: results.collect(),
        ..TaskAssignmentStatus::default()
    });
    Arc::new(assignment)
}

fn key(assignment: &str, target: &str) -> Key {
    Key {
        assignment: assignment.into(),
        target: target.into(),
    }
}

/// `claim a/x`, `Interrupted a/x`, `wait a/x`, sorted.
fn told(decision: &Decision) -> Vec<String> {
    let path = |key: &Key| format!("{}/{}", key.assignment, key.target);
    let news = decision.news.iter().map(|(key, progress)| match progress {
        Progress::Claimed { .. } => format!("claim {}", path(key)),
        Progress::Running => format!("run {}", path(key)),
        Progress::Ended(result) => {
            assert_eq!(
                (result.state, result.uid.as_str()),
                (TargetState::Failed, key.target.as_str())
            );
            format!("{} {}", result.reason, path(key))
        }
    });
    let mut all: Vec<String> = news
        .chain(decision.waits.iter().map(|key| format!("wait {}", path(key))))
        .collect();
    all.sort();
    all
}

#[test]
#[expect(clippy::too_many_lines, reason = "a table, one row for each rule")]
fn what_is_next() {
    let claimed = || Progress::Claimed {
        channel: Channel::Agent,
        until: at(1),
    };
    let over = |name: &str| {
        Progress::Ended(failed(
            &AssignedTarget {
                name: name.into(),
                uid: name.into(),
            },
            "Any",
            "",
        ))
    };
    let one = |name: &str, state| assignment(name, 0, None, &[("x", state)]);
    for (rule, assignments, mine, expected) in [
        ("nothing", vec![], vec![], vec![]),
        (
            "new work is claimed",
            vec![one("a", None)],
            vec![],
            vec!["claim a/x"],
        ),
        (
            "a result that says Pending is new work",
            vec![one("a", Some(Pending))],
            vec![],
            vec!["claim a/x"],
        ),
        (
            "what ended is over",
            vec![one("a", Some(Succeeded)), one("b", Some(Failed))],
            vec![],
            vec![],
        ),
        (
            "started by another process",
            vec![one("a", Some(Started))],
            vec![],
            vec!["Interrupted a/x"],
        ),
        (
            "started by this one",
            vec![one("a", Some(Started))],
            vec![(key("a", "x"), Progress::Running)],
            vec![],
        ),
        (
            "claimed, and known to be",
            vec![one("a", Some(Started))],
            vec![(key("a", "x"), claimed())],
            vec![],
        ),
        (
            "ended, not known yet",
            vec![one("a", Some(Started))],
            vec![(key("a", "x"), over("x"))],
            vec![],
        ),
        (
            "one thing at a time on one instance",
            vec![one("a", None), one("b", None)],
            vec![],
            vec!["claim a/x"],
        ),
        (
            "the next one when it is over",
            vec![one("a", Some(Started)), one("b", None)],
            vec![(key("a", "x"), over("x"))],
            vec!["claim b/x"],
        ),
        (
            "not while one runs whose assignment is gone",
            vec![one("b", None)],
            vec![(key("a", "x"), Progress::Running)],
            vec![],
        ),
        (
            "different instances beside each other",
            vec![
                assignment("a", 0, None, &[("x", None), ("y", None)]),
                assignment("b", 0, None, &[("y", None), ("z", None)]),
            ],
            vec![],
            vec!["claim a/x", "claim a/y", "claim b/z"],
        ),
        (
            "the older first",
            vec![
                assignment("a", 5, None, &[("x", None)]),
                assignment("b", 4, None, &[("x", None)]),
            ],
            vec![],
            vec!["claim b/x"],
        ),
        (
            "microseconds within a second",
            vec![
                assignment("a", 5, Some(5_000_009), &[("x", None)]),
                assignment("b", 5, Some(5_000_008), &[("x", None)]),
            ],
            vec![],
            vec!["claim b/x"],
        ),
        (
            "but whole seconds first",
            vec![
                assignment("a", 4, Some(9), &[("x", None)]),
                assignment("b", 5, Some(1), &[("x", None)]),
            ],
            vec![],
            vec!["claim a/x"],
        ),
        (
            "who waits keeps the others waiting",
            vec![
                assignment("a", 0, None, &[("slow", None)]),
                assignment("b", 1, None, &[("slow", None), ("x", None)]),
            ],
            vec![],
            vec!["claim b/x", "wait a/slow"],
        ),
        (
            "who cannot is told so",
            vec![assignment("a", 0, None, &[("off", None)])],
            vec![],
            vec!["Refused a/off"],
        ),
        (
            "too late",
            vec![assignment("a", -200, None, &[("x", None)])],
            vec![],
            vec!["TimedOut a/x"],
        ),
        (
            "too late while another runs",
            vec![assignment("a", -200, None, &[("x", None)])],
            vec![(key("b", "x"), Progress::Running)],
            vec!["TimedOut a/x"],
        ),
        (
            "an end of its own for each target",
            vec![assignment(
                "a",
                0,
                None,
                &[("x", Some(Started)), ("y", Some(Succeeded)), ("z", None)],
            )],
            vec![],
            vec!["Interrupted a/x", "claim a/z"],
        ),
    ] {
        let mine = mine.into_iter().collect();
        let decision = decide(&assignments, &mine, at(10), |_, namespace, target| {
            assert_eq!(namespace, "n");
            match target.uid.as_str() {
                "slow" => Standing::Wait,
                "off" => Standing::Refused("Refused", String::new()),
                _ => Standing::Ready(Channel::Agent),
            }
        });
        assert_eq!(told(&decision), expected, "{rule}");
    }
}

#[test]
fn unknown_work_and_work_that_is_taken_back() {
    let ready = |_: &Key, _: &str, _: &AssignedTarget| Standing::Ready(Channel::Agent);
    let mut odd = assignment("a", 0, None, &[("x", None)]);
    Arc::get_mut(&mut odd).unwrap().spec.type_ = "start_instance".into();
    let decision = decide(&[odd], &BTreeMap::new(), at(10), ready);
    assert_eq!(told(&decision), ["Unsupported a/x"]);

    let mut leaving = assignment("a", 0, None, &[("x", None)]);
    Arc::get_mut(&mut leaving).unwrap().metadata.deletion_timestamp =
        Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(at(9)));
    assert_eq!(
        decide(&[leaving], &BTreeMap::new(), at(10), ready),
        Decision::default()
    );
}

#[test]
fn so_many_at_once_and_a_look_at_the_next_deadline() {
    let names: Vec<String> = (0..AT_ONCE + 5).map(|n| n.to_string()).collect();
    let targets: Vec<(&str, Option<TargetState>)> = names.iter().map(|n| (n.as_str(), None)).collect();
    let work = [assignment("a", 0, None, &targets)];
    let ready = |_: &Key, _: &str, _: &AssignedTarget| Standing::Ready(Channel::Agent);
    let decision = decide(&work, &BTreeMap::new(), at(10), ready);
    assert_eq!(decision.news.len(), AT_ONCE);
    assert_eq!(decision.again, Some(Duration::from_secs(90)));
    let running: BTreeMap<Key, Progress> = decision
        .news
        .into_iter()
        .skip(2)
        .map(|(key, _)| (key, Progress::Running))
        .collect();
    assert_eq!(decide(&work, &running, at(10), ready).news.len(), 2);
}

#[test]
#[expect(clippy::too_many_lines, reason = "a table, one row for each rule")]
fn who_can_be_worked_on() {
    let target = AssignedTarget {
        name: "x".into(),
        uid: "u".into(),
    };
    let instance = |power: PowerState, seen: Option<PowerState>| {
        let mut instance = Instance::new(
            "x",
            InstanceSpec {
                power_state: power,
                ..InstanceSpec::default()
            },
        );
        instance.metadata.namespace = Some("n".into());
        instance.status = Some(InstanceStatus {
            power_state: seen,
            ..InstanceStatus::default()
        });
        instance
    };
    let up = instance(Running, Some(Running));
    let mut elsewhere = up.clone();
    elsewhere.metadata.namespace = Some("other".into());
    let mut renamed = up.clone();
    renamed.metadata.name = Some("y".into());
    let mut leaving = up.clone();
    leaving.metadata.deletion_timestamp = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(at(0)));
    let signs = |domain_type, agent| Signs {
        domain_type: Some(domain_type),
        agent,
        running_since: Some(Duration::ZERO),
        ..Signs::default()
    };
    let (agent, booting) = (signs(DomainType::Qemu, Some(true)), signs(DomainType::Qemu, None));
    let test = signs(DomainType::Test, None);
    for (rule, instance, connected, signs, waited, expected) in [
        ("running, with its agent", Some(&up), true, &agent, 0, "ready"),
        (
            "a container",
            Some(&up),
            true,
            &signs(DomainType::Lxc, None),
            0,
            "ready",
        ),
        ("it boots", Some(&up), true, &booting, 0, "wait"),
        (
            "it boots for too long",
            Some(&up),
            true,
            &booting,
            200,
            "NoChannel",
        ),
        ("nothing leads there", Some(&up), true, &test, 0, "NoChannel"),
        ("libvirt is away", Some(&up), false, &agent, 100, "wait"),
        (
            "libvirt stays away",
            Some(&up),
            false,
            &agent,
            200,
            "HypervisorUnreachable",
        ),
        (
            "it is being made",
            Some(&instance(Running, None)),
            true,
            &booting,
            100,
            "wait",
        ),
        (
            "it does not come up",
            Some(&instance(Running, Some(Stopped))),
            true,
            &booting,
            200,
            "NotRunning",
        ),
        (
            "somebody suspended it",
            Some(&instance(Running, Some(Paused))),
            true,
            &agent,
            200,
            "NotRunning",
        ),
        (
            "it is to be off, perhaps not any more",
            Some(&instance(Stopped, Some(Stopped))),
            true,
            &booting,
            0,
            "wait",
        ),
        (
            "it is to be off",
            Some(&instance(Stopped, Some(Running))),
            true,
            &agent,
            4,
            "NotRunning",
        ),
        ("not seen yet", None, true, &agent, 0, "wait"),
        ("not there", None, true, &agent, 4, "NotFound"),
        (
            "in another namespace",
            Some(&elsewhere),
            true,
            &agent,
            4,
            "NotFound",
        ),
        ("under another name", Some(&renamed), true, &agent, 4, "NotFound"),
        ("on its way out", Some(&leaving), true, &agent, 4, "NotFound"),
    ] {
        let seen = Seen {
            instance,
            connected,
            signs,
            waited: Duration::from_secs(waited),
        };
        let word = match standing(&target, "n", &seen, Duration::from_mins(1)) {
            Standing::Ready(_) => "ready",
            Standing::Wait => "wait",
            Standing::Refused(reason, _) => reason,
        };
        assert_eq!(word, expected, "{rule}");
    }
}
