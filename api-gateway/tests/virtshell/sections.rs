//! 7.5: sections, also spelled partitions.

use serde_json::{Value, json};
use virtshell_crds::{Environment, Instance};

use crate::protocol::lists_fixtures;
use crate::support::{Request, World, row};

fn b_sec() -> Value {
    json!({"name": "development_co", "description": "Collection of servers oriented to development team in colombia."})
}

/// Takes `development_co` away, together with what refers to it.
async fn without_development_co(w: &World) {
    w.clear::<Instance>(|| w.store.instances.is_empty()).await;
    w.clear::<Environment>(|| w.store.environments.is_empty()).await;
    w.delete("B1/sections/development_co").ok("delete");
}

#[test]
fn v_056_v_065_create() {
    row(async |w| {
        without_development_co(w).await;
        w.post("B2/partitions", &b_sec()).ok("create");
        let mut expected = b_sec();
        expected["hosts"] = json!([]);
        w.get("B1/sections/development_co").is(200, &expected);
        w.delete("B0/partitions/development_co").ok("delete");
        for name in ["development_co", "develotment_pe"] {
            w.post(
                "B0/partitions/",
                &json!({"name": name, "description": "…in Colombia."}),
            )
            .ok("create");
        }
    });
}

#[test]
fn v_057_create_with_hosts() {
    row(async |w| {
        without_development_co(w).await;
        let mut body = b_sec();
        let extra = json!({"uuid": "u", "hosts": ["host-08-pdn"], "created": 1, "modified": 2});
        body.as_object_mut()
            .unwrap()
            .extend(extra.as_object().unwrap().clone());
        w.post("B2/sections", &body).ok("create");
        let section = w
            .get("B2/sections/development_co")
            .is(200, &json!({"uuid": "<U>", "hosts": ["host-08-pdn"]}))
            .json();
        assert_eq!(section["created"]["by"], w.get("B1/users/tester").json()["uuid"]);
        w.get("B1/hosts/host-08-pdn").is(
            200,
            &json!({"section": "development_co", "partition": "development_co"}),
        );
        let all_or_nothing = json!({"name": "s2", "hosts": ["host-09-pdn", "nope"]});
        assert_eq!(
            w.post("B1/sections", &all_or_nothing).error(400),
            "host nope not found"
        );
        w.get("B1/sections/s2").error(404);
        assert_eq!(w.get("B1/hosts/host-09-pdn").json().get("section"), None);
    });
}

#[test]
fn v_058_v_059_v_060_v_064_list_and_get() {
    row(async |w| {
        for (path, key) in [
            ("B2/partitions", "partitions"),
            ("B2/sections", "sections"),
            ("B0/partitions/", "partitions"),
        ] {
            let list = w.get(path).json();
            lists_fixtures(&list[key], "sections");
        }
        let one = w
            .get("B2/partitions/development_co")
            .is(200, &json!({"hosts": ["fx-gp", "fx-so"]}))
            .json();
        assert_eq!(one, w.get("B2/sections/development_co").json());
        assert_eq!(one, w.get("B0/partitions/development_co").json());
        assert!(one["created"]["at"].is_string() && one["created"]["by"].is_string());
        for path in [
            "B2/partitions/backend_development_04/hosts",
            "B2/sections/backend_development_04/hosts",
            "B2/sections/backend_development_04/hosts/",
        ] {
            w.get(path).exactly(200, &json!({"hosts": []}));
        }
    });
}

#[test]
fn v_061_v_062_v_068_add_host() {
    row(async |w| {
        for (method, path) in [
            ("PUT", "B1/partitions/backend_development_04/host/host-06-pdn"),
            ("PUT", "B1/sections/backend_development_04/host/host-06-pdn"),
            ("POST", "B1/sections/backend_development_04/hosts/host-06-pdn"),
            ("PUT", "B0/partition/development_co/host/host-06-pdn"),
            ("PUT", "B1/partitions/backend_development_04/host/host-06-pdn"),
        ] {
            w.send(&Request::new(method, path)).ok("add_host");
        }
        w.get("B1/sections/backend_development_04")
            .is(200, &json!({"hosts": ["host-06-pdn"]}));
        w.get("B1/hosts/host-06-pdn")
            .is(200, &json!({"section": "backend_development_04"}));
        w.send(&Request::new("PUT", "B1/partitions/nope/host/host-06-pdn"))
            .error(404);
        w.send(&Request::new("PUT", "B1/partitions/development_co/host/nope"))
            .error(404);
        let busy = w
            .send(&Request::new("PUT", "B1/sections/development_mx/host/fx-gp"))
            .error(400);
        assert_eq!(
            busy,
            "host fx-gp is in use: instances of enviroment development in its section"
        );
        // Nor when the enviroment names it.
        w.send(
            &Request::new("POST", "B1/enviroments/add_host")
                .body(&json!({"enviroment": "development", "hosts": ["fx-gp"]})),
        )
        .ok("add_host");
        let again = w
            .send(&Request::new("PUT", "B1/sections/development_mx/host/fx-gp"))
            .error(400);
        assert_eq!(again, busy);
        w.put("B1/hosts/fx-gp", &json!({"section": "development_mx"}))
            .error(400);
    });
}

#[test]
fn v_063_v_067_delete() {
    row(async |w| {
        w.send(&Request::new(
            "PUT",
            "B1/sections/backend_development_04/host/host-06-pdn",
        ))
        .ok("add_host");
        w.delete("B2/partitions/backend_development_04").ok("delete");
        assert_eq!(
            w.get("B1/hosts/host-06-pdn").json().get("section"),
            None,
            "its hosts are in none then"
        );
        w.delete("B2/sections/backend_development_04").error(404);
        // The other alternative starts from the fixture again.
        w.post("B2/sections", &json!({"name": "backend_development_04"}))
            .ok("create");
        w.delete("B2/sections/backend_development_04").ok("delete");
        let message = w.delete("B0/partitions/development_co").error(400);
        assert!(
            message.starts_with("section development_co is in use: enviroment "),
            "{message}"
        );
        without_development_co(w).await;
        w.get("B0/partitions/development_co").error(404);
    });
}

#[test]
fn v_066_update() {
    row(async |w| {
        w.put(
            "B0/partitions/development_mx",
            &json!({"description": "…in Mexico DF."}),
        )
        .ok("update");
        w.get("B0/partitions/development_mx")
            .is(200, &json!({"description": "…in Mexico DF."}));
        let path = "B1/sections/development_mx";
        for hosts in [
            json!(["host-06-pdn", {"name": "host-08-pdn"}]),
            json!(["host-08-pdn", "host-09-pdn"]),
            json!([]),
        ] {
            w.put(path, &json!({"hosts": hosts})).ok("update");
            let expected: Vec<String> = hosts
                .as_array()
                .unwrap()
                .iter()
                .map(|h| h.as_str().unwrap_or("host-08-pdn").to_owned())
                .collect();
            w.get(path).is(200, &json!({"hosts": expected}));
        }
        w.put(path, &json!({"hosts": ["host-06-pdn", "nope"]})).error(400);
        w.get(path).is(200, &json!({"hosts": []}));
        w.send(
            &Request::new("PUT", path)
                .by("demouser")
                .body(&json!({"description": "x"})),
        )
        .error(403);
    });
}
