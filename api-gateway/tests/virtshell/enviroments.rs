//! 7.6: enviroments.

use serde_json::{Value, json};
use virtshell_crds::Instance;

use crate::protocol::lists_fixtures;
use crate::support::{Request, row};

fn b_env() -> Value {
    json!({"name": "bigdata_test_01", "description": "Collection of servers oriented to big data.",
        "users": [{"login": "guest"}], "partition": "development_co"})
}

fn with(members: &Value) -> Value {
    let mut body = b_env();
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
fn v_069_v_070_v_071_create() {
    row(async |w| {
        let shown = json!({"section": "development_co", "partition": "development_co", "users": [{"login": "guest"}]});
        for (body, expected) in [
            (b_env(), shown.clone()),
            (
                with(
                    &json!({"partition": null, "section": "development_co", "uuid": "u", "created": 1, "modified": 1}),
                ),
                shown,
            ),
            (
                with(&json!({"partition": null, "hosts": ["host-08-pdn"]})),
                json!({"hosts": ["host-08-pdn"]}),
            ),
            (
                with(&json!({"partition": null, "hosts": ["host-08-pdn"], "provisioning_script_url": "x"})),
                json!({"hosts": ["host-08-pdn"]}),
            ),
        ] {
            w.delete("B1/enviroments/bigdata_test_01").ok("delete");
            w.post("B2/enviroments", &body).ok("create");
            w.get("B2/enviroments/bigdata_test_01").is(200, &expected);
        }
    });
}

#[test]
fn v_072_v_073_v_074_v_075_list_and_get() {
    row(async |w| {
        for path in [
            "B2/enviroments",
            "B0/enviroments/",
            "B1/environments",
            "B1/environment",
        ] {
            let list = w.get(path).json();
            lists_fixtures(&list["enviroments"], "enviroments");
        }
        let path = "B2/enviroments/backend_development";
        w.get(path)
            .is(200, &json!({"users": [], "partition": "development_co"}));
        for sub in ["section", "partition"] {
            let both = json!({"section": "development_co", "partition": "development_co"});
            w.get(&format!("{path}/{sub}")).exactly(200, &both);
        }
        w.get(&format!("{path}/hosts"))
            .exactly(200, &json!({"hosts": ["fx-gp", "fx-so"]}));
        w.post("B1/enviroments", &json!({"name": "bare"})).ok("create");
        w.get("B1/enviroments/bare/section")
            .exactly(200, &json!({"section": null, "partition": null}));
        w.get("B1/enviroments/add_host").error(501);
    });
}

#[test]
fn v_076_v_081_update() {
    row(async |w| {
        let path = "B2/enviroments/backend_development";
        let request = Request::new("PUT", path).body(&json!({"provisioning_script_url": "https://x/r.git"}));
        w.send(&request.header("Content-Type", "multipart/form-data"))
            .ok("update");
        w.put(path, &json!({"description": "d2"})).ok("update");
        w.get(path)
            .is(200, &json!({"description": "d2", "section": "development_co"}));
        w.put(
            "B0/enviroments/bigdata_test_01",
            &json!({"users": [{"login": "backend_user"}]}),
        )
        .ok("update");
        w.get("B0/enviroments/bigdata_test_01")
            .is(200, &json!({"users": [{"login": "backend_user"}]}));
        w.put(path, &json!({"section": "development_mx"})).ok("update");
        w.get(path).is(200, &json!({"section": "development_mx"}));
        let message = w
            .put(
                "B1/enviroments/development",
                &json!({"section": "development_mx"}),
            )
            .error(400);
        assert!(
            message.starts_with("enviroment development is in use: 28 instances"),
            "{message}"
        );
    });
}

#[test]
fn v_077_v_079_v_082_delete() {
    row(async |w| {
        w.delete("B2/enviroments/backend_development").ok("delete");
        w.get("B0/enviroments/bigdata_test_01").is(200, &json!({}));
        w.delete("B0/enviroments/bigdata_test_01").ok("delete");
        w.delete("B0/enviroments/development").error(400);
        w.clear::<Instance>(|| w.store.instances.is_empty()).await;
        w.delete("B0/enviroments/development").ok("delete");
        w.get("B0/enviroments/development").error(404);
    });
}

#[test]
fn v_078_the_section_must_exist() {
    row(async |w| {
        let body = json!({"name": "bigdata_laboratory", "description": "Collection of servers oriented to big data.",
            "partition": "bogota_partition_co"});
        assert_eq!(
            w.post("B2/enviroments", &body).error(400),
            "section bogota_partition_co not found"
        );
        w.post("B1/sections", &json!({"name": "bogota_partition_co"}))
            .ok("create");
        w.post("B2/enviroments", &body).ok("create");
        w.delete("B1/enviroments/bigdata_laboratory").ok("delete");
        w.delete("B1/sections/bogota_partition_co").ok("delete");
    });
}

#[test]
fn v_080_create_with_users() {
    row(async |w| {
        w.clear::<Instance>(|| w.store.instances.is_empty()).await;
        w.delete("B0/enviroments/development").ok("delete");
        let body = json!({"name": "development", "description": "Collection of servers for development.",
            "partition": "development_co", "users": [{"login": "development_user"}, {"login": "guest"}]});
        w.post("B0/enviroments/", &body).ok("create");
        w.get("B0/enviroments/development").is(200, &body);
    });
}

#[test]
fn v_023_v_083_add_hosts() {
    row(async |w| {
        let added = json!({"add_host": "success", "add_hosts": "success"});
        let body = json!({"enviroment": "development", "hosts": [{"name": "host-08-pdn"}]});
        w.post("B3/enviroments/add_host", &body).is(200, &added);
        w.get("B3/enviroments/development/hosts")
            .is(200, &json!({"hosts": ["fx-gp", "fx-so", "host-08-pdn"]}));
        w.get("B1/hosts/host-08-pdn")
            .is(200, &json!({"section": "development_co"}));
        let hosts = json!({"hosts": [{"name": "host-08-pdn"}, {"name": "host-09-pdn"}]});
        assert_eq!(
            w.post("B1/enviroments/add_hosts/", &hosts).error(400),
            "enviroment field was not provided"
        );
        let mut named = hosts.clone();
        named["enviroment"] = json!("development");
        w.post("B1/enviroments/add_hosts/", &named).is(200, &added);
        for path in [
            "B1/enviroments/add_host/development",
            "B1/enviroments/development/add_hosts",
        ] {
            w.put(path, &hosts).is(200, &added);
        }
        w.put("B1/enviroments/development/host/host-06-pdn", &json!({}))
            .is(200, &added);
        w.get("B3/enviroments/development/hosts").is(
            200,
            &json!({"hosts": ["fx-gp", "fx-so", "host-06-pdn", "host-08-pdn", "host-09-pdn"]}),
        );
        for (path, body, status) in [
            (
                "B1/enviroments/add_host",
                json!({"enviroment": "nope", "hosts": ["fx-gp"]}),
                400,
            ),
            (
                "B1/enviroments/add_host",
                json!({"enviroment": "development", "hosts": ["nope"]}),
                400,
            ),
            ("B1/enviroments/add_host/nope", json!({"hosts": ["fx-gp"]}), 404),
            ("B1/enviroments/development/host/nope", json!({}), 404),
            (
                "B1/enviroments/add_host/development",
                json!({"enviroment": "default", "hosts": ["fx-gp"]}),
                400,
            ),
            ("B1/enviroments/add_host/development", json!({}), 400),
        ] {
            w.post(path, &body).error(status);
        }
        w.put(
            "B1/enviroments/backend_development",
            &json!({"section": "development_mx"}),
        )
        .ok("update");
        let isolated = json!({"enviroment": "backend_development", "hosts": ["fx-so"]});
        let message = w.post("B1/enviroments/add_host", &isolated).error(400);
        assert_eq!(message, "Field hosts: fx-so is in section development_co");
        w.send(
            &Request::new("POST", "B1/enviroments/add_host")
                .by("demouser")
                .body(&isolated),
        )
        .error(403);
    });
}
