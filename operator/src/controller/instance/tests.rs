#![expect(
    clippy::needless_pass_by_value,
    reason = "JSON literals read better as arguments"
)]

use serde_json::{Value, json};

use super::*;

fn instance(status: Value) -> Instance {
    serde_json::from_value(json!({
        "apiVersion": "virtshell.io/v1alpha1", "kind": "Instance",
        "metadata": {"name": "vm", "namespace": "ns", "uid": "u", "generation": 3},
        "spec": {"blank": true}, "status": status,
    }))
    .unwrap()
}

fn acceptance() -> Acceptance {
    Acceptance {
        resolved: serde_json::from_value(json!({"environment": "default", "memoryMiB": 64})).unwrap(),
        tags: vec!["t".into()],
    }
}

fn refusal() -> Refusal {
    Refusal {
        reason: "ImageNotFound",
        message: "image x not found".into(),
    }
}

fn condition_of<'a>(status: &'a Value, type_: &str) -> &'a Value {
    let list = status["conditions"].as_array().unwrap();
    list.iter().find(|c| c["type"] == type_).unwrap()
}

#[test]
fn status_says_what_was_decided() {
    let placed = Placement::Placed("h".into());
    let nowhere = Placement::Refused {
        reason: "Unschedulable",
        message: "0/1 hosts: 1 disabled".into(),
    };
    let scheduled = json!({"host": "h", "conditions": [
        {"type": "Scheduled", "status": "True", "reason": "Placed", "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"},
        {"type": "Ready", "status": "True", "reason": "Running", "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"},
    ]});
    for (rule, present, verdict, placement, expected) in [
        (
            "placed",
            json!({}),
            Ok(acceptance()),
            Some(&placed),
            ("True", "True", json!("Creating"), json!("")),
        ),
        (
            "no host",
            json!({}),
            Ok(acceptance()),
            Some(&nowhere),
            ("True", "False", json!("Pending"), json!("0/1 hosts: 1 disabled")),
        ),
        (
            "refused",
            json!({}),
            Err(refusal()),
            None,
            ("False", "False", json!("Pending"), json!("image x not found")),
        ),
        (
            "the node reports",
            scheduled.clone(),
            Ok(acceptance()),
            Some(&placed),
            ("True", "True", Value::Null, Value::Null),
        ),
        (
            "a bad edit keeps the place",
            scheduled,
            Err(refusal()),
            None,
            ("False", "True", Value::Null, Value::Null),
        ),
    ] {
        let status = desired_status(&instance(present), &verdict, placement);
        let word = |type_| condition_of(&status, type_)["status"].as_str().unwrap();
        let seen = (
            word("Accepted"),
            word("Scheduled"),
            status["phase"].clone(),
            status["message"].clone(),
        );
        assert_eq!(seen, expected, "{rule}");
        assert_eq!(
            status["conditions"].as_array().unwrap().len(),
            2,
            "{rule}: only its own conditions"
        );
        assert_eq!(
            condition_of(&status, "Accepted")["observedGeneration"],
            3,
            "{rule}"
        );
    }
}

#[test]
fn what_was_written_does_not_differ() {
    let verdict = Ok(acceptance());
    let placement = Some(Placement::Placed("h".to_owned()));
    let first = desired_status(&instance(json!({})), &verdict, placement.as_ref());
    let present = instance(first.clone());
    let again = desired_status(&present, &verdict, placement.as_ref());
    let owned = [
        "resolved",
        "tags",
        "conditions",
        "phase",
        "message",
        "observedGeneration",
    ];
    assert!(!differs(&json!(present.status), &again, &owned));
    assert!(differs(&json!(instance(json!({})).status), &first, &owned));
}
