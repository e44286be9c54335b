use super::*;

fn signs() -> Signs<'static> {
    Signs {
        needed: true,
        provisioned: false,
        said: None,
        job: None,
        retry: false,
        running: true,
        way: Choice::Use(Channel::Agent),
        addressed: true,
        waited: Duration::ZERO,
    }
}

#[test]
#[expect(clippy::too_many_lines, reason = "a table, one row for each rule")]
fn how_far_it_is() {
    let (claimed, running) = (Job::Claimed(Channel::Agent), Job::Running);
    let (well, badly) = (
        Job::Ended(Ok(())),
        Job::Ended(Err((Cause::ExecutorFailed, "why".to_owned()))),
    );
    let nothing = || Choice::Nothing("why".to_owned());
    let long = Duration::from_secs(301);
    for (rule, signs, expected, starts) in [
        (
            "no builder",
            Signs {
                needed: false,
                ..signs()
            },
            "NotNeeded",
            false,
        ),
        ("the guest can be reached", signs(), "Started", true),
        (
            "no address yet",
            Signs {
                addressed: false,
                ..signs()
            },
            "Waiting",
            false,
        ),
        (
            "no agent yet",
            Signs {
                way: Choice::Wait,
                ..signs()
            },
            "Waiting",
            false,
        ),
        (
            "no way yet",
            Signs {
                way: nothing(),
                ..signs()
            },
            "Waiting",
            false,
        ),
        (
            "it is off",
            Signs {
                running: false,
                ..signs()
            },
            "Waiting",
            false,
        ),
        (
            "it was off for long",
            Signs {
                running: false,
                waited: long,
                ..signs()
            },
            "Waiting",
            false,
        ),
        (
            "no address in time",
            Signs {
                addressed: false,
                waited: long,
                ..signs()
            },
            "GuestUnreachable",
            false,
        ),
        (
            "no agent in time",
            Signs {
                way: Choice::Wait,
                waited: long,
                ..signs()
            },
            "GuestUnreachable",
            false,
        ),
        (
            "no way in time",
            Signs {
                way: nothing(),
                waited: long,
                ..signs()
            },
            "GuestUnreachable",
            false,
        ),
        (
            "late, but there",
            Signs {
                waited: long,
                ..signs()
            },
            "Started",
            true,
        ),
        (
            "it waited before",
            Signs {
                said: Some(("Waiting", "")),
                ..signs()
            },
            "Started",
            true,
        ),
        (
            "claimed",
            Signs {
                job: Some(&claimed),
                ..signs()
            },
            "Started",
            false,
        ),
        (
            "running",
            Signs {
                job: Some(&running),
                said: Some(("Started", "")),
                ..signs()
            },
            "Started",
            false,
        ),
        (
            "running, and off meanwhile",
            Signs {
                job: Some(&running),
                running: false,
                ..signs()
            },
            "Started",
            false,
        ),
        (
            "ended well",
            Signs {
                job: Some(&well),
                said: Some(("Started", "")),
                ..signs()
            },
            "Provisioned",
            false,
        ),
        (
            "ended badly",
            Signs {
                job: Some(&badly),
                said: Some(("Started", "")),
                ..signs()
            },
            "ExecutorFailed",
            false,
        ),
        (
            "started by another agent",
            Signs {
                said: Some(("Started", "")),
                ..signs()
            },
            "Interrupted",
            false,
        ),
        (
            "failed under another agent",
            Signs {
                said: Some(("CloneFailed", "why")),
                ..signs()
            },
            "CloneFailed",
            false,
        ),
        (
            "built",
            Signs {
                provisioned: true,
                ..signs()
            },
            "Provisioned",
            false,
        ),
        (
            "built, and off",
            Signs {
                provisioned: true,
                running: false,
                ..signs()
            },
            "Provisioned",
            false,
        ),
        (
            "built, restarted since",
            Signs {
                provisioned: true,
                retry: true,
                ..signs()
            },
            "Provisioned",
            false,
        ),
        (
            "another try",
            Signs {
                job: Some(&badly),
                said: Some(("ExecutorFailed", "")),
                retry: true,
                ..signs()
            },
            "Started",
            true,
        ),
        (
            "another try, after another agent",
            Signs {
                said: Some(("Interrupted", "")),
                retry: true,
                ..signs()
            },
            "Started",
            true,
        ),
        (
            "another try that the status knows of",
            Signs {
                job: Some(&badly),
                said: Some(("Waiting", "")),
                ..signs()
            },
            "Started",
            true,
        ),
        (
            "another try when it is up",
            Signs {
                said: Some(("Started", "")),
                retry: true,
                way: Choice::Wait,
                ..signs()
            },
            "Waiting",
            false,
        ),
        (
            "no second one beside the first",
            Signs {
                job: Some(&running),
                retry: true,
                ..signs()
            },
            "Started",
            false,
        ),
    ] {
        let (stage, channel) = decide(&signs);
        let word = stage.said().map_or("NotNeeded", |(_, reason, _)| reason);
        assert_eq!((word, channel.is_some()), (expected, starts), "{rule}");
    }
}

#[test]
fn a_failure_reads_back_as_it_was_said() {
    for cause in Cause::ALL {
        let failed = Stage::Failed(cause, "message".to_owned());
        let (status, reason, message) = failed.said().unwrap();
        assert_eq!(status, Status::False);
        assert_eq!(failure((reason, &message)), Some(failed));
    }
    for word in ["Waiting", "Provisioned", "", "Other"] {
        assert_eq!(failure((word, "")), None, "{word}");
    }
}

#[test]
fn other_work_waits_for_it() {
    let instance = |builder: &str, provisioned: Option<bool>, reason: Option<&str>| {
        let conditions = reason.map(|reason| {
            serde_json::json!({"type": "Provisioned", "status": "False", "reason": reason, "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"})
        });
        let conditions: Vec<_> = conditions.into_iter().collect();
        let value = serde_json::json!({
            "apiVersion": "virtshell.io/v1alpha1", "kind": "Instance", "metadata": {"name": "x"}, "spec": {},
            "status": {"resolved": {"builder": builder}, "provisioned": provisioned, "conditions": conditions},
        });
        serde_json::from_value::<Instance>(value).unwrap()
    };
    for (rule, instance, expected) in [
        ("no builder", instance("", None, None), false),
        ("not begun", instance("b", None, None), true),
        ("waiting", instance("b", Some(false), Some("Waiting")), true),
        ("running", instance("b", Some(false), Some("Started")), true),
        (
            "failed",
            instance("b", Some(false), Some("ExecutorFailed")),
            false,
        ),
        ("built", instance("b", Some(true), Some("Provisioned")), false),
    ] {
        assert_eq!(is_unfinished(&instance), expected, "{rule}");
    }
}

#[test]
fn ready_only_after_it() {
    use crate::node::context::Record;
    use crate::node::guest::GuestView;
    use crate::node::metadata::Metadata;
    use crate::node::observed::{Definition, DomainState, Power};
    use crate::node::report::{Facts, Outcome, status};
    use virtshell_crds::Phase;
    use virtshell_crds::condition::{CONVERGED, READY};

    let value = serde_json::json!({
        "apiVersion": "virtshell.io/v1alpha1", "kind": "Instance", "metadata": {"name": "x"}, "spec": {}, "status": {},
    });
    let instance: Instance = serde_json::from_value(value).unwrap();
    let domain = DomainState::Ours(Box::new(OurDomain {
        name: "x".into(),
        uuid: "u".into(),
        power: Power::Running,
        crashed: false,
        config: Definition {
            metadata: Metadata::default(),
            carries: std::collections::BTreeMap::new(),
        },
        live: None,
        persistent: true,
        autostart: false,
        agent_open: true,
    }));
    let failed = Stage::Failed(Cause::CloneFailed, "git is missing".to_owned());
    for (stage, phase, ready, provisioned, message) in [
        (Stage::NotNeeded, Phase::Running, "Running", None, ""),
        (
            Stage::Waiting("no address"),
            Phase::Provisioning,
            "Provisioning",
            Some(false),
            "no address",
        ),
        (
            Stage::Running,
            Phase::Provisioning,
            "Provisioning",
            Some(false),
            "the builder runs in the guest",
        ),
        (
            failed,
            Phase::Failed,
            "CloneFailed",
            Some(false),
            "git is missing",
        ),
        (Stage::Done, Phase::Running, "Running", Some(true), ""),
    ] {
        let facts = Facts {
            instance: &instance,
            host: "h",
            machine: None,
            domain: Some(&domain),
            files: None,
            guest: &GuestView::default(),
            record: &Record::default(),
            stage: Some(&stage),
            moment: Duration::ZERO,
            now: k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(
                k8s_openapi::jiff::Timestamp::UNIX_EPOCH,
            ),
        };
        let status = status(&facts, &Outcome::Settled);
        let reason = |type_| find(&status.conditions, type_).map(|c| (c.status.as_str(), c.reason.as_str()));
        let is_up = if ready == "Running" { "True" } else { "False" };
        assert_eq!(status.phase, Some(phase), "{stage:?}");
        assert_eq!(reason(READY), Some((is_up, ready)), "{stage:?}");
        assert_eq!(
            reason(CONVERGED).map(|(status, _)| status),
            Some(is_up),
            "{stage:?}"
        );
        assert_eq!(status.provisioned, provisioned, "{stage:?}");
        assert_eq!(status.message, message, "{stage:?}");
        assert_eq!(
            reason(PROVISIONED).map(|(_, reason)| reason),
            stage.said().map(|(_, reason, _)| reason),
            "{stage:?}"
        );
    }
}
