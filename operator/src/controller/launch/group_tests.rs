use serde_json::{Value, json};

use super::*;

fn instance(metadata: &Value, spec: &Value, status: &Value) -> Instance {
    serde_json::from_value(json!({
        "apiVersion": "virtshell.io/v1alpha1", "kind": "Instance", "metadata": metadata, "spec": spec, "status": status,
    }))
    .unwrap()
}

fn parent(spec: &Value) -> Instance {
    let metadata = json!({
        "name": "web", "namespace": "n", "uid": "u", "generation": 7,
        "annotations": {"virtshell.io/created-by": "me", "virtshell.io/create-task": "t"},
    });
    instance(&metadata, spec, &json!({}))
}

#[test]
fn children_have_the_values_of_their_parent_and_names_of_their_own() {
    let spec = json!({
        "displayName": "Web", "hostname": "www", "image": "i", "launch": {"min": 1, "max": 3}, "memoryMiB": 64, "host": "h",
        "powerState": "Stopped", "restartToken": "r", "addresses": {"ipv4": "10.0.0.1"}, "vars": {"a": "b"}, "owner": "o",
        "interfaces": [{"name": "eth0", "network": "default", "mac": "52:54:00:aa:bb:01"}],
        "cloudInit": {"userData": "secret"},
    });
    let child = child(&parent(&spec), 2, 1);
    let meta = &child.metadata;
    assert_eq!(meta.name.as_deref(), Some(names::object_name("Web_2").as_str()));
    assert_eq!(meta.namespace.as_deref(), Some("n"));
    let labels = meta.labels.as_ref().unwrap();
    assert_eq!(labels[LABEL_LAUNCH_PARENT], "web");
    assert_eq!(labels[LABEL_NAME], "Web_2");
    assert_eq!(labels[LABEL_NAME_HASH], names::name_hash("Web_2"));
    let owner = parent_of(&child).unwrap();
    assert_eq!((owner.name.as_str(), owner.uid.as_str()), ("web", "u"));
    let annotations = meta.annotations.as_ref().unwrap();
    assert_eq!(annotations["virtshell.io/created-by"], "me");
    assert!(
        !annotations.contains_key("virtshell.io/create-task"),
        "its parent's"
    );
    assert!(follow::is_current(&child, &parent(&spec)));
    let expected: InstanceSpec = serde_json::from_value(json!({
        "displayName": "Web_2", "hostname": "www-2", "image": "i", "launch": {"min": 1, "max": 1}, "memoryMiB": 64, "host": "h",
        "powerState": "Stopped", "vars": {"a": "b"}, "owner": "o",
        "interfaces": [{"name": "eth0", "network": "default"}], "cloudInit": {"userData": "secret"},
    }))
    .unwrap();
    assert_eq!(child.spec, expected);
    let long = parent(&json!({"hostname": "w".repeat(62), "image": "i"}));
    assert_eq!(super::child(&long, 1, 1).spec.hostname, None);
    assert_ne!(
        super::child(&long, 1, 2).metadata.name,
        super::child(&long, 1, 1).metadata.name
    );
    assert!(parent_of(&long).is_none());
}

#[test]
fn a_group_says_how_many_are_placed_and_ready() {
    let child = |name: &str, phase: &str, message: &str, placed: bool, ready: bool| {
        let condition = |type_: &str, holds: bool| {
            let status = if holds { "True" } else { "False" };
            json!({"type": type_, "status": status, "reason": "R", "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"})
        };
        let conditions = [condition("Scheduled", placed), condition("Ready", ready)];
        let status = json!({"phase": phase, "message": message, "conditions": conditions});
        instance(
            &json!({"name": name}),
            &json!({"displayName": name.to_uppercase()}),
            &status,
        )
    };
    let runs = |name| child(name, "Running", "", true, true);
    let waits = child("b", "Pending", "0/1 hosts", false, false);
    let fresh = instance(&json!({"name": "c"}), &json!({}), &Value::Null);
    let going = instance(
        &json!({"name": "c", "deletionTimestamp": "2026-01-01T00:00:00Z"}),
        &json!({}),
        &json!({"phase": "Running"}),
    );
    let launch = Launch { min: 2, max: 3 };
    let words = |placed, ready| {
        (
            format!("{placed} instances have a host"),
            format!("{ready} instances are ready, 2 must be"),
        )
    };
    for (rule, children, phase, message, (scheduled, placed), (ready, said)) in [
        (
            "all",
            vec![runs("a"), runs("b"), runs("c")],
            Phase::Running,
            "",
            (Status::True, "3 of 3"),
            (Status::True, "3 of 3"),
        ),
        (
            "enough",
            vec![runs("a"), waits.clone(), runs("c")],
            Phase::Pending,
            "B: 0/1 hosts",
            (Status::False, "2 of 3"),
            (Status::True, "2 of 3"),
        ),
        (
            "too few",
            vec![runs("a"), waits],
            Phase::Pending,
            "B: 0/1 hosts",
            (Status::False, "1 of 2"),
            (Status::False, "1 of 2"),
        ),
        (
            "fresh",
            vec![fresh],
            Phase::Pending,
            "",
            (Status::False, "0 of 1"),
            (Status::False, "0 of 1"),
        ),
        (
            "one goes",
            vec![runs("a"), runs("b"), going],
            Phase::Deleting,
            "",
            (Status::False, "2 of 3"),
            (Status::True, "2 of 3"),
        ),
        (
            "none",
            vec![],
            Phase::Pending,
            "",
            (Status::True, "0 of 0"),
            (Status::False, "0 of 0"),
        ),
    ] {
        let (placed, said) = words(placed, said);
        let expected = Group {
            phase,
            message: message.to_owned(),
            scheduled: (scheduled, placed),
            ready: (ready, said),
        };
        assert_eq!(group(launch, &children), expected, "{rule}");
    }
}
