//! 7.8: instances.

use kube::api::{Api, Patch, PatchParams};
use serde_json::{Value, json};
use virtshell_crds::names::object_name;
use virtshell_crds::{Instance, Task};

use crate::protocol::names;
use crate::support::{Request, World, row};

const UBUNTU: &str = "ubuntu_server_14.04.2_amd64";

fn b_inst() -> Value {
    json!({"name": "transactional_log", "enviroment": "development_co",
        "description": "Server transactional only for store logs", "provisioner": "all_backend",
        "host_type": "GeneralPurpose", "driver": "lxc"})
}

fn with(members: &Value) -> Value {
    let mut body = b_inst();
    let object = body.as_object_mut().unwrap();
    for (key, value) in members.as_object().unwrap() {
        if value.is_null() {
            object.remove(key)
        } else {
            object.insert(key.clone(), value.clone())
        };
    }
    body
}

fn created(w: &World, path: &str, body: &Value) -> Value {
    let task = w.post(path, body).in_progress("create").json()["task"]
        .as_str()
        .unwrap()
        .to_owned();
    let name = body["name"].as_str().unwrap();
    let instance = w
        .get(&format!("B1/instances/{name}"))
        .is(200, &json!({"uuid": "<U>"}))
        .json();
    w.get(&format!("B1/tasks/{task}")).is(
        200,
        &json!({"type": "create_instance", "object_uuid": instance["uuid"]}),
    );
    instance
}

#[test]
fn v_099_create() {
    for path in ["B2/instances", "B1/instances"] {
        row(async |w| {
            let instance = created(w, path, &b_inst());
            let mut expected = b_inst();
            expected["drive"] = json!("lxc");
            expected["status"] = json!("pending");
            expected["memory"] = json!(1024);
            expected["cpus"] = json!(1);
            expected["hdsize"] = json!("10GB");
            expected["image"] = json!(UBUNTU);
            expected["operating_system"] = json!(UBUNTU);
            w.get("B2/instances/transactional_log").is(200, &expected);
            assert_eq!(instance["created"]["by"], w.get("B1/users/tester").json()["uuid"]);
        });
    }
}

#[test]
fn what_a_create_writes() {
    row(async |w| {
        let task = w.post("B1/instances", &b_inst()).json()["task"]
            .as_str()
            .unwrap()
            .to_owned();
        let name = object_name("transactional_log");
        let instance = w.api::<Instance>().get(&name).await.unwrap();
        let annotations = instance.metadata.annotations.unwrap();
        let labels = instance.metadata.labels.unwrap();
        assert_eq!(labels["virtshell.io/name-hash"], "1418a0faa846b5dd");
        assert_eq!(labels["virtshell.io/name"], "transactional_log");
        assert!(annotations["virtshell.io/created-at"].len() == 16, "microseconds");
        let made: Task = w
            .api()
            .get(&annotations["virtshell.io/create-task"])
            .await
            .unwrap();
        assert_eq!(made.metadata.uid.as_deref(), Some(task.as_str()));
        assert_eq!(
            made.spec.description,
            "Create a new instance transactional_log using driver lxc"
        );
        assert_eq!(made.spec.targets[0].name, name);
        assert_eq!(instance.spec.owner.as_deref(), Some("tester"));
        assert_eq!(instance.spec.environment.as_deref(), Some("development_co"));
        assert_eq!(
            (instance.spec.cpus, instance.spec.image),
            (None, None),
            "only what was asked for"
        );
    });
}

#[test]
fn v_100_v_101_list_and_get() {
    row(async |w| {
        for path in ["B2/instances", "B0/instances/"] {
            let list = w.get(path).json();
            assert_eq!(names(&list["instances"]).len(), 28);
        }
        let expected = json!({"name": "orders_colombia", "provisioner": "all_backend", "host_type": "GeneralPurpose",
            "permissions": "xwrxwrxwr", "status": "running", "host": "fx-gp"});
        w.get("B2/instances/orders_colombia").is(200, &expected);
    });
}

#[test]
fn v_102_v_105_v_112_v_115_delete() {
    row(async |w| {
        let instance = w.get("B2/instances/orders_colombia").json();
        let task = w
            .delete("B2/instances/orders_colombia")
            .in_progress("delete")
            .json();
        let task = format!("B2/tasks/{}", task["task"].as_str().unwrap());
        w.get(&task).is(200, &json!({"type": "delete_instance", "object_uuid": instance["uuid"], "description": "Delete instance orders_colombia"}));
        w.get("B2/instances/orders_colombia").error(404);
        let uuid = w.get("B2/instances/WebServer").json()["uuid"]
            .as_str()
            .unwrap()
            .to_owned();
        w.get(&format!("B2/instances/{uuid}"))
            .is(200, &json!({"name": "WebServer"}));
        w.get(&format!("B2/instance/?id={uuid}"))
            .is(200, &json!({"name": "WebServer"}));
        w.delete(&format!("B2/instances/{uuid}")).in_progress("delete");
        w.get(&format!("B2/instances/{uuid}")).error(404);
        w.delete("B0/instances/nope").error(404);
    });
}

#[test]
fn a_deleted_instance_is_there_until_its_node_lets_go() {
    row(async |w| {
        let api: Api<Instance> = w.api();
        let name = object_name("orders_colombia");
        let hold = json!({"metadata": {"finalizers": ["virtshell.io/domain"]}});
        api.patch(&name, &PatchParams::default(), &Patch::Merge(hold))
            .await
            .unwrap();
        w.delete("B1/instances/orders_colombia").in_progress("delete");
        w.get("B1/instances/orders_colombia")
            .is(200, &json!({"status": "deleting"}));
        w.post("B1/instances", &with(&json!({"name": "orders_colombia"})))
            .error(400);
        let release = json!({"metadata": {"finalizers": []}});
        api.patch(&name, &PatchParams::default(), &Patch::Merge(release))
            .await
            .unwrap();
        w.until("it is gone", || {
            w.get("B1/instances/orders_colombia").status == 404
        })
        .await;
    });
}

#[test]
fn v_103_default_enviroment_and_aliases() {
    row(async |w| {
        let body = with(
            &json!({"enviroment": null, "driver": null, "drive": "lxc", "memory": 1024, "cpus": 2,
            "hdsize": "2GB", "operating_system": UBUNTU}),
        );
        let instance = created(w, "B2/instances", &body);
        let expected = [
            ("enviroment", json!("default")),
            ("memory", json!(1024)),
            ("cpus", json!(2)),
            ("hdsize", json!("2GB")),
            ("operating_system", json!(UBUNTU)),
            ("driver", json!("lxc")),
        ];
        for (member, value) in expected {
            assert_eq!(instance[member], value, "{member}");
        }
        w.delete("B1/instances/transactional_log").in_progress("delete");
    });
}

#[test]
fn v_104_image_spellings() {
    for member in [
        "operating_system",
        "image",
        "iso",
        "container_resource",
        "container_template",
    ] {
        row(async |w| {
            let body = with(&json!({"memory": 1024, "cpus": 2, "hdsize": "2GB", member: UBUNTU}));
            assert_eq!(created(w, "B2/instances", &body)["image"], UBUNTU);
        });
    }
}

#[test]
fn v_106_launch() {
    row(async |w| {
        let body = json!({"name": "transactional_log", "launch": "1", "memory": 1024, "cpus": 2, "hdsize": "2GB",
            "container_resource": UBUNTU, "host_type": "GeneralPurpose", "drive": "lxc", "vars": {"k": "v"}});
        let instance = created(w, "B2/instances", &body);
        assert_eq!(
            (&instance["vars"], &instance["launch"]),
            (&json!({"k": "v"}), &json!(1))
        );
        let mut several = body;
        several["name"] = json!("orders2");
        several["launch"] = json!("1:3");
        let parent = created(w, "B2/instances", &several);
        assert_eq!(
            (&parent["launch"], &parent["launched"]),
            (&json!("1:3"), &json!([]))
        );
        assert!(
            !names(&w.get("B2/instances").json()["instances"]).contains(&"orders2".to_owned()),
            "a parent is not listed"
        );
        // The controller makes the children.
        for n in 1..=3 {
            let child = format!("orders2_{n}");
            let object: Instance = serde_json::from_value(json!({
                "apiVersion": "virtshell.io/v1alpha1", "kind": "Instance",
                "metadata": {"name": object_name(&child), "labels": {"virtshell.io/launch-parent": "orders2"}},
                "spec": {"displayName": child, "provisioner": "all_backend", "driver": "lxc", "launch": {"min": 1, "max": 1}},
            }))
            .unwrap();
            w.api::<Instance>()
                .create(&kube::api::PostParams::default(), &object)
                .await
                .unwrap();
        }
        let launched = || w.get("B2/instances/orders2").json()["launched"].clone();
        w.until("the children are seen", || {
            launched() == json!(["orders2_1", "orders2_2", "orders2_3"])
        })
        .await;
        w.get("B2/instances/orders2")
            .is(200, &json!({"status": "pending"}));
        // Acting on the parent is acting on its children.
        let task = w
            .post("B1/instances/start_instance/orders2", &json!({}))
            .in_progress("start")
            .json();
        let task = w
            .get(&format!("B1/tasks/{}", task["task"].as_str().unwrap()))
            .json();
        assert_eq!(names(&task["objects"]), ["orders2_1", "orders2_2", "orders2_3"]);
        let taken = json!({"name": "orders2", "launch": 2, "image": UBUNTU, "driver": "lxc"});
        w.post("B1/instances", &taken).error(400);
        let clash = json!({"name": "WebServer_", "launch": 3, "image": UBUNTU, "driver": "lxc"});
        w.post("B1/instances", &clash).in_progress("create");
        let clash = json!({"name": "grid", "launch": 3, "image": UBUNTU, "driver": "lxc"});
        assert_eq!(
            w.post("B1/instances", &clash).error(400),
            "instance grid_1 already exists"
        );
    });
}

#[test]
fn v_107_the_driver_follows_the_image() {
    row(async |w| {
        assert_eq!(
            created(w, "B2/instances", &with(&json!({"driver": null})))["driver"],
            "kvm"
        );
    });
}

#[test]
fn v_108_no_host_of_the_type_or_driver() {
    row(async |w| {
        let message = "The enviroment doesn't have the host_type requested";
        let body = json!({"error": message, "create": "error", "reason": message});
        w.post("B2/instances", &with(&json!({"host_type": "MemoryOptimized"})))
            .exactly(500, &body);
        for host in ["fx-gp", "fx-so"] {
            w.put(&format!("B1/hosts/{host}"), &json!({"drivers": ["kvm"]}))
                .ok("update");
        }
        let message = "The enviroment doesn't have a host with the driver requested";
        w.post("B2/instances", &b_inst()).exactly(
            500,
            &json!({"error": message, "create": "error", "reason": message}),
        );
        w.get("B2/instances/transactional_log").error(404);
    });
}

#[test]
fn v_109_private_instances() {
    row(async |w| {
        let body = json!({"name": "transactional_log", "memory": 1024, "cpus": 2, "hdsize": "2GB",
            "operating_system": UBUNTU, "description": "…", "provisioner": "all_backend",
            "host_type": "GeneralPurpose", "driver": "lxc", "permissions": "rwx------"});
        assert_eq!(created(w, "B1/instances", &body)["permissions"], "rwx------");
        for method in ["GET", "DELETE"] {
            w.send(&Request::new(method, "B1/instances/transactional_log").by("demouser"))
                .error(403);
        }
        let list = w.send(&Request::new("GET", "B1/instances").by("demouser")).json();
        assert!(!names(&list["instances"]).contains(&"transactional_log".to_owned()));
        let tasks = w.send(&Request::new("GET", "B1/tasks").by("demouser")).json();
        assert_eq!(tasks["tasks"], json!([]), "neither is its task");
    });
}

#[test]
fn v_110_get_by_name_and_uuid() {
    row(async |w| {
        let uuid = created(w, "B0/instances", &b_inst())["uuid"]
            .as_str()
            .unwrap()
            .to_owned();
        w.get("B0/instances/transactional_log")
            .is(200, &json!({"uuid": uuid}));
        w.get(&format!("B0/instances/{uuid}"))
            .is(200, &json!({"name": "transactional_log"}));
    });
}

#[test]
fn the_enviroment_by_each_of_its_names() {
    row(async |w| {
        for member in ["enviroment", "environment", "environments"] {
            let mut body =
                json!({"name": format!("in_{member}"), "provisioner": "all_backend", "driver": "lxc"});
            body[member] = json!("backend_development");
            let made = created(w, "B1/instances", &body);
            assert_eq!(made["enviroment"], "backend_development", "{member}");
        }
        w.post(
            "B1/enviroments/add_host",
            &json!({"environments": "development", "hosts": ["fx-gp"]}),
        )
        .is(200, &json!({"add_host": "success"}));
    });
}

#[test]
fn v_111_v_114_v_116_drivers() {
    row(async |w| {
        let supported = "is not supported; supported drivers: kvm, qemu, lxc";
        for driver in ["docker", "virtualbox", "vmware", "ec2"] {
            let message = w
                .post("B0/instances/", &with(&json!({"driver": driver})))
                .error(501);
            assert_eq!(message, format!("driver {driver} {supported}"));
        }
        w.post("B0/instances/", &with(&json!({"driver": "xen"})))
            .error(400);
        let mut sized = with(
            &json!({"memory": 1024, "cpus": 2, "hdsize": "2GB", "operating_system": UBUNTU,
            "enviroment": "bigdata_test_01", "driver": "docker"}),
        );
        assert!(w.post("B0/instances/", &sized).error(501).ends_with(supported));
        sized["driver"] = json!("lxc");
        created(w, "B0/instances/", &sized);
        for (n, cpus, provisioner) in [
            (1, 2, "simple_web_site"),
            (2, 1, "generic_simple_web_site"),
            (3, 1, "generic_web_site_for_centos"),
        ] {
            let mut body = json!({"name": format!("website{n}"), "memory": 1024, "cpus": cpus, "hdsize": "2GB",
                "description": "WebServer", "enviroment": "development", "provisioner": provisioner,
                "host_type": "GeneralPurpose", "driver": "docker"});
            assert!(w.post("B0/instances/", &body).error(501).ends_with(supported));
            body["driver"] = json!("lxc");
            let made = created(w, "B0/instances/", &body);
            assert_eq!(made["cpus"], json!(cpus));
        }
        created(
            w,
            "B2/instances",
            &with(&json!({"name": "on_kvm", "driver": "kvm"})),
        );
    });
}

#[test]
fn v_113_declared_address() {
    row(async |w| {
        created(w, "B0/instances", &b_inst());
        w.put("B0/instances/transactional_log", &json!({"ipv4": "172.17.0.2"}))
            .ok("update");
        w.get("B0/instances/transactional_log")
            .is(200, &json!({"ipv4": "172.17.0.2"}));
        w.put("B0/instances/transactional_log", &json!({"ipv4": ""}))
            .ok("update");
        assert_eq!(w.get("B0/instances/transactional_log").json().get("ipv4"), None);
    });
}

#[test]
fn updates() {
    row(async |w| {
        let path = "B1/instances/transactional_log";
        created(w, "B1/instances", &b_inst());
        let reply = w
            .put(path, &json!({"memory": 2048, "cpus": "4", "hdsize": "20GB"}))
            .ok("update")
            .json();
        let task = format!("B1/tasks/{}", reply["task"].as_str().unwrap());
        w.get(&task).is(
            200,
            &json!({"type": "update_instance", "description": "Update instance transactional_log"}),
        );
        w.get(path)
            .is(200, &json!({"memory": 2048, "cpus": 4, "hdsize": "20GB"}));
        let reply = w
            .put(
                path,
                &json!({"memory": 2048, "description": "d", "tags": ["a", "b"]}),
            )
            .ok("update")
            .json();
        assert_eq!(reply.get("task"), None, "no size has changed");
        w.get(path)
            .is(200, &json!({"description": "d", "tags": ["a", "b"]}));
        let uuid = w.get("B1/instances/transactional_log").json()["uuid"].clone();
        assert_eq!(w.get(path).json()["uuid"], uuid);
        let same = with(&json!({"image": UBUNTU, "launch": 1, "enviroment": "development_co"}));
        w.put(path, &same).ok("update");
        for (body, message) in [
            (json!({"hdsize": "1GB"}), "Field hdsize: may only grow"),
            (json!({"name": "other"}), "Field name: cannot change once set"),
            (
                json!({"enviroment": "development"}),
                "Field enviroment: cannot change once set",
            ),
            (
                json!({"provisioner": "orders_admin"}),
                "Field provisioner: cannot change once set",
            ),
            (
                json!({"image": "centos_server_7_amd64"}),
                "Field image: cannot change once set",
            ),
            (
                json!({"host_type": "StorageOptimized"}),
                "Field host_type: cannot change once set",
            ),
            (json!({"driver": "kvm"}), "Field driver: cannot change once set"),
            (json!({"launch": 2}), "Field launch: cannot change once set"),
            (json!({"permissions": "x"}), "Field permissions: "),
            (json!({"memory": 31}), "Field memory: "),
            (json!({"cpus": 0}), "Field cpus: "),
        ] {
            let error = w.put(path, &body).error(400);
            assert!(error.starts_with(message), "{body}: {error}");
        }
    });
}

#[test]
fn an_update_keeps_what_kubectl_said() {
    row(async |w| {
        created(w, "B1/instances", &b_inst());
        let api: Api<Instance> = w.api();
        let name = object_name("transactional_log");
        let patch = json!({"spec": {"cloudInit": {"userData": "#cloud-config\n"}, "maxCpus": 2,
            "interfaces": [{"name": "eth0", "bridge": "br0"}]}});
        api.patch(&name, &PatchParams::default(), &Patch::Merge(patch))
            .await
            .unwrap();
        w.put(
            "B1/instances/transactional_log",
            &json!({"cpus": 4, "description": "d"}),
        )
        .ok("update");
        let spec = api.get(&name).await.unwrap().spec;
        assert_eq!(
            spec.cloud_init.and_then(|c| c.user_data).as_deref(),
            Some("#cloud-config\n")
        );
        assert_eq!(
            (spec.interfaces.len(), spec.cpus, spec.max_cpus),
            (1, Some(4), Some(4))
        );
    });
}

#[test]
fn checks_of_a_create_in_order() {
    row(async |w| {
        // Each body has the fault of its row and all later ones.
        let mut body = json!({"name": "bad name", "driver": "xen", "host_type": "Huge", "memory": 1, "launch": 0,
            "permissions": "x", "enviroment": "nope", "provisioner": "nope", "image": "nope"});
        for (message, status, fix) in [
            ("Field name: ", 400, json!({"name": "WebServer"})),
            ("Field driver: ", 400, json!({"driver": "docker"})),
            ("driver docker", 501, json!({"driver": "kvm"})),
            ("Field host_type: ", 400, json!({"host_type": "MemoryOptimized"})),
            ("Field memory: ", 400, json!({"memory": 64})),
            ("Field launch: ", 400, json!({"launch": 1})),
            ("Field permissions: ", 400, json!({"permissions": "rwxrwxrwx"})),
            ("instance WebServer already exists", 400, json!({"name": "fresh"})),
            (
                "enviroment nope not found",
                400,
                json!({"enviroment": "development"}),
            ),
            (
                "provisioner nope not found",
                400,
                json!({"provisioner": "all_backend"}),
            ),
            (
                "image nope not found",
                400,
                json!({"image": "centos_server_7_amd64"}),
            ),
            (
                "Field image: centos_server_7_amd64 is of type lxc-container",
                400,
                json!({"driver": "lxc"}),
            ),
            (
                "The enviroment doesn't have the host_type requested",
                500,
                json!({"host_type": "GeneralPurpose"}),
            ),
        ] {
            let error = w.post("B1/instances", &body).error(status);
            assert!(error.starts_with(message), "{body}: {error}");
            body.as_object_mut()
                .unwrap()
                .extend(fix.as_object().unwrap().clone());
        }
        w.post("B1/instances", &body).in_progress("create");
        for (body, message) in [
            (json!({"driver": "kvm"}), "name field was not provided"),
            (json!({"name": "n"}), "provisioner field was not provided"),
            (json!({"name": "start_instance", "image": UBUNTU}), "Field name: "),
        ] {
            let error = w.post("B1/instances", &body).error(400);
            assert!(error.starts_with(message), "{body}: {error}");
        }
    });
}

#[test]
fn what_an_instance_uses_must_be_allowed() {
    row(async |w| {
        let body = json!({"name": "mine", "enviroment": "development", "provisioner": "all_backend", "driver": "lxc"});
        let refused = || {
            w.send(&Request::new("POST", "B1/instances").by("demouser").body(&body))
                .error(403)
        };
        let environments = &w.store.environments;
        w.patch(
            environments,
            "development",
            json!({"spec": {"users": ["someone"]}}),
        )
        .await;
        assert_eq!(
            refused(),
            "User demouser is not allowed to use enviroment development"
        );
        w.patch(
            environments,
            "development",
            json!({"spec": {"users": ["demouser"]}}),
        )
        .await;
        w.patch(
            &w.store.provisioners,
            "all_backend",
            json!({"spec": {"permissions": "rwxrwx---"}}),
        )
        .await;
        assert_eq!(
            refused(),
            "User demouser is not allowed to use provisioner all_backend"
        );
        w.patch(
            &w.store.provisioners,
            "all_backend",
            json!({"spec": {"permissions": null}}),
        )
        .await;
        w.patch(
            &w.store.images,
            UBUNTU,
            json!({"spec": {"permissions": "rwxrwx---"}}),
        )
        .await;
        assert_eq!(
            refused(),
            format!("User demouser is not allowed to use image {UBUNTU}")
        );
        w.patch(
            &w.store.images,
            UBUNTU,
            json!({"spec": {"permissions": "rwxrwxr--"}}),
        )
        .await;
        w.send(&Request::new("POST", "B1/instances").by("demouser").body(&body))
            .in_progress("create");
    });
}

#[test]
fn dependencies_exist_and_do_not_wait_for_themselves() {
    row(async |w| {
        let depends = |on: &str| json!({"spec": {"depends": [{"provisioner": on}]}});
        let message = || w.post("B1/instances", &b_inst()).error(400);
        w.patch(&w.store.provisioners, "all_backend", depends("nope"))
            .await;
        assert_eq!(message(), "provisioner nope not found");
        w.patch(&w.store.provisioners, "all_backend", depends("orders_admin"))
            .await;
        w.patch(&w.store.provisioners, "orders_admin", depends("all_backend"))
            .await;
        assert_eq!(
            message(),
            "Field depends: provisioner all_backend depends on itself"
        );
    });
}

#[test]
fn two_creates_of_one_name_make_one_instance() {
    row(async |w| {
        let statuses: Vec<u16> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8)
                .map(|_| scope.spawn(|| w.post("B1/instances", &b_inst()).status))
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert_eq!(
            statuses.iter().filter(|status| **status == 200).count(),
            1,
            "{statuses:?}"
        );
        assert!(
            statuses.iter().all(|status| [200, 400].contains(status)),
            "{statuses:?}"
        );
    });
}

#[test]
fn a_renamed_object_does_not_take_the_name_with_it() {
    row(async |w| {
        created(w, "B1/instances", &b_inst());
        let rename = json!({"spec": {"displayName": "renamed"}});
        let name = object_name("transactional_log");
        w.api::<Instance>()
            .patch(&name, &PatchParams::default(), &Patch::Merge(rename))
            .await
            .unwrap();
        w.until("the new name is known", || {
            w.get("B1/instances/renamed").status == 200
        })
        .await;
        w.get("B1/instances/transactional_log").error(404);
        created(w, "B1/instances", &b_inst());
        let second = virtshell_crds::names::object_name_candidate("transactional_log", 2);
        assert!(w.api::<Instance>().get_opt(&second).await.unwrap().is_some());
    });
}
