//! 7.10: properties, asked of a node agent without guests.

use serde_json::{Value, json};
use virtshell_crds::names::object_name;

use crate::protocol::names;
use crate::support::node::Node;
use crate::support::{Reply, Request, World, row};

fn ask(w: &World, body: &Value) -> Reply {
    w.send(
        &Request::new("GET", "B2/properties")
            .body(body)
            .header("Content-Type", "text/plain"),
    )
}

fn both() -> Value {
    json!([{"name": "memory"}, {"name": "cpu"}])
}

/// The Node API's answer for a guest with 512 of 1024 MB that uses `cpu_time_ns`.
fn stats(cpu_time_ns: u64) -> Value {
    json!({"state": "running", "vcpus": 2, "cpuTimeNs": cpu_time_ns, "disks": [], "interfaces": [],
        "memory": {"currentKiB": 524_288, "maximumKiB": 1_048_576, "rssKiB": null, "availableKiB": null, "unusedKiB": null,
            "usableKiB": null}})
}

/// A node with guests of these names.
async fn node(w: &World, guests: &[&str]) -> Node {
    let node = Node::of(w, "fx-gp").await;
    for guest in guests {
        node.answers(&format!("{}/stats", object_name(guest)), stats(1_000_000_000));
    }
    node
}

#[test]
fn v_015_the_resource_exists() {
    row(async |w| {
        let error = w.get("B1/properties").error(400);
        assert_eq!(error, "properties field was not provided");
        let error = w.post("B1/properties", &json!({})).error(400);
        assert_eq!(error, "Missing input for create property");
        w.delete("B1/properties").error(501);
        w.put("B1/properties", &json!({"properties": "memory"}))
            .error(501);
    });
}

#[test]
fn v_129_one_plain_name() {
    row(async |w| {
        let node = node(w, &["WebServer", "WebServer001"]).await;
        for name in ["WebServer", "WebServer001"] {
            let body = json!({"properties": both(), "hosts": [{"name": name}]});
            let seen = ask(w, &body)
                .is(200, &json!({"id": "<U>", "name": name, "memory": 512}))
                .json();
            assert!(seen["cpu"].is_number(), "{seen}");
            assert_eq!(seen.as_object().unwrap().len(), 4);
        }
        let path = format!(
            "/v1/namespaces/{}/instances/{}/stats",
            w.namespace,
            object_name("WebServer")
        );
        assert!(node.asked().contains(&path), "{:?}", node.asked());
    });
}

#[test]
fn v_130_by_tag() {
    row(async |w| {
        let _node = node(w, &["WebServerPhp001", "WebServerPhp002"]).await;
        let seen = ask(w, &json!({"properties": both(), "tag": [{"name": "web"}]})).json();
        let rows = &seen["properties"];
        assert_eq!(names(rows), ["WebServerPhp001", "WebServerPhp002"]);
        for row in rows.as_array().unwrap() {
            assert!(
                row["cpu"].is_number() && row["memory"] == 512 && row["id"].is_string(),
                "{row}"
            );
        }
    });
}

#[test]
fn v_131_by_range() {
    row(async |w| {
        let _node = node(w, &["Database001", "Database003"]).await;
        let body = json!({"properties": both(), "hosts": [{"name": "Database00", "range": "[1-3]"}]});
        let seen = ask(w, &body).json();
        assert_eq!(
            names(&seen["properties"]),
            ["Database001", "Database002", "Database003"]
        );
        let memory: Vec<&Value> = seen["properties"]
            .as_array()
            .unwrap()
            .iter()
            .map(|row| &row["memory"])
            .collect();
        assert_eq!(memory, [&json!(512), &Value::Null, &json!(512)], "one is off");
        let literal =
            r#"{"properties":[{"name":"memory"},{"name":"cpu"}],{"name":"Database00","range":"[1-3]"}]}"#;
        w.send(&Request::new("GET", "B2/properties").text(literal))
            .error(400);
    });
}

#[test]
fn v_132_one_stored_value() {
    row(async |w| {
        let value = |path: &str| w.get(&format!("B0/properties/{path}"));
        assert_eq!(
            value("driver/instance/WebServer/enviroment/development").json(),
            json!("lxc")
        );
        for (path, message) in [
            (
                "nonsense/instance/WebServer/enviroment/development",
                "property nonsense not found",
            ),
            (
                "driver/instance/nope/enviroment/development",
                "instance nope not found",
            ),
            (
                "driver/instance/WebServer/enviroment/nope",
                "enviroment nope not found",
            ),
            (
                "driver/instance/WebServer/enviroment/default",
                "instance WebServer not found",
            ),
        ] {
            assert_eq!(value(path).error(404), message);
        }
    });
}

#[test]
fn values_that_cannot_be_had_are_null() {
    row(async |w| {
        // Nobody serves the host, and nothing of this guest is known.
        let all = [
            "memory",
            "total_memory",
            "cpu",
            "cpus",
            "swap",
            "process",
            "ip",
            "gateway",
            "mask",
            "interfaces",
        ];
        let seen = ask(w, &json!({"properties": all, "hosts": "WebServer"})).json();
        for word in ["memory", "cpu", "swap", "process", "gateway", "mask"] {
            assert!(seen[word].is_null() && seen.get(word).is_some(), "{word}: {seen}");
        }
        assert_eq!(
            (
                &seen["total_memory"],
                &seen["cpus"],
                &seen["ip"],
                &seen["interfaces"]
            ),
            (
                &json!(1024),
                &json!(1),
                &json!({"ipv4": [], "ipv6": []}),
                &json!([])
            )
        );
        // Of several, only the ones that answer have values.
        let node = node(w, &["WebServer_1"]).await;
        let seen = ask(w, &json!({"properties": "memory", "hosts": "WebServer_*"})).json();
        let memory: Vec<&Value> = seen["properties"]
            .as_array()
            .unwrap()
            .iter()
            .map(|r| &r["memory"])
            .collect();
        assert_eq!(memory, [&json!(512), &Value::Null, &Value::Null]);
        drop(node);
        let seen = ask(w, &json!({"properties": "memory", "hosts": "WebServer_1"})).json();
        assert!(seen["memory"].is_null(), "a node that is gone: {seen}");
    });
}

#[test]
fn network_values() {
    row(async |w| {
        let status = json!({"addresses": {"ipv4": ["10.1.2.3"], "ipv6": []}, "interfaces": [
            {"name": "eth0", "mac": "52:54:00:aa:bb:01", "ipv4": ["10.1.2.3"], "ipv6": []}]});
        let name = object_name("WebServer");
        w.api::<virtshell_crds::Instance>()
            .patch_status(
                &name,
                &kube::api::PatchParams::default(),
                &kube::api::Patch::Merge(json!({"status": status})),
            )
            .await
            .unwrap();
        let node = node(w, &["WebServer"]).await;
        node.answers(
            &format!("{name}/agent"),
            json!({"interfaces": [{"name": "lo", "mac": null, "addresses": ["127.0.0.1/8"]},
                {"name": "eth0", "mac": "52:54:00:aa:bb:01", "addresses": ["10.1.2.3/24"]}],
                "swap": {"totalKib": 2048, "usedKib": 8}, "gateway": "10.1.2.1",
                "tasks": {"total": 80, "running": 2, "blocked": 1}}),
        );
        let words = ["mask", "interfaces", "swap", "gateway", "process"];
        let asked = [&["ip"], &words[..]].concat();
        let body = json!({"properties": asked, "hosts": "WebServer"});
        let process = json!({"total": null, "running": 2, "sleeping": 77, "stuck": 1, "threads": 80});
        let expected = json!({"swap": 2, "gateway": "10.1.2.1", "process": process, "ip": {"ipv4": ["10.1.2.3"], "ipv6": []}, "mask": "255.255.255.0", "interfaces": [
            {"name": "eth0", "mac": "52:54:00:aa:bb:01", "ipv4": ["10.1.2.3"], "ipv6": []}]});
        w.until("the address is seen", || {
            ask(w, &body).json()["ip"] == expected["ip"]
        })
        .await;
        let seen = ask(w, &body).json();
        for word in words {
            assert_eq!(seen[word], expected[word], "{word}");
        }
    });
}

#[test]
fn forms_of_the_question() {
    row(async |w| {
        let _node = node(w, &["WebServer", "Database001"]).await;
        let flat = json!({"name": "WebServer", "memory": 512});
        w.post(
            "B1/properties",
            &json!({"properties": "memory", "instances": "WebServer"}),
        )
        .is(200, &flat);
        w.get("B1/properties?properties=memory,cpus&hosts=WebServer")
            .is(200, &flat);
        let seen = w
            .get("B1/properties?properties=memory&hosts=Database00&range=[1-3]")
            .json();
        assert_eq!(seen["properties"].as_array().unwrap().len(), 3);
        let seen = w.get("B1/properties?properties=status&tags=web").json();
        assert_eq!(seen["properties"][0]["status"], "running");
        // Several names, or a pattern, give a list, also of one.
        let seen = ask(w, &json!({"properties": "memory", "hosts": "WebServer0*"})).json();
        assert_eq!(names(&seen["properties"]), ["WebServer001"]);
        let seen = ask(
            w,
            &json!({"properties": "memory", "hosts": ["WebServer", "fx-gp"]}),
        )
        .json();
        assert_eq!(names(&seen["properties"]), ["WebServer", "fx-gp"]);
        // A name that no instance has may be a host's.
        let host = json!({"properties": ["cpus", "total_memory", "memory", "type", "section", "cpu"], "hosts": "fx-gp"});
        ask(w, &host).is(
            200,
            &json!({"name": "fx-gp", "cpus": 16, "total_memory": 65536, "memory": null, "type": "GeneralPurpose",
                "section": "development_co", "cpu": null}),
        );
    });
}

#[test]
fn whatever_is_shown_can_be_asked_for() {
    row(async |w| {
        let patch = json!({"spec": {"description": "d", "owner": "tester", "group": "g", "vars": {"k": "v"},
            "addresses": {"ipv4": "10.0.0.1", "ipv6": "fe80::1"}}});
        w.patch(&w.store.instances, "WebServer", patch).await;
        let live = ["memory", "cpus"];
        for (path, name) in [
            ("B1/instances/WebServer", "WebServer"),
            ("B1/hosts/fx-gp", "fx-gp"),
        ] {
            let shown = w.get(path).json();
            let words: Vec<&String> = shown.as_object().unwrap().keys().collect();
            let seen = ask(w, &json!({"properties": words, "hosts": name}))
                .is(200, &json!({}))
                .json();
            for word in words.into_iter().filter(|word| !live.contains(&word.as_str())) {
                assert_eq!(seen[word], shown[word], "{word}");
            }
        }
    });
}

#[test]
fn what_is_refused() {
    row(async |w| {
        for (body, status, message) in [
            (
                json!({"hosts": "WebServer"}),
                400,
                "properties field was not provided",
            ),
            (
                json!({"properties": [], "hosts": "WebServer"}),
                400,
                "properties field was not provided",
            ),
            (
                json!({"properties": "memory"}),
                400,
                "hosts field was not provided",
            ),
            (
                json!({"properties": "memory", "hosts": []}),
                400,
                "hosts field was not provided",
            ),
            (
                json!({"properties": ["memory", "nonsense"], "hosts": "WebServer"}),
                400,
                "property nonsense not found",
            ),
            (
                json!({"properties": 1, "hosts": "WebServer"}),
                400,
                "Field properties - 1",
            ),
            (
                json!({"properties": "memory", "hosts": "nope"}),
                404,
                "instance nope not found",
            ),
            (
                json!({"properties": "memory", "hosts": "nope*"}),
                404,
                "instance nope* not found",
            ),
            (
                json!({"properties": "memory", "hosts": ["fx-gp", "nope"]}),
                404,
                "instance nope not found",
            ),
            (
                json!({"properties": "memory", "hosts": "a[3-1]"}),
                400,
                "Field instances: ",
            ),
        ] {
            let error = ask(w, &body).error(status);
            assert!(error.starts_with(message), "{body}: {error}");
        }
        w.get("B1/properties?properties=memory&hosts=%ff").error(400);
        w.put("B1/instances/WebServer", &json!({"permissions": "rwxrwx-wx"}))
            .ok("update");
        let body = json!({"properties": "status", "hosts": "WebServer"});
        let request = Request::new("GET", "B1/properties").by("demouser").body(&body);
        w.send(&request).error(403);
        let path = "B1/properties/status/instance/WebServer/enviroment/development";
        w.send(&Request::new("GET", path).by("demouser")).error(403);
    });
}
