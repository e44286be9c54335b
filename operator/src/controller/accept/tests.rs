#![expect(
    clippy::needless_pass_by_value,
    reason = "JSON literals read better as arguments"
)]

use serde_json::{Value, json};

use super::*;
use virtshell_crds::InstanceStatus;

pub(super) fn object<K: serde::de::DeserializeOwned>(kind: &str, name: &str, spec: Value) -> Arc<K> {
    let object = json!({
        "apiVersion": "virtshell.io/v1alpha1", "kind": kind,
        "metadata": {"name": name, "namespace": "ns", "uid": name, "generation": 2, "creationTimestamp": "2026-01-01T00:00:00Z"},
        "spec": spec,
    });
    Arc::new(serde_json::from_value(object).unwrap())
}

fn instance(spec: Value) -> Instance {
    Arc::unwrap_or_clone(object("Instance", "vm", spec))
}

fn all() -> References {
    References {
        environment: Some(object("Environment", "default", json!({}))),
        image: Some(object(
            "Image",
            "i",
            json!({"displayName": "image_1", "type": "disk", "downloadUrl": "http://x/i"}),
        )),
        provisioner: Some(object(
            "Provisioner",
            "p",
            json!({"memoryMiB": 512, "tags": ["db"]}),
        )),
        ..References::default()
    }
}

fn refused(instance: &Instance, refs: &References) -> (&'static str, String) {
    let refusal = accept(instance, refs).unwrap_err();
    (refusal.reason, refusal.message)
}

#[test]
fn what_is_missing_is_named_in_the_words_of_the_rest_api() {
    let full = json!({"image": "image_1", "provisioner": "p", "disks": [{"name": "d", "image": "image_2"}]});
    let vm = instance(full);
    let with_disk = || {
        let mut refs = all();
        refs.disk_images.insert("d".into(), refs.image.clone().unwrap());
        refs
    };
    assert!(accept(&vm, &with_disk()).is_ok());
    let sectioned = || Some(object("Environment", "default", json!({"section": "s"})));
    let going = || {
        let mut environment = (*object::<Environment>("Environment", "default", json!({}))).clone();
        environment.metadata.deletion_timestamp = Some(crate::controller::write::now());
        Some(Arc::new(environment))
    };
    for (rule, refs, expected) in [
        (
            "environment",
            References {
                environment: None,
                ..with_disk()
            },
            ("EnvironmentNotFound", "enviroment default not found"),
        ),
        (
            "an environment that goes",
            References {
                environment: going(),
                ..with_disk()
            },
            ("EnvironmentDeleting", "enviroment default is being deleted"),
        ),
        (
            "provisioner",
            References {
                provisioner: None,
                ..with_disk()
            },
            ("ProvisionerNotFound", "provisioner p not found"),
        ),
        (
            "image",
            References {
                image: None,
                ..with_disk()
            },
            ("ImageNotFound", "image image_1 not found"),
        ),
        ("disk image", all(), ("ImageNotFound", "image image_2 not found")),
        (
            "section",
            References {
                environment: sectioned(),
                ..with_disk()
            },
            ("SectionNotFound", "section s not found"),
        ),
        (
            "another namespace's section",
            References {
                environment: sectioned(),
                section: Some(object("Section", "s", json!({"namespaces": ["other"]}))),
                ..with_disk()
            },
            ("SectionNotAllowed", "section s is not for namespace ns"),
        ),
    ] {
        let (reason, message) = refused(&vm, &refs);
        assert_eq!((reason, message.as_str()), expected, "{rule}");
    }
}

#[test]
fn urls_that_lead_to_stored_files_are_frozen_as_these() {
    let image = |url: &str, owner: &str| -> Arc<Image> {
        object(
            "Image",
            "i",
            json!({"type": "disk", "downloadUrl": url, "owner": owner}),
        )
    };
    let private =
        json!({"sha256": "e3b0c4", "content": {"inline": ""}, "permissions": "rw-------", "owner": "ann"});
    let refs = |owner: &str, files: &[&'static str]| {
        let files = files
            .iter()
            .map(|name| (*name, object("File", name, private.clone())));
        References {
            provisioner: Some(object(
                "Provisioner",
                "p",
                json!({"builder": "https://x/r", "executor": "sh run"}),
            )),
            image: Some(image("http://gw/files/disk#part", owner)),
            disk_images: [("d".to_owned(), image("http://gw/files/disk", owner))].into(),
            stored: StoredFiles::of(files),
            ..all()
        }
    };
    let vm = instance(json!({
        "image": "i", "provisioner": "p", "owner": "ann", "varsFrom": "http://gw/files/vars",
        "disks": [{"name": "d", "image": "i"}],
    }));
    let file = |name: &str| format!("virtshell://ns/files/{name}?sha256=e3b0c4");
    let accepted = accept(&vm, &refs("ann", &["disk", "vars"])).unwrap().resolved;
    assert_eq!(accepted.image.as_ref().unwrap().url, file("disk"));
    assert_eq!(accepted.disk_images["d"].url, file("disk"));
    assert_eq!(accepted.vars_from, file("vars"));

    let (reason, message) = refused(&vm, &refs("eve", &["disk", "vars"]));
    assert_eq!(
        (reason, message.as_str()),
        ("FileForbidden", "eve may not read file disk")
    );
    let (reason, message) = refused(&vm, &refs("ann", &["disk"]));
    assert_eq!(
        (reason, message.as_str()),
        ("FileNotFound", "file vars not found")
    );

    // What it was created with is kept when the files go.
    let mut edited = vm;
    edited.status = Some(InstanceStatus {
        resolved: Some(accepted.clone()),
        ..InstanceStatus::default()
    });
    assert_eq!(accept(&edited, &refs("ann", &[])).unwrap().resolved, accepted);
    edited.spec.vars_from = Some("http://gw/files/other".to_owned());
    assert_eq!(refused(&edited, &refs("ann", &[])).1, "file other not found");
    edited.spec.vars_from = None;
    assert_eq!(accept(&edited, &refs("ann", &[])).unwrap().resolved.vars_from, "");
}

#[test]
fn what_nobody_acts_on_is_refused() {
    let builder = |spec: Value| References {
        provisioner: Some(object("Provisioner", "p", spec)),
        ..all()
    };
    for (rule, spec, refs, expected) in [
        (
            "names of a launch",
            json!({"displayName": "n".repeat(253), "image": "i", "launch": {"min": 1, "max": 10}}),
            all(),
            "NameTooLong",
        ),
        (
            "variables elsewhere",
            json!({"image": "i", "provisioner": "p", "varsFrom": "http://x/vars"}),
            builder(json!({"builder": "https://x/r", "executor": "sh run"})),
            "UrlRefused",
        ),
        (
            "a cycle",
            json!({"image": "i", "provisioner": "p"}),
            References {
                flaw: Some(Flaw::Cycle(vec!["p".to_owned(), "q".to_owned(), "p".to_owned()])),
                ..builder(json!({"depends": [{"provisioner": "q"}]}))
            },
            "DependencyCycle",
        ),
        (
            "no such dependency",
            json!({"image": "i", "provisioner": "p"}),
            References {
                flaw: Some(Flaw::Missing("q".to_owned())),
                ..builder(json!({"depends": [{"provisioner": "q"}]}))
            },
            "ProvisionerNotFound",
        ),
        (
            "image that does not fit",
            json!({"image": "i", "driver": "lxc"}),
            all(),
            "ImageWithoutSource",
        ),
        (
            "no image",
            json!({"provisioner": "p"}),
            References { image: None, ..all() },
            "NoImage",
        ),
        (
            "lxc with vnc",
            json!({"blank": true, "driver": "lxc", "consoles": {"vnc": {}}}),
            References { image: None, ..all() },
            "NotSupported",
        ),
        (
            "lxc with a bus",
            json!({"blank": true, "driver": "lxc", "disks": [{"name": "d", "sizeMiB": 1, "bus": "sata"}]}),
            References { image: None, ..all() },
            "NotSupported",
        ),
        (
            "driver",
            json!({"image": "i", "provisioner": "p"}),
            builder(json!({"driver": "ec2"})),
            "UnsupportedDriver",
        ),
    ] {
        assert_eq!(refused(&instance(spec), &refs).0, expected, "{rule}");
    }
}

#[test]
fn values_are_frozen_and_named_by_wire_name() {
    let mut vm = instance(json!({"image": "i", "provisioner": "p", "tags": ["web"]}));
    let first = accept(&vm, &all()).unwrap();
    assert_eq!(first.resolved.image.as_ref().unwrap().name, "image_1");
    assert_eq!(
        (first.resolved.memory_mib, first.resolved.environment.as_str()),
        (Some(512), "default")
    );
    assert_eq!(first.tags, ["web", "db"]);

    vm.status = serde_json::from_value(json!({"resolved": first.resolved, "tags": first.tags})).unwrap();
    vm.spec.cpus = Some(7);
    vm.spec.tags.clear();
    // Everything it refers to is gone or different.
    let again = accept(&vm, &References::default()).unwrap();
    assert_eq!(
        (again.resolved.cpus, again.resolved.memory_mib),
        (Some(7), Some(512))
    );
    assert_eq!(
        again.tags,
        ["web", "db"],
        "whose tag it was is not known any more"
    );
    let with_provisioner = accept(&vm, &all()).unwrap();
    assert_eq!(with_provisioner.tags, ["db"]);
}

#[test]
fn one_of_two_keeps_a_name() {
    let named = |name: &str, created: &str, accepted: Value| -> Arc<Instance> {
        let status = if accepted.is_null() {
            json!({})
        } else {
            let status = if accepted["status"].is_string() {
                accepted
            } else {
                json!({"status": "True", "observedGeneration": accepted})
            };
            let mut condition = json!({"type": "Accepted", "reason": "r", "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"});
            condition
                .as_object_mut()
                .unwrap()
                .extend(status.as_object().unwrap().clone());
            json!({"conditions": [condition]})
        };
        let object = json!({
            "apiVersion": "virtshell.io/v1alpha1", "kind": "Instance",
            "metadata": {"name": name, "namespace": "ns", "uid": name, "generation": 2, "creationTimestamp": created},
            "spec": {"displayName": "w", "blank": true}, "status": status,
        });
        Arc::new(serde_json::from_value(object).unwrap())
    };
    let (early, late) = ("2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z");
    let refused_first = json!({"status": "False", "observedGeneration": 2});
    for (rule, winner, loser) in [
        (
            "the older",
            named("b", early, Value::Null),
            named("a", late, Value::Null),
        ),
        (
            "by name",
            named("a", early, Value::Null),
            named("b", early, Value::Null),
        ),
        (
            "the accepted one",
            named("b", late, json!(2)),
            named("a", early, Value::Null),
        ),
        (
            "who had it before the other was renamed",
            named("b", late, json!(2)),
            named("a", early, json!(1)),
        ),
        (
            "accepted before an edit",
            named("b", late, json!(1)),
            named("a", early, refused_first),
        ),
    ] {
        let refs = References {
            namesakes: vec![winner.clone(), loser.clone()],
            ..References { image: None, ..all() }
        };
        assert!(accept(&winner, &refs).is_ok(), "{rule}");
        let (reason, message) = refused(&loser, &refs);
        assert_eq!(reason, "NameConflict", "{rule}");
        assert_eq!(
            message,
            format!(
                "instance w already exists (object {})",
                winner.metadata.name.as_ref().unwrap()
            )
        );
    }
}

#[test]
fn children_of_a_launch_take_over_what_their_parent_was_accepted_with() {
    let launch = json!({"min": 1, "max": 3});
    let spec = json!({"image": "i", "launch": launch, "memoryMiB": 256, "tags": ["t"], "displayName": "n".repeat(253)});
    let parent = object("Instance", "p", spec);
    let values = accept(&parent, &all()).unwrap();
    assert_eq!(values.resolved.launch, Some(Launch { min: 1, max: 3 }));
    let mut parent: Instance = (*parent).clone();
    parent.status = Some(InstanceStatus {
        resolved: Some(values.resolved.clone()),
        tags: values.tags.clone(),
        ..InstanceStatus::default()
    });
    let child: Arc<Instance> = object(
        "Instance",
        "p-1",
        json!({"image": "i", "launch": {"min": 1, "max": 1}, "memoryMiB": 512, "tags": ["t"]}),
    );
    // Whatever they refer to is gone.
    let refs = References {
        parent: Some(Arc::new(parent)),
        ..References::default()
    };
    let accepted = accept(&child, &refs).unwrap();
    let expected = Resolved {
        launch: Some(Launch::default()),
        memory_mib: Some(512),
        ..values.resolved
    };
    assert_eq!(
        (accepted.resolved, accepted.tags),
        (expected, vec!["t".to_owned(), "db".to_owned()])
    );
}

#[test]
fn a_clone_runs_as_its_source_does() {
    let clone = |spec: Value| {
        let mut spec = spec;
        spec["cloneFrom"] = json!({"name": "source"});
        instance(spec)
    };
    let source = |status: Value| {
        let mut source: Instance = instance(json!({"image": "image_1"}));
        source.status = serde_json::from_value(status).unwrap();
        References {
            image: None,
            source: Some(Arc::new(source)),
            ..all()
        }
    };
    let image = json!({"name": "i", "type": "lxc-container", "url": "http://x/i", "sha256": "", "timezone": "",
        "sshKey": "", "preseedUrl": ""});
    let ready = || {
        source(json!({"resolved": {"driver": "lxc", "diskMiB": 20_000, "environment": "e", "image": image}}))
    };
    let accepted = accept(&clone(json!({})), &ready()).unwrap().resolved;
    assert_eq!(
        (accepted.driver, accepted.disk_mib),
        (Some(Driver::Lxc), Some(20_000))
    );
    assert_eq!(accepted.image.unwrap().name, "i");
    for (rule, spec, refs, expected) in [
        (
            "no source",
            json!({}),
            References { image: None, ..all() },
            "SourceNotFound",
        ),
        (
            "not accepted itself",
            json!({}),
            source(json!({})),
            "SourceNotReady",
        ),
        (
            "another driver",
            json!({"driver": "qemu"}),
            ready(),
            "SourceDoesNotFit",
        ),
    ] {
        let (reason, message) = refused(&clone(spec), &refs);
        assert_eq!(reason, expected, "{rule}");
        assert!(message.contains("source"), "{message}");
    }
}
