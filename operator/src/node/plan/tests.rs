//! Each rule of the planner has a named row here; [`model`] lets the plans run against a model of the world.

#[path = "tests/live.rs"]
mod live_changes;
#[path = "tests/model.rs"]
mod model;

use serde_json::{Value, json};

use super::live::Change as C;
use super::*;
use crate::node::goal::{CloneSource, Offer, goal};
use crate::node::metadata::differing;
use crate::node::observed::{Definition, Files, Memory, Starts};
use Action::*;

const UID: &str = "8f0c21d4-1111-2222-3333-444444444444";
const NOW: Moment = Duration::from_secs(10_000);

/// The machine that a spec like this asks for.
fn machine(spec: Value) -> Machine {
    match made(spec, "qemu", json!({})) {
        Goal::Present(machine) => *machine,
        Goal::Gone(_) => panic!("not deleted"),
    }
}

fn container(spec: Value) -> Machine {
    match made(spec, "lxc", json!({})) {
        Goal::Present(machine) => *machine,
        Goal::Gone(_) => panic!("not deleted"),
    }
}

fn removal(spec: Value) -> Removal {
    match made(spec, "qemu", json!({"deletionTimestamp": "2026-11-21T10:00:00Z"})) {
        Goal::Gone(removal) => removal,
        Goal::Present(_) => panic!("deleted"),
    }
}

fn made(mut spec: Value, driver: &str, metadata: Value) -> Goal {
    let disk = json!({"name": "debian-12", "type": "disk", "url": "https://example.org/d.qcow2"});
    let root = json!({"name": "alpine", "type": "lxc-container", "url": "https://example.org/r.tar.gz"});
    let merge = |into: &mut Value, from: Value| {
        into.as_object_mut()
            .unwrap()
            .extend(from.as_object().unwrap().clone());
    };
    let mut all = json!({
        "uid": UID, "name": "web", "namespace": "virtshell", "finalizers": ["virtshell.io/domain"],
    });
    merge(&mut all, metadata);
    let mut full = json!({
        "host": "host-01", "cpus": 2, "maxCpus": 4, "memoryMiB": 1024, "maxMemoryMiB": 2048, "diskMiB": 10240,
        "autostart": false, "interfaces": [{"name": "eth0", "network": "default"}],
    });
    merge(&mut full, spec.take());
    let instance = serde_json::from_value(json!({
        "apiVersion": "virtshell.io/v1alpha1", "kind": "Instance", "metadata": all, "spec": full,
        "status": {
            "resolved": {"driver": driver, "image": if driver == "lxc" { root } else { disk }},
            "conditions": [{"type": "Scheduled", "status": "True", "reason": "Placed", "message": "",
                            "lastTransitionTime": "2026-11-21T10:00:00Z"}],
        },
    }))
    .unwrap();
    let drivers = vec![(Driver::Qemu, DomainType::Qemu), (Driver::Lxc, DomainType::Lxc)];
    goal(
        &instance,
        "host-01",
        &Offer {
            cpus: 8,
            default_network: true,
            drivers,
            silent: vec![],
            refused: vec![],
        },
    )
    .unwrap()
}

/// A copy that carries what its record says.
fn defined(metadata: Metadata) -> Definition {
    Definition {
        carries: metadata.applied.clone(),
        metadata,
    }
}

/// The domain of this machine, in that state, with nothing to change.
fn domain(machine: &Machine, power: Power) -> OurDomain {
    let config = defined(metadata(machine, false));
    OurDomain {
        name: machine.id.domain_name.clone(),
        uuid: UID.to_owned(),
        power,
        crashed: false,
        live: (power != Power::Off).then(|| config.clone()),
        config,
        persistent: true,
        autostart: machine.autostart,
        agent_open: false,
    }
}

fn files(machine: &Machine) -> Files {
    Files {
        root: Some(machine.disk_mib),
        seed: machine.driver != Driver::Lxc,
        disks: machine
            .disks
            .iter()
            .map(|d| (d.name.clone(), d.size_mib.unwrap_or(2048)))
            .collect(),
        any: true,
    }
}

fn memory() -> Memory {
    Memory {
        images_cached: true,
        ..Memory::default()
    }
}

fn see(domain: OurDomain, files: Files) -> Observed {
    Observed {
        domain: DomainState::Ours(Box::new(domain)),
        files,
        room: true,
        no_space: false,
        memory: memory(),
    }
}

/// All is as the machine wants it, but for the domain's power.
fn at(machine: &Machine, power: Power) -> Observed {
    see(domain(machine, power), files(machine))
}

fn absent(files: Files) -> Observed {
    Observed {
        domain: DomainState::Absent,
        files,
        room: true,
        no_space: false,
        memory: memory(),
    }
}

fn foreign(files: Files) -> Observed {
    let domain = DomainState::Foreign {
        name: "web-8f0c21d4".to_owned(),
        uuid: "other".to_owned(),
    };
    Observed {
        domain,
        files,
        room: true,
        no_space: false,
        memory: memory(),
    }
}

/// A domain with our UUID and without our metadata, and our files.
fn unmarked(machine: &Machine) -> Observed {
    let mut seen = foreign(files(machine));
    if let DomainState::Foreign { uuid, .. } = &mut seen.domain {
        uuid.clone_from(&machine.id.uid);
    }
    seen
}

fn with(mut seen: Observed, change: impl FnOnce(&mut OurDomain, &mut Files, &mut Memory)) -> Observed {
    let DomainState::Ours(domain) = &mut seen.domain else {
        panic!("no domain of ours")
    };
    change(domain, &mut seen.files, &mut seen.memory);
    seen
}

#[expect(clippy::unnecessary_wraps, reason = "as the field has it")]
fn asked(seconds_ago: u64, last_ago: u64, times: u32) -> Option<Asked> {
    Some(Asked {
        since: ago(seconds_ago),
        last: ago(last_ago),
        times,
    })
}

fn present(machine: &Machine) -> Goal {
    Goal::Present(Box::new(machine.clone()))
}

fn ago(seconds: u64) -> Moment {
    NOW.saturating_sub(Duration::from_secs(seconds))
}

fn later(seconds: u64) -> Moment {
    NOW + Duration::from_secs(seconds)
}

fn shutdown(seconds: u64) -> Next {
    Next::Wait(later(seconds), Waiting::Shutdown)
}

type Row = (&'static str, Goal, Observed, Vec<Action>, Next);

fn check(rows: Vec<Row>) {
    for (rule, goal, seen, actions, next) in rows {
        assert_eq!(plan(&goal, &seen, NOW), Plan { actions, then: next }, "{rule}");
    }
}

const RUN: Action = Start { paused: false };
const PAUSED: Power = Power::Paused(PausedBy::Request);
const IO_ERROR: Power = Power::Paused(PausedBy::IoError);

#[test]
#[rustfmt::skip]
fn creating() {
    let vm = machine(json!({}));
    let stopped = machine(json!({"powerState": "Stopped"}));
    let paused = machine(json!({"powerState": "Paused"}));
    let auto = machine(json!({"autostart": true}));
    let auto_stopped = machine(json!({"autostart": true, "powerState": "Stopped"}));
    let data = machine(json!({"disks": [{"name": "data", "sizeMiB": 1024}]}));
    let ct = container(json!({}));
    let ct_paused = container(json!({"powerState": "Paused"}));
    let restarted = machine(json!({"restartToken": "t1"}));
    let define = |m: &Machine| Define(metadata(m, false));
    let uncached = |mut seen: Observed| {
        seen.memory.images_cached = false;
        seen
    };
    let image = || Next::Wait(NOW, Waiting::Image);
    let mut clone = vm.clone();
    clone.clone_of = Some(CloneSource { name: "source".into(), uid: None });
    let copy = || Next::Wait(NOW, Waiting::Copy);
    let half = |seed| Files {
        root: Some(10_240),
        seed,
        any: true,
        ..Files::default()
    };
    let none = || absent(Files::default());
    let token = metadata(&restarted, false).restart_token;
    assert_eq!(
        token, "t1",
        "a first creation counts as the restart that was asked for"
    );
    check(vec![
        ("everything is made", present(&vm), none(), vec![MakeRoot, MakeSeed, define(&vm), RUN], Next::Settled),
        ("disks too", present(&data), none(), vec![MakeRoot, MakeDisk("data".into()), MakeSeed, define(&data), RUN],
            Next::Settled),
        ("stopped is defined", present(&stopped), none(), vec![MakeRoot, MakeSeed, define(&stopped)],
            Next::Settled),
        ("paused starts suspended", present(&paused), none(),
            vec![MakeRoot, MakeSeed, define(&paused), Start { paused: true }], Next::Settled),
        ("autostart is set before the start", present(&auto), none(),
            vec![MakeRoot, MakeSeed, define(&auto), SetAutostart(true), RUN], Next::Settled),
        ("no autostart of what is stopped", present(&auto_stopped), none(),
            vec![MakeRoot, MakeSeed, define(&auto_stopped)], Next::Settled),
        ("a container has no seed file", present(&ct), none(), vec![MakeRoot, define(&ct), RUN], Next::Settled),
        ("a container is suspended after its start", present(&ct_paused), none(),
            vec![MakeRoot, define(&ct_paused), RUN, Suspend], Next::Settled),
        ("the token goes into the first definition", present(&restarted), none(),
            vec![MakeRoot, MakeSeed, define(&restarted), RUN], Next::Settled),
        ("the image comes first", present(&vm), uncached(none()), vec![], image()),
        ("half made: only the root", present(&vm), absent(half(false)), vec![MakeSeed, define(&vm), RUN],
            Next::Settled),
        ("half made: all files", present(&vm), absent(half(true)), vec![define(&vm), RUN], Next::Settled),
        ("files that are there need no image", present(&vm), uncached(absent(half(true))), vec![define(&vm), RUN],
            Next::Settled),
        ("a clone's disks come first, whatever the image cache has", present(&clone), uncached(none()), vec![], copy()),
        ("copied: provisioned where it came from", present(&clone), uncached(absent(half(false))),
            vec![MakeSeed, Define(metadata(&clone, true)), RUN], Next::Settled),
        ("a retained disk that is too small grows", present(&vm),
            absent(Files { root: Some(512), seed: true, any: true, ..Files::default() }),
            vec![GrowDisk("root".into(), 10_240), define(&vm), RUN], Next::Settled),
        ("defined but never started", present(&vm), at(&vm, Power::Off), vec![RUN], Next::Settled),
        ("a foreign domain blocks", present(&vm), foreign(Files::default()), vec![],
            Next::Blocked(Blocked::NameTaken { name: "web-8f0c21d4".into(), uuid: "other".into() })),
        ("a foreign domain blocks what is stopped too", present(&stopped), foreign(half(true)), vec![],
            Next::Blocked(Blocked::NameTaken { name: "web-8f0c21d4".into(), uuid: "other".into() })),
    ]);
}

#[test]
fn an_image_with_a_kernel_is_needed_by_the_definition() {
    let mut vm = machine(json!({}));
    vm.image.as_mut().unwrap().boot = Some(virtshell_crds::image::Boot::default());
    let mut seen = absent(files(&vm));
    seen.memory.images_cached = false;
    assert_eq!(
        plan(&present(&vm), &seen, NOW).then,
        Next::Wait(NOW, Waiting::Image),
        "before it is defined"
    );
    let mut seen = at(&vm, Power::Off);
    seen.memory.images_cached = false;
    assert_eq!(
        plan(&present(&vm), &seen, NOW).actions,
        [RUN],
        "not by a start of what is defined"
    );
}

#[test]
#[rustfmt::skip]
fn keeping_it_as_it_should_be() {
    let vm = machine(json!({}));
    let stopped = machine(json!({"powerState": "Stopped"}));
    let paused = machine(json!({"powerState": "Paused"}));
    let auto = machine(json!({"autostart": true}));
    let define = |m: &Machine| Define(metadata(m, false));
    let data = machine(json!({"disks": [{"name": "data", "sizeMiB": 1024}]}));
    let lost = |name: &str, running| Next::Blocked(Blocked::DiskMissing { name: name.into(), running });
    let full = |mut seen: Observed| {
        (seen.room, seen.no_space) = (false, true);
        seen
    };
    let transient = |m: &Machine| {
        with(at(m, Power::Running), |d, _, _| {
            (d.persistent, d.autostart) = (false, false);
        })
    };
    check(vec![
        ("running: quiet", present(&vm), at(&vm, Power::Running), vec![], Next::Settled),
        ("stopped: quiet", present(&stopped), at(&stopped, Power::Off), vec![], Next::Settled),
        ("paused: quiet", present(&paused), at(&paused, PAUSED), vec![], Next::Settled),
        ("paused by a full disk, as asked: quiet", present(&paused), at(&paused, IO_ERROR), vec![], Next::Settled),
        ("a crash is followed by a start", present(&vm), at(&vm, Power::Off), vec![RUN], Next::Settled),
        ("undefined while it runs: defined again, not disturbed", present(&vm), transient(&vm), vec![define(&vm)],
            Next::Settled),
        ("and autostart comes back", present(&auto), transient(&auto), vec![define(&auto), SetAutostart(true)],
            Next::Settled),
        ("autostart changes while it runs", present(&auto), at(&vm, Power::Running), vec![SetAutostart(true)],
            Next::Settled),
        ("autostart changes while it is off", present(&stopped),
            with(at(&stopped, Power::Off), |d, _, _| d.autostart = true), vec![SetAutostart(false)], Next::Settled),
        ("pause", present(&paused), at(&paused, Power::Running), vec![Suspend], Next::Again),
        ("resume", present(&vm), at(&vm, PAUSED), vec![Resume], Next::Again),
        ("off, and paused is wanted", present(&paused), at(&paused, Power::Off), vec![Start { paused: true }],
            Next::Settled),
        ("a guest that its storage suspended is resumed when there is room", present(&vm), at(&vm, IO_ERROR),
            vec![Resume], Next::Again),
        ("not before", present(&vm), full(at(&vm, IO_ERROR)), vec![], Next::Blocked(Blocked::StorageFull)),
        ("room does not matter to another fault", present(&vm),
            Observed { no_space: false, ..full(at(&vm, IO_ERROR)) }, vec![Resume], Next::Again),
        ("nor again at once", present(&vm), with(at(&vm, IO_ERROR), |_, _, m| m.resumed = Some(ago(5))), vec![],
            Next::Blocked(Blocked::StorageFailed)),
        ("a guest that sleeps is woken", present(&vm), at(&vm, Power::Paused(PausedBy::Sleep)), vec![Resume],
            Next::Again),
        ("the remains of one that crashed go first", present(&vm), at(&vm, Power::Paused(PausedBy::Crash)),
            vec![Destroy], Next::Again),
        ("its root is gone: nothing is made up", present(&vm), with(at(&vm, Power::Off), |_, f, _| f.root = None),
            vec![], lost("root", false)),
        ("also when it should be off", present(&stopped), with(at(&stopped, Power::Off), |_, f, _| f.root = None),
            vec![], lost("root", false)),
        ("nor is a disk", present(&data), with(at(&data, Power::Off), |_, f, _| f.disks.clear()), vec![],
            lost("data", false)),
        ("one that is in the spec no more is not missed", present(&vm),
            with(at(&data, Power::Off), |_, f, _| f.disks.clear()), vec![define(&vm), RUN], Next::Settled),
        ("a running guest is left alone without its root", present(&vm),
            with(at(&vm, Power::Running), |_, f, _| f.root = None), vec![], lost("root", true)),
        ("and not stopped by a definition without it", present(&data),
            with(at(&data, Power::Running), |_, f, _| f.disks.clear()), vec![], lost("data", true)),
        ("a lost seed is made again", present(&vm), with(at(&vm, Power::Off), |_, f, _| f.seed = false),
            vec![MakeSeed, RUN], Next::Settled),
    ]);
}

#[test]
#[rustfmt::skip]
fn a_guest_that_does_not_stay_up_waits_ever_longer() {
    let vm = machine(json!({}));
    let crashed = |quick, seconds| {
        with(at(&vm, Power::Off), |_, _, memory| {
            memory.starts = Starts {
                last: Some(ago(seconds)),
                quick,
            };
        })
    };
    let since = |seconds, n| Next::Wait(ago(seconds) + backoff::pause(n, UID), Waiting::CrashLoop);
    check(vec![
        ("patience", present(&vm), crashed(1, 0), vec![RUN], Next::Settled),
        ("then a second", present(&vm), crashed(2, 0), vec![], since(0, 0)),
        ("then two", present(&vm), crashed(3, 0), vec![], since(0, 1)),
        ("counted from the start", present(&vm), crashed(5, 3), vec![], since(3, 3)),
        ("over", present(&vm), crashed(5, 8), vec![RUN], Next::Settled),
        ("at most five minutes", present(&vm), crashed(11, 0), vec![], since(0, 9)),
        ("however often", present(&vm), crashed(u32::MAX, 0), vec![], since(0, 9)),
    ]);
    let stopped = machine(json!({"powerState": "Stopped"}));
    let mut seen = crashed(9, 0);
    assert_eq!(
        plan(&present(&stopped), &seen, NOW).then,
        Next::Settled,
        "who need not start need not wait"
    );
    seen.domain = DomainState::Absent;
    let waiting = plan(&present(&vm), &seen, NOW);
    assert_eq!(
        waiting.actions,
        [Define(metadata(&vm, false))],
        "undefined in the meantime: defined, but not started"
    );
    assert_eq!(waiting.then, since(0, 7));
}

#[test]
#[rustfmt::skip]
fn stopping() {
    let graceful = machine(json!({"powerState": "Stopped", "shutdownGraceSeconds": 30}));
    let at_once = machine(json!({"powerState": "Stopped", "shutdownGraceSeconds": 0}));
    let force = machine(json!({"powerState": "Stopped", "stopMode": "Force"}));
    let ask_only =
        machine(json!({"powerState": "Stopped", "stopMode": "AskOnly", "shutdownGraceSeconds": 30}));
    let running = |m: &Machine, asked: Option<Asked>, agent_open| {
        with(at(m, Power::Running), |d, _, memory| {
            (d.agent_open, memory.asked) = (agent_open, asked);
        })
    };
    let ask = |agent| vec![Ask { agent }];
    check(vec![
        ("asks by ACPI", present(&graceful), running(&graceful, None, false), ask(false), shutdown(5)),
        ("asks by the agent", present(&graceful), running(&graceful, None, true), ask(true), shutdown(5)),
        ("waits", present(&graceful), running(&graceful, asked(2, 2, 1), true), vec![], shutdown(3)),
        ("asks again by ACPI, should the agent pretend", present(&graceful),
            running(&graceful, asked(5, 5, 1), true), ask(false), shutdown(5)),
        ("then by the agent again", present(&graceful), running(&graceful, asked(10, 5, 2), true), ask(true),
            shutdown(5)),
        ("not beyond the deadline", present(&graceful), running(&graceful, asked(28, 5, 5), false), ask(false),
            shutdown(2)),
        ("waits for the deadline", present(&graceful), running(&graceful, asked(29, 1, 6), false), vec![],
            shutdown(1)),
        ("powers off at the deadline", present(&graceful), running(&graceful, asked(30, 2, 6), false),
            vec![Destroy], Next::Again),
        ("no grace, no question", present(&at_once), running(&at_once, None, true), vec![Destroy], Next::Again),
        ("force", present(&force), running(&force, None, true), vec![Destroy], Next::Again),
        ("a grace that force ends", present(&force), running(&force, asked(1, 1, 1), true), vec![Destroy],
            Next::Again),
        ("ask only: asks", present(&ask_only), running(&ask_only, None, false), ask(false), shutdown(5)),
        ("ask only: gives up", present(&ask_only), running(&ask_only, asked(30, 5, 6), false), vec![],
            Next::Blocked(Blocked::ShutdownIgnored)),
        ("a suspended guest cannot answer", present(&graceful), at(&graceful, PAUSED), vec![Destroy], Next::Again),
        ("nor one without storage", present(&ask_only), at(&ask_only, IO_ERROR), vec![Destroy], Next::Again),
        ("autostart is cleared before the stop", present(&force),
            with(running(&force, None, false), |d, _, _| d.autostart = true), vec![SetAutostart(false), Destroy],
            Next::Again),
        ("stopped at last", present(&graceful),
            with(at(&graceful, Power::Off), |_, _, m| m.asked = asked(30, 2, 6)), vec![], Next::Settled),
    ]);
}

#[test]
#[rustfmt::skip]
fn restarting_exactly_once() {
    let old = machine(json!({"restartToken": "t1"}));
    let new = machine(json!({"restartToken": "t2", "shutdownGraceSeconds": 30}));
    let force = machine(json!({"restartToken": "t2", "restartMode": "Force"}));
    let ask_only = machine(json!({"restartToken": "t2", "stopMode": "AskOnly", "shutdownGraceSeconds": 30}));
    let cpus = machine(json!({"restartToken": "t2", "restartMode": "Force", "cpus": 8, "maxCpus": 8}));
    let with_old_token = Metadata {
        restart_token: "t1".into(),
        ..metadata(&cpus, false)
    };
    let define = |m: &Machine| Define(metadata(m, false));
    check(vec![
        ("asks", present(&new), at(&old, Power::Running), vec![Ask { agent: false }], shutdown(5)),
        ("powers off at the deadline", present(&new),
            with(at(&old, Power::Running), |_, _, m| m.asked = asked(30, 5, 6)), vec![Destroy], Next::Again),
        ("force", present(&force), at(&old, Power::Running), vec![Destroy], Next::Again),
        ("stopMode AskOnly is not for restarts", present(&ask_only),
            with(at(&old, Power::Running), |_, _, m| m.asked = asked(30, 5, 6)), vec![Destroy], Next::Again),
        ("a suspended guest", present(&new), at(&old, PAUSED), vec![Destroy], Next::Again),
        ("one without storage", present(&new), at(&old, IO_ERROR), vec![Destroy], Next::Again),
        ("the new definition waits below, without the token", present(&cpus), at(&old, Power::Running),
            vec![Define(with_old_token), Destroy], Next::Again),
        ("off: the token is written before the start", present(&new), at(&old, Power::Off), vec![define(&new), RUN],
            Next::Settled),
        ("the agent was killed after the definition", present(&new), at(&new, Power::Off), vec![RUN],
            Next::Settled),
        ("the agent was killed after the start", present(&new), at(&new, Power::Running), vec![], Next::Settled),
        ("a token for a stopped domain is done with",
            present(&machine(json!({"restartToken": "t2", "powerState": "Stopped"}))), at(&old, Power::Off),
            vec![Define(metadata(&machine(json!({"restartToken": "t2"})), false))], Next::Settled),
    ]);
}

#[test]
#[rustfmt::skip]
fn changing_what_is_defined() {
    let vm = machine(json!({}));
    let cpus = machine(json!({"cpus": 3}));
    let both = machine(json!({"cpus": 4, "memoryMiB": 2048}));
    let less = machine(json!({"memoryMiB": 512}));
    let beyond = machine(json!({"cpus": 8, "maxCpus": 8, "memoryMiB": 4096, "maxMemoryMiB": 4096}));
    let larger = machine(json!({"diskMiB": 20480}));
    let data = machine(json!({"disks": [{"name": "data", "sizeMiB": 1024}]}));
    let more_data = machine(json!({"disks": [{"name": "data", "sizeMiB": 2048}]}));
    let ct = container(json!({}));
    let ct_cpus = container(json!({"cpus": 1}));
    let define = |m: &Machine| Define(metadata(m, false));
    let live = |m: &Machine| SetLiveMetadata(metadata(m, false));
    let running = |m: &Machine| at(m, Power::Running);
    let refusing = |change: C| with(running(&vm), |_, _, m| m.refused = vec![change]);
    let reached = |old: &Machine, new: &Machine, now: &[(&str, &str)]| {
        with(running(old), |d, _, _| {
            d.config = defined(metadata(new, false));
            let carries = &mut d.live.as_mut().unwrap().carries;
            carries.extend(now.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())));
        })
    };
    let renamed = machine(json!({"hostname": "other"}));
    let ct_larger = container(json!({"diskMiB": 20480}));
    check(vec![
        ("CPUs within the maximum are live", present(&cpus), running(&vm), vec![define(&cpus), Change(C::Vcpus(3))],
            Next::Again),
        ("so is memory", present(&less), running(&vm), vec![define(&less), Change(C::Memory(512))], Next::Again),
        ("both at once", present(&both), running(&vm), vec![define(&both), Change(C::Vcpus(4)), Change(C::Memory(2048))],
            Next::Again),
        ("what is reached is recorded", present(&cpus), reached(&vm, &cpus, &[("cpus", "3")]), vec![live(&cpus)],
            Next::Settled),
        ("only that", present(&both), with(reached(&vm, &both, &[("memoryMiB", "2048")]), |_, _, m| {
            m.refused = vec![C::Vcpus(4)];
        }), vec![live(&machine(json!({"memoryMiB": 2048})))], Next::Settled),
        ("beyond the maximum they wait", present(&beyond), running(&vm), vec![define(&beyond)], Next::Settled),
        ("what was refused waits", present(&cpus), refusing(C::Vcpus(3)), vec![define(&cpus)], Next::Settled),
        ("another value is tried", present(&cpus), refusing(C::Vcpus(4)), vec![define(&cpus), Change(C::Vcpus(3))],
            Next::Again),
        ("one refused, the other not", present(&both), refusing(C::Vcpus(4)),
            vec![define(&both), Change(C::Memory(2048))], Next::Again),
        ("the definition is there, the running domain still differs", present(&cpus),
            with(running(&vm), |d, _, _| d.config = defined(metadata(&cpus, false))), vec![Change(C::Vcpus(3))],
            Next::Again),
        ("a suspended guest cannot take it", present(&machine(json!({"cpus": 3, "powerState": "Paused"}))),
            at(&vm, PAUSED), vec![define(&cpus)], Next::Settled),
        ("a container gets more of the scheduler's time", present(&ct_cpus), running(&ct),
            vec![define(&ct_cpus), Change(C::Vcpus(1))], Next::Again),
        ("what is off gets the newest definition", present(&beyond), at(&vm, Power::Off),
            vec![define(&beyond), RUN], Next::Settled),
        ("provisioned stays", present(&cpus), with(at(&vm, Power::Off), |d, _, _| d.config.metadata.provisioned = true),
            vec![Define(metadata(&cpus, true)), RUN], Next::Settled),
        ("a root disk grows while it is off", present(&larger), at(&vm, Power::Off),
            vec![GrowDisk("root".into(), 20_480), RUN], Next::Settled),
        ("and while it runs", present(&larger), running(&vm), vec![Change(C::Grow("root".into(), 20_480))], Next::Again),
        ("unless QEMU refuses", present(&larger), refusing(C::Grow("root".into(), 20_480)), vec![], Next::Settled),
        ("a container's grows when it is off", present(&ct_larger), running(&ct), vec![], Next::Settled),
        ("other disks too", present(&more_data), at(&data, Power::Off), vec![GrowDisk("data".into(), 2048), RUN],
            Next::Settled),
        ("other disks too, while it runs", present(&more_data), running(&data), vec![Change(C::Grow("data".into(), 2048))],
            Next::Again),
        ("a disk that is left out keeps its file", present(&vm), at(&data, Power::Off), vec![define(&vm), RUN],
            Next::Settled),
        ("and comes back with it", present(&data),
            with(at(&vm, Power::Off), |_, f, _| f.disks = files(&data).disks), vec![define(&data), RUN],
            Next::Settled),
        ("a new host name is told at the next start", present(&renamed), running(&vm), vec![], Next::Settled),
        ("which writes the seed anew", present(&renamed), at(&vm, Power::Off), vec![MakeSeed, define(&renamed), RUN],
            Next::Settled),
    ]);
}

#[test]
fn an_added_disk_with_an_image_waits_for_it() {
    let vm = machine(json!({}));
    for power in ["Running", "Stopped"] {
        let mut wanted = machine(json!({"powerState": power, "disks": [{"name": "data", "sizeMiB": 1024}]}));
        wanted.disks[0].image.clone_from(&vm.image);
        for now in [Power::Running, Power::Off] {
            let mut seen = at(&vm, now);
            seen.memory.images_cached = false;
            let plan = plan(&present(&wanted), &seen, NOW);
            let image = Plan {
                actions: vec![],
                then: Next::Wait(NOW, Waiting::Image),
            };
            assert_eq!(plan, image, "{power} of {now:?}");
        }
    }
}

#[test]
#[rustfmt::skip]
fn removing() {
    let vm = machine(json!({}));
    let gone = |spec| Goal::Gone(removal(spec));
    let graceful = || gone(json!({"shutdownGraceSeconds": 30}));
    let retain = || gone(json!({"deletionPolicy": "RetainDisks"}));
    let remove = RemoveFiles { retain_disks: false };
    let running = |asked: Option<Asked>| with(at(&vm, Power::Running), |_, _, m| m.asked = asked);
    check(vec![
        ("nothing there", graceful(), absent(Files::default()), vec![], Next::Removed),
        ("files left", graceful(), absent(files(&vm)), vec![remove.clone()], Next::Removed),
        ("disks are kept", retain(), absent(files(&vm)), vec![RemoveFiles { retain_disks: true }], Next::Removed),
        ("a foreign domain is spared", graceful(), foreign(Files::default()), vec![], Next::Removed),
        ("but not our files beside it", graceful(), foreign(files(&vm)), vec![remove.clone()], Next::Removed),
        ("one of ours that lost its mark may have them open", graceful(), unmarked(&vm), vec![], Next::Removed),
        ("inactive", graceful(), at(&vm, Power::Off), vec![Undefine, remove.clone()], Next::Removed),
        ("inactive, without files", graceful(), see(domain(&vm, Power::Off), Files::default()), vec![Undefine],
            Next::Removed),
        ("inactive, disks are kept", retain(), at(&vm, Power::Off),
            vec![Undefine, RemoveFiles { retain_disks: true }], Next::Removed),
        ("running: asked first", graceful(), running(None), vec![Ask { agent: false }], shutdown(5)),
        ("running: waits", graceful(), running(asked(4, 4, 1)), vec![], shutdown(1)),
        ("running: powered off at the deadline", graceful(), running(asked(30, 5, 6)), vec![Destroy], Next::Again),
        ("even if its stop is only asked for", gone(json!({"stopMode": "AskOnly", "shutdownGraceSeconds": 30})),
            running(asked(30, 5, 6)), vec![Destroy], Next::Again),
        ("force", gone(json!({"stopMode": "Force"})), running(None), vec![Destroy], Next::Again),
        ("suspended", graceful(), at(&vm, PAUSED), vec![Destroy], Next::Again),
        ("suspended by its storage", graceful(), at(&vm, IO_ERROR), vec![Destroy], Next::Again),
        ("undefined while it ran", graceful(), with(running(asked(30, 5, 6)), |d, _, _| d.persistent = false),
            vec![Destroy], Next::Again),
    ]);
}

#[test]
fn what_waits_for_a_restart_is_named() {
    let vm = machine(json!({"disks": [{"name": "data", "sizeMiB": 1024}]}));
    let running = domain(&vm, Power::Running);
    let required = |machine: &Machine, domain: &OurDomain| {
        outstanding(machine, domain, &files(&vm), &memory(), NOW).fields
    };
    let spec = |more: Value| {
        let mut spec = json!({"disks": [{"name": "data", "sizeMiB": 1024}]});
        spec.as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        machine(spec)
    };
    for (rule, wanted, expected) in [
        ("nothing", spec(json!({})), vec![]),
        (
            "beyond the maximum",
            spec(json!({"cpus": 8, "maxCpus": 8})),
            vec!["cpus", "maxCpus"],
        ),
        (
            "consoles",
            spec(json!({"consoles": {"vnc": {}}})),
            vec!["consoles"],
        ),
        (
            "interfaces",
            spec(json!({"interfaces": [{"name": "eth0", "bridge": "br0"}]})),
            vec!["interfaces"],
        ),
        ("a removed disk", machine(json!({})), vec!["disks"]),
        ("a larger root", spec(json!({"diskMiB": 20480})), vec!["diskMiB"]),
        (
            "a larger disk",
            spec(json!({"disks": [{"name": "data", "sizeMiB": 2048}]})),
            vec!["disks"],
        ),
        (
            "a larger disk on another bus is one field",
            spec(json!({"disks": [{"name": "data", "sizeMiB": 2048, "bus": "scsi"}]})),
            vec!["disks"],
        ),
        (
            "in order",
            spec(
                json!({"memoryMiB": 4096, "maxMemoryMiB": 4096, "diskMiB": 20480, "consoles": {"serial": false}}),
            ),
            vec!["consoles", "diskMiB", "maxMemoryMiB", "memoryMiB"],
        ),
    ] {
        assert_eq!(required(&wanted, &running), expected, "{rule}");
        assert_eq!(
            required(&wanted, &domain(&vm, PAUSED)),
            expected,
            "{rule}, suspended"
        );
        assert!(
            required(&wanted, &domain(&vm, Power::Off)).is_empty(),
            "{rule}, off: the next start has it all"
        );
    }
    let mut chosen = spec(json!({"cpus": 8, "maxCpus": 8}));
    chosen.defaulted = vec!["maxCpus"];
    assert_eq!(
        required(&chosen, &running),
        ["cpus"],
        "what the user did not set is not named"
    );
}
