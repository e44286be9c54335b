//! Every CEL rule, and the policies that anybody meets: an object that is admitted and one that is refused.

use serde_json::{Value, json};

use crate::kinds::{least, merge};

/// A rule and what is tried on it. Objects are parts: what they leave out is the least of their kind.
pub struct Row {
    pub name: String,
    pub kind: &'static str,
    /// What is there before; none = the two are creates.
    pub before: Option<Value>,
    pub admitted: Value,
    pub refused: Value,
    /// The rule's own words.
    pub message: &'static str,
}

fn create(kind: &'static str, name: &str, message: &'static str, admitted: Value, refused: Value) -> Row {
    Row {
        name: name.to_owned(),
        kind,
        before: None,
        admitted,
        refused,
        message,
    }
}

fn change(name: &str, message: &'static str, before: Value, admitted: Value, refused: Value) -> Row {
    Row {
        before: Some(before),
        ..create("Instance", name, message, admitted, refused)
    }
}

fn spec(spec: Value) -> Value {
    json!({ "spec": spec })
}

const SOURCE: &str =
    "image field was not provided: give at least one of image, provisioner, cloneFrom, blank: true";
const PERMISSIONS: &str = "Field permissions: must be nine of r, w, x, - or _: three triplets (owner, group, others), no letter twice in a triplet";
const LAUNCH: &str = "Field launch: min must not be greater than max";
const ONLY_GROWS: &str = "Field diskMiB: may only grow";
const KEEPS_NAME: &str = "Field displayName: cannot change once set, but to end a NameConflict";
const LONG_NAME: &str = "Field name: must have at most 63 characters";

/// Every row.
pub fn rows() -> Vec<Row> {
    [created(), changed(), grown(), fixed(), named(), policies()]
        .into_iter()
        .flatten()
        .collect()
}

fn created() -> Vec<Row> {
    let instance = |name: &str, message, admitted, refused| {
        create("Instance", name, message, spec(admitted), spec(refused))
    };
    let both_ways = json!({"userData": "a", "userDataFrom": {"secret": "s", "key": "k"}});
    let mut rows = vec![
        instance(
            "no source",
            SOURCE,
            json!({"blank": null, "provisioner": "p"}),
            json!({"blank": null}),
        ),
        instance(
            "blank: false is no source",
            SOURCE,
            json!({"blank": true}),
            json!({"blank": false}),
        ),
        instance(
            "a clone has a source",
            SOURCE,
            json!({"blank": null, "cloneFrom": {"name": "a"}}),
            json!({"blank": null}),
        ),
        instance(
            "maxCpus",
            "Field maxCpus: must not be below cpus",
            json!({"cpus": 2, "maxCpus": 2}),
            json!({"cpus": 3, "maxCpus": 2}),
        ),
        instance(
            "maxMemoryMiB",
            "Field maxMemoryMiB: must not be below memoryMiB",
            json!({"memoryMiB": 64, "maxMemoryMiB": 64}),
            json!({"memoryMiB": 65, "maxMemoryMiB": 64}),
        ),
        instance(
            "vars or varsFrom",
            "Field varsFrom: cannot stand beside vars",
            json!({"vars": {"a": "b"}}),
            json!({"vars": {"a": "b"}, "varsFrom": "https://example.org/vars.yaml"}),
        ),
        instance(
            "user data, once",
            "Field cloudInit: userDataFrom cannot stand beside userData",
            json!({"cloudInit": {"userData": "a"}}),
            json!({ "cloudInit": both_ways }),
        ),
        instance(
            "a disk has a size or an image",
            "Field disks: a disk needs sizeMiB or image",
            json!({"disks": [{"name": "a", "image": "i"}, {"name": "b", "sizeMiB": 1}]}),
            json!({"disks": [{"name": "a"}]}),
        ),
        instance(
            "the root disk has its name",
            "Field disks: the names root and seed are taken",
            json!({"disks": [{"name": "roots", "sizeMiB": 1}]}),
            json!({"disks": [{"name": "root", "sizeMiB": 1}]}),
        ),
        instance(
            "the seed has its name",
            "Field disks: the names root and seed are taken",
            json!({"disks": [{"name": "seeds", "sizeMiB": 1}]}),
            json!({"disks": [{"name": "seed", "sizeMiB": 1}]}),
        ),
        create(
            "Provisioner",
            "a builder needs an executor",
            "executor field was not provided",
            spec(json!({"builder": "https://example.org/r.git", "executor": "sh run.sh"})),
            spec(json!({"builder": "https://example.org/r.git"})),
        ),
    ];
    for (name, refused) in [
        ("an interface has a source", json!({"name": "a"})),
        (
            "an interface has one source",
            json!({"name": "a", "network": "n", "bridge": "b"}),
        ),
    ] {
        let admitted = json!({"interfaces": [{"name": "a", "network": "n"}, {"name": "b", "bridge": "b"}]});
        let message = "Field interfaces: give exactly one of network and bridge";
        rows.push(instance(
            name,
            message,
            admitted,
            json!({ "interfaces": [refused] }),
        ));
    }
    for (name, refused) in [
        ("content is somewhere", json!({})),
        (
            "content is in one place",
            json!({"inline": "", "blob": "0".repeat(64)}),
        ),
    ] {
        let message = "Field content: give exactly one of inline and blob";
        let (admitted, mut object) = (spec(json!({})), spec(json!({"content": {"inline": null}})));
        merge(&mut object, &spec(json!({ "content": refused })));
        rows.push(create("File", name, message, admitted, object));
    }
    for kind in ["Instance", "Provisioner"] {
        let launch = |min, max| spec(json!({"launch": {"min": min, "max": max}}));
        rows.push(create(kind, "launch", LAUNCH, launch(2, 2), launch(3, 2)));
    }
    for kind in ["File", "Image", "Instance", "Provisioner"] {
        for (admitted, refused) in [
            // The owner's, the group's and the others' triplet; with the leading dash; nothing at all.
            ("rwxr-xr-x", "rrxr-xr-x"),
            ("xwrxwrxwr", "rwxwwxrwx"),
            ("rwxrwx---", "rwxrwxrxx"),
            ("-rwxr-x---", "-rwrr-x---"),
            ("_________", "_rr______"),
        ] {
            let object = |permissions| spec(json!({ "permissions": permissions }));
            rows.push(create(
                kind,
                "permissions",
                PERMISSIONS,
                object(admitted),
                object(refused),
            ));
        }
    }
    rows
}

/// Fields that are fixed at creation: changed, added and taken away. Other fields may change beside them.
fn fixed() -> Vec<Row> {
    let mut rows = Vec::new();
    for (field, one, other, message) in [
        (
            "image",
            json!("a"),
            json!("b"),
            "Field image: cannot change once set",
        ),
        (
            "driver",
            json!("kvm"),
            json!("qemu"),
            "Field driver: cannot change once set",
        ),
        (
            "environment",
            json!("a"),
            json!("b"),
            "Field environment: cannot change once set",
        ),
        (
            "provisioner",
            json!("a"),
            json!("b"),
            "Field provisioner: cannot change once set",
        ),
        (
            "hostType",
            json!("GeneralPurpose"),
            json!("MemoryOptimized"),
            "Field hostType: cannot change once set",
        ),
        (
            "launch",
            json!({"min": 1, "max": 1}),
            json!({"min": 1, "max": 2}),
            "Field launch: cannot change once set",
        ),
        (
            "cloneFrom",
            json!({"name": "a"}),
            json!({"name": "b"}),
            "Field cloneFrom: cannot change once set",
        ),
    ] {
        // With another source, so that the rule under test is the only one that is broken.
        let with = |value: Option<&Value>, cpus: i64| {
            let mut object = spec(json!({"blank": true, "cpus": cpus}));
            if let Some(value) = value {
                object["spec"][field] = value.clone();
            }
            object
        };
        let (one, other) = (Some(&one), Some(&other));
        rows.push(change(
            &format!("{field} is changed"),
            message,
            with(one, 1),
            with(one, 2),
            with(other, 1),
        ));
        rows.push(change(
            &format!("{field} is added"),
            message,
            with(None, 1),
            with(None, 2),
            with(one, 1),
        ));
        rows.push(change(
            &format!("{field} is taken away"),
            message,
            with(one, 1),
            with(one, 2),
            with(None, 1),
        ));
    }
    let blank = |blank: Value, cpus: i64| spec(json!({"image": "a", "blank": blank, "cpus": cpus}));
    let message = "Field blank: cannot change once set";
    rows.push(change(
        "blank is changed",
        message,
        blank(json!(true), 1),
        blank(json!(true), 2),
        blank(json!(false), 1),
    ));
    rows.push(change(
        "blank is added",
        message,
        blank(json!(null), 1),
        blank(json!(null), 2),
        blank(json!(true), 1),
    ));
    rows.push(change(
        "blank is taken away",
        message,
        blank(json!(true), 1),
        blank(json!(true), 2),
        blank(json!(null), 1),
    ));
    let assignment = |cpus: i64| spec(json!({ "attempt": cpus }));
    rows.push(Row {
        kind: "TaskAssignment",
        ..change(
            "an assignment does not change",
            "Field spec: cannot change once set",
            assignment(0),
            json!({"metadata": {"labels": {"a": "b"}}, "spec": {"attempt": 0}}),
            assignment(1),
        )
    });
    rows
}

/// Sizes that may only grow.
fn grown() -> Vec<Row> {
    let disk = |disk: Value, cpus: i64, resolved: Option<i64>| {
        let mut object = spec(json!({"diskMiB": disk, "cpus": cpus}));
        if let Some(resolved) = resolved {
            object["status"] = json!({"resolved": {"diskMiB": resolved}});
        }
        object
    };
    let extra = |size: Value| spec(json!({"disks": [{"name": "a", "image": "i", "sizeMiB": size}]}));
    let disks = "Field disks: sizeMiB may only grow";
    vec![
        change(
            "a root disk is made smaller",
            ONLY_GROWS,
            disk(json!(20), 1, Some(20)),
            disk(json!(21), 1, None),
            disk(json!(19), 1, None),
        ),
        // What was resolved may be more than was asked for: the image's virtual size.
        change(
            "an unchanged size below what was resolved passes",
            ONLY_GROWS,
            disk(json!(10), 1, Some(20)),
            disk(json!(10), 2, None),
            disk(json!(15), 1, None),
        ),
        change(
            "a size below what was resolved is added",
            ONLY_GROWS,
            disk(json!(null), 1, Some(20)),
            disk(json!(20), 1, None),
            disk(json!(19), 1, None),
        ),
        change(
            "a disk is made smaller",
            disks,
            extra(json!(2)),
            extra(json!(3)),
            extra(json!(1)),
        ),
        change(
            "a disk gets another image",
            "Field disks: image cannot change once set; remove the disk and add one of another name",
            extra(json!(2)),
            extra(json!(2)),
            spec(json!({"disks": [{"name": "a", "image": "j", "sizeMiB": 2}]})),
        ),
    ]
}

/// Changes that have no rule of their own kind but must be possible: each refused half is another rule.
fn changed() -> Vec<Row> {
    let object = |change: Value| {
        let mut object = spec(json!({"displayName": "a", "powerState": "Running", "restartToken": ""}));
        merge(&mut object, &spec(change));
        object
    };
    vec![
        change(
            "name, power and restart may change",
            "Field driver: cannot change once set",
            object(json!({})),
            object(json!({"displayName": "b", "powerState": "Stopped", "restartToken": "1"})),
            object(json!({"driver": "kvm"})),
        ),
        change(
            "disks and interfaces may come and go",
            "Field disks: a disk needs sizeMiB or image",
            object(json!({"disks": [{"name": "a", "sizeMiB": 1}]})),
            object(
                json!({"disks": [{"name": "b", "sizeMiB": 1}], "interfaces": [{"name": "a", "network": "n"}]}),
            ),
            object(json!({"disks": [{"name": "b"}]})),
        ),
    ]
}

/// `metadata.name` of every kind: the generated names are filled up to a length.
fn named() -> Vec<Row> {
    let length = |length: usize| json!({"metadata": {"name": length}});
    let kinds = least();
    let long = kinds
        .iter()
        .map(|(kind, _)| create(kind, "name", LONG_NAME, length(63), length(64)));
    long.chain(["Environment", "Section"].into_iter().flat_map(renamed))
        .collect()
}

/// What others refer to by its name.
fn renamed(kind: &'static str) -> [Row; 2] {
    let name = |name: Value| spec(json!({"displayName": name, "description": "d"}));
    let row = |rule: &str, before, admitted, refused| Row {
        before: Some(before),
        ..create(kind, rule, KEEPS_NAME, admitted, refused)
    };
    let valid = spec(json!({"displayName": "a"}));
    [
        row(
            "a name is changed",
            valid.clone(),
            name(json!("a")),
            name(json!("b")),
        ),
        row(
            "a name is taken away",
            valid.clone(),
            name(json!("a")),
            name(json!(null)),
        ),
    ]
}

/// Admission policies that a user meets.
fn policies() -> Vec<Row> {
    let host = |host: Value, cpus: i64| spec(json!({"host": host, "cpus": cpus}));
    let bound = "Field host: is h1 and cannot change once set; keep host: h1";
    let finalizer = |name: &str| json!({"metadata": {"finalizers": [name]}});
    vec![
        change(
            "a host is changed",
            bound,
            host(json!("h1"), 1),
            host(json!("h1"), 2),
            host(json!("h2"), 1),
        ),
        change(
            "a host is taken away",
            bound,
            host(json!("h1"), 1),
            host(json!("h1"), 2),
            host(json!(null), 1),
        ),
        change(
            "a host may be given later",
            "Field driver: cannot change once set",
            host(json!(null), 1),
            host(json!("h1"), 1),
            spec(json!({"driver": "kvm"})),
        ),
        create(
            "Instance",
            "the finalizer is not the user's",
            "finalizer virtshell.io/domain: is set by the controller when it binds the Instance to a host",
            finalizer("example.org/mine"),
            finalizer("virtshell.io/domain"),
        ),
    ]
}

/// Whether some row is refused with `message`.
pub fn refuses(kind: &str, message: &str) -> bool {
    rows()
        .iter()
        .any(|row| row.kind == kind && row.message == message)
}
