use super::*;
use crate::controller::launch::group::child;
use crate::controller::testing::Random;

fn parent(generation: i64, spec: &Value) -> Instance {
    serde_json::from_value(json!({
        "apiVersion": "virtshell.io/v1alpha1", "kind": "Instance",
        "metadata": {"name": "web", "namespace": "n", "uid": "u", "generation": generation}, "spec": spec,
    }))
    .unwrap()
}

/// What JSON merge patches do (RFC 7396).
fn apply(to: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        to.clone_from(patch);
        return;
    };
    if !to.is_object() {
        *to = json!({});
    }
    for (key, value) in patch {
        if value.is_null() {
            to.as_object_mut().unwrap().remove(key);
        } else {
            apply(&mut to[key], value);
        }
    }
}

fn patched(child: &Instance, patch: &Value) -> Instance {
    let mut object = json!(child);
    apply(&mut object, patch);
    serde_json::from_value(object).unwrap()
}

/// The second child of a parent with spec `before`, which then got `own`, after its parent became `after`.
fn followed(before: &Value, own: &Value, after: &Value) -> Value {
    let made = child(&parent(1, before), 2, 1);
    let own = patched(&made, &json!({ "spec": own }));
    let edited = parent(2, after);
    assert!(!is_current(&own, &edited));
    let patch = patch(&own, &edited, 2);
    let follows = patched(&own, &patch);
    assert!(is_current(&follows, &edited));
    let again = changes(&follows, &edited, 2);
    assert!(again.is_empty(), "once is enough: {again:?}");
    patch["spec"].clone()
}

#[test]
fn what_is_edited_in_the_parent_is_edited_in_the_child_and_nothing_else() {
    let nothing = json!({});
    for (rule, before, own, after, expected) in [
        (
            "nothing is edited",
            json!({"memoryMiB": 64, "tags": ["a"]}),
            json!({"memoryMiB": 128, "tags": ["b"], "powerState": "Stopped"}),
            json!({"memoryMiB": 64, "tags": ["a"]}),
            nothing.clone(),
        ),
        (
            "what becomes of the disks",
            nothing.clone(),
            nothing.clone(),
            json!({"deletionPolicy": "RetainDisks"}),
            json!({"deletionPolicy": "RetainDisks"}),
        ),
        (
            "who may do what",
            json!({"owner": "a", "permissions": "xwrxwrxwr"}),
            nothing.clone(),
            json!({"owner": "b", "group": "g", "permissions": "xwrxwr---"}),
            json!({"owner": "b", "group": "g", "permissions": "xwrxwr---"}),
        ),
        (
            "room to grow, together with the size",
            json!({"memoryMiB": 64, "maxMemoryMiB": 128, "cpus": 1, "maxCpus": 1}),
            nothing.clone(),
            json!({"memoryMiB": 256, "maxMemoryMiB": 256, "cpus": 4, "maxCpus": 4}),
            json!({"memoryMiB": 256, "maxMemoryMiB": 256, "cpus": 4, "maxCpus": 4}),
        ),
        (
            "an edit of something else leaves the child what it has of its own",
            json!({"memoryMiB": 64, "description": "a"}),
            json!({"memoryMiB": 128, "powerState": "Stopped"}),
            json!({"memoryMiB": 64, "description": "b", "autostart": false}),
            json!({"description": "b", "autostart": false}),
        ),
        (
            "an edit of the same takes it away",
            json!({"memoryMiB": 64}),
            json!({"memoryMiB": 128}),
            json!({"memoryMiB": 96}),
            json!({"memoryMiB": 96}),
        ),
        (
            "it is as the parent wants it already",
            json!({"memoryMiB": 64}),
            json!({"memoryMiB": 96}),
            json!({"memoryMiB": 96}),
            nothing.clone(),
        ),
        (
            "what the parent has no more",
            json!({"description": "a", "consoles": {"vnc": {}}, "vars": {"a": "1"}}),
            nothing.clone(),
            nothing.clone(),
            json!({"description": null, "consoles": null, "vars": {"a": null}}),
        ),
        (
            "names, host, addresses and number are the child's own",
            json!({"displayName": "Web", "hostname": "www", "launch": {"min": 1, "max": 2}}),
            json!({"displayName": "Other", "host": "h", "addresses": {"ipv4": "10.0.0.1"}}),
            json!({"displayName": "Shop", "hostname": "shop", "host": "g", "addresses": {"ipv4": "10.0.0.2"}, "launch": {"min": 1, "max": 2}}),
            json!({"hostname": "shop-2"}),
        ),
        (
            "a stop is passed on with its way",
            json!({"stopMode": "Force", "shutdownGraceSeconds": 5}),
            json!({"stopMode": "Graceful", "shutdownGraceSeconds": 60}),
            json!({"stopMode": "Force", "shutdownGraceSeconds": 5, "powerState": "Stopped"}),
            json!({"stopMode": "Force", "shutdownGraceSeconds": 5, "powerState": "Stopped"}),
        ),
        (
            "a restart, too",
            json!({"restartToken": "r", "restartMode": "Force"}),
            json!({"restartMode": "Graceful", "restartToken": "mine"}),
            json!({"restartToken": "s", "restartMode": "Force"}),
            json!({"restartToken": "s", "restartMode": "Force"}),
        ),
        (
            "the token that the parent had when the child was made asks for nothing",
            json!({"restartToken": "r"}),
            nothing.clone(),
            json!({"restartToken": "r", "cpus": 2}),
            json!({"cpus": 2}),
        ),
    ] {
        assert_eq!(followed(&before, &own, &after), expected, "{rule}");
    }
}

#[test]
fn lists_and_maps_are_edited_entry_by_entry() {
    for (rule, before, own, after, expected) in [
        (
            "variables one by one",
            json!({"vars": {"a": "1", "b": "1", "c": "1"}}),
            json!({"vars": {"a": "mine", "b": "mine", "own": "mine"}}),
            json!({"vars": {"a": "1", "b": "2", "d": "2"}}),
            json!({"vars": {"b": "2", "c": null, "d": "2"}}),
        ),
        (
            "tags one by one",
            json!({"tags": ["a", "b"]}),
            json!({"tags": ["a", "b", "own"]}),
            json!({"tags": ["b", "c"]}),
            json!({"tags": ["b", "own", "c"]}),
        ),
        (
            "disks one by one",
            json!({"disks": [{"name": "data", "sizeMiB": 10}, {"name": "old", "sizeMiB": 10}]}),
            json!({"disks": [{"name": "own", "sizeMiB": 1, "bus": "virtio"}, {"name": "data", "sizeMiB": 30, "bus": "virtio"}, {"name": "old", "sizeMiB": 10, "bus": "virtio"}]}),
            json!({"disks": [{"name": "data", "sizeMiB": 10}, {"name": "new", "sizeMiB": 10}]}),
            json!({"disks": [{"name": "own", "sizeMiB": 1, "bus": "virtio"}, {"name": "data", "sizeMiB": 30, "bus": "virtio"}, {"name": "new", "sizeMiB": 10, "bus": "virtio"}]}),
        ),
        (
            "a disk that was taken out of the child stays out, until the parent wants another one of that name",
            json!({"disks": [{"name": "a", "sizeMiB": 10}, {"name": "b", "sizeMiB": 10}]}),
            json!({"disks": []}),
            json!({"disks": [{"name": "a", "sizeMiB": 10}, {"name": "b", "sizeMiB": 20}]}),
            json!({"disks": [{"name": "b", "sizeMiB": 20, "bus": "virtio"}]}),
        ),
        (
            "a MAC address is the child's own, and the rest of the interface is not",
            json!({"interfaces": [{"name": "eth0", "network": "a", "mac": "52:54:00:aa:bb:01"}]}),
            json!({"interfaces": [{"name": "eth0", "network": "a", "mac": "52:54:00:aa:bb:02", "model": "virtio"}]}),
            json!({"interfaces": [{"name": "eth0", "bridge": "b", "mac": "52:54:00:aa:bb:03"}]}),
            json!({"interfaces": [{"name": "eth0", "bridge": "b", "mac": "52:54:00:aa:bb:02", "model": "virtio"}]}),
        ),
        (
            "the seed comes from elsewhere now",
            json!({"cloudInit": {"userData": "a"}}),
            json!({"cloudInit": {"userData": "mine"}}),
            json!({"cloudInit": {"userDataFrom": {"secret": "s", "key": "k"}}}),
            json!({"cloudInit": {"userData": null, "userDataFrom": {"secret": "s", "key": "k"}}}),
        ),
        (
            "what is long is told apart by its digest",
            json!({"description": "a".repeat(5000), "vars": {"a": "x".repeat(4096), "b": "1"}}),
            json!({"vars": {"own": "1"}}),
            json!({"description": "a".repeat(5000), "vars": {"a": "x".repeat(4096), "b": "2"}}),
            json!({"vars": {"own": null, "b": "2"}}),
        ),
    ] {
        assert_eq!(followed(&before, &own, &after), expected, "{rule}");
    }
}

#[test]
fn a_root_disk_never_shrinks() {
    let (before, after) = (
        parent(1, &json!({"diskMiB": 100})),
        parent(2, &json!({"diskMiB": 200})),
    );
    let made = child(&before, 1, 1);
    for (rule, own, expected) in [
        ("it grows with its parent", json!({}), json!({"diskMiB": 200})),
        ("it is larger", json!({"spec": {"diskMiB": 300}}), json!({})),
        (
            "it is larger than it says",
            json!({"spec": {"diskMiB": null}, "status": {"resolved": {"diskMiB": 300}}}),
            json!({}),
        ),
        (
            "it is smaller",
            json!({"spec": {"diskMiB": 150}, "status": {"resolved": {"diskMiB": 150}}}),
            json!({"diskMiB": 200}),
        ),
    ] {
        assert_eq!(
            patch(&patched(&made, &own), &after, 1)["spec"],
            expected,
            "{rule}"
        );
    }
}

#[test]
fn a_child_goes_as_its_parent_was_last_asked_to() {
    let before = parent(1, &json!({"memoryMiB": 64}));
    let made = child(&before, 1, 1);
    let keeps = json!({"deletionPolicy": "RetainDisks"});
    let own = patched(&made, &json!({ "spec": keeps }));
    for (rule, child, after, expected) in [
        ("as before", &made, json!({}), None),
        (
            "the disks stay",
            &made,
            keeps.clone(),
            Some(json!({ "spec": keeps })),
        ),
        ("they stay already", &own, keeps.clone(), None),
        ("its own way", &own, json!({}), None),
        (
            "nothing else is passed on",
            &made,
            json!({"memoryMiB": 128, "stopMode": "Force"}),
            Some(json!({"spec": {"stopMode": "Force"}})),
        ),
    ] {
        let after = parent(2, &after);
        assert_eq!(last_patch(child, &after, 1), expected, "{rule}");
        if expected.is_some() {
            assert!(may_go_otherwise(child, &after), "{rule}");
        }
    }
}

#[test]
fn a_child_of_which_nobody_knows_what_it_was_asked_for_keeps_what_it_has() {
    let mut made = child(&parent(1, &json!({"memoryMiB": 64})), 1, 1);
    made.metadata.annotations = None;
    let edited = parent(2, &json!({"memoryMiB": 128}));
    let first = patch(&made, &edited, 1);
    assert_eq!(first["spec"], json!({}));
    let known = patched(&made, &first);
    let later = parent(3, &json!({"memoryMiB": 256}));
    assert_eq!(patch(&known, &later, 1)["spec"], json!({"memoryMiB": 256}));
}

/// However parent and child are edited, each variable is the parent's where that was edited last, and else the child's.
#[test]
fn every_variable_follows_the_last_edit_of_its_parent() {
    let pick = |random: &mut Random| {
        let keys = ["a", "b", "c", "d"].into_iter();
        let picked = keys.filter_map(|key| match random.below(4) {
            0 => None,
            n => Some((key.to_owned(), json!(n.to_string()))),
        });
        picked.collect::<Map<String, Value>>()
    };
    for seed in 0..2000 {
        let random = &mut Random::new(seed);
        let (before, own, after) = (pick(random), pick(random), pick(random));
        let mut made = child(&parent(1, &json!({ "vars": before })), 1, 1);
        made.spec.vars = serde_json::from_value(json!(own)).unwrap();
        let patch = patch(&made, &parent(2, &json!({ "vars": after })), 1);
        let vars = json!(patched(&made, &patch).spec.vars);
        for key in ["a", "b", "c", "d"] {
            let expected = if before.get(key) == after.get(key) {
                own.get(key)
            } else {
                after.get(key)
            };
            assert_eq!(vars.get(key), expected, "seed {seed}, {key}");
        }
    }
}
