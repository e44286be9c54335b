//! 7.2: seed and protocol.

use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use crate::support::{Request, fixtures, row};

#[test]
fn v_001_empty_object_for_an_instance() {
    row(async |w| {
        w.post("B3/instance", &json!({}))
            .exactly(400, &json!({"error": "Missing input for create instance"}));
    });
}

#[test]
fn v_002_empty_body_for_a_host() {
    row(async |w| {
        for body in ["", " ", "null"] {
            let reply = w.send(&Request::new("POST", "B1/hosts").text(body));
            reply.exactly(400, &json!({"error": "Missing input for create host"}));
        }
        let reply = w.send(&Request::new("PUT", "B1/hosts/fx-gp"));
        reply.exactly(400, &json!({"error": "Missing input for update host"}));
    });
}

#[test]
fn v_003_v_004_v_006_not_acceptable() {
    row(async |w| {
        for (path, accept) in [
            ("B1/hosts", "application/xml"),
            ("B1/nothing", "text/html"),
            ("B1/hosts", "application/json;q=0"),
        ] {
            for request in [
                Request::new("GET", path),
                Request::new("GET", path).unsigned(),
                Request::new("PATCH", path),
            ] {
                let reply = w.send(&request.header("Accept", accept));
                assert_eq!((reply.status, reply.body.len()), (406, 0), "{path} {accept}");
                assert_eq!(reply.headers.get("content-type"), None);
                assert_eq!(reply.headers.get("content-length").map(String::as_str), Some("0"));
            }
        }
    });
}

#[test]
fn v_005_acceptable() {
    row(async |w| {
        for accept in ["text/html, application/json;q=0.5", "*/*"] {
            w.send(&Request::new("GET", "B1/hosts").header("Accept", accept))
                .is(200, &json!({}));
        }
        w.send(&Request::new("GET", "B1/hosts").without("Accept"))
            .is(200, &json!({}));
    });
}

#[test]
fn v_007_not_authenticated() {
    row(async |w| {
        let date = Timestamp::now().strftime("%a, %d %b %Y %H:%M:%S GMT").to_string();
        let signed = |value: &str| {
            Request::new("GET", "B1/hosts")
                .unsigned()
                .header("Date", &date)
                .header("X-VirtShell-Authorization", value)
        };
        for request in [
            Request::new("GET", "B1/hosts").unsigned(),
            signed("UserId:Signature"),
            signed("KEYOFTESTER:AAAAAAAAAAAAAAAAAAAAAAAAAAA="),
            signed("KEYOFTESTER"),
            signed("tester:"),
            Request::new("GET", "B1/hosts").header("Date", "yesterday"),
        ] {
            w.send(&request)
                .exactly(403, &json!({"error": "User not authenticated"}));
        }
    });
}

#[test]
fn v_008_a_regular_user_may_not_change_anothers_image() {
    row(async |w| {
        w.post(
            "B1/images",
            &json!({"name": "priv", "type": "iso", "permissions": "rwxr-----"}),
        )
        .ok("create");
        let change = json!({"details": "mine now"});
        let message = w
            .send(&Request::new("PUT", "B1/images/priv").by("demouser").body(&change))
            .error(403);
        assert_eq!(message, "User demouser is not allowed to update image priv");
        let get = w
            .send(&Request::new("GET", "B1/images/priv").by("demouser"))
            .error(403);
        assert_eq!(get, "User demouser is not allowed to read image priv");
        let list = w.send(&Request::new("GET", "B1/images").by("demouser")).json();
        assert!(
            names(&list["images"]).iter().all(|name| name != "priv"),
            "lists leave it out"
        );
        w.put("B1/images/priv", &change).ok("update");
    });
}

#[test]
fn v_009_unknown_host() {
    row(async |w| {
        assert_eq!(
            w.get("B1/hosts/no-such-host").error(404),
            "host no-such-host not found"
        );
    });
}

#[test]
fn v_010_v_011_not_implemented() {
    row(async |w| {
        assert_eq!(
            w.send(&Request::new("PATCH", "B1/hosts/fx-gp")).error(501),
            "PATCH /virtshell/api/v1/hosts/fx-gp is not implemented"
        );
        let head = w.send(&Request::new("HEAD", "B1/hosts"));
        assert_eq!((head.status, head.body.len()), (501, 0));
        for request in [
            Request::new("GET", "B1/volumes"),
            Request::new("GET", "B1/isos"),
            Request::new("OPTIONS", "B1/hosts"),
            Request::new("TRACE", "B1/hosts"),
            Request::new("GET", "B1/hosts/a/b"),
            Request::new("GET", "B1/Hosts"),
            Request::new("GET", "B1"),
            // Not even authenticated: the route is checked first.
            Request::new("GET", "B1/volumes").unsigned(),
        ] {
            w.send(&request).error(501);
        }
        for target in [
            "/",
            "/hosts",
            "/nothing",
            "/virtshell/api/v2/hosts",
            "/virtshell/api/v1x/hosts",
        ] {
            w.send_raw(target, &Request::new("GET", target)).error(501);
        }
    });
}

#[test]
fn v_013_no_json() {
    row(async |w| {
        for body in [r#"{"name":"#, "[]", "1", r#"{"name":"a",}"#, "name=a"] {
            let reply = w.send(&Request::new("POST", "B1/hosts").text(body));
            reply.exactly(400, &json!({"error": "No JSON object could be decoded."}));
        }
    });
}

#[test]
fn v_014_every_collection_lists_its_fixtures() {
    row(async |w| {
        for collection in [
            "hosts",
            "images",
            "instances",
            "sections",
            "enviroments",
            "provisioners",
            "files",
            "groups",
        ] {
            let list = w.get(&format!("B1/{collection}")).is(200, &json!({})).json();
            lists_fixtures(&list[collection], collection);
        }
        let tasks = w.get("B1/tasks").json();
        assert_eq!(tasks["tasks"].as_array().map(Vec::len), Some(2));
        let users = w.get("B1/users").json();
        let mut names: Vec<&str> = users["users"]
            .as_array()
            .unwrap()
            .iter()
            .map(|user| user["username"].as_str().unwrap())
            .collect();
        names.sort_unstable();
        assert_eq!(names, ["demouser", "tester", "virtshell"]);
    });
}

#[test]
fn v_024_every_base_with_and_without_slash() {
    row(async |w| {
        let bodies: Vec<Value> = ["B0", "B1", "B2", "B3", "B4"]
            .iter()
            .flat_map(|base| [format!("{base}/hosts/fx-gp"), format!("{base}/hosts/fx-gp/")])
            .map(|path| w.get(&path).is(200, &json!({"name": "fx-gp"})).json())
            .collect();
        assert!(bodies.len() == 10 && bodies.iter().all(|body| *body == bodies[0]));
    });
}

#[test]
fn v_026_clock_skew() {
    row(async |w| {
        for (age, status) in [(901, 403), (900, 200), (-902, 403), (-900, 200)] {
            let mut request = Request::new("GET", "B1/hosts");
            // Dates are whole seconds: early in one, the request arrives in the same.
            w.until("a second begins", || Timestamp::now().subsec_millisecond() < 100)
                .await;
            request.date = Timestamp::now() - SignedDuration::from_secs(age);
            let reply = w.send(&request);
            assert_eq!(reply.status, status, "{age}");
            if status == 403 {
                assert!(reply.error(403).starts_with("RequestTimeTooSkewed"));
            }
        }
        // Ages are compared in whole seconds: no second may end on the way.
        while Timestamp::now().subsec_millisecond() > 300 {
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        for age in [900, -900] {
            let mut request = Request::new("GET", "B1/hosts");
            request.date = Timestamp::now() - SignedDuration::from_secs(age);
            assert_eq!(w.send(&request).status, 200, "{age}");
        }
        // Without a good signature the clock stays a secret.
        let mut request = Request::new("GET", "B1/hosts").by("nobody");
        request.date = Timestamp::now() - SignedDuration::from_secs(5000);
        assert_eq!(w.send(&request).error(403), "User not authenticated");
    });
}

#[test]
fn v_027_the_other_header_and_date_and_a_path_without_version() {
    row(async |w| {
        let date = Timestamp::now()
            .strftime("%a, %d %b %Y %H:%M:%S +0000")
            .to_string();
        let mut request = Request::new("GET", "B1/hosts/fx-gp").header("Date", &date);
        request.signature_header = "Authorization";
        w.send(&request).is(200, &json!({"name": "fx-gp"}));
        let mut documented = request.clone();
        documented.path = "B1/provisioners/database_prov_pdn";
        w.send(&documented).is(200, &json!({"name": "database_prov_pdn"}));
        w.send_raw("/api/virtshell/provisioners/database_prov_pdn", &request)
            .error(501);
    });
}

#[test]
fn the_user_id_is_a_key_a_uuid_or_a_name() {
    row(async |w| {
        use virtshell_gateway::auth::signature::Signed;
        let uuid = w.get("B1/users/demouser").json()["uuid"]
            .as_str()
            .unwrap()
            .to_owned();
        let date = Timestamp::now().strftime("%a, %d %b %Y %H:%M:%S GMT").to_string();
        for id in ["KEYOFDEMOUSER", &uuid, "demouser"] {
            let probe = w.send(&Request::new("GET", "B1/hosts").unsigned());
            assert_eq!(probe.status, 403);
            let host = w.address();
            let signed = Signed {
                method: "GET",
                host: &host,
                date: &date,
                resource: "/virtshell/api/v1/hosts",
                ..Signed::default()
            };
            let value = format!(
                "{id}:{}",
                signed.sign(&crate::support::fixtures::secret("demouser"))
            );
            let request = Request::new("GET", "B1/hosts").unsigned().header("Date", &date);
            w.send(&request.header("X-VirtShell-Authorization", &value))
                .is(200, &json!({}));
        }
    });
}

#[test]
fn content_md5_is_verified() {
    row(async |w| {
        let body = json!({"os": "x"});
        let request = Request::new("PUT", "B1/hosts/fx-gp").body(&body);
        let message = w
            .send(&request.clone().header("Content-MD5", "cD9d4LdUk5w5SgIFAI9+oQ=="))
            .error(400);
        assert!(message.contains("Content-MD5"), "{message}");
        let sum = {
            use base64::Engine;
            use md5::{Digest, Md5};
            base64::engine::general_purpose::STANDARD.encode(Md5::digest(body.to_string().as_bytes()))
        };
        w.send(&request.header("Content-MD5", &sum)).ok("update");
    });
}

#[test]
fn bodies_are_read_whatever_their_type_and_bounded() {
    row(async |w| {
        for type_ in [
            "text/plain",
            "application/json",
            "multipart/form-data",
            "nonsense",
        ] {
            let request = Request::new("PUT", "B1/hosts/fx-gp")
                .body(&json!({"os": type_}))
                .header("Content-Type", type_);
            w.send(&request).ok("update");
            w.get("B1/hosts/fx-gp").is(200, &json!({"os": type_}));
        }
        let mut large = Request::new("PUT", "B1/hosts/fx-gp");
        large.body = json!({"os": "x".repeat(1024 * 1024)}).to_string();
        w.send(&large).error(400);
    });
}

#[test]
fn paths_are_decoded_once_and_must_be_valid() {
    row(async |w| {
        w.get("B1/hosts/fx%2Dgp").is(200, &json!({"name": "fx-gp"}));
        w.get("B1/hosts/fx%252Dgp").error(404);
        for path in ["B1/hosts/%zz", "B1/hosts/%ff", "B1/hosts/%", "B1/hosts?id=%ff"] {
            w.get(path).error(400);
        }
        w.get("B1/hosts//fx-gp").error(501);
    });
}

#[test]
fn operational_endpoints_need_no_signature() {
    row(async |w| {
        for path in ["/healthz", "/readyz", "/metrics"] {
            let reply = w.send_raw(path, &Request::new("GET", path).unsigned().without("Accept"));
            assert_eq!(reply.status, 200, "{path}");
        }
        w.get("B1/hosts/fx-gp");
        let metrics = w.send_raw("/metrics", &Request::new("GET", "/metrics").unsigned());
        let text = String::from_utf8(metrics.body).unwrap();
        let counted = r#"virtshell_gateway_requests_total{dialect="virtshell",method="GET",route="/hosts/:name",status="200"}"#;
        assert!(text.contains(counted), "{text}");
        assert!(!text.contains("fx-gp"), "labels are templates");
        w.send_raw("/healthz", &Request::new("POST", "/healthz"))
            .error(501);
    });
}

#[test]
fn requests_have_an_id() {
    row(async |w| {
        let own = w.get("B1/hosts").headers["x-request-id"].clone();
        assert_eq!(own.len(), 32);
        let kept = w.send(&Request::new("GET", "B1/hosts").header("X-Request-Id", "abc-1"));
        assert_eq!(kept.headers["x-request-id"], "abc-1");
        let odd = w.send(&Request::new("GET", "B1/hosts").header("X-Request-Id", "a b\"c"));
        assert_ne!(odd.headers["x-request-id"], "a b\"c");
    });
}

#[test]
fn what_a_request_writes_carries_its_id() {
    row(async |w| {
        let id = |object: &kube::api::ObjectMeta| {
            let annotations = object.annotations.as_ref();
            annotations.and_then(|a| a.get(virtshell_crds::ANNOTATION_REQUEST_ID).cloned())
        };
        let create = Request::new("POST", "B1/instances").header("X-Request-Id", "abc-1");
        let body = json!({"name": "traced", "image": "ubuntu_server_14.04.2_amd64"});
        let task = w.send(&create.body(&body)).in_progress("create").json()["task"].clone();
        let task = w.store.tasks.by_uid(task.as_str().unwrap()).unwrap();
        assert_eq!(id(&task.metadata).as_deref(), Some("abc-1"));
        let instances = w.api::<virtshell_crds::Instance>();
        let name = virtshell_crds::names::object_name("traced");
        assert_eq!(
            id(&instances.get(&name).await.unwrap().metadata).as_deref(),
            Some("abc-1")
        );

        let change = Request::new("PUT", "B1/instances/traced").header("X-Request-Id", "abc-2");
        w.send(&change.body(&json!({"description": "x"}))).ok("update");
        assert_eq!(
            id(&instances.get(&name).await.unwrap().metadata).as_deref(),
            Some("abc-2")
        );
    });
}

/// Every fixture of a collection is in this list of it.
#[track_caller]
pub fn lists_fixtures(list: &Value, collection: &str) {
    let listed = names(list);
    for name in fixtures::names(collection) {
        assert!(listed.contains(&name), "{collection}: {name} is not in {list}");
    }
}

pub fn names(list: &Value) -> Vec<String> {
    list.as_array()
        .unwrap()
        .iter()
        .map(|o| o["name"].as_str().unwrap().to_owned())
        .collect()
}

#[test]
fn the_document_is_for_everybody() {
    row(async |w| {
        for base in ["B0", "B1", "B2", "B3", "B4"] {
            let path = format!("{base}/openapi.json");
            let reply = w.send(&Request::new("GET", &path).unsigned());
            reply.exactly(200, &virtshell_gateway::dialects::virtshell::document());
            w.send(
                &Request::new("GET", &path)
                    .header("Accept", "text/html")
                    .unsigned(),
            );
            w.send(&Request::new("POST", &path).unsigned()).error(501);
        }
    });
}
