//! 2.3: who may do what with what, as one table.

use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};
use serde_json::{Value, json};
use virtshell_crds::names::object_name;
use virtshell_crds::{API_VERSION, File, Image, Instance, Provisioner};

use crate::support::{Request, World, row};

const CALLER: &str = "demouser";
const GROUP: &str = "web_development_team";

/// What makes the caller the owner of an object, a member of its group, and neither; and which triplet is whose then.
const CLASSES: [(&str, &str, &str, usize); 3] = [
    ("owner", CALLER, "production", 0),
    ("group", "virtshell", GROUP, 1),
    ("others", "virtshell", "production", 2),
];

/// What a request needs: each letter of it.
type Row<'a> = (&'a str, String, Value, &'a str);

/// Requests of one kind, in an order in which one does not spoil the next.
fn requests<'a>(collection: &str, name: &str) -> Vec<Row<'a>> {
    let path = format!("B1/{collection}/{name}");
    let mut rows = vec![
        ("GET", path.clone(), Value::Null, "r"),
        ("PUT", path.clone(), json!({"permissions": "keep"}), "w"),
    ];
    if collection == "instances" {
        let one = json!([name]);
        let live = json!({"properties": ["cpus"], "hosts": one});
        rows.push(("POST", "B1/properties".to_owned(), live, "r"));
        for call in [
            "start_instance",
            "stop_instance",
            "restart_instance",
            "clone_instance",
        ] {
            rows.push(("POST", format!("B1/instances/{call}/{name}"), json!({}), "rx"));
        }
        let command = json!({"command": "true", "instances": one});
        rows.push(("POST", "B1/instances/execute_command".to_owned(), command, "rx"));
        let copy = json!({"file": "my.cnf", "destination": "/tmp/", "instances": one});
        rows.push(("POST", "B1/instances/copy_files".to_owned(), copy, "rx"));
        let packages = json!({"packages": ["mc"], "instances": one});
        for method in ["POST", "PUT", "DELETE"] {
            rows.push((method, "B1/packages".to_owned(), packages.clone(), "rx"));
        }
    }
    rows.push(("DELETE", path, Value::Null, "w"));
    rows
}

async fn make<K>(w: &World, kind: &str, name: &str, mut spec: Value)
where
    K: kube::Resource<DynamicType = (), Scope = kube::core::NamespaceResourceScope>
        + Clone
        + std::fmt::Debug
        + serde::Serialize
        + serde::de::DeserializeOwned,
{
    let api: Api<K> = w.api();
    spec["displayName"] = json!(name);
    let object = json!({"apiVersion": API_VERSION, "kind": kind, "metadata": {"name": object_name(name)}, "spec": spec});
    let object = serde_json::from_value(object).unwrap();
    api.create(&PostParams::default(), &object).await.unwrap();
    if kind == "Instance" {
        let status = json!({"status": {"phase": "Running", "powerState": "Running", "host": "fx-gp"}});
        api.patch_status(&object_name(name), &PatchParams::default(), &Patch::Merge(status))
            .await
            .unwrap();
    }
}

/// Makes an object of each guarded kind under this name, and waits until the gateway has them.
async fn make_all(w: &World, name: &str, guard: &Value) {
    let with = |spec: Value| {
        let mut spec = spec;
        spec.as_object_mut()
            .unwrap()
            .extend(guard.as_object().unwrap().clone());
        spec
    };
    make::<Image>(w, "Image", name, with(json!({"type": "iso"}))).await;
    make::<Provisioner>(w, "Provisioner", name, with(json!({}))).await;
    let content = json!({"folder": "", "size": 0, "content": {"inline": ""},
        "sha256": "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"});
    make::<File>(w, "File", name, with(content)).await;
    let instance =
        json!({"environment": "development", "provisioner": "all_backend", "driver": "lxc", "host": "fx-gp"});
    make::<Instance>(w, "Instance", name, with(instance)).await;
    for collection in ["images", "provisioners", "files", "instances"] {
        let path = format!("B1/{collection}/{name}");
        w.until("it is seen", || w.get(&path).status == 200).await;
    }
    let path = format!("B1/instances/{name}");
    w.until("it runs", || w.get(&path).json()["status"] == "running")
        .await;
}

#[test]
fn permission_strings_of_every_kind() {
    row(async |w| {
        w.put(&format!("B1/groups/{GROUP}"), &json!({"users": [CALLER]}))
            .ok("update");
        for (class, owner, group, at) in CLASSES {
            for granted in ["---", "r--", "-w-", "--x", "r-x", "rwx"] {
                // What the two other classes may do must not matter.
                for others in ["rwx", "---"] {
                    let mut triplets = [others; 3];
                    triplets[at] = granted;
                    let permissions = triplets.concat();
                    let name = format!("{class}{at}{granted}{others}").replace('-', "_");
                    let guard = json!({"owner": owner, "group": group, "permissions": permissions});
                    make_all(w, &name, &guard).await;
                    for collection in ["images", "provisioners", "files", "instances"] {
                        check(w, collection, &name, &permissions, granted);
                    }
                }
            }
        }
    });
}

#[test]
fn a_system_user_may_do_everything() {
    row(async |w| {
        let guard = json!({"owner": "virtshell", "group": "production", "permissions": "---------"});
        make_all(w, "closed", &guard).await;
        for collection in ["images", "provisioners", "files", "instances"] {
            for (method, path, body, _) in requests(collection, "closed") {
                let status = ask(w, "tester", method, &path, &body, "---------");
                assert!([200, 202].contains(&status), "{method} {path}: {status}");
            }
        }
    });
}

fn check(w: &World, collection: &str, name: &str, permissions: &str, granted: &str) {
    let list = w
        .send(&Request::new("GET", &format!("B1/{collection}")).by(CALLER))
        .json();
    let listed = list[collection]
        .as_array()
        .unwrap()
        .iter()
        .any(|item| item["name"] == name);
    assert_eq!(listed, granted.contains('r'), "{collection} {name} {permissions}");
    for (method, path, body, needs) in requests(collection, name) {
        let status = ask(w, CALLER, method, &path, &body, permissions);
        let may = needs.chars().all(|right| granted.contains(right));
        let expected: &[u16] = if may { &[200, 202] } else { &[403] };
        assert!(
            expected.contains(&status),
            "{method} {path} with {permissions}: {status}"
        );
    }
}

fn ask(w: &World, user: &str, method: &str, path: &str, body: &Value, permissions: &str) -> u16 {
    let mut request = Request::new(method, path).by(user);
    let keeps = json!({"permissions": permissions});
    let body = if body["permissions"].is_null() {
        body
    } else {
        &keeps
    };
    if !body.is_null() {
        request = request.body(body);
    }
    w.send(&request).status
}

#[test]
fn what_has_no_permission_string() {
    row(async |w| {
        for (collection, name, change) in [
            ("hosts", "fx-so", json!({"os": "x"})),
            ("sections", "development_mx", json!({"description": "x"})),
            ("enviroments", "backend_development", json!({"description": "x"})),
            ("groups", "production", json!({"users": []})),
            ("users", "virtshell", json!({"login": "x"})),
        ] {
            let path = format!("B1/{collection}/{name}");
            let key = if collection == "users" { "username" } else { "name" };
            let made = json!({key: "by_table"});
            let of_made = format!("B1/{collection}/by_table");
            for (user, status) in [(CALLER, 403), ("tester", 200)] {
                let send = |request: Request<'_>| w.send(&request).status;
                let rows = [
                    ("GET", send(Request::new("GET", &path).by(user)), 200),
                    (
                        "GET all",
                        send(Request::new("GET", &format!("B1/{collection}")).by(user)),
                        200,
                    ),
                    (
                        "POST",
                        send(
                            Request::new("POST", &format!("B1/{collection}"))
                                .body(&made)
                                .by(user),
                        ),
                        status,
                    ),
                    (
                        "PUT",
                        send(Request::new("PUT", &path).body(&change).by(user)),
                        status,
                    ),
                ];
                for (verb, seen, expected) in rows {
                    assert_eq!(seen, expected, "{verb} {collection} by {user}");
                }
                let gone = if user == CALLER { &path } else { &of_made };
                assert_eq!(
                    send(Request::new("DELETE", gone).by(user)),
                    status,
                    "DELETE {gone} by {user}"
                );
            }
        }
        // Of itself a regular user changes the login, and that alone.
        let own = Request::new("PUT", "B1/users/demouser").by(CALLER);
        w.send(&own.clone().body(&json!({"login": "me"}))).ok("update");
        w.send(&own.clone().body(&json!({"type": "system"}))).error(403);
        w.send(&own.body(&json!({"groups": [GROUP]}))).error(403);
    });
}

#[test]
fn tasks_are_read_by_whoever_may_read_a_target() {
    row(async |w| {
        let guard = json!({"owner": "tester", "group": "production", "permissions": "rwx---r--"});
        make_all(w, "target", &guard).await;
        let start = w
            .post("B1/instances/start_instance/target", &json!({}))
            .in_progress("start");
        let path = format!("B1/tasks/{}", start.json()["task"].as_str().unwrap());
        let by = |method, path| w.send(&Request::new(method, path).by(CALLER));
        by("GET", &path).is(200, &json!({}));
        let change = Request::new("PUT", &path).by(CALLER);
        w.send(&change.body(&json!({"status": "pending"}))).error(403);
        by("DELETE", &path).error(403);
        w.put("B1/instances/target", &json!({"permissions": "rwx------"}))
            .ok("update");
        by("GET", &path).error(403);
        let listed = by("GET", "B1/tasks").json();
        let uuid = path.trim_start_matches("B1/tasks/");
        assert!(
            listed["tasks"]
                .as_array()
                .unwrap()
                .iter()
                .all(|task| task["uuid"] != uuid)
        );
    });
}
