//! 7.7: provisioners.

use serde_json::{Value, json};

use crate::protocol::names;
use crate::support::{Request, row};

const REPO: &str = "https://git.example.org/r.git";
const PATH: &str = "B2/provisioners/backend-services-provisioner";

fn b_prov() -> Value {
    json!({"name": "backend-services-provisioner", "launch": 1, "memory": 4, "cpus": 2, "hdsize": 20,
        "image": "ubuntu_server_14.04.2_amd64", "builder": REPO, "executor": "sh run1.sh", "tag": "backend",
        "depends": [{"provisioner_name": "db-users"}, {"provisioner_name": "db-transactional"}],
        "permissions": "xwrxwrxwr", "description": "Installs/Configures a backend server"})
}

fn with(members: &Value) -> Value {
    let mut body = b_prov();
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

#[test]
fn v_084_v_087_create_and_get() {
    row(async |w| {
        w.post("B2/provisioners", &b_prov()).ok("create");
        w.get(PATH).is(200, &b_prov());
        let literal = b_prov().to_string().replace('}', ",}");
        w.send(&Request::new("POST", "B2/provisioners").text(&literal))
            .error(400);
    });
}

#[test]
fn v_085_driver_and_version() {
    row(async |w| {
        let depends = json!([{"provisioner_name": "db-users", "version": "2.0.0"}, {"provisioner_name": "db-transactional"}]);
        let body = with(&json!({"driver": "docker", "depends": depends}));
        w.post("B1/provisioners", &body).ok("create");
        w.get(PATH).is(200, &body);
    });
}

#[test]
fn v_086_list() {
    row(async |w| {
        for path in ["B2/provisioners", "B0/provisioners/"] {
            assert_eq!(names(&w.get(path).json()["provisioners"]).len(), 6);
        }
    });
}

#[test]
fn v_088_v_089_v_090_v_095_update_and_delete() {
    row(async |w| {
        for path in [PATH, "B0/provisioners/backend-services-provisioner"] {
            w.post("B2/provisioners", &b_prov()).ok("create");
            for executor in ["sh run_backend.sh", "run_backend.sh"] {
                w.put(path, &json!({"executor": executor})).ok("update");
                w.get(path)
                    .is(200, &json!({"executor": executor, "builder": REPO}));
            }
            w.put(path, &json!({"depends": ["database_co"]})).ok("update");
            w.get(path)
                .is(200, &json!({"depends": [{"provisioner_name": "database_co"}]}));
            w.delete(path).ok("delete");
            w.get(path).error(404);
        }
    });
}

#[test]
fn v_091_how_to_run() {
    row(async |w| {
        let body = json!({"name": "backend-services-provisioner",
            "builder": "https://<host>:<port>/api/virtshell/v1/files/builders/director-backend.sh", "how_to_run": "sh",
            "tag": "backend", "depends": [{"provisioner_name": "db-users", "version": "2.0.0"}, {"provisioner_name": "db-transactional"}],
            "files": [{"path": "x"}], "templates": []});
        w.post("B2/provisioners", &body).ok("create");
        w.get(PATH)
            .is(200, &json!({"executor": "sh director-backend.sh"}));
    });
}

#[test]
fn v_092_by_query() {
    row(async |w| {
        w.post("B2/provisioners", &b_prov()).ok("create");
        let uuid = w.get(PATH).json()["uuid"].as_str().unwrap().to_owned();
        let path = format!("B2/provisioners/?id={uuid}");
        w.get(&path).is(200, &b_prov());
        w.put(&path, &json!({"files": [{"path": "x"}]})).ok("update");
        w.delete(&path).ok("delete");
    });
}

#[test]
fn v_093_megabytes_and_repository() {
    row(async |w| {
        let body = with(
            &json!({"memory": 4096, "hdsize": 20480, "driver": "docker", "builder": null, "repository": REPO}),
        );
        w.post("B2/provisioners", &body).ok("create");
        w.get(PATH)
            .is(200, &json!({"memory": 4, "hdsize": 20, "builder": REPO}));
    });
}

#[test]
fn v_094_v_096_v_097_v_098_bodies_of_the_demonstration() {
    row(async |w| {
        let body = json!({"name": "backend-services-provisioner", "description": "Installs-Configures a backend server",
            "version": "1.5.8", "repository": REPO, "executor": "run1.sh", "tag": "backend", "depends": []});
        w.post("B0/provisioners/", &body).ok("create");
        w.get(PATH).is(200, &json!({"version": "1.5.8", "depends": []}));
        for (name, image) in [
            ("simple_web_site", "ubuntu_server_14.04_amd64"),
            ("generic_simple_web_site", "ubuntu_server_14.04_amd64"),
            ("generic_web_site_for_centos", "centos_server_7_amd64"),
        ] {
            w.delete(&format!("B0/provisioners/{name}")).ok("delete");
            let body =
                with(&json!({"name": name, "image": image, "depends": null, "executor": "sh install.sh"}));
            w.post("B0/provisioners/", &body).ok("create");
            w.get(&format!("B0/provisioners/{name}")).is(200, &body);
        }
    });
}

#[test]
fn what_is_refused() {
    row(async |w| {
        for (body, message) in [
            (
                with(&json!({"executor": null})),
                "executor field was not provided",
            ),
            (with(&json!({"driver": "xen"})), "Field driver: "),
            (with(&json!({"builder": "ftp://x"})), "Field builder: "),
            (
                with(&json!({"depends": ["backend-services-provisioner"]})),
                "Field depends: ",
            ),
            (with(&json!({"depends": "x"})), "Field depends - "),
            (with(&json!({"permissions": "x"})), "Field permissions: "),
            (with(&json!({"launch": "3:1"})), "Field launch: "),
            (
                with(&json!({"name": "all_backend"})),
                "provisioner all_backend already exists",
            ),
        ] {
            let error = w.post("B1/provisioners", &body).error(400);
            assert!(error.starts_with(message), "{body}: {error}");
        }
        w.put(
            "B1/provisioners/all_backend",
            &json!({"depends": ["orders_admin"]}),
        )
        .ok("update");
        let message = w
            .put(
                "B1/provisioners/orders_admin",
                &json!({"depends": ["all_backend"]}),
            )
            .error(400);
        assert_eq!(
            message,
            "Field depends: provisioner orders_admin depends on itself"
        );
        w.put(
            "B1/provisioners/orders_admin",
            &json!({"permissions": "rwx------"}),
        )
        .ok("update");
    });
}
