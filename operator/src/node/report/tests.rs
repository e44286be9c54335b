//! What is said of an Instance for each way a look can end.

use serde_json::json;
use virtshell_crds::condition;
use virtshell_crds::instance::Driver;

use super::*;
use crate::node::goal::{Goal, Offer, goal};
use crate::node::metadata::Metadata;
use crate::node::observed::{Definition, PausedBy};
use crate::node::plan::{Change, Device};
use crate::node::storage::{DiskFormat, DiskInfo};

const UID: &str = "8f0c21d4-1111-2222-3333-444444444444";

fn instance() -> Instance {
    serde_json::from_value(json!({
        "apiVersion": "virtshell.io/v1alpha1", "kind": "Instance",
        "metadata": {"uid": UID, "name": "web", "namespace": "virtshell", "generation": 3,
                     "finalizers": ["virtshell.io/domain"]},
        "spec": {"host": "h", "cpus": 1, "maxCpus": 2, "memoryMiB": 512, "diskMiB": 1024,
                 "interfaces": [{"name": "eth0", "network": "default"}]},
        "status": {
            "powerState": "Running", "addresses": {"ipv4": ["192.0.2.7"], "ipv6": []},
            "resolved": {"driver": "qemu", "image": {"name": "i", "type": "disk", "url": "https://x/i"}},
            "conditions": [
                {"type": "Scheduled", "status": "True", "reason": "Placed", "message": "",
                 "lastTransitionTime": "2026-11-21T10:00:00Z"},
                {"type": "AgentConnected", "status": "True", "reason": "Answered", "message": "",
                 "lastTransitionTime": "2026-11-21T10:00:00Z"},
            ],
        },
    }))
    .unwrap()
}

fn machine(instance: &Instance) -> Machine {
    let offer = Offer {
        cpus: 2,
        default_network: true,
        drivers: vec![(Driver::Qemu, DomainType::Qemu)],
        ..Offer::default()
    };
    match goal(instance, "h", &offer).unwrap() {
        Goal::Present(machine) => *machine,
        Goal::Gone(_) => panic!("not deleted"),
    }
}

fn domain(machine: &Machine, power: Power) -> OurDomain {
    let definition = Definition {
        metadata: Metadata {
            uid: UID.to_owned(),
            applied: machine.applied(),
            ..Metadata::default()
        },
        carries: machine.applied(),
    };
    OurDomain {
        name: machine.id.domain_name.clone(),
        uuid: UID.to_owned(),
        power,
        crashed: false,
        live: (power != Power::Off).then(|| definition.clone()),
        config: definition,
        persistent: true,
        autostart: false,
        agent_open: false,
    }
}

fn files() -> ObservedFiles {
    ObservedFiles {
        root: Some(DiskInfo {
            path: "/d/root.qcow2".into(),
            format: DiskFormat::Qcow2,
            virtual_mib: 1024,
        }),
        ..ObservedFiles::default()
    }
}

/// One look: what libvirt said (or nothing), and how it ended.
struct Look {
    domain: Option<DomainState>,
    outcome: Outcome,
    guest: GuestView,
    record: Record,
}

fn look(domain: Option<OurDomain>, outcome: Outcome) -> Look {
    Look {
        domain: domain.map(|d| DomainState::Ours(Box::new(d))),
        outcome,
        guest: GuestView::default(),
        record: Record::default(),
    }
}

fn told(look: &Look) -> InstanceStatus {
    let instance = instance();
    let machine = machine(&instance);
    let files = look.domain.is_some().then(files);
    let facts = Facts {
        instance: &instance,
        host: "h",
        machine: Some(&machine),
        domain: look.domain.as_ref(),
        files: files.as_ref(),
        guest: &look.guest,
        record: &look.record,
        stage: None,
        moment: Moment::from_secs(1000),
        now: Time(k8s_openapi::jiff::Timestamp::from_second(1_800_000_000).unwrap()),
    };
    status(&facts, &look.outcome)
}

fn says(status: &InstanceStatus, type_: &str) -> String {
    let said = condition::find(&status.conditions, type_).unwrap_or_else(|| panic!("nothing of {type_}"));
    assert_eq!(
        said.observed_generation,
        Some(3),
        "{type_} speaks of the newest generation"
    );
    format!("{} {}", said.status, said.reason)
}

fn failure(reason: &'static str, unknown: bool, transient: bool, image: bool) -> Outcome {
    Outcome::Failed(Failure {
        reason,
        message: "why".to_owned(),
        unknown,
        transient,
        image,
    })
}

#[test]
#[rustfmt::skip]
fn every_end_of_a_look_is_told() {
    let m = machine(&instance());
    let at = |power| Some(domain(&m, power));
    let paused = Power::Paused(PausedBy::Request);
    let blocked = |b: Blocked| Outcome::Blocked(b);
    let missing = |running| blocked(Blocked::DiskMissing { name: "root".into(), running });
    let wait = |w: Waiting| Outcome::Waiting(w, "text".into());
    for (rule, look, phase, ready, converged, image) in [
        ("runs", look(at(Power::Running), Outcome::Settled), Phase::Running, "True Running", "True Converged",
            "True Cached"),
        ("is off, as asked", look(at(Power::Off), Outcome::Settled), Phase::Stopped, "True Stopped",
            "True Converged", "True Cached"),
        ("is paused, as asked", look(at(paused), Outcome::Settled), Phase::Paused, "True Paused", "True Converged",
            "True Cached"),
        ("fetches its image", look(None, wait(Waiting::Image)), Phase::Creating, "False ImageDownloading",
            "False Converging", "False Downloading"),
        ("shuts down", look(at(Power::Running), wait(Waiting::Shutdown)), Phase::Running, "False ShuttingDown",
            "False Converging", "True Cached"),
        ("crashes again and again", look(at(Power::Off), wait(Waiting::CrashLoop)), Phase::Stopped,
            "False CrashLoopBackOff", "False Converging", "True Cached"),
        ("lost its disk", look(at(Power::Off), missing(false)), Phase::Failed, "False DiskMissing",
            "False Converging", "True Cached"),
        ("lost its disk and runs on", look(at(Power::Running), missing(true)), Phase::Running, "False DiskMissing",
            "False Converging", "True Cached"),
        ("has no room to write", look(at(Power::Paused(PausedBy::IoError)), blocked(Blocked::StorageFull)),
            Phase::Paused, "False StorageFull", "False Converging", "True Cached"),
        ("cannot write", look(at(Power::Paused(PausedBy::IoError)), blocked(Blocked::StorageFailed)),
            Phase::Paused, "False StorageFailed", "False Converging", "True Cached"),
        ("hangs", look(at(Power::Running), failure("GuestStuck", true, true, false)), Phase::Running,
            "Unknown GuestStuck", "Unknown GuestStuck", "True Cached"),
        ("has a spec that libvirt refuses", look(at(Power::Off), failure("DomainRejected", false, false, false)),
            Phase::Failed, "False DomainRejected", "False Converging", "True Cached"),
        ("could not be started now", look(at(Power::Off), failure("NetworkMissing", false, true, false)),
            Phase::Stopped, "False NetworkMissing", "False Converging", "True Cached"),
        ("has an image that is not what it should be",
            look(at(Power::Off), failure("ChecksumMismatch", false, false, true)), Phase::Failed,
            "False ChecksumMismatch", "False Converging", "False ChecksumMismatch"),
        ("goes", look(at(Power::Running), Outcome::Deleting), Phase::Deleting, "False Deleting", "False Deleting",
            "True Cached"),
    ] {
        let mut status = told(&look);
        if matches!(&look.outcome, Outcome::Failed(f) if f.unknown) {
            // Nothing is known, so what was said of the rest stands.
            status.phase = Some(phase);
            assert!(condition::find(&status.conditions, IMAGE_READY).is_some());
        } else {
            assert_eq!(says(&status, IMAGE_READY), image, "{rule}");
        }
        assert_eq!(status.phase, Some(phase), "{rule}");
        assert_eq!(says(&status, READY), ready, "{rule}");
        assert_eq!(says(&status, CONVERGED), converged, "{rule}");
        assert_eq!((status.observed_generation, status.host.as_deref()), (Some(3), Some("h")), "{rule}");
    }
}

#[test]
fn what_cannot_be_asked_stays_as_it_was_said_last() {
    let status = told(&look(None, failure("HypervisorUnreachable", true, true, false)));
    assert_eq!(status.power_state, Some(PowerState::Running));
    assert_eq!(status.addresses.as_ref().unwrap().ipv4, ["192.0.2.7"]);
    assert_eq!(says(&status, READY), "Unknown HypervisorUnreachable");
    assert_eq!(says(&status, AGENT_CONNECTED), "True Answered");
}

#[test]
fn what_waits_for_a_restart_or_for_the_guest_is_named() {
    let m = machine(&instance());
    let carrying = |field: &str, value: &str| {
        let mut domain = domain(&m, Power::Running);
        let live = domain.live.as_mut().unwrap();
        live.carries.insert(field.to_owned(), value.to_owned());
        look(Some(domain), Outcome::Settled)
    };
    let status = told(&carrying("maxCpus", "1"));
    assert_eq!(status.restart_required, ["maxCpus"]);
    assert_eq!(says(&status, CONVERGED), "False RestartRequired");
    assert_eq!(says(&status, READY), "True Running", "it runs as asked otherwise");

    let gone = "eth0:network=default:virtio:52:54:00:15:d9:c8 old:network=default:virtio:52:54:00:00:00:01";
    let mut leaving = carrying("interfaces", gone);
    let device = Device::Interface("52:54:00:00:00:01".to_owned());
    leaving
        .record
        .memory
        .detaching
        .insert(device.clone(), Moment::from_secs(990));
    let status = told(&leaving);
    assert_eq!(status.restart_required, ["interfaces"]);
    assert_eq!(says(&status, CONVERGED), "False Detaching");

    // A guest that does not let go keeps it until it is restarted.
    leaving
        .record
        .memory
        .detaching
        .insert(device, Moment::from_secs(10));
    assert_eq!(says(&told(&leaving), CONVERGED), "False RestartRequired");
    leaving.record.memory.refused.push(Change::Vcpus(2));
    assert_eq!(told(&leaving).restart_required, ["interfaces"]);
}

#[test]
fn the_guests_agent_is_believed_when_it_answers() {
    let m = machine(&instance());
    for (rule, power, agent, expected) in [
        ("boots", Power::Running, None, "Unknown WaitingForAgent"),
        ("answers", Power::Running, Some(true), "True Answered"),
        ("stopped answering", Power::Running, Some(false), "False Silent"),
        ("is off", Power::Off, Some(true), "Unknown NotRunning"),
    ] {
        let mut look = look(Some(domain(&m, power)), Outcome::Settled);
        look.guest.agent = agent;
        assert_eq!(says(&told(&look), AGENT_CONNECTED), expected, "{rule}");
    }
}
