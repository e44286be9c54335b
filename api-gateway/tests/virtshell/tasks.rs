//! 7.9: tasks.

use kube::api::{Api, Patch, PatchParams};
use serde_json::{Value, json};
use virtshell_crds::Task;
use virtshell_crds::names::object_name;

use crate::support::{Request, World, row};

const CLONE: &str = "clone virtual machine database_01";

fn uuid_of(w: &World, description: &str) -> String {
    let list = w.get("B1/tasks").json();
    let task = list["tasks"]
        .as_array()
        .unwrap()
        .iter()
        .find(|task| task["description"] == description)
        .cloned();
    task.unwrap()["uuid"].as_str().unwrap().to_owned()
}

fn descriptions(list: &Value) -> Vec<&str> {
    list["tasks"]
        .as_array()
        .unwrap()
        .iter()
        .map(|task| task["description"].as_str().unwrap())
        .collect()
}

#[test]
fn v_117_list() {
    row(async |w| {
        for path in ["B2/tasks/", "B0/tasks/"] {
            let list = w.get(path).json();
            for task in list["tasks"].as_array().unwrap() {
                for member in ["uuid", "description", "status", "created", "last_update", "log"] {
                    assert!(task.get(member).is_some(), "{member} in {task}");
                }
            }
            assert_eq!(descriptions(&list).len(), 2);
        }
    });
}

#[test]
fn v_118_get() {
    row(async |w| {
        let uuid = uuid_of(w, CLONE);
        let expected = json!({"uuid": uuid, "description": CLONE, "status": "in progress", "object_uuid": "",
            "log": "fixture", "created": {"by": "kubernetes"}, "last_update": "1767225600", "status_history": []});
        w.get(&format!("B2/tasks/{uuid}")).is(200, &expected);
        w.get(&format!("B0/task?id={uuid}")).is(200, &expected);
        w.get("B2/tasks/72c05559-0590-4da6-be56-28ab36cb669c").error(404);
        w.get("B2/tasks/no-name").error(404);
    });
}

#[test]
fn v_119_v_120_by_status() {
    row(async |w| {
        for (path, expected) in [
            ("B2/tasks/sucess", vec!["create container webserver_09"]),
            ("B0/tasks/status/pending", vec![]),
            ("B2/tasks/status/sucess", vec!["create container webserver_09"]),
            ("B2/tasks/status/success", vec!["create container webserver_09"]),
            ("B2/tasks/status/in%20progress", vec![CLONE]),
            ("B2/tasks/status/in_progress", vec![CLONE]),
            ("B2/tasks/status/executing", vec![]),
            ("B2/tasks/status/nonsense", vec![]),
        ] {
            let list = w.get(path).is(200, &json!({})).json();
            assert_eq!(descriptions(&list), expected, "{path}");
        }
    });
}

#[test]
fn v_121_no_status() {
    row(async |w| {
        w.get("B0/tasks/status")
            .exactly(400, &json!({"error": "missing status name parameter"}));
    });
}

#[test]
fn v_122_create() {
    row(async |w| {
        for (path, status, shown) in [
            ("B2/tasks", Some("in progress"), "in progress"),
            ("B0/tasks/", Some("pending"), "pending"),
            ("B0/tasks/", None, "pending"),
            ("B0/tasks/", Some("executing"), "in progress"),
            ("B0/tasks/", Some("error"), "failed"),
        ] {
            let mut body = json!({"description": CLONE, "log": "l"});
            if let Some(status) = status {
                body["status"] = json!(status);
            }
            let id = w
                .post(path, &body)
                .is(200, &json!({"create": "success", "task_id": "<U>"}))
                .json();
            let path = format!("B1/tasks/{}", id["task_id"].as_str().unwrap());
            w.get(&path).is(
                200,
                &json!({"status": shown, "description": CLONE, "log": "l", "object_uuid": ""}),
            );
        }
        let instance = w.get("B1/instances/WebServer").json()["uuid"].clone();
        let id = w
            .post("B1/tasks", &json!({"description": "d", "object_uuid": instance}))
            .json();
        let path = format!("B1/tasks/{}", id["task_id"].as_str().unwrap());
        w.get(&path).is(200, &json!({"object_uuid": instance}));
        for (body, message) in [
            (json!({"status": "pending"}), "description field was not provided"),
            (json!({"description": "d", "status": "done"}), "Field status: "),
        ] {
            let error = w.post("B1/tasks", &body).error(400);
            assert!(error.starts_with(message), "{error}");
        }
        w.send(&Request::new("PUT", "B1/tasks"))
            .exactly(400, &json!({"error": "missing uuid parameter"}));
    });
}

#[test]
fn v_123_v_125_v_126_update() {
    row(async |w| {
        let path = format!("B2/tasks/{}", uuid_of(w, CLONE));
        w.put(&path, &json!({"log": "three dhclient lines"})).ok("update");
        let first = json!({"status": "in progress", "log": "three dhclient lines",
            "status_history": [["in progress", "1767225600", "fixture"]]});
        w.get(&path).is(200, &first);
        w.put(&path, &json!({"status": "sucess", "log": "....."}))
            .ok("update");
        let task = w
            .get(&path)
            .is(200, &json!({"status": "sucess", "log": "....."}))
            .json();
        assert_eq!(task["status_history"].as_array().map(Vec::len), Some(2));
        w.put(&path, &json!({"status": "pending"})).ok("update");
        w.get(&path)
            .is(200, &json!({"status": "pending", "log": "....."}));
        w.put(&path, &json!({"status": "done"})).error(400);
        w.put(&path, &json!({"unknown": 1})).ok("update");
    });
}

#[test]
fn v_124_a_task_is_no_host() {
    row(async |w| {
        let path = format!("B2/hosts/{}", uuid_of(w, CLONE));
        w.put(&path, &json!({"status": "sucess", "log": "....."}))
            .error(404);
    });
}

#[test]
fn v_127_v_128_delete() {
    row(async |w| {
        let path = format!("B0/tasks/{}", uuid_of(w, CLONE));
        w.delete(&path).ok("delete");
        w.get(&path).error(404);
        w.post("B1/instances/start_instance/WebServer", &json!({}))
            .in_progress("start");
        w.delete("B0/tasks/").ok("delete");
        let left = w.get("B0/tasks/").json();
        assert_eq!(
            descriptions(&left),
            ["Start instance WebServer"],
            "work that is not done stays"
        );
    });
}

#[test]
fn setting_finished_work_to_pending_asks_for_a_new_try() {
    row(async |w| {
        let task = w.post("B1/instances/stop_instance/WebServer", &json!({})).json()["task"]
            .as_str()
            .unwrap()
            .to_owned();
        let path = format!("B1/tasks/{task}");
        let api: Api<Task> = w.api();
        let name = w
            .store
            .tasks
            .by_uid(&task)
            .unwrap()
            .metadata
            .name
            .clone()
            .unwrap();
        w.put(&path, &json!({"status": "pending"})).ok("update");
        assert_eq!(api.get(&name).await.unwrap().spec.retry, 0, "it is pending");
        let failed = json!({"status": {"state": "Failed", "log": "no"}});
        api.patch_status(&name, &PatchParams::default(), &Patch::Merge(failed))
            .await
            .unwrap();
        w.until("it is seen to have failed", || {
            w.get(&path).json()["status"] == "failed"
        })
        .await;
        w.put(&path, &json!({"status": "pending"})).ok("update");
        assert_eq!(api.get(&name).await.unwrap().spec.retry, 1);
        let error = |body: &Value| w.put(&path, body).error(400);
        assert!(error(&json!({"status": "sucess"})).starts_with("Field status: "));
        assert!(error(&json!({"description": "x"})).starts_with("Field description: "));
        assert!(error(&json!({"status": "pending", "type": "x"})).starts_with("Field type: "));
        // The log is the controller's: a client's is taken and not kept.
        for body in [
            json!({"log": "mine"}),
            json!({"status": "pending", "log": "mine"}),
        ] {
            w.put(&path, &body).ok("update");
            assert_ne!(w.get(&path).json()["log"], "mine");
        }
    });
}

#[test]
fn results_are_those_of_the_hosts() {
    row(async |w| {
        use kube::api::PostParams;
        use virtshell_crds::TaskAssignment;
        let web = w.get("B1/instances/WebServer").json()["uuid"]
            .as_str()
            .unwrap()
            .to_owned();
        let task = w.post("B1/instances/stop_instance/WebServer", &json!({})).json()["task"]
            .as_str()
            .unwrap()
            .to_owned();
        let assignments: Api<TaskAssignment> = w.api();
        let object: TaskAssignment = serde_json::from_value(json!({
            "apiVersion": "virtshell.io/v1alpha1", "kind": "TaskAssignment", "metadata": {"name": format!("part-{}", &task[..8])},
            "spec": {"task": {"name": "t", "uid": task}, "host": "fx-gp", "attempt": 0, "type": "execute_command",
                "timeoutSeconds": 60, "targets": [{"name": "webserver", "uid": web}]},
        }))
        .unwrap();
        assignments.create(&PostParams::default(), &object).await.unwrap();
        let status = json!({"status": {"results": [{"uid": web, "name": "webserver", "state": "Succeeded", "exitCode": 0, "output": "Linux"}]}});
        let name = object.metadata.name.clone().unwrap();
        assignments
            .patch_status(&name, &PatchParams::default(), &Patch::Merge(status))
            .await
            .unwrap();
        let expected =
            json!([{"name": "WebServer", "id": web, "status": "sucess", "exit_code": 0, "output": "Linux"}]);
        w.until("the result is shown", || {
            w.get(&format!("B1/tasks/{task}")).json()["results"] == expected
        })
        .await;
        let all = w.get("B1/tasks").json();
        let mut listed = all["tasks"].as_array().unwrap().iter();
        let listed = listed.find(|listed| listed["uuid"] == task.as_str()).unwrap();
        assert_eq!(
            listed["results"],
            json!([{"name": "WebServer", "id": web, "status": "sucess", "exit_code": 0}]),
            "lists leave output out"
        );
        assignments
            .delete(&name, &kube::api::DeleteParams::default())
            .await
            .unwrap();
    });
}

#[test]
fn what_no_host_was_given_is_a_result_too() {
    row(async |w| {
        let body = json!({"instances": ["WebServer", "WebServer001"]});
        let id = w.post("B1/instances/stop_instance", &body).json()["task"]
            .as_str()
            .unwrap()
            .to_owned();
        let path = format!("B1/tasks/{id}");
        let name = w.store.tasks.by_uid(&id).unwrap().metadata.name.clone().unwrap();
        let refused = json!({"observedRetry": 0, "state": "Failed", "log": "0 of 2 targets succeeded",
            "refused": [{"name": object_name("WebServer001"), "message": "instance WebServer001 is not running"}]});
        // As the controller does.
        w.api::<Task>()
            .patch_status(
                &name,
                &PatchParams::default(),
                &Patch::Merge(json!({"status": refused})),
            )
            .await
            .unwrap();
        let uuid = w.get("B1/instances/WebServer001").json()["uuid"].clone();
        let expected = json!([{"name": "WebServer001", "id": uuid, "status": "failed",
            "reason": "instance WebServer001 is not running"}]);
        w.until("the refusal is shown", || {
            w.get(&path).json()["results"] == expected
        })
        .await;
        w.put(&path, &json!({"status": "pending"})).ok("update");
        assert_eq!(
            w.get(&path).json()["results"],
            json!([]),
            "it belongs to the first try"
        );
    });
}

#[test]
fn tasks_belong_to_their_maker() {
    row(async |w| {
        let body = json!({"description": "mine"});
        let id = w
            .send(&Request::new("POST", "B1/tasks").by("demouser").body(&body))
            .json();
        let path = format!("B1/tasks/{}", id["task_id"].as_str().unwrap());
        w.send(&Request::new("GET", &path).by("virtshell")).error(403);
        w.send(&Request::new("GET", &path).by("demouser"))
            .is(200, &json!({}));
        w.send(&Request::new("DELETE", "B1/tasks").by("virtshell"))
            .ok("delete");
        w.get(&path).is(200, &json!({}));
        w.send(
            &Request::new("PUT", &path)
                .by("demouser")
                .body(&json!({"log": "x"})),
        )
        .ok("update");
        w.send(&Request::new("DELETE", "B1/tasks").by("demouser"))
            .ok("delete");
        w.get(&path).error(404);
        assert_eq!(
            descriptions(&w.get("B1/tasks").json()).len(),
            2,
            "others' tasks stay"
        );
    });
}

#[test]
fn a_record_without_its_status_shows_what_its_maker_said() {
    row(async |w| {
        // As a gateway leaves it that ends between the two writes.
        let object: Task = serde_json::from_value(json!({
            "apiVersion": "virtshell.io/v1alpha1", "kind": "Task",
            "metadata": {"name": object_name("half made"), "annotations": {"virtshell.io/initial-status":
                r#"{"state":"Failed","stage":"","log":"why","lastUpdate":"2026-01-01T00:00:00Z"}"#}},
            "spec": {"description": "half made", "manual": true},
        }))
        .unwrap();
        w.api::<Task>()
            .create(&kube::api::PostParams::default(), &object)
            .await
            .unwrap();
        w.until("it is seen", || {
            descriptions(&w.get("B1/tasks/failed").json()) == ["half made"]
        })
        .await;
    });
}
