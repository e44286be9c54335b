//! 7.2 and 7.13: clone, `execute_command` and `copy_file`. What hosts then do inside guests is for the suites with real
//! guests.

use serde_json::{Value, json};
use virtshell_crds::names::object_name;
use virtshell_crds::{Instance, Task, TaskParams};

use crate::protocol::names;
use crate::support::{Reply, Request, World, row};

/// The task of an answer, as a client sees it.
fn shown(w: &World, reply: &Reply) -> Value {
    let id = reply.json()["task"].as_str().unwrap().to_owned();
    w.get(&format!("B1/tasks/{id}")).json()
}

/// The parameters of the task of an answer, as the controller sees them.
async fn params(w: &World, reply: &Reply) -> TaskParams {
    let id = reply.json()["task"].as_str().unwrap().to_owned();
    let name = w.store.tasks.by_uid(&id).unwrap().metadata.name.clone().unwrap();
    w.api::<Task>().get(&name).await.unwrap().spec.params.unwrap()
}

fn uuid_of(w: &World, path: &str) -> Value {
    w.get(path).json()["uuid"].clone()
}

async fn file_uuid(w: &World, full_name: &str) -> String {
    let files = w.api::<virtshell_crds::File>();
    let file = files.get(&object_name(full_name)).await.unwrap();
    file.metadata.uid.unwrap()
}

fn b_exec() -> Value {
    json!({"instances": [{"name": "database_server_01"}, {"name": "transactional_server_co"}, {"pattern": "web_server*"},
        {"pattern": "grid_server_[1:5]"}, {"tag": "web"}], "command": "apt-get upgrade"})
}

fn b_copy(file: &str) -> Value {
    json!({"uuid_file": file, "destination": "$MYSQL_HOME/my.cnf", "instances": [{"name": "database_server_01"},
        {"name": "web_server*"}, {"name": "grid_[1:5]"}, {"name": "transactional_server_co"}, {"tag": "web"}]})
}

#[test]
fn v_020_a_clone_with_a_name() {
    row(async |w| {
        let body = json!({"name": "debian_strech_01", "new_name": "debian_strech_02"});
        let reply = w.post("B3/instances/clone_instance", &body).in_progress("clone");
        let clone = w
            .get("B1/instances/debian_strech_02")
            .is(200, &json!({"status": "pending"}));
        let expected = json!({"type": "clone_instance", "object_uuid": clone.json()["uuid"], "status": "pending",
            "description": "Clone instance debian_strech_01 to debian_strech_02"});
        let id = reply.json()["task"].as_str().unwrap().to_owned();
        w.get(&format!("B1/tasks/{id}")).is(200, &expected);
        w.post("B3/instances/clone_instance", &body).error(400);
    });
}

#[test]
fn v_172_clones_that_nobody_named() {
    row(async |w| {
        for (base, name) in [
            ("B4", "debian_strech_01_clone"),
            ("B1", "debian_strech_01_clone_2"),
            ("B2", "debian_strech_01_clone_3"),
        ] {
            let path = format!("{base}/instances/clone_instance/debian_strech_01");
            w.send(&Request::new("PUT", &path).header("Content-Type", "text/plain"))
                .in_progress("clone");
            w.get(&format!("B1/instances/{name}"))
                .is(200, &json!({"name": name}));
        }
    });
}

#[test]
fn v_173_a_clone_by_uuid() {
    row(async |w| {
        let uuid = uuid_of(w, "B1/instances/WebServer");
        let path = format!("B1/instances/clone_instance/{}", uuid.as_str().unwrap());
        w.post(&path, &json!({"name": "copy"})).in_progress("clone");
        w.get("B1/instances/copy").is(200, &json!({"name": "copy"}));
    });
}

#[test]
fn a_clone_is_the_callers_and_copies_what_the_cache_does_not_keep() {
    row(async |w| {
        let patch = json!({"spec": {"cloudInit": {"userData": "#cloud-config\n"}, "memoryMiB": 512, "permissions": "rwxr-xr-x"}});
        w.patch(&w.store.instances, "WebServer", patch).await;
        let request = Request::new("POST", "B1/instances/clone_instance/WebServer").by("demouser");
        w.send(&request).in_progress("clone");
        let clone = w
            .api::<Instance>()
            .get(&object_name("WebServer_clone"))
            .await
            .unwrap()
            .spec;
        let source = w.api::<Instance>().get(&object_name("WebServer")).await.unwrap();
        let from = clone.clone_from.unwrap();
        assert_eq!(
            (Some(from.name), from.uid),
            (source.metadata.name, source.metadata.uid)
        );
        assert_eq!(clone.cloud_init, source.spec.cloud_init);
        assert_eq!((clone.owner.as_deref(), clone.host), (Some("demouser"), None));
        w.get("B1/instances/WebServer_clone").is(
            200,
            &json!({"owner": "demouser", "memory": 512, "driver": "lxc", "permissions": "rwxr-xr-x", "provisioner": "all_backend"}),
        );
    });
}

#[test]
fn what_cannot_be_cloned() {
    row(async |w| {
        let call = "B1/instances/clone_instance";
        let to_source = format!("{call}/WebServer");
        for (path, body, status, message) in [
            (call, json!({}), 400, "name field was not provided"),
            (call, json!({"name": "nope"}), 404, "instance nope not found"),
            (
                call,
                json!({"instances": "WebServer_*"}),
                400,
                "Field instances: 3 instances are selected",
            ),
            (
                &to_source,
                json!({"new_name": "WebServer001"}),
                400,
                "instance WebServer001 already exists",
            ),
            (&to_source, json!({"new_name": "a b"}), 400, "Field name: "),
            (
                &to_source,
                json!({"new_name": "execute_command"}),
                400,
                "Field name: ",
            ),
            (&to_source, json!({"new_name": 1}), 400, "Field new_name"),
        ] {
            let error = w.post(path, &body).error(status);
            assert!(error.starts_with(message), "{body}: {error}");
        }
        let group = json!({"name": "farm", "enviroment": "development", "provisioner": "all_backend", "driver": "lxc", "launch": 2});
        w.post("B1/instances", &group).in_progress("create");
        let error = w.post(&format!("{call}/farm"), &json!({})).error(400);
        assert!(error.contains("stands for several"), "{error}");
        // A clone uses the enviroment of its source.
        w.put("B1/enviroments/development", &json!({"users": ["virtshell"]}))
            .ok("update");
        let by = |user| w.send(&Request::new("POST", &to_source).by(user));
        let error = by("demouser").error(403);
        assert_eq!(
            error,
            "User demouser is not allowed to use enviroment development"
        );
        by("virtshell").in_progress("clone");
        w.put("B1/instances/WebServer", &json!({"permissions": "rwxrwxrw-"}))
            .ok("update");
        by("virtshell").error(403);
    });
}

#[test]
fn v_021_v_174_commands() {
    row(async |w| {
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
        for path in ["B3/instances/execute_command", "B1/instances/execute_command/"] {
            let reply = w.post(path, &b_exec()).in_progress("execute_command");
            let task = shown(w, &reply);
            assert_eq!(names(&task["objects"]), expected);
            assert_eq!(
                (&task["type"], &task["object_uuid"], &task["description"]),
                (
                    &json!("execute_command"),
                    &json!(""),
                    &json!("Execute command in 11 instances")
                )
            );
            assert_eq!(
                params(w, &reply).await.command.as_deref(),
                Some("apt-get upgrade")
            );
        }
    });
}

#[test]
fn v_179_targets_that_are_not_there() {
    row(async |w| {
        for (selector, status, message) in [
            (json!({"name": "nope"}), 404, "instance nope not found"),
            (json!({"pattern": "nothing*"}), 404, "instance nothing* not found"),
            (json!({"pattern": "grid_[5:1]"}), 400, "Field instances: "),
        ] {
            let body = json!({"instances": [selector], "command": "true"});
            let error = w.post("B1/instances/execute_command/", &body).error(status);
            assert!(error.starts_with(message), "{error}");
        }
    });
}

#[test]
fn commands_that_make_no_sense() {
    row(async |w| {
        let call = "B1/instances/execute_command";
        for (body, message) in [
            (json!({}), "command field was not provided"),
            (
                json!({"instances": "WebServer"}),
                "command field was not provided",
            ),
            (
                json!({"instances": "WebServer", "command": ""}),
                "Field command: ",
            ),
            (
                json!({"instances": "WebServer", "command": ["ls"]}),
                "Field command - ",
            ),
            (json!({"command": "ls"}), "instances field was not provided"),
            (
                json!({"command": "ls", "instances": []}),
                "instances field was not provided",
            ),
        ] {
            let error = w.post(call, &body).error(400);
            assert!(error.starts_with(message), "{body}: {error}");
        }
        let long = json!({"command": "x".repeat(65_537), "instances": "WebServer"});
        let error = w.post(call, &long).error(400);
        assert!(error.starts_with("Field command: "), "{error}");
        for path in [
            "B1/instances/execute_command/WebServer",
            "B1/instances/copy_file/a",
        ] {
            w.post(path, &json!({"command": "ls"})).error(501);
        }
        w.get(call).error(501);
        w.delete("B1/instances/copy_files").error(501);
    });
}

#[test]
fn v_022_v_175_v_176_copies() {
    row(async |w| {
        let file = file_uuid(w, "mysql_configuration/my.cnf").await;
        let both = json!({"copy_file": "in progress", "copy_files": "in progress", "task": "<U>"});
        for path in ["B3/instances/copy_file", "B1/instances/copy_files/"] {
            let reply = w.post(path, &b_copy(&file)).is(200, &both);
            let objects = names(&shown(w, &reply)["objects"]);
            for grid in ["grid_1", "grid_2", "grid_3", "grid_4", "grid_5"] {
                assert!(objects.iter().any(|name| name == grid), "{objects:?}");
            }
            let params = params(w, &reply).await;
            assert_eq!(
                (params.file, params.destination),
                (
                    Some(object_name("mysql_configuration/my.cnf")),
                    Some("$MYSQL_HOME/my.cnf".to_owned())
                )
            );
        }
        let literal = b_copy(&file).to_string().replace("\"},{", "\"}{");
        w.send(&Request::new("POST", "B1/instances/copy_files/").text(&literal))
            .error(400);
        let mut one = b_copy(&file);
        one["instances"] = json!([{"name": "database_server_01"}]);
        let reply = w.post("B1/instances/copy_files/", &one).is(200, &both);
        assert_eq!(
            shown(w, &reply)["object_uuid"],
            uuid_of(w, "B1/instances/database_server_01")
        );
    });
}

#[test]
fn v_177_v_178_copies_by_folder_and_by_uri() {
    row(async |w| {
        let targets = json!([{"name": "database_server_01"}, {"name": "database_server_02"}, {"name": "database_server_03"}]);
        let body = json!({"folder_name": "mysql_configuration", "destination": "$MYSQL_HOME/my.cnf", "instances": targets});
        let reply = w
            .post("B1/instances/copy_files/", &body)
            .in_progress("copy_files");
        let folder = params(w, &reply).await;
        assert_eq!(
            (folder.folder.as_deref(), folder.file, folder.files),
            (
                Some("mysql_configuration"),
                None,
                vec![object_name("mysql_configuration/my.cnf")]
            )
        );
        let sources = [
            (
                "path",
                "https://<host>:<port>/api/virtshell/v1/files/mysql_configuration/my.cnf",
            ),
            ("uri", "http:/h:1/file/mysql_configuration/my.cnf"),
            ("file", "mysql_configuration/my.cnf"),
            ("file", "my.cnf"),
        ];
        for (member, value) in sources {
            let body = json!({member: value, "destination": "/etc/", "instances": targets, "owner": "mysql", "group": "mysql",
                "mode": "0640"});
            let reply = w
                .post("B1/instances/copy_files/", &body)
                .in_progress("copy_files");
            let params = params(w, &reply).await;
            assert_eq!(
                params.file,
                Some(object_name("mysql_configuration/my.cnf")),
                "{value}"
            );
            assert_eq!(
                [params.owner, params.group, params.mode].map(Option::unwrap),
                ["mysql", "mysql", "0640"]
            );
        }
    });
}

#[test]
fn copies_that_make_no_sense() {
    row(async |w| {
        let call = "B1/instances/copy_file";
        let with = |members: Value| {
            let mut body = json!({"destination": "/etc/", "instances": "WebServer", "file": "my.cnf"});
            for (key, value) in members.as_object().unwrap() {
                body[key] = value.clone();
            }
            body
        };
        for (members, status, message) in [
            (json!({"file": null}), 400, "uuid_file field was not provided"),
            (
                json!({"destination": null}),
                400,
                "destination field was not provided",
            ),
            (
                json!({"instances": null}),
                400,
                "instances field was not provided",
            ),
            (
                json!({"folder_name": "mysql_configuration"}),
                400,
                "Field uuid_file: only one",
            ),
            (json!({"file": "nope"}), 400, "file nope not found"),
            (
                json!({"file": "72c05559-0590-4da6-be56-28ab36cb669c"}),
                400,
                "file 72c05559-0590-4da6-be56-28ab36cb669c not found",
            ),
            (
                json!({"file": null, "folder_name": "nope"}),
                400,
                "file nope/ not found",
            ),
            (json!({"mode": "rw-"}), 400, "Field mode: "),
            (json!({"mode": "99"}), 400, "Field mode: "),
            (json!({"mode": 644}), 400, "Field mode - 644 is type number"),
            (json!({"instances": "nope"}), 404, "instance nope not found"),
        ] {
            let error = w.post(call, &with(members.clone())).error(status);
            assert!(error.starts_with(message), "{members}: {error}");
        }
        let patch = json!({"spec": {"permissions": "rwx------", "owner": "virtshell"}});
        w.patch(&w.store.files, "mysql_configuration/my.cnf", patch).await;
        for source in [
            json!({}),
            json!({"file": null, "folder_name": "mysql_configuration"}),
        ] {
            let request = Request::new("POST", call).by("demouser").body(&with(source));
            let error = w.send(&request).error(403);
            assert_eq!(error, "User demouser is not allowed to use file my.cnf");
        }
    });
}
