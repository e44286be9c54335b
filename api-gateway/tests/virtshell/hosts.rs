//! 7.3: hosts.

use serde_json::{Value, json};

use crate::protocol::names;
use crate::support::{Request, row};

fn b_host() -> Value {
    json!({"name": "host-01-pdn", "os": "Ubuntu_12.04_3.5.0-23.x86_64", "memory": "16GB", "capacity": "120GB",
        "enabled": "true", "type": "GeneralPurpose", "local_ipv4": "15.54.88.19", "local_ipv6": "ff06:0:0:0:0:0:0:c3",
        "public_ipv4": "10.54.88.19", "public_ipv6": "yt06:0:0:0:0:0:0:c3", "partition": "development_co"})
}

fn without(mut body: Value, member: &str) -> Value {
    body.as_object_mut().unwrap().remove(member);
    body
}

#[test]
fn v_028_create() {
    for base in ["B2", "B1"] {
        row(async |w| {
            w.post(&format!("{base}/hosts"), &b_host()).ok("create");
            let host = w
                .get(&format!("{base}/hosts/host-01-pdn"))
                .is(200, &b_host())
                .json();
            assert_eq!(
                (&host["section"], &host["instances"]),
                (&json!("development_co"), &json!([]))
            );
        });
    }
}

#[test]
fn v_029_create_without_partition() {
    row(async |w| {
        w.post("B2/hosts", &without(b_host(), "partition")).ok("create");
        assert_eq!(w.get("B2/hosts/host-01-pdn").json().get("section"), None);
    });
}

#[test]
fn v_030_get() {
    row(async |w| {
        w.post("B2/hosts", &b_host()).ok("create");
        let expected = json!({"name": "host-01-pdn", "memory": "16GB", "enabled": "true", "instances": [], "uuid": "<U>"});
        let host = w.get("B2/hosts/host-01-pdn").is(200, &expected).json();
        let at = host["created"]["at"].as_str().unwrap();
        assert!(at.bytes().all(|b| b.is_ascii_digit()) && at.len() == 10, "{at}");
        assert_eq!(host["created"]["by"], w.get("B2/users/tester").json()["uuid"]);
        assert_eq!(host["modified"], host["created"], "nothing has changed");
    });
}

#[test]
fn v_031_list_in_order() {
    row(async |w| {
        let fixtures = ["fx-gp", "fx-so", "host-06-pdn", "host-08-pdn", "host-09-pdn"];
        for path in ["B2/hosts", "B0/hosts/"] {
            let list = w.get(path).is(200, &json!({})).json();
            assert!(
                fixtures
                    .iter()
                    .all(|name| names(&list["hosts"]).contains(&(*name).to_owned())),
                "{list}"
            );
            let order: Vec<(&str, &str)> = list["hosts"]
                .as_array()
                .unwrap()
                .iter()
                .map(|host| {
                    (
                        host["created"]["at"].as_str().unwrap(),
                        host["name"].as_str().unwrap(),
                    )
                })
                .collect();
            assert!(order.is_sorted(), "{order:?}");
        }
    });
}

#[test]
fn v_032_v_039_v_043_update() {
    for (path, body) in [
        (
            "B2/hosts/host-01-pdn",
            json!({"memory": "24GB", "capacity": "750GB"}),
        ),
        (
            "B0/hosts/host-01-pdn",
            json!({"os": "Ubuntu_18.04_3.5.0-23.x86_64", "memory": "16GB"}),
        ),
        ("B0/hosts/host-01-pdn", json!({"local_ipv4": "192.168.56.101"})),
    ] {
        row(async |w| {
            w.post("B2/hosts", &b_host()).ok("create");
            w.put(path, &body).ok("update");
            let host = w.get(path).is(200, &body).json();
            assert_eq!(host["public_ipv4"], "10.54.88.19", "what is absent stays");
        });
    }
}

#[test]
fn v_033_v_038_delete() {
    for base in ["B2", "B0"] {
        row(async |w| {
            w.post("B2/hosts", &b_host()).ok("create");
            w.delete(&format!("{base}/hosts/host-01-pdn")).ok("delete");
            w.get("B2/hosts/host-01-pdn").error(404);
            w.delete(&format!("{base}/hosts/host-01-pdn")).error(404);
            // The name is free at once.
            w.post("B2/hosts", &b_host()).ok("create");
        });
    }
}

#[test]
fn v_034_by_query() {
    row(async |w| {
        w.post("B2/hosts", &b_host()).ok("create");
        let uuid = w.get("B2/hosts/host-01-pdn").json()["uuid"]
            .as_str()
            .unwrap()
            .to_owned();
        for id in [uuid.to_uppercase(), uuid.clone()] {
            let path = format!("B2/hosts?id={id}");
            w.get(&path).is(200, &json!({"name": "host-01-pdn"}));
            w.put(&path, &json!({"memory": "24GB", "capacity": "750GB"}))
                .ok("update");
        }
        w.get("B2/hosts/host-01-pdn")
            .is(200, &json!({"memory": "24GB", "capacity": "750GB"}));
        w.delete(&format!("B2/hosts?id={uuid}")).ok("delete");
        w.get("B2/hosts/host-01-pdn").error(404);
    });
}

#[test]
fn v_035_name_by_query() {
    row(async |w| {
        let body = json!({"ip": "192.168.56.77", "user": "u", "password": "p", "type": "GeneralPurpose"});
        w.post("B2/hosts?id=robot", &body).ok("create");
        let host = w
            .get("B2/hosts/robot")
            .is(200, &json!({"local_ipv4": "192.168.56.77"}))
            .json();
        assert!(host.get("user").is_none() && host.get("password").is_none());
        w.post("B2/hosts/one", &json!({"name": "two"})).error(400);
        w.post("B2/hosts/three", &json!({"os": "x"})).ok("create");
        w.get("B2/host/three")
            .is(200, &json!({"name": "three", "os": "x"}));
    });
}

#[test]
fn v_036_v_037_v_040_v_041_v_042_bodies_of_the_demonstration() {
    row(async |w| {
        let base = json!({"os": "ubuntu-14.04.4-amd64", "memory": "2GB", "partition": "development_co", "type": "GeneralPurpose"});
        let with = |members: Value| {
            let mut body = base.clone();
            body.as_object_mut()
                .unwrap()
                .extend(members.as_object().unwrap().clone());
            body
        };
        let hosts = [
            with(json!({"name": "host-05-pdn"})),
            with(json!({"name": "host-01"})),
            with(
                json!({"name": "host-server-01", "local_ipv4": "192.168.56.101", "drivers": ["docker", "lxc"]}),
            ),
            with(
                json!({"name": "host-server-02", "local_ipv4": "192.168.56.102", "drivers": ["docker", "lxc"]}),
            ),
            with(
                json!({"name": "host-server-03", "memory": "12GB", "local_ipv4": "192.168.56.1", "drivers": ["virtualbox"]}),
            ),
        ];
        for host in &hosts {
            w.post("B0/hosts/", host).ok("create");
            w.get(&format!("B0/hosts/{}", host["name"].as_str().unwrap()))
                .is(200, host);
        }
        for host in &hosts {
            w.delete(&format!("B0/hosts/{}", host["name"].as_str().unwrap()))
                .ok("delete");
        }
    });
}

#[test]
fn what_is_refused() {
    row(async |w| {
        for (body, message) in [
            (json!({"os": "x"}), "name field was not provided"),
            (json!({"name": ""}), "Field name: "),
            (json!({"name": "a b"}), "Field name: "),
            (
                json!({"name": "72c05559-0590-4da6-be56-28ab36cb669c"}),
                "Field name: ",
            ),
            (
                json!({"name": 1}),
                "Field name - 1 is type number but should be string",
            ),
            (json!({"name": "fx-gp"}), "host fx-gp already exists"),
            (json!({"name": "h", "memory": "lots"}), "Field memory: "),
            (
                json!({"name": "h", "memory": []}),
                "Field memory - [] is type list but should be size",
            ),
            (json!({"name": "h", "enabled": "perhaps"}), "Field enabled: "),
            (json!({"name": "h", "type": "Huge"}), "Field type: "),
            (json!({"name": "h", "local_ipv4": "1.2.3"}), "Field local_ipv4: "),
            (json!({"name": "h", "section": "nope"}), "section nope not found"),
            (json!({"name": "h", "os": "x".repeat(300)}), "Field os: "),
        ] {
            let error = w.post("B1/hosts", &body).error(400);
            assert!(error.starts_with(message), "{body}: {error}");
        }
        w.get("B1/hosts/h").error(404);
        w.put("B1/hosts/fx-gp", &json!({"name": "other"})).error(400);
        w.put("B1/hosts/fx-gp", &json!({"name": "fx-gp", "nonsense": 1}))
            .ok("update");
        for method in ["PUT", "DELETE"] {
            w.send(&Request::new(method, "B1/hosts"))
                .exactly(400, &json!({"error": "missing name parameter"}));
        }
        let message = w.delete("B1/hosts/fx-gp").error(400);
        assert!(
            message.starts_with("host fx-gp is in use: 28 instances"),
            "{message}"
        );
        w.put("B1/hosts/fx-gp", &json!({"section": "development_mx"}))
            .error(400);
        w.put("B1/hosts/fx-so", &json!({"section": "development_mx"}))
            .ok("update");
    });
}

#[test]
fn regular_users_read_hosts_and_no_more() {
    row(async |w| {
        w.send(&Request::new("GET", "B1/hosts/fx-gp").by("demouser"))
            .is(200, &json!({}));
        for request in [
            Request::new("POST", "B1/hosts").body(&json!({"name": "h"})),
            // Permission comes before the members of the body.
            Request::new("POST", "B1/hosts").body(&json!({"memory": "lots"})),
            Request::new("PUT", "B1/hosts/fx-gp").body(&json!({"os": "x"})),
            Request::new("DELETE", "B1/hosts/fx-gp"),
        ] {
            let message = w.send(&request.by("demouser")).error(403);
            assert!(
                message.starts_with("User demouser is not allowed to "),
                "{message}"
            );
        }
        // And what the URI names before permission.
        w.send(&Request::new("DELETE", "B1/hosts/none").by("demouser"))
            .error(404);
    });
}

#[test]
fn kubectl_made_hosts_are_found_by_either_name() {
    row(async |w| {
        use kube::api::{Api, PostParams};
        let api: Api<virtshell_crds::Host> = Api::all(w.client.clone());
        let host: virtshell_crds::Host = serde_json::from_value(json!({
            "apiVersion": "virtshell.io/v1alpha1", "kind": "Host", "metadata": {"name": "by-hand"}, "spec": {"os": "mine"},
        }))
        .unwrap();
        api.create(&PostParams::default(), &host).await.unwrap();
        w.until("the gateway sees it", || w.get("B1/hosts/by-hand").status == 200)
            .await;
        let by = json!({"created": {"by": "kubernetes"}, "modified": {"by": "kubernetes"}, "drivers": [], "enabled": "true"});
        w.get("B1/hosts/by-hand").is(200, &by);
        let message = w.post("B1/hosts", &json!({"name": "by-hand"})).error(400);
        assert_eq!(message, "host by-hand already exists");
    });
}
