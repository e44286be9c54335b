//! What a spec asks of a host: the gate, the defaults, what is refused, and what is kept.

use serde_json::{Value, json};

use super::*;

const UID: &str = "8f0c21d4-1111-2222-3333-444444444444";

/// A placed Instance; `merge` is laid over it.
fn instance(merge: Value) -> Instance {
    let mut all = json!({
        "apiVersion": "virtshell.io/v1alpha1", "kind": "Instance",
        "metadata": {"uid": UID, "name": "web", "namespace": "virtshell", "finalizers": [FINALIZER_DOMAIN]},
        "spec": {"host": "host-01"},
        "status": {
            "resolved": {"driver": "qemu", "image": {
                "name": "debian-12", "type": "disk", "url": "https://example.org/d.qcow2",
                "timezone": "UTC", "sshKey": "ssh-ed25519 AAAA",
            }},
            "conditions": [{"type": "Scheduled", "status": "True", "reason": "Placed", "message": "",
                            "lastTransitionTime": "2026-11-21T10:00:00Z"}],
        },
    });
    lay(&mut all, merge);
    serde_json::from_value(all).unwrap()
}

/// Like a JSON merge patch, but null stays: it is read as absent.
fn lay(under: &mut Value, over: Value) {
    match (under, over) {
        (Value::Object(under), Value::Object(over)) => {
            for (key, value) in over {
                lay(under.entry(key).or_insert(Value::Null), value);
            }
        }
        (under, over) => *under = over,
    }
}

fn offer() -> Offer {
    Offer {
        cpus: 8,
        default_network: true,
        drivers: vec![(Driver::Qemu, DomainType::Qemu), (Driver::Lxc, DomainType::Lxc)],
        silent: vec![],
        refused: vec![(Driver::Kvm, "/dev/kvm is missing".to_owned())],
    }
}

fn asked(merge: Value) -> Result<Goal, NoGoal> {
    goal(&instance(merge), "host-01", &offer())
}

fn machine_of(merge: Value, offer: &Offer) -> Machine {
    match goal(&instance(merge), "host-01", offer) {
        Ok(Goal::Present(machine)) => *machine,
        other => panic!("no machine: {other:?}"),
    }
}

#[expect(clippy::needless_pass_by_value, reason = "json! at each call")]
fn machine(spec: Value) -> Machine {
    machine_of(json!({ "spec": spec }), &offer())
}

fn container(merge: Value) -> Result<Goal, NoGoal> {
    let mut lxc = json!({"status": {"resolved": {"driver": "lxc", "image": {"type": "lxc-container"}}}});
    lay(&mut lxc, merge);
    asked(lxc)
}

#[test]
fn the_gate() {
    let not_ours = Err(NoGoal::NotOurs);
    let unscheduled = |status: &str| {
        json!({"status": {"conditions": [{"type": "Scheduled", "status": status, "reason": "r", "message": "",
            "lastTransitionTime": "2026-11-21T10:00:00Z"}]}})
    };
    for (rule, merge) in [
        ("unbound", json!({"spec": {"host": null}})),
        ("of another host", json!({"spec": {"host": "host-02"}})),
        ("without finalizers", json!({"metadata": {"finalizers": null}})),
        (
            "without our finalizer",
            json!({"metadata": {"finalizers": ["other.io/x"]}}),
        ),
        ("not placed", unscheduled("False")),
        ("perhaps placed", unscheduled("Unknown")),
        ("placed or not: not said", json!({"status": {"conditions": []}})),
        ("without status", json!({"status": null})),
        (
            "a launch parent, by its spec",
            json!({"spec": {"launch": {"min": 1, "max": 2}}}),
        ),
        (
            "a launch parent, as resolved",
            json!({"status": {"resolved": {"launch": {"min": 1, "max": 2}}}}),
        ),
    ] {
        assert_eq!(asked(merge.clone()), not_ours, "{rule}");
        if !rule.contains("placed") && rule != "without status" {
            let mut deleted = merge;
            lay(
                &mut deleted,
                json!({"metadata": {"deletionTimestamp": "2026-11-21T11:00:00Z"}}),
            );
            assert_eq!(asked(deleted), not_ours, "{rule}, and deleted");
        }
    }
    assert!(matches!(asked(json!({})), Ok(Goal::Present(_))));
    assert!(matches!(
        asked(json!({"spec": {"launch": {"min": 1, "max": 1}}})),
        Ok(Goal::Present(_))
    ));
}

#[test]
fn what_is_not_resolved_or_not_offered_is_said() {
    let resolved = |value: Value| json!({"status": {"resolved": value}});
    assert_eq!(asked(resolved(Value::Null)), Err(NoGoal::Unresolved("resolved")));
    assert_eq!(
        asked(resolved(json!({"driver": null}))),
        Err(NoGoal::Unresolved("driver"))
    );
    let data = json!({"spec": {"disks": [{"name": "data", "image": "db"}]}});
    assert_eq!(
        asked(data.clone()),
        Err(NoGoal::Unresolved("the image of an added disk"))
    );
    let mut known = resolved(json!({"diskImages": {"data": {"name": "db", "type": "disk", "url": "u"}}}));
    lay(&mut known, data);
    let disk = machine_of(known, &offer()).disks.remove(0);
    assert_eq!(
        (
            disk.name.as_str(),
            disk.image.unwrap().name.as_str(),
            disk.size_mib
        ),
        ("data", "db", None)
    );

    let kvm = resolved(json!({"driver": "kvm"}));
    let why = asked(kvm.clone()).unwrap_err().to_string();
    assert_eq!(
        why,
        "driver kvm is not available on this host: /dev/kvm is missing"
    );
    let none = goal(&instance(kvm), "host-01", &Offer::default()).unwrap_err();
    assert_eq!(
        none.to_string(),
        "driver kvm is not available on this host: the agent has no connection for it"
    );
}

#[test]
fn a_clone_needs_no_image() {
    let clone = |driver: &str| {
        let merge = json!({
            "spec": {"cloneFrom": {"name": "source", "uid": "u"}},
            "status": {"resolved": {"image": null, "driver": driver}},
        });
        machine_of(merge, &offer())
    };
    for driver in ["qemu", "lxc"] {
        let source = clone(driver).clone_of.unwrap();
        assert_eq!(
            (source.name.as_str(), source.uid.as_deref()),
            ("source", Some("u"))
        );
    }
    assert_eq!(machine(json!({})).clone_of, None);
}

#[test]
fn defaults() {
    let plain = machine(json!({}));
    assert_eq!((plain.cpus, plain.max_cpus), (1, 4));
    assert_eq!((plain.memory_mib, plain.max_memory_mib), (1024, 1024));
    assert_eq!(plain.disk_mib, 10_240);
    assert_eq!(
        (plain.domain_type, plain.power),
        (DomainType::Qemu, PowerState::Running)
    );
    assert_eq!(
        plain.stop,
        Stop {
            mode: StopMode::Graceful,
            grace: Duration::from_mins(1)
        }
    );
    assert_eq!((plain.serial, plain.vnc, plain.autostart), (true, None, true));
    assert_eq!(plain.interfaces, [default_interface(UID)]);
    assert_eq!(plain.defaulted, ["maxCpus", "maxMemoryMiB", "interfaces"]);
    assert_eq!(plain.id.domain_name, "web-8f0c21d4");
    let seed = SeedGoal {
        hostname: "web".into(),
        timezone: "UTC".into(),
        ssh_key: "ssh-ed25519 AAAA".into(),
        username: "root".into(),
        password_hash: "!".into(),
        ..SeedGoal::default()
    };
    assert_eq!(plain.seed, seed);
    let vars = json!({"spec": {"vars": {"username": "tester", "pwhash": "$6$s$h"}}});
    let chosen = machine_of(vars, &offer()).seed;
    assert_eq!(
        (chosen.username.as_str(), chosen.password_hash.as_str()),
        ("tester", "$6$s$h")
    );

    let resolved = json!({"status": {"resolved": {"cpus": 2, "memoryMiB": 4096, "diskMiB": 512}}});
    let m = machine_of(resolved.clone(), &offer());
    assert_eq!(
        (m.cpus, m.max_cpus, m.memory_mib, m.disk_mib),
        (2, 8, 4096, 512),
        "as resolved"
    );
    let mut both = json!({"spec": {"cpus": 3, "memoryMiB": 2048, "diskMiB": 1024}});
    lay(&mut both, resolved);
    let m = machine_of(both, &offer());
    assert_eq!(
        (m.cpus, m.memory_mib, m.disk_mib),
        (3, 2048, 1024),
        "a newer spec counts at once"
    );

    for (cpus, host, expected) in [
        (1, 8, 4),
        (2, 8, 8),
        (3, 8, 8),
        (16, 8, 16),
        (1, 0, 1),
        (i32::MAX, 8, i32::MAX),
    ] {
        let m = machine_of(
            json!({"spec": {"cpus": cpus}}),
            &Offer {
                cpus: host,
                ..offer()
            },
        );
        assert_eq!(m.max_cpus, expected, "room of {cpus} on a host of {host}");
    }
    let set = machine(json!({"cpus": 2, "maxCpus": 64, "memoryMiB": 512, "maxMemoryMiB": 2048}));
    assert_eq!(
        (set.max_cpus, set.max_memory_mib),
        (64, 2048),
        "set values are not capped"
    );
    let m = machine_of(
        json!({"spec": {"maxCpus": 2}, "status": {"resolved": {"cpus": 4}}}),
        &offer(),
    );
    assert_eq!(m.max_cpus, 4, "a maximum is never below the value");

    for (power, autostart) in [("Running", true), ("Paused", false), ("Stopped", false)] {
        assert_eq!(
            machine(json!({"powerState": power})).autostart,
            autostart,
            "{power}"
        );
    }
    assert!(!machine(json!({"autostart": false})).autostart);
    let bare = machine_of(
        json!({}),
        &Offer {
            default_network: false,
            ..offer()
        },
    );
    assert!(bare.interfaces.is_empty(), "no network, no interface");
}

#[test]
fn stops() {
    let spec = |mode: &str, restart: &str| {
        machine(
            json!({"stopMode": mode, "restartMode": restart, "shutdownGraceSeconds": 7, "restartToken": "t"}),
        )
    };
    let grace = Duration::from_secs(7);
    for mode in [StopMode::Graceful, StopMode::Force, StopMode::AskOnly] {
        let m = spec(&format!("{mode:?}"), "Graceful");
        assert_eq!(m.stop, Stop { mode, grace });
        assert_eq!(
            m.restart_stop,
            Stop {
                mode: StopMode::Graceful,
                grace
            },
            "restartMode decides, not {mode:?}"
        );
    }
    let forced = spec("AskOnly", "Force");
    assert_eq!(
        (forced.restart_stop.mode, forced.restart_token.as_str()),
        (StopMode::Force, "t")
    );
}

#[test]
fn deletion() {
    let gone = |merge: Value| {
        let mut deleted = json!({"metadata": {"deletionTimestamp": "2026-11-21T11:00:00Z"}});
        lay(&mut deleted, merge);
        match asked(deleted) {
            Ok(Goal::Gone(removal)) => removal,
            other => panic!("not gone: {other:?}"),
        }
    };
    for (mode, expected) in [
        ("Graceful", StopMode::Graceful),
        ("AskOnly", StopMode::Graceful),
        ("Force", StopMode::Force),
    ] {
        let removal = gone(json!({"spec": {"stopMode": mode, "shutdownGraceSeconds": 9}}));
        assert_eq!(
            removal.stop,
            Stop {
                mode: expected,
                grace: Duration::from_secs(9)
            },
            "{mode}"
        );
    }
    let plain = gone(json!({}));
    assert_eq!((plain.driver, plain.retain_disks), (Some(Driver::Qemu), false));
    assert_eq!(plain.id, identity(&instance(json!({}))));
    assert!(gone(json!({"spec": {"deletionPolicy": "RetainDisks"}})).retain_disks);
    assert_eq!(
        gone(json!({"status": null})).driver,
        None,
        "goes even before it was placed"
    );
    assert_eq!(
        gone(json!({"status": {"resolved": {"driver": "kvm"}}})).driver,
        Some(Driver::Kvm),
        "and unoffered"
    );
}

#[test]
fn mac_addresses() {
    let of = |interface: &str| mac(UID, interface);
    assert_eq!(of("eth0"), "52:54:00:15:d9:c8", "it must never change");
    assert_eq!(of("eth0"), of("eth0"));
    assert_ne!(of("eth0"), of("eth1"));
    assert_ne!(of("eth0"), mac("9f0c21d4-1111-2222-3333-444444444444", "eth0"));
    for n in 0..100 {
        let address = of(&format!("eth{n}"));
        let octets: Vec<&str> = address.split(':').collect();
        assert_eq!(
            (octets.len(), &octets[..3]),
            (6, ["52", "54", "00"].as_slice()),
            "{address}"
        );
        assert!(
            octets
                .iter()
                .all(|o| o.len() == 2 && u8::from_str_radix(o, 16).is_ok()),
            "{address}"
        );
        assert_eq!(address, address.to_lowercase());
    }
}

#[test]
fn interfaces_and_disks() {
    let m = machine(json!({
        "interfaces": [
            {"name": "eth0", "network": "lan", "mac": "52:54:00:AA:BB:01"},
            {"name": "eth1", "bridge": "br0", "model": "e1000"},
        ],
        "disks": [{"name": "data", "sizeMiB": 64, "bus": "scsi"}],
        "consoles": {"serial": false, "vnc": {"listen": "::1"}},
    }));
    let interface = |name: &str, source, model, mac: &str| MachineInterface {
        name: name.into(),
        source,
        model,
        mac: mac.into(),
    };
    assert_eq!(
        m.interfaces,
        [
            interface(
                "eth0",
                InterfaceSource::Network("lan".into()),
                "virtio",
                "52:54:00:aa:bb:01"
            ),
            interface(
                "eth1",
                InterfaceSource::Bridge("br0".into()),
                "e1000",
                &mac(UID, "eth1")
            ),
        ]
    );
    assert_eq!(
        m.disks,
        [MachineDisk {
            name: "data".into(),
            size_mib: Some(64),
            image: None,
            bus: "scsi"
        }]
    );
    assert_eq!((m.serial, m.vnc.as_deref()), (false, Some("::1")));
    assert!(!m.defaulted.contains(&"interfaces"));
    let swapped =
        machine(json!({"interfaces": [{"name": "eth1", "network": "a"}, {"name": "eth0", "network": "a"}]}));
    assert_eq!(
        swapped.interfaces[0].mac,
        mac(UID, "eth1"),
        "an address follows the name, not the place"
    );
}

#[test]
fn the_seed() {
    let m = machine(json!({
        "hostname": "db", "cloudInit": {"userDataFrom": {"secret": "s", "key": "k"}, "networkData": "version: 2"},
    }));
    assert_eq!(
        (m.seed.hostname.as_str(), m.seed.network_data.as_deref()),
        ("db", Some("version: 2"))
    );
    assert_eq!(
        m.seed.user_data_from,
        Some(SecretKey {
            secret: "s".into(),
            key: "k".into()
        })
    );
    let m = machine(json!({"cloudInit": {"userData": "#cloud-config"}}));
    assert_eq!(m.seed.user_data.as_deref(), Some("#cloud-config"));
}

#[test]
fn containers_refuse_what_they_cannot_have() {
    assert!(matches!(container(json!({})), Ok(Goal::Present(_))));
    assert!(matches!(
        container(json!({"spec": {"consoles": {"serial": true}}})),
        Ok(Goal::Present(_))
    ));
    for (merge, refused, words) in [
        (
            json!({"spec": {"consoles": {"vnc": {}}}}),
            "consoles",
            "leave vnc out",
        ),
        (
            json!({"spec": {"disks": [{"name": "d", "sizeMiB": 1}]}}),
            "disks",
            "leave disks out",
        ),
        (
            json!({"status": {"resolved": {"image": {"boot": {"kernelUrl": "u"}}}}}),
            "image",
            "without boot",
        ),
        (
            json!({"status": {"resolved": {"image": null}}}),
            "image",
            "root file system",
        ),
        (
            json!({"spec": {"blank": true}, "status": {"resolved": {"image": null}}}),
            "blank",
            "root file system",
        ),
    ] {
        match container(merge) {
            Err(NoGoal::Unsupported { field, why }) => {
                assert_eq!(field, refused);
                assert!(why.contains(words), "{why}");
            }
            other => panic!("{refused}: {other:?}"),
        }
    }
    let blank = asked(json!({"spec": {"blank": true}, "status": {"resolved": {"image": null}}}));
    assert!(
        matches!(blank, Ok(Goal::Present(_))),
        "a virtual machine may start from nothing"
    );
}

#[test]
fn what_the_host_chose_is_kept() {
    let before = machine(json!({})).applied();
    let larger = Offer {
        cpus: 64,
        default_network: false,
        ..offer()
    };
    let kept = |spec: Value, offer: &Offer, applied: &Applied| {
        let mut machine = machine_of(json!({ "spec": spec }), offer);
        machine.keep_choices(applied);
        machine
    };
    let moved = kept(json!({}), &larger, &before);
    assert_eq!(
        moved.applied(),
        before,
        "a host that changes is no reason to change a guest"
    );
    let grown = kept(json!({"cpus": 3}), &larger, &before);
    assert_eq!((grown.cpus, grown.max_cpus), (3, 4), "room is for growing into");
    assert_eq!(
        kept(json!({"cpus": 5}), &larger, &before).max_cpus,
        20,
        "chosen anew when it does not suffice"
    );
    assert_eq!(
        kept(json!({"maxCpus": 6}), &larger, &before).max_cpus,
        6,
        "what is set counts"
    );
    let less = kept(json!({"memoryMiB": 512}), &larger, &before);
    assert_eq!(
        (less.memory_mib, less.max_memory_mib),
        (512, 1024),
        "less memory is live"
    );
    assert_eq!(
        kept(json!({"memoryMiB": 2048}), &larger, &before).max_memory_mib,
        2048
    );

    let alone = machine_of(json!({}), &larger).applied();
    assert!(
        kept(json!({}), &offer(), &alone).interfaces.is_empty(),
        "no card appears with a network"
    );
    let own = machine(json!({"interfaces": [{"name": "lan", "bridge": "br0"}]})).applied();
    assert_eq!(
        kept(json!({}), &offer(), &own).interfaces,
        [default_interface(UID)],
        "back to the default"
    );
    assert!(
        kept(json!({}), &larger, &own).interfaces.is_empty(),
        "which is none where there is no such network"
    );
    let set = json!({"interfaces": [{"name": "lan", "bridge": "br0"}]});
    assert_eq!(kept(set, &offer(), &before).interfaces[0].name, "lan");
    let nothing = Applied::new();
    assert_eq!(
        kept(json!({}), &offer(), &nothing),
        machine(json!({})),
        "nothing known, nothing kept"
    );
    let broken = [("maxCpus".to_owned(), "many".to_owned())].into();
    assert_eq!(kept(json!({}), &offer(), &broken).max_cpus, 4);
}

#[test]
fn a_definition_that_differs_has_different_values() {
    let before = machine(json!({})).applied();
    for (spec, fields) in [
        (json!({}), vec![]),
        (json!({"cpus": 2}), vec!["cpus", "maxCpus"]),
        (json!({"maxCpus": 2}), vec!["maxCpus"]),
        (json!({"memoryMiB": 512}), vec!["maxMemoryMiB", "memoryMiB"]),
        (json!({"disks": [{"name": "d", "sizeMiB": 1}]}), vec!["disks"]),
        (
            json!({"interfaces": [{"name": "eth0", "network": "lan"}]}),
            vec!["interfaces"],
        ),
        (
            json!({"interfaces": [{"name": "eth0", "bridge": "default"}]}),
            vec!["interfaces"],
        ),
        (
            json!({"interfaces": [{"name": "eth0", "network": "default", "model": "e1000"}]}),
            vec!["interfaces"],
        ),
        (
            json!({"interfaces": [{"name": "eth0", "network": "default", "mac": "52:54:00:00:00:01"}]}),
            vec!["interfaces"],
        ),
        (
            json!({"interfaces": [{"name": "eth0", "network": "default"}]}),
            vec![],
        ),
        (json!({"consoles": {"serial": false}}), vec!["consoles"]),
        (json!({"consoles": {"vnc": {}}}), vec!["consoles"]),
        (json!({"consoles": {}}), vec![]),
        (
            json!({"powerState": "Stopped", "restartToken": "t", "description": "d", "diskMiB": 20480}),
            vec![],
        ),
    ] {
        let differing = crate::node::metadata::differing(&before, &machine(spec.clone()).applied());
        assert_eq!(differing, fields, "{spec}");
    }
    let bus = |bus: &str| machine(json!({"disks": [{"name": "d", "sizeMiB": 1, "bus": bus}]})).applied();
    assert_ne!(bus("virtio"), bus("scsi"));
    let size = |size| machine(json!({"disks": [{"name": "d", "sizeMiB": size}]})).applied();
    assert_eq!(size(1), size(2), "a size is the file's, not the definition's");
    let emulated = Offer {
        drivers: vec![(Driver::Qemu, DomainType::Kvm)],
        ..offer()
    };
    assert_ne!(
        machine_of(json!({}), &emulated).applied(),
        before,
        "the domain's type counts"
    );
}

#[test]
fn a_libvirt_that_does_not_answer_is_not_one_that_cannot() {
    let silent = Offer {
        drivers: vec![],
        silent: vec![(Driver::Qemu, "qemu:///system".to_owned())],
        ..offer()
    };
    let asked = goal(&instance(serde_json::json!({})), "host-01", &silent);
    assert_eq!(
        asked,
        Err(NoGoal::Silent {
            uri: "qemu:///system".to_owned()
        })
    );
}
