//! 7.12: users.

use k8s_openapi::api::core::v1::Secret;
use serde_json::{Value, json};

use crate::support::{Request, row};

fn b_user() -> Value {
    json!({"username": "virtshell", "type": "system/regular", "login": "user@mail.com",
        "groups": [{"name": "web_development_team"}, {"name": "production"}]})
}

#[test]
fn v_161_create_and_sign_with_the_new_keys() {
    row(async |w| {
        use jiff::Timestamp;
        use virtshell_gateway::auth::signature::Signed;
        w.delete("B2/users/virtshell").ok("delete");
        let request = Request::new("POST", "B2/users")
            .body(&b_user())
            .header("Content-Type", "multipart/form-data");
        let keys = w.send(&request).ok("create").json();
        let (id, secret) = (
            keys["access_key_id"].as_str().unwrap(),
            keys["secret_access_key"].as_str().unwrap(),
        );
        let date = Timestamp::now().strftime("%a, %d %b %Y %H:%M:%S GMT").to_string();
        let host = w.address();
        let signed = Signed {
            method: "GET",
            host: &host,
            date: &date,
            resource: "/virtshell/api/v1/users/virtshell",
            ..Signed::default()
        };
        let header = format!("{id}:{}", signed.sign(secret));
        let get = Request::new("GET", "B1/users/virtshell")
            .unsigned()
            .header("Date", &date);
        let expected = json!({"username": "virtshell", "type": "regular", "login": "user@mail.com",
            "groups": [{"name": "web_development_team"}, {"name": "production"}], "uuid": "<U>"});
        let body = w
            .send(&get.header("X-VirtShell-Authorization", &header))
            .is(200, &expected)
            .json();
        assert!(!body.to_string().contains(secret) && !body.to_string().contains(id));
        let stored = w.api::<Secret>().get("user-virtshell").await.unwrap();
        let owner = &stored.metadata.owner_references.unwrap()[0];
        assert_eq!((owner.kind.as_str(), &json!(owner.uid)), ("User", &body["uuid"]));
    });
}

#[test]
fn v_162_groups_by_uuid() {
    row(async |w| {
        use kube::Api;
        use virtshell_crds::Group;
        use virtshell_crds::names::object_name;
        let groups: Api<Group> = w.api();
        let group = groups
            .get(&object_name("production"))
            .await
            .unwrap()
            .metadata
            .uid
            .unwrap();
        w.delete("B2/users/virtshell").ok("delete");
        let mut body = b_user();
        let extra = json!({"groups": [{"uuid": group}], "uuid": "u", "created": "c", "modified": "m"});
        body.as_object_mut()
            .unwrap()
            .extend(extra.as_object().unwrap().clone());
        w.post("B2/users", &body).ok("create");
        w.get("B2/users/virtshell")
            .is(200, &json!({"groups": [{"name": "production"}], "uuid": "<U>"}));
        w.put(
            "B2/users/virtshell",
            &json!({"groups": [{"uuid": "72c05559-0590-4da6-be56-28ab36cb669c"}]}),
        )
        .error(400);
    });
}

#[test]
fn v_163_v_164_list_and_get() {
    row(async |w| {
        for path in ["B2/users", "B0/users/"] {
            let list = w.get(path).json();
            let names: Vec<&str> = list["users"]
                .as_array()
                .unwrap()
                .iter()
                .map(|u| u["username"].as_str().unwrap())
                .collect();
            assert!(
                ["tester", "virtshell", "demouser"]
                    .iter()
                    .all(|name| names.contains(name))
            );
            assert!(
                !list.to_string().to_lowercase().contains("secret") && !list.to_string().contains("KEYOF")
            );
        }
        for path in ["B2/users/virtshell", "B0/users/virtshell"] {
            w.get(path).is(200, &json!({"uuid": "<U>", "username": "virtshell", "type": "regular", "login": "virtshell", "groups": []}));
        }
    });
}

#[test]
fn v_165_delete_ends_the_keys() {
    row(async |w| {
        w.send(&Request::new("GET", "B1/hosts").by("virtshell"))
            .is(200, &json!({}));
        w.delete("B2/users/virtshell").ok("delete");
        w.get("B2/users/virtshell").error(404);
        w.send(&Request::new("GET", "B1/hosts").by("virtshell"))
            .error(403);
        w.post("B0/users", &b_user()).ok("create");
        w.send(&Request::new("GET", "B1/hosts").by("virtshell"))
            .error(403);
        w.delete("B0/users/virtshell").ok("delete");
    });
}

#[test]
fn v_166_v_167_v_170_update() {
    row(async |w| {
        let group = w.get("B1/groups/production").json()["uuid"].clone();
        let request = Request::new("PUT", "B2/users/virtshell")
            .body(&json!({"type": "system", "groups": [{"uuid": group}]}));
        let request = request.header("Content-Type", "multipart/form-data");
        w.send(&request).ok("update");
        let mut literal = request.clone();
        literal.path = "B2/file/virtshell";
        assert_eq!(w.send(&literal).error(404), "file virtshell not found");
        w.get("B2/users/virtshell").is(
            200,
            &json!({"type": "system", "groups": [{"name": "production"}]}),
        );
        let uuid = w.get("B2/users/virtshell").json()["uuid"]
            .as_str()
            .unwrap()
            .to_owned();
        w.put(&format!("B2/users/{uuid}"), &json!({"type": "user"}))
            .ok("update");
        w.get("B2/users/virtshell").is(200, &json!({"type": "regular"}));
        w.put("B0/users/virtshell", &json!({"login": "user@gmail.com"}))
            .ok("update");
        w.get("B0/users/virtshell")
            .is(200, &json!({"login": "user@gmail.com", "type": "regular"}));
    });
}

#[test]
fn v_168_a_slip_of_the_documents() {
    row(async |w| {
        w.delete("B2/fles/virtshell").error(501);
    });
}

#[test]
fn v_169_administrators() {
    row(async |w| {
        w.delete("B2/users/virtshell").ok("delete");
        let mut body = b_user();
        body["type"] = json!("administrator");
        w.post("B0/users/", &body).ok("create");
        w.get("B0/users/virtshell").is(200, &json!({"type": "system"}));
    });
}

#[test]
fn what_is_refused() {
    row(async |w| {
        for (body, message) in [
            (json!({"login": "l"}), "username field was not provided"),
            (json!({"username": "a:b"}), "Field name: "),
            (json!({"username": "tester"}), "user tester already exists"),
            (json!({"username": "u", "type": "king"}), "Field type: "),
        ] {
            let error = w.post("B1/users", &body).error(400);
            assert!(error.starts_with(message), "{body}: {error}");
        }
        assert!(
            w.delete("B1/users/tester")
                .error(400)
                .starts_with("user tester is in use: ")
        );
        assert!(
            w.put("B1/users/tester", &json!({"type": "regular"}))
                .error(400)
                .contains("last system user")
        );
        w.put("B1/users/tester", &json!({"username": "other"})).error(400);
    });
}

#[test]
fn a_regular_user_changes_its_own_login_alone() {
    row(async |w| {
        let send = |path, body: Value| w.send(&Request::new("PUT", path).by("demouser").body(&body));
        send("B1/users/demouser", json!({"login": "me@mail.com"})).ok("update");
        w.get("B1/users/demouser")
            .is(200, &json!({"login": "me@mail.com"}));
        send("B1/users/demouser", json!({"type": "system"})).error(403);
        send("B1/users/demouser", json!({"groups": ["production"]})).error(403);
        send("B1/users/virtshell", json!({"login": "me@mail.com"})).error(403);
        w.send(&Request::new("POST", "B1/users").by("demouser").body(&b_user()))
            .error(403);
        w.send(&Request::new("DELETE", "B1/users/demouser").by("demouser"))
            .error(403);
    });
}

#[test]
fn groups_that_name_a_user_are_its_groups_until_it_leaves() {
    row(async |w| {
        use kube::Api;
        use kube::api::{Patch, PatchParams};
        use virtshell_crds::Group;
        use virtshell_crds::names::object_name;
        let groups: Api<Group> = w.api();
        let name = object_name("web_development_team");
        let uuid = w.get("B1/users/virtshell").json()["uuid"].clone();
        // A group names its users by name; with kubectl also by uid.
        for entry in [json!("virtshell"), uuid.clone()] {
            w.put("B1/users/virtshell", &json!({"groups": []})).ok("update");
            let patch = Patch::Merge(json!({"spec": {"users": [entry, "other"]}}));
            groups
                .patch(&name, &PatchParams::default(), &patch)
                .await
                .unwrap();
            w.until("it is a member", || {
                w.get("B1/users/virtshell").json()["groups"] == json!([{"name": "web_development_team"}])
            })
            .await;
            let shown = w.get("B1/groups/web_development_team").json();
            let member = json!({"username": "virtshell", "id": uuid});
            assert!(shown["users"].as_array().unwrap().contains(&member), "{shown}");
            w.put("B1/users/virtshell", &json!({"groups": ["production"]}))
                .ok("update");
            w.get("B1/users/virtshell")
                .is(200, &json!({"groups": [{"name": "production"}]}));
            assert_eq!(groups.get(&name).await.unwrap().spec.users, ["other"]);
        }
    });
}
