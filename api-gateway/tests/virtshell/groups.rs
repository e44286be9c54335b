//! 7.12: groups.

use serde_json::json;

use crate::protocol::names;
use crate::support::{Request, row};

#[test]
fn v_152_v_158_create() {
    row(async |w| {
        w.delete("B2/groups/web_development_team").ok("delete");
        w.post("B2/groups", &json!({"name": "web_development_team"}))
            .ok("create");
        let request = Request::new("POST", "B2/groups").body(&json!({"name": "database_team"}));
        w.send(&request.header("Content-Type", "multipart/form-data"))
            .ok("create");
        assert_eq!(
            w.post("B2/groups", &json!({"name": "production"})).error(400),
            "group production already exists"
        );
    });
}

#[test]
fn v_153_v_154_get_and_list() {
    row(async |w| {
        for base in ["B2", "B0"] {
            let path = format!("{base}/groups/web_development_team");
            w.get(&path)
                .is(200, &json!({"users": [], "created": {"by": "kubernetes"}}));
            assert_eq!(
                names(&w.get(&format!("{base}/groups/")).json()["groups"]).len(),
                3
            );
        }
        let nobody = json!([{"username": "nobody_1"}, {"username": "nobody_2"}]);
        w.get("B1/groups/chemical_team")
            .is(200, &json!({"users": nobody}));
    });
}

#[test]
fn v_155_v_156_v_157_delete() {
    row(async |w| {
        w.delete("B2/groups/chemical_team").ok("delete");
        w.put("B1/users/virtshell", &json!({"groups": ["web_development_team"]}))
            .ok("update");
        let message = w.delete("B2/groups/web_development_team").error(400);
        assert_eq!(message, "group web_development_team is in use: user virtshell");
        w.put("B1/users/virtshell", &json!({"groups": []})).ok("update");
        w.delete("B0/groups/web_development_team").ok("delete");
        let uuid = w.get("B1/groups/production").json()["uuid"]
            .as_str()
            .unwrap()
            .to_owned();
        w.get(&format!("B2/groups?id={uuid}"))
            .is(200, &json!({"name": "production"}));
        w.delete(&format!("B2/groups?id={uuid}")).ok("delete");
    });
}

#[test]
fn v_159_v_160_members() {
    row(async |w| {
        w.delete("B0/groups/web_development_team").ok("delete");
        let body =
            json!({"name": "web_development_team", "users": [{"user": "virtshell"}, {"user": "demouser"}]});
        w.post("B0/groups/", &body).ok("create");
        let users = w.get("B0/groups/web_development_team").json()["users"].clone();
        for (user, name) in users.as_array().unwrap().iter().zip(["demouser", "virtshell"]) {
            assert_eq!(
                (&user["username"], &user["id"]),
                (&json!(name), &w.get(&format!("B1/users/{name}")).json()["uuid"])
            );
        }
        w.put(
            "B0/groups/web_development_team",
            &json!({"users": [{"user": "virtshell"}]}),
        )
        .ok("update");
        assert_eq!(
            w.get("B0/groups/web_development_team").json()["users"]
                .as_array()
                .map(Vec::len),
            Some(1)
        );
    });
}

#[test]
fn a_group_sets_its_members_whoever_named_whom() {
    row(async |w| {
        w.put("B1/users/virtshell", &json!({"groups": ["production"]}))
            .ok("update");
        let id = w.get("B1/users/demouser").json()["uuid"].clone();
        w.put("B1/groups/production", &json!({"users": [{"uuid": id}]}))
            .ok("update");
        w.get("B1/groups/production")
            .is(200, &json!({"users": [{"username": "demouser", "id": id}]}));
        w.get("B1/users/virtshell").is(200, &json!({"groups": []}));
        w.get("B1/users/demouser")
            .is(200, &json!({"groups": [{"name": "production"}]}));
        let body = json!({"users": []});
        w.send(
            &Request::new("PUT", "B1/groups/production")
                .by("demouser")
                .body(&body),
        )
        .error(403);
    });
}
