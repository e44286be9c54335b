//! What the common rules of the contract refuse, on every route that they hold for: bodies (1.4), messages (1.7), names
//! (1.8), values (1.9), permission strings (2.3), selectors (4.2).

use serde_json::{Value, json};

use crate::support::{Request, World, row};

/// Collections, the word in messages, and a body that creates one.
fn creates() -> Vec<(&'static str, &'static str, Value)> {
    let instance =
        json!({"name": "new", "enviroment": "development", "provisioner": "all_backend", "driver": "lxc"});
    vec![
        ("hosts", "host", json!({"name": "new"})),
        ("images", "image", json!({"name": "new", "type": "iso"})),
        ("sections", "section", json!({"name": "new"})),
        ("enviroments", "enviroment", json!({"name": "new"})),
        ("provisioners", "provisioner", json!({"name": "new"})),
        ("instances", "instance", instance),
        ("groups", "group", json!({"name": "new"})),
        ("users", "user", json!({"username": "new"})),
    ]
}

fn with(body: &Value, member: &str, value: Value) -> Value {
    let mut body = body.clone();
    body[member] = value;
    body
}

/// The name's member: users have another one.
fn name_of(collection: &str) -> &'static str {
    if collection == "users" { "username" } else { "name" }
}

#[track_caller]
fn refused(w: &World, method: &str, path: &str, body: &Value, begin: &str) {
    let error = w.send(&Request::new(method, path).body(body)).error(400);
    assert!(
        error.starts_with(begin),
        "{method} {path} {body}: {error}, not {begin}"
    );
}

#[test]
fn bodies_that_are_no_objects() {
    row(async |w| {
        let mut collections: Vec<(&str, &str)> =
            creates().iter().map(|(path, word, _)| (*path, *word)).collect();
        collections.extend([
            ("tasks", "task"),
            ("files", "file"),
            ("packages", "package"),
            ("properties", "property"),
        ]);
        for (collection, word) in collections {
            let post = |text: &str| {
                w.send(&Request::new("POST", &format!("B1/{collection}")).text(text))
                    .error(400)
            };
            for text in [
                "[]",
                "\"name\"",
                "1",
                "true",
                "{\"name\":\"a\",}",
                "{\"name\":",
                "{name:1}",
                "nul",
                "{} {}",
                "\u{feff}{}",
                "{\"a\":1}x",
                "{'name':'a'}",
                "{\"name\":\"\u{1}\"}",
            ] {
                assert_eq!(
                    post(text),
                    "No JSON object could be decoded.",
                    "{collection} {text}"
                );
            }
            for text in ["", "{}", "null", " \r\n"] {
                assert_eq!(
                    post(text),
                    format!("Missing input for create {word}"),
                    "{collection} {text}"
                );
            }
            let deep = format!("{{\"name\":{}1{}}}", "[".repeat(500), "]".repeat(500));
            assert_eq!(
                post(&deep),
                "No JSON object could be decoded.",
                "{collection}: nesting has an end"
            );
            let large = format!("{{\"name\":\"{}\"}}", "x".repeat(1024 * 1024));
            assert_eq!(
                post(&large),
                "Field body: it must have at most 1 MiB",
                "{collection}"
            );
        }
    });
}

#[test]
fn nulls_and_unknown_members_are_not_there() {
    row(async |w| {
        for (collection, word, body) in creates() {
            let path = format!("B1/{collection}");
            let name = name_of(collection);
            let error = w.post(&path, &with(&body, name, Value::Null)).error(400);
            assert_eq!(error, format!("{name} field was not provided"), "{word}");
            let mut body = with(&body, "description", Value::Null);
            for (member, value) in [
                ("uuid", json!("72c05559-0590-4da6-be56-28ab36cb669c")),
                ("id", json!(7)),
                ("created", json!({"at": "1", "by": "me"})),
                ("modified", json!("x")),
                ("nonsense", json!({"a": [1]})),
            ] {
                body[member] = value;
            }
            assert_eq!(w.post(&path, &body).status, 200, "{word}");
            let shown = w
                .get(&format!("{path}/new"))
                .is(200, &json!({"uuid": "<U>"}))
                .json();
            assert!(
                shown.get("nonsense").is_none() && shown.get("description").is_none(),
                "{shown}"
            );
            assert!(
                shown["uuid"] != body["uuid"] && shown["created"] != body["created"],
                "{shown}"
            );
        }
    });
}

#[test]
fn exact_messages() {
    row(async |w| {
        for (collection, word, body) in creates() {
            let path = format!("B1/{collection}");
            for (method, path) in [("PUT", path.clone()), ("DELETE", path.clone())] {
                // PUT /images creates.
                if (method, collection) != ("PUT", "images") {
                    let request = Request::new(method, &path).body(&json!({"description": "x"}));
                    w.send(&request)
                        .exactly(400, &json!({"error": "missing name parameter"}));
                }
            }
            let name = name_of(collection);
            refused(
                w,
                "POST",
                &path,
                &json!({"description": "x"}),
                &format!("{name} field was not provided"),
            );
            assert_eq!(w.post(&path, &body).status, 200, "{word}");
            let error = w.post(&path, &body).error(400);
            assert_eq!(error, format!("{word} new already exists"));
            let missing = format!("{path}/no-such-thing");
            for request in [
                Request::new("GET", &missing),
                Request::new("DELETE", &missing),
                Request::new("PUT", &missing).body(&json!({"description": "x"})),
            ] {
                assert_eq!(
                    w.send(&request).error(404),
                    format!("{word} no-such-thing not found")
                );
            }
            assert_eq!(
                w.put(&format!("{path}/new"), &json!({})).error(400),
                format!("Missing input for update {word}")
            );
        }
        for (path, body, message) in [
            (
                "B1/hosts",
                json!({"name": "h", "section": "nope"}),
                "section nope not found",
            ),
            (
                "B1/enviroments",
                json!({"name": "e", "section": "nope"}),
                "section nope not found",
            ),
            (
                "B1/enviroments",
                json!({"name": "e", "hosts": ["nope"]}),
                "host nope not found",
            ),
            (
                "B1/sections",
                json!({"name": "s", "hosts": ["nope"]}),
                "host nope not found",
            ),
        ] {
            assert_eq!(w.post(path, &body).error(400), message);
        }
    });
}

#[test]
fn names() {
    row(async |w| {
        let long = "n".repeat(129);
        let uuid = "72c05559-0590-4da6-be56-28ab36cb669c";
        for (collection, _, body) in creates() {
            let path = format!("B1/{collection}");
            let name = name_of(collection);
            for bad in [
                "",
                "-a",
                ".a",
                "_a",
                "a b",
                "a/b",
                "a\n",
                "é",
                "a\\b",
                "a%b",
                "a*",
                "a[1]",
                &long,
                uuid,
                &uuid.to_uppercase(),
            ] {
                // A name that is empty is none, in the words of some: 400 in any case.
                let error = w.post(&path, &with(&body, name, json!(bad))).error(400);
                assert!(error.starts_with("Field "), "{collection} {bad:?}: {error}");
            }
            for wrong in [json!(1), json!(true), json!(["a"]), json!({"name": "a"})] {
                refused(
                    w,
                    "POST",
                    &path,
                    &with(&body, name, wrong),
                    &format!("Field {name} - "),
                );
            }
            // Nothing is renamed, and the path and the body say the same.
            assert_eq!(w.post(&path, &body).status, 200);
            refused(
                w,
                "PUT",
                &format!("{path}/new"),
                &json!({name: "other"}),
                "Field name: ",
            );
            refused(
                w,
                "POST",
                &format!("{path}/other"),
                &body,
                &format!("Field {name}: "),
            );
        }
        refused(w, "POST", "B1/users", &json!({"username": "a:b"}), "Field name: ");
        for word in [
            "start_instance",
            "stop_instance",
            "restart_instance",
            "clone_instance",
            "execute_command",
            "copy_file",
            "copy_files",
        ] {
            let body = json!({"name": word, "enviroment": "development", "provisioner": "all_backend", "driver": "lxc"});
            refused(w, "POST", "B1/instances", &body, "Field name: ");
        }
        for word in ["add_host", "add_hosts"] {
            refused(
                w,
                "POST",
                "B1/enviroments",
                &json!({"name": word}),
                "Field name: ",
            );
        }
    });
}

#[test]
fn values() {
    row(async |w| {
        let sizes = [
            "",
            "GB",
            "-1GB",
            "1PB",
            "1 G B",
            "0",
            "0.0001MB",
            "1e3",
            "NaN",
            "99999999999999999999TB",
            "١GB",
        ];
        let host = json!({"name": "h"});
        let provisioner = json!({"name": "p"});
        let instance =
            json!({"name": "i", "enviroment": "development", "provisioner": "all_backend", "driver": "lxc"});
        let mut cases: Vec<(&str, &Value, &str, Value)> = Vec::new();
        for size in sizes {
            cases.extend([
                ("hosts", &host, "memory", json!(size)),
                ("hosts", &host, "capacity", json!(size)),
                ("provisioners", &provisioner, "memory", json!(size)),
                ("provisioners", &provisioner, "hdsize", json!(size)),
                ("instances", &instance, "memory", json!(size)),
                ("instances", &instance, "hdsize", json!(size)),
            ]);
        }
        for wrong in [json!(true), json!([1]), json!({"n": 1}), json!(-1), json!(0)] {
            cases.push(("hosts", &host, "memory", wrong.clone()));
            cases.push(("instances", &instance, "hdsize", wrong));
        }
        cases.push(("instances", &instance, "memory", json!(31)));
        for wrong in [json!("yes"), json!(1), json!(""), json!([true])] {
            cases.push(("hosts", &host, "enabled", wrong));
        }
        for wrong in [
            json!(0),
            json!(257),
            json!("2.0"),
            json!("-1"),
            json!(1.5),
            json!("two"),
            json!([]),
        ] {
            cases.push(("provisioners", &provisioner, "cpus", wrong.clone()));
            cases.push(("instances", &instance, "cpus", wrong));
        }
        for wrong in [
            json!(0),
            json!(101),
            json!("3:1"),
            json!("1:101"),
            json!("1:"),
            json!(":"),
            json!("a"),
            json!([1]),
        ] {
            cases.push(("provisioners", &provisioner, "launch", wrong.clone()));
            cases.push(("instances", &instance, "launch", wrong));
        }
        for wrong in [
            json!("256.1.1.1"),
            json!("1.2.3"),
            json!("::1"),
            json!(""),
            json!(1),
        ] {
            cases.push(("hosts", &host, "local_ipv4", wrong));
        }
        for wrong in [json!("x".repeat(65)), json!(6)] {
            cases.push(("hosts", &host, "local_ipv6", wrong));
        }
        for wrong in [json!("Huge"), json!(""), json!(1)] {
            cases.push(("hosts", &host, "type", wrong.clone()));
            cases.push(("instances", &instance, "host_type", wrong));
        }
        for wrong in [json!(1), json!({}), json!({"nome": "a"}), json!(""), json!(["a"])] {
            cases.push(("hosts", &host, "section", wrong));
        }
        for wrong in [json!(1), json!([1]), json!([[]]), json!([{}]), json!([""])] {
            cases.push(("instances", &instance, "tags", wrong.clone()));
            cases.push(("hosts", &host, "drivers", wrong));
        }
        for wrong in [json!("k=v"), json!(["k"]), json!({"k": ["v"]}), json!(1)] {
            cases.push(("instances", &instance, "vars", wrong));
        }
        cases.push(("instances", &instance, "driver", json!("xen")));
        for (collection, body, member, wrong) in cases {
            let body = with(body, member, wrong);
            refused(
                w,
                "POST",
                &format!("B1/{collection}"),
                &body,
                &format!("Field {member}"),
            );
        }
        assert_eq!(w.get("B1/instances/i").status, 404);
    });
}

#[test]
fn permission_strings() {
    row(async |w| {
        let instance = json!({"name": "new", "enviroment": "development", "provisioner": "all_backend", "driver": "lxc"});
        for (collection, body) in [
            ("images", json!({"name": "new", "type": "iso"})),
            ("provisioners", json!({"name": "new"})),
            ("instances", instance),
        ] {
            let path = format!("B1/{collection}");
            for bad in [
                "",
                "rwx",
                "rwxrwxrw",
                "rwxrwxrwxr",
                "xrwxrwxrwx",
                "rwxrwxrwz",
                "RWXRWXRWX",
                "rrxrwxrwx",
                "rwxww-rwx",
                "777",
                "rwxrwxrwé",
                "--rwxrwxrwx",
            ] {
                refused(
                    w,
                    "POST",
                    &path,
                    &with(&body, "permissions", json!(bad)),
                    "Field permissions: ",
                );
            }
            refused(
                w,
                "POST",
                &path,
                &with(&body, "permissions", json!(755)),
                "Field permissions - ",
            );
            for good in [
                "xwrxwrxwr",
                "rwxrwxrwx",
                "rwxr-x---",
                "xwrxwrx__",
                "-rw-r--r--",
                "---------",
            ] {
                let body = with(&body, "permissions", json!(good));
                assert_eq!(w.post(&path, &body).status, 200, "{good}");
                let item = format!("{path}/new");
                w.get(&item).is(200, &json!({"permissions": good}));
                refused(
                    w,
                    "PUT",
                    &item,
                    &json!({"permissions": "rwx"}),
                    "Field permissions: ",
                );
                assert_eq!(w.delete(&item).status, 200);
                w.until("it is gone", || w.get(&item).status == 404).await;
            }
        }
    });
}

#[test]
fn selectors() {
    row(async |w| {
        let bad = [
            json!(1),
            json!(true),
            json!(""),
            json!({}),
            json!([""]),
            json!([1]),
            json!([["a"]]),
            json!({"name": ""}),
            json!({"name": 1}),
            json!({"nome": "a"}),
            json!({"name": "a", "tag": "b"}),
            json!({"tag": "b", "range": "[1-2]"}),
            json!({"range": "[1-2]"}),
            json!({"pattern": "grid_[5:1]"}),
            json!({"pattern": "grid_[1:"}),
            json!({"pattern": "grid_1]"}),
            json!({"pattern": "grid_[]"}),
            json!({"pattern": "grid_[a-b]"}),
            json!({"pattern": "grid_[1]"}),
            json!({"pattern": "[0-1000]"}),
            json!({"pattern": ""}),
            json!({"pattern": "[1-50][1-50]"}),
            json!({"name": "a", "range": "1"}),
            json!({"name": "a", "range": ""}),
            json!({"name": "a", "range": "[99999999999999999999-99999999999999999999]"}),
            json!({"uuid": "web"}),
            json!({"ip": 1}),
            json!({"tag": ""}),
        ];
        for (method, path, rest) in [
            ("POST", "B1/instances/start_instance", json!({})),
            ("PUT", "B1/instances/clone_instance", json!({})),
            ("POST", "B1/instances/execute_command", json!({"command": "true"})),
            (
                "POST",
                "B1/instances/copy_files",
                json!({"file": "my.cnf", "destination": "/"}),
            ),
            ("DELETE", "B1/packages", json!({"packages": "git"})),
            ("GET", "B1/properties", json!({"properties": "memory"})),
        ] {
            for selector in &bad {
                refused(
                    w,
                    method,
                    path,
                    &with(&rest, "instances", selector.clone()),
                    "Field instances",
                );
            }
            for (selector, name) in [
                (json!("nope"), "nope"),
                (json!(["WebServer", "nope"]), "nope"),
                (
                    json!({"uuid": "72c05559-0590-4da6-be56-28ab36cb669c"}),
                    "72c05559-0590-4da6-be56-28ab36cb669c",
                ),
                (json!({"pattern": "nope*"}), "nope*"),
                (json!({"name": "nope", "range": "1-3"}), "nope1"),
                (json!({"tag": "nope"}), "tagged nope"),
                (json!({"ip": "192.0.2.1"}), "with address 192.0.2.1"),
            ] {
                let body = with(&rest, "instances", selector);
                let error = w.send(&Request::new(method, path).body(&body)).error(404);
                assert_eq!(error, format!("instance {name} not found"), "{path}");
            }
        }
        assert_eq!(
            w.get("B1/tasks").json()["tasks"].as_array().unwrap().len(),
            2,
            "no task was made"
        );
    });
}
