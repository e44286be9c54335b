//! 7.2 and 7.13: start, stop and restart.

use serde_json::{Value, json};

use crate::protocol::names;
use crate::support::{Request, World, row};

fn task(w: &World, reply: &Value) -> Value {
    w.get(&format!("B1/tasks/{}", reply["task"].as_str().unwrap()))
        .json()
}

#[test]
fn v_017_v_018_body_form() {
    row(async |w| {
        for (call, verb) in [
            ("start_instance", "start"),
            ("stop_instance", "stop"),
            ("restart_instance", "restart"),
        ] {
            let reply = w
                .post(
                    &format!("B3/instances/{call}"),
                    &json!({"name": "debian_strech_01"}),
                )
                .in_progress(verb)
                .json();
            let task = task(w, &reply);
            let instance = w.get("B1/instances/debian_strech_01").json();
            assert_eq!(
                (&task["type"], &task["object_uuid"]),
                (&json!(call), &instance["uuid"])
            );
            assert_eq!(task["status"], "pending");
        }
    });
}

#[test]
fn v_019_several() {
    row(async |w| {
        let body = json!({"instances": [{"name": "grid_[1:5]"}]});
        let reply = w
            .post("B3/instances/restart_instance", &body)
            .in_progress("restart")
            .json();
        let task = task(w, &reply);
        assert_eq!(
            names(&task["objects"]),
            ["grid_1", "grid_2", "grid_3", "grid_4", "grid_5"]
        );
        assert_eq!(
            (&task["object_uuid"], &task["description"]),
            (&json!(""), &json!("Restart 5 instances"))
        );
    });
}

#[test]
fn v_171_path_form() {
    row(async |w| {
        for base in ["B4", "B1", "B2"] {
            for (call, verb) in [
                ("start_instance", "start"),
                ("stop_instance", "stop"),
                ("restart_instance", "restart"),
            ] {
                let path = format!("{base}/instances/{call}/debian_strech_01");
                w.send(&Request::new("PUT", &path).header("Content-Type", "text/plain"))
                    .in_progress(verb);
            }
        }
    });
}

#[test]
fn v_173_by_uuid() {
    row(async |w| {
        let uuid = w.get("B1/instances/WebServer").json()["uuid"]
            .as_str()
            .unwrap()
            .to_owned();
        for (call, verb) in [
            ("start_instance", "start"),
            ("stop_instance", "stop"),
            ("restart_instance", "restart"),
        ] {
            let reply = w
                .post(&format!("B1/instances/{call}/{uuid}"), &json!({}))
                .in_progress(verb)
                .json();
            assert_eq!(task(w, &reply)["object_uuid"], json!(uuid));
        }
    });
}

#[test]
fn power_writes_only_the_task() {
    row(async |w| {
        use virtshell_crds::names::object_name;
        use virtshell_crds::{Instance, PowerState, Task};
        let before = w.api::<Instance>().get(&object_name("WebServer")).await.unwrap();
        let uid = w.post("B1/instances/stop_instance/WebServer", &json!({})).json()["task"]
            .as_str()
            .unwrap()
            .to_owned();
        let name = w.store.tasks.by_uid(&uid).unwrap().metadata.name.clone().unwrap();
        let task = w.api::<Task>().get(&name).await.unwrap();
        assert_eq!(task.spec.params.and_then(|p| p.power), Some(PowerState::Stopped));
        assert_eq!(task.spec.targets[0].uid, before.metadata.uid);
        let after = w.api::<Instance>().get(&object_name("WebServer")).await.unwrap();
        assert_eq!(before.metadata.resource_version, after.metadata.resource_version);
    });
}

#[test]
fn selectors_find_what_the_contract_says() {
    row(async |w| {
        let selected = |body: Value| {
            let reply = w
                .post("B1/instances/start_instance", &body)
                .in_progress("start")
                .json();
            let task = task(w, &reply);
            if task["objects"].is_null() {
                vec![]
            } else {
                names(&task["objects"])
            }
        };
        let body = json!({"instances": [{"name": "database_server_01"}, {"name": "transactional_server_co"},
            {"pattern": "web_server*"}, {"pattern": "grid_server_[1:5]"}, {"tag": "web"}]});
        let expected = [
            "WebServerPhp001",
            "WebServerPhp002",
            "database_server_01",
            "grid_server_1",
            "grid_server_2",
            "grid_server_3",
            "grid_server_4",
            "grid_server_5",
            "transactional_server_co",
            "web_server1",
            "web_server2",
        ];
        assert_eq!(selected(body), expected);
        let missing_are_skipped = json!({"instances": [{"name": "WebServer_", "range": "[1-9]"}]});
        assert_eq!(
            selected(missing_are_skipped),
            ["WebServer_1", "WebServer_2", "WebServer_3"]
        );
        assert_eq!(
            selected(json!({"tags": ["web"]})),
            ["WebServerPhp001", "WebServerPhp002"]
        );
        let doubles = json!({"instances": ["web_server1", "web_server*"]});
        assert_eq!(selected(doubles), ["web_server1", "web_server2"]);
        w.put("B1/instances/WebServer", &json!({"ipv4": "10.1.2.3"}))
            .ok("update");
        assert_eq!(
            selected(json!({"instances": [{"ip": "10.1.2.3"}, "WebServer001"]})),
            ["WebServer", "WebServer001"]
        );
    });
}

#[test]
fn what_is_refused() {
    row(async |w| {
        let post = |path: &str, body: Value| w.post(path, &body);
        let start = "B1/instances/start_instance";
        for (path, body, status, message) in [
            (start, json!({}), 400, "name field was not provided"),
            (start, json!({"name": "nope"}), 404, "instance nope not found"),
            (
                start,
                json!({"instances": ["nope", "WebServer"]}),
                404,
                "instance nope not found",
            ),
            (
                start,
                json!({"instances": [{"pattern": "nothing*"}]}),
                404,
                "instance nothing* not found",
            ),
            (
                start,
                json!({"tags": "nothing"}),
                404,
                "instance tagged nothing not found",
            ),
            (
                start,
                json!({"instances": [{"pattern": "grid_[5:1]"}]}),
                400,
                "Field instances: ",
            ),
            (
                start,
                json!({"instances": [{"nome": "x"}]}),
                400,
                "Field instances: ",
            ),
            (
                start,
                json!({"instances": 1}),
                400,
                "Field instances - 1 is type number",
            ),
            (
                "B1/instances/start_instance/WebServer",
                json!({"name": "WebServer001"}),
                400,
                "Field name: ",
            ),
            (
                "B1/instances/start_instance/nope",
                json!({}),
                404,
                "instance nope not found",
            ),
        ] {
            let error = post(path, body.clone()).error(status);
            assert!(error.starts_with(message), "{body}: {error}");
        }
        post(
            "B1/instances/start_instance/WebServer",
            json!({"name": "WebServer"}),
        )
        .in_progress("start");
        for (method, path) in [
            ("GET", "B1/instances/start_instance"),
            ("GET", "B1/instances/start_instance/WebServer"),
            ("DELETE", "B1/instances/stop_instance"),
            ("POST", "B1/instances/start_instance/a/b"),
            ("POST", "B1/instances/explode_instance/a"),
        ] {
            w.send(&Request::new(method, path)).error(501);
        }
        w.send(&Request::new("POST", "B1/instances/start_instance/WebServer").text("{"))
            .error(400);
    });
}

#[test]
fn the_instance_in_the_path_comes_before_the_members_of_the_body() {
    row(async |w| {
        w.put("B1/instances/WebServer", &json!({"permissions": "rwx------"}))
            .ok("update");
        for call in [
            "start_instance",
            "stop_instance",
            "restart_instance",
            "clone_instance",
        ] {
            let send = |name: &str| {
                let path = format!("B1/instances/{call}/{name}");
                let body = json!({"instances": 1, "new_name": 1});
                w.send(&Request::new("POST", &path).by("demouser").body(&body))
            };
            assert_eq!(send("nope").error(404), "instance nope not found", "{call}");
            let message = send("WebServer").error(403);
            assert!(
                message.ends_with("execute actions on instance WebServer"),
                "{message}"
            );
            send("WebServer001").error(400);
        }
        // By query it is the name of a new one, not a call.
        let started = w.post("B1/instances?id=start_instance", &json!({"name": "WebServer"}));
        assert_eq!(
            started.error(400),
            "Field name: differs from the name in the path"
        );
        w.get("B1/instances?id=start_instance").error(404);
    });
}

#[test]
fn acting_needs_x_and_r() {
    row(async |w| {
        let demouser = |body: Value| {
            w.send(
                &Request::new("POST", "B1/instances/stop_instance")
                    .by("demouser")
                    .body(&body),
            )
        };
        demouser(json!({"name": "WebServer"})).in_progress("stop");
        for permissions in ["rwxrwxrw-", "rwxrwx--x", "rwxrwx---"] {
            w.put("B1/instances/WebServer", &json!({"permissions": permissions}))
                .ok("update");
            let message = demouser(json!({"name": "WebServer"})).error(403);
            assert_eq!(
                message,
                "User demouser is not allowed to execute actions on instance WebServer"
            );
            // Named by pattern it is skipped.
            demouser(json!({"instances": "WebServer*"})).in_progress("stop");
            demouser(json!({"instances": [{"pattern": "WebServer"}]})).error(404);
        }
    });
}
