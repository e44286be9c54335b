//! The XML of typical machines: what libvirt's schema accepts, and what is in `golden/`, so that a change shows as lines
//! of a diff. `UPDATE_GOLDEN=1 cargo test` writes the files anew.

use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};
use virtshell_crds::instance::Driver;

use super::*;
use crate::node::carried::carried;
use crate::node::goal::{Goal, Offer, goal};
use crate::node::xml::parse;

#[path = "libvirt_tests.rs"]
mod libvirt_tests;

const UID: &str = "8f0c21d4-1111-2222-3333-444444444444";

struct Case {
    name: &'static str,
    driver: Driver,
    domain_type: DomainType,
    spec: Value,
    image: Value,
    paths: Paths,
}

fn files() -> Paths {
    let file = |name: &str| PathBuf::from(format!("/var/lib/virtshell/vm/{UID}/{name}"));
    Paths {
        root: file("root.qcow2"),
        seed: Some(file("seed.iso")),
        ..Paths::default()
    }
}

fn disk(name: &str) -> PathBuf {
    files().root.with_file_name(format!("disk-{name}.qcow2"))
}

fn cached(name: &str) -> PathBuf {
    Path::new("/var/lib/virtshell/images").join(name)
}

fn cases() -> Vec<Case> {
    let disk_image = json!({"name": "debian-12", "type": "disk", "url": "https://example.org/d.qcow2"});
    vec![
        Case {
            name: "qemu",
            driver: Driver::Qemu,
            domain_type: DomainType::Qemu,
            spec: json!({
                "cpus": 2, "maxCpus": 4, "memoryMiB": 512, "maxMemoryMiB": 1024, "restartToken": "<now> & \"then\"",
                "disks": [
                    {"name": "data", "sizeMiB": 1024},
                    {"name": "log", "sizeMiB": 64, "bus": "scsi"},
                    {"name": "old", "sizeMiB": 64, "bus": "sata"},
                ],
                "interfaces": [
                    {"name": "eth0", "network": "default", "mac": "52:54:00:AA:BB:01"},
                    {"name": "eth1", "bridge": "br0", "model": "e1000e"},
                ],
                "consoles": {"vnc": {"listen": "127.0.0.1"}},
            }),
            image: disk_image.clone(),
            paths: Paths {
                disks: vec![disk("data"), disk("log"), disk("old")],
                ..files()
            },
        },
        Case {
            name: "kvm",
            driver: Driver::Kvm,
            domain_type: DomainType::Kvm,
            spec: json!({}),
            image: disk_image.clone(),
            paths: files(),
        },
        Case {
            name: "kernel",
            driver: Driver::Kvm,
            domain_type: DomainType::Qemu,
            spec: json!({}),
            image: json!({"name": "tiny", "type": "disk", "boot": {
                "kernelUrl": "https://example.org/vmlinuz", "initrdUrl": "https://example.org/initrd",
                "cmdline": "console=ttyS0 quote=\"a & b\"",
            }}),
            paths: Paths {
                kernel: Some((cached("vmlinuz"), Some(cached("initrd")))),
                ..files()
            },
        },
        Case {
            name: "iso",
            driver: Driver::Qemu,
            domain_type: DomainType::Qemu,
            spec: json!({"disks": [{"name": "old", "sizeMiB": 64, "bus": "sata"}], "consoles": {"serial": false}}),
            image: json!({"name": "installer", "type": "iso", "url": "https://example.org/i.iso",
                          "preseedUrl": "https://example.org/preseed.cfg"}),
            paths: Paths {
                iso: Some(cached("installer.iso")),
                answers: Some(files().root.with_file_name("answers.iso")),
                disks: vec![disk("old")],
                ..files()
            },
        },
        Case {
            name: "lxc",
            driver: Driver::Lxc,
            domain_type: DomainType::Lxc,
            spec: json!({
                "cpus": 2, "memoryMiB": 256,
                "interfaces": [{"name": "eth0", "network": "default"}, {"name": "lan", "bridge": "br0"}],
            }),
            image: json!({"name": "alpine", "type": "lxc-container", "url": "https://example.org/r.tar.gz"}),
            paths: Paths {
                root: files().root.with_file_name("root"),
                ..Paths::default()
            },
        },
        Case {
            name: "test",
            driver: Driver::Kvm,
            domain_type: DomainType::Test,
            spec: json!({}),
            image: disk_image,
            paths: files(),
        },
    ]
}

fn machine(case: &Case) -> Machine {
    let mut spec = json!({"host": "host-01"});
    spec.as_object_mut()
        .unwrap()
        .extend(case.spec.as_object().unwrap().clone());
    let instance = serde_json::from_value(json!({
        "apiVersion": "virtshell.io/v1alpha1", "kind": "Instance",
        "metadata": {"uid": UID, "name": "web", "namespace": "virtshell", "finalizers": ["virtshell.io/domain"]},
        "spec": spec,
        "status": {
            "resolved": {"driver": case.driver, "image": case.image},
            "conditions": [{"type": "Scheduled", "status": "True", "reason": "Placed", "message": "",
                            "lastTransitionTime": "2026-11-21T10:00:00Z"}],
        },
    }))
    .unwrap();
    let drivers = vec![(case.driver, case.domain_type)];
    match goal(
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
    {
        Goal::Present(machine) => *machine,
        Goal::Gone(_) => panic!("not deleted"),
    }
}

fn metadata(machine: &Machine) -> Metadata {
    Metadata {
        uid: machine.id.uid.clone(),
        namespace: machine.id.namespace.clone(),
        name: machine.id.name.clone(),
        restart_token: machine.restart_token.clone(),
        provisioned: false,
        applied: machine.applied(),
    }
}

fn written(case: &Case) -> String {
    let machine = machine(case);
    domain_xml(&machine, &case.paths, &metadata(&machine), None)
}

fn named(name: &str) -> Case {
    cases().into_iter().find(|case| case.name == name).unwrap()
}

#[test]
fn golden() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/node/domain_xml/golden");
    for case in cases() {
        let (file, xml) = (dir.join(format!("{}.xml", case.name)), written(&case));
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            std::fs::write(&file, &xml).unwrap();
        }
        let golden = std::fs::read_to_string(&file).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
        assert_eq!(xml, golden, "{}", file.display());
    }
}

#[test]
fn libvirts_schema_accepts_it() {
    let dir = tempfile::tempdir().unwrap();
    for case in cases() {
        let file = dir.path().join(format!("{}.xml", case.name));
        std::fs::write(&file, written(&case)).unwrap();
        let ran = Command::new("virt-xml-validate")
            .arg(&file)
            .arg("domain")
            .output();
        let ran = ran
            .expect("virt-xml-validate is on the PATH; Debian's packages libvirt-clients and libxml2-utils");
        let said = String::from_utf8_lossy(&ran.stdout) + String::from_utf8_lossy(&ran.stderr);
        assert!(ran.status.success(), "{}: {said}", case.name);
    }
}

#[test]
fn our_metadata_reads_back() {
    for case in cases() {
        let machine = machine(&case);
        let read = parse(&domain_xml(&machine, &case.paths, &metadata(&machine), None)).unwrap();
        let ours = read.find(&["metadata", "instance"]).unwrap();
        assert_eq!(
            Metadata::parse(&ours.render()).unwrap(),
            metadata(&machine),
            "{}",
            case.name
        );
        assert_eq!(read.find(&["uuid"]).unwrap().text(), UID);
        assert_eq!(read.find(&["name"]).unwrap().text(), "web-8f0c21d4");
    }
}

/// Guards: a domain that an agent made which knew no panic device is not taken for one that somebody edited.
#[test]
fn a_domain_without_a_panic_device_carries_all_that_was_asked_for() {
    for case in ["qemu", "kvm", "iso"].map(named) {
        let applied = machine(&case).applied();
        let carried = |xml: &str| carried(&parse(xml).unwrap(), UID, &applied, &applied);
        let now = written(&case);
        let older = now.replace("<panic model='isa'/>", "");
        assert_ne!(now, older, "{}", case.name);
        assert_eq!(carried(&older), carried(&now), "{}", case.name);
    }
}

/// libvirt keys disks by these names: two of one name are refused.
#[test]
fn each_device_name_is_there_once() {
    let names = |xml: &str| -> Vec<String> {
        let read = parse(xml).unwrap();
        let disks = read.find(&["devices"]).unwrap().named("disk");
        disks
            .map(|d| d.find(&["target"]).unwrap().attribute("dev").unwrap().to_owned())
            .collect()
    };
    assert_eq!(
        names(&written(&named("qemu"))),
        ["vda", "vdb", "vdc", "sda", "sdb"]
    );
    assert_eq!(
        names(&written(&named("iso"))),
        ["vda", "sda", "vdb", "vdc", "sdb"]
    );
    let mut most = named("qemu");
    for bus in ["virtio", "scsi", "sata"] {
        let disks: Vec<Value> = (0..16)
            .map(|n| json!({"name": format!("d{n}"), "sizeMiB": 1, "bus": bus}))
            .collect();
        most.spec = json!({ "disks": disks });
        most.paths = Paths {
            disks: vec![disk("d"); 16],
            iso: Some(cached("i.iso")),
            ..files()
        };
        let mut found = names(&written(&most));
        assert_eq!(found.len(), 19, "{bus}");
        found.sort();
        found.dedup();
        assert_eq!(found.len(), 19, "{bus}: two of one name");
    }
}

/// libvirt places SCSI disks by their names, seven on a controller, and adds controllers of its own model for the rest.
#[test]
fn every_scsi_disk_has_a_controller_of_ours() {
    for (scsi, sata, expected) in [
        (0, 3, 0),
        (1, 0, 1),
        (7, 0, 1),
        (8, 0, 2),
        (16, 0, 3),
        (1, 7, 2),
        (15, 1, 3),
    ] {
        let on = |bus: &'static str, count: usize| {
            (0..count).map(move |n| json!({"name": format!("{bus}{n}"), "sizeMiB": 1, "bus": bus}))
        };
        let mut case = named("qemu");
        let disks: Vec<Value> = on("sata", sata).chain(on("scsi", scsi)).collect();
        case.paths.disks = vec![disk("d"); disks.len()];
        case.spec = json!({ "disks": disks });
        let read = parse(&written(&case)).unwrap();
        let controllers = read.find(&["devices"]).unwrap().named("controller");
        let ours: Vec<_> = controllers
            .filter(|c| c.attribute("type") == Some("scsi"))
            .collect();
        assert_eq!(ours.len(), expected, "{scsi} on scsi, {sata} on sata");
        for (index, controller) in ours.iter().enumerate() {
            assert_eq!(controller.attribute("index"), Some(index.to_string().as_str()));
            assert_eq!(controller.attribute("model"), Some("virtio-scsi"));
        }
    }
}

#[test]
fn what_a_domain_must_not_have() {
    let has = |case: &Case, path: &[&str]| parse(&written(case)).unwrap().find(path).is_some();
    assert!(
        !has(&named("kernel"), &["devices", "disk", "boot"]),
        "an order beside a kernel is refused"
    );
    assert!(
        !has(&named("kvm"), &["devices", "graphics"]),
        "no display that nobody asked for"
    );
    assert!(
        !has(&named("iso"), &["devices", "serial"]),
        "no serial console that is switched off"
    );
    assert!(
        !has(&named("test"), &["devices", "channel"]),
        "the test driver has no agent"
    );
    assert!(
        has(&named("lxc"), &["features", "privnet"]),
        "a container never shares the host's network"
    );
    let mut alone = named("lxc");
    alone.spec = json!({});
    let mut machine = machine(&alone);
    machine.interfaces.clear();
    let read = parse(&domain_xml(&machine, &alone.paths, &metadata(&machine), None)).unwrap();
    assert!(read.find(&["features", "privnet"]).is_some() && read.find(&["devices", "interface"]).is_none());
}
