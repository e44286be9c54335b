//! 7.10: packages.

use serde_json::{Value, json};
use virtshell_crds::Task;

use crate::protocol::names;
use crate::support::{Reply, Request, World, row};

fn b_pkg() -> Value {
    json!({"packages": [{"name": "git"}, {"name": "nginx"}], "instances": [{"name": "WebServer_", "range": "[1-3]"}]})
}

fn send(w: &World, method: &str, path: &str, body: &Value) -> Reply {
    w.send(
        &Request::new(method, path)
            .body(body)
            .header("Content-Type", "text/plain"),
    )
}

/// 202 with that verb; the type, names of the objects and packages of the task.
async fn accepted(w: &World, reply: Reply, verb: &str) -> (String, Vec<String>, Vec<String>) {
    let body = reply.is(202, &json!({verb: "in progress", "task": "<U>"})).json();
    let id = body["task"].as_str().unwrap().to_owned();
    let shown = w.get(&format!("B1/tasks/{id}")).json();
    let name = w.store.tasks.by_uid(&id).unwrap().metadata.name.clone().unwrap();
    let task = w.api::<Task>().get(&name).await.unwrap().spec;
    let objects = if shown["objects"].is_null() {
        vec![]
    } else {
        names(&shown["objects"])
    };
    (task.type_, objects, task.params.unwrap().packages)
}

#[test]
fn v_016_the_resource_answers_three_methods() {
    row(async |w| {
        for path in ["B1/packages", "B1/install_packages", "B1/package"] {
            w.get(path).error(501);
        }
        w.post("B1/packages", &b_pkg())
            .is(202, &json!({"install_package": "in progress"}));
        w.put("B1/packages", &b_pkg())
            .is(202, &json!({"upgrade_packages": "in progress"}));
        send(w, "DELETE", "B1/packages", &b_pkg()).is(202, &json!({"remove_packages": "in progress"}));
        send(w, "DELETE", "B1/install_packages", &b_pkg()).error(501);
    });
}

#[test]
fn v_133_v_135_v_136_v_137_every_spelling() {
    row(async |w| {
        let three = ["WebServer_1", "WebServer_2", "WebServer_3"];
        for (methods, path, verb, type_) in [
            (
                &["POST"][..],
                "B2/packages",
                "install_package",
                "install_packages",
            ),
            (
                &["POST", "PUT"],
                "B2/install_packages",
                "install_package",
                "install_packages",
            ),
            (&["PUT"], "B2/packages", "upgrade_packages", "upgrade_packages"),
            (
                &["POST", "PUT"],
                "B2/upgrade_packages",
                "upgrade_packages",
                "upgrade_packages",
            ),
            (&["DELETE"], "B2/packages", "remove_packages", "remove_packages"),
            (
                &["POST", "PUT", "DELETE"],
                "B2/remove_packages",
                "remove_packages",
                "remove_packages",
            ),
        ] {
            for method in methods {
                let reply = send(w, method, path, &b_pkg());
                let (seen, objects, packages) = accepted(w, reply, verb).await;
                assert_eq!(
                    (seen.as_str(), packages),
                    (type_, vec!["git".into(), "nginx".into()])
                );
                assert_eq!(objects, three, "{method} {path}");
            }
        }
    });
}

#[test]
fn v_134_members_of_a_range_that_are_not_there() {
    row(async |w| {
        let mut body = b_pkg();
        body["instances"] = json!([{"name": "WebServer_", "range": "[1-9]"}]);
        let reply = send(w, "POST", "B2/install_packages", &body);
        let (_, objects, _) = accepted(w, reply, "install_package").await;
        assert_eq!(objects, ["WebServer_1", "WebServer_2", "WebServer_3"]);
    });
}

#[test]
fn v_137_older_bodies() {
    row(async |w| {
        let mut body = b_pkg();
        let instances = body.as_object_mut().unwrap().remove("instances").unwrap();
        body["hosts"] = instances;
        body["packages"] = json!([{"name": "git"}, {"name": "mc"}]);
        for (path, verb) in [
            ("B2/install_packages", "install_package"),
            ("B2/upgrade_packages", "upgrade_packages"),
            ("B2/remove_packages", "remove_packages"),
        ] {
            let reply = send(w, "PUT", path, &body);
            let (_, objects, packages) = accepted(w, reply, verb).await;
            assert_eq!((objects.len(), packages), (3, vec!["git".into(), "mc".into()]));
        }
        let one = json!({"packages": "apache2", "tag": "web"});
        let reply = send(w, "PUT", "B2/remove_packages", &one);
        let (_, objects, packages) = accepted(w, reply, "remove_packages").await;
        assert_eq!((objects.len(), packages), (2, vec!["apache2".into()]));
    });
}

#[test]
fn the_whole_system_is_upgraded_when_nothing_is_named() {
    row(async |w| {
        for body in [
            json!({"instances": "WebServer"}),
            json!({"instances": "WebServer", "packages": []}),
        ] {
            let reply = send(w, "PUT", "B1/packages", &body);
            let (_, _, packages) = accepted(w, reply, "upgrade_packages").await;
            assert!(packages.is_empty(), "{body}");
        }
    });
}

#[test]
fn what_is_refused() {
    row(async |w| {
        for (method, body, status, message) in [
            ("POST", json!({}), 400, "Missing input for create package"),
            ("PUT", json!({}), 400, "Missing input for update package"),
            ("DELETE", json!({}), 400, "packages field was not provided"),
            (
                "POST",
                json!({"instances": "WebServer"}),
                400,
                "packages field was not provided",
            ),
            (
                "DELETE",
                json!({"instances": "WebServer"}),
                400,
                "packages field was not provided",
            ),
            (
                "POST",
                json!({"packages": ["git"]}),
                400,
                "instances field was not provided",
            ),
            (
                "PUT",
                json!({"packages": ["git"]}),
                400,
                "instances field was not provided",
            ),
            (
                "POST",
                json!({"packages": ["-rf"], "instances": "WebServer"}),
                400,
                "Field packages: ",
            ),
            (
                "POST",
                json!({"packages": ["a;b"], "instances": "WebServer"}),
                400,
                "Field packages: ",
            ),
            (
                "POST",
                json!({"packages": [1], "instances": "WebServer"}),
                400,
                "Field packages - 1",
            ),
            (
                "POST",
                json!({"packages": ["git"], "instances": "nope"}),
                404,
                "instance nope not found",
            ),
            (
                "POST",
                json!({"packages": ["git"], "tags": "nope"}),
                404,
                "instance tagged nope",
            ),
        ] {
            let error = send(w, method, "B1/packages", &body).error(status);
            assert!(error.starts_with(message), "{body}: {error}");
        }
        w.put("B1/instances/WebServer", &json!({"permissions": "rwxrwxrw-"}))
            .ok("update");
        let request = Request::new("POST", "B1/packages").by("demouser");
        w.send(&request.body(&json!({"packages": "git", "instances": "WebServer"})))
            .error(403);
    });
}
