//! What was written is read at once, and of two gateways that write at once both answers are true.

use serde_json::{Value, json};
use virtshell_crds::UserType;

use crate::support::{Reply, Request, World, fixtures, row};

#[test]
fn of_two_gateways_the_later_change_stays() {
    row(async |w| {
        let other = &w.second(&w.client).await;
        w.post(
            "B1/images",
            &json!({"name": "both", "type": "iso", "details": "old"}),
        )
        .ok("create");
        // The other gateway may not know of the first change yet, and must not take the second for one that is there already.
        for n in 0..40 {
            w.put("B1/images/both", &json!({"details": "new"})).ok("update");
            other
                .put("B1/images/both", &json!({"details": "old", "os": n.to_string()}))
                .ok("update");
            w.put("B1/images/both", &json!({"timezone": "Europe/Berlin"}))
                .ok("update");
            other
                .put("B1/images/both", &json!({"timezone": "UTC"}))
                .ok("update");
            let fresh = w.store.images.refresh("both").await.unwrap();
            let values = (fresh.spec.details.as_deref(), fresh.spec.timezone.as_deref());
            assert_eq!(values, (Some("old"), Some("UTC")), "{n}");
        }
    });
}

#[test]
fn two_gateways_agree_on_who_was_first() {
    row(async |w| {
        let other = &w.second(&w.client).await;
        for n in 0..10 {
            let body = json!({"name": format!("race_{n}"), "type": "iso"});
            let statuses = std::thread::scope(|scope| {
                let first = scope.spawn(|| w.post("B1/images", &body).status);
                let second = scope.spawn(|| other.post("B1/images", &body).status);
                [first.join().unwrap(), second.join().unwrap()]
            });
            assert!(statuses.contains(&200) && statuses.contains(&400), "{statuses:?}");
        }
        let user = json!({"username": "racer"});
        let statuses = std::thread::scope(|scope| {
            let first = scope.spawn(|| w.post("B1/users", &user).status);
            let second = scope.spawn(|| other.post("B1/users", &user).status);
            [first.join().unwrap(), second.join().unwrap()]
        });
        assert!(statuses.contains(&200) && statuses.contains(&400), "{statuses:?}");
    });
}

/// Sends two requests at the same time, each through a gateway of its own.
fn at_once(first: impl FnOnce() -> Reply + Send, second: impl FnOnce() -> Reply + Send) -> [Reply; 2] {
    std::thread::scope(|scope| {
        let first = scope.spawn(first);
        let second = scope.spawn(second);
        [first.join().unwrap(), second.join().unwrap()]
    })
}

/// How often a race is run.
const RACES: usize = 10;

#[test]
fn changes_through_two_gateways_at_once_both_hold() {
    row(async |w| {
        let other = &w.second(&w.client).await;
        let both = |path: &str, one: &Value, two: &Value| {
            for reply in at_once(|| w.put(path, one), || other.put(path, two)) {
                reply.ok("update");
            }
        };
        for n in 0..RACES {
            let text = n.to_string();
            both(
                "B1/hosts/fx-so",
                &json!({"os": text}),
                &json!({"public_ipv6": text}),
            );
            let host = w.store.hosts.refresh("fx-so").await.unwrap();
            assert_eq!(host.spec.os, text);
            assert_eq!(host.spec.public_ipv6, text);

            let path = "B1/provisioners/orders_admin";
            both(path, &json!({"tag": text}), &json!({"description": text}));
            let name = w.store.provisioners.by_wire_name("orders_admin").unwrap();
            let name = name.metadata.name.clone().unwrap();
            let provisioner = w.store.provisioners.refresh(&name).await.unwrap();
            assert_eq!(provisioner.spec.description.as_deref(), Some(text.as_str()));
            w.get(path).is(200, &json!({"tag": text, "description": text}));
        }
    });
}

#[test]
fn hosts_added_through_two_gateways_at_once_are_both_there() {
    row(async |w| {
        let other = &w.second(&w.client).await;
        for n in 0..RACES {
            let name = format!("race_{n}");
            w.post("B1/enviroments", &json!({"name": name})).ok("create");
            let path = format!("B1/enviroments/{name}/add_host");
            other
                .until("it is known", || {
                    other.get(&format!("B1/enviroments/{name}")).status == 200
                })
                .await;
            let add = |w: &World, host: &str| w.post(&path, &json!({"hosts": [host]}));
            for reply in at_once(|| add(w, "host-06-pdn"), || add(other, "host-08-pdn")) {
                reply.ok("add_host");
            }
            let stored = w.store.environments.by_wire_name(&name).unwrap();
            let stored = stored.metadata.name.clone().unwrap();
            let environment = w.store.environments.refresh(&stored).await.unwrap();
            let mut hosts = environment.spec.hosts.clone();
            hosts.sort();
            assert_eq!(hosts, ["host-06-pdn", "host-08-pdn"]);
        }
    });
}

#[test]
fn reports_on_a_task_through_two_gateways_at_once_are_both_kept() {
    row(async |w| {
        let other = &w.second(&w.client).await;
        for _ in 0..RACES {
            let made = w.post("B1/tasks", &json!({"description": "raced", "log": "first"}));
            let id = made.ok("create").json()["task_id"].as_str().unwrap().to_owned();
            let path = format!("B1/tasks/{id}");
            other
                .until("it is known", || other.get(&path).status == 200)
                .await;
            let report = |w: &World, log: &str| w.put(&path, &json!({"log": log}));
            for reply in at_once(|| report(w, "a"), || report(other, "b")) {
                reply.ok("update");
            }
            let name = w.store.tasks.by_uid(&id).unwrap().metadata.name.clone().unwrap();
            let status = w
                .store
                .tasks
                .refresh(&name)
                .await
                .unwrap()
                .status
                .clone()
                .unwrap();
            let mut logs: Vec<&str> = status.history.iter().map(|entry| entry.log.as_str()).collect();
            assert_eq!(logs.remove(0), "first");
            logs.push(&status.log);
            logs.sort_unstable();
            assert_eq!(logs, ["a", "b"]);
        }
    });
}

#[test]
fn of_two_files_with_one_name_one_is_made() {
    row(async |w| {
        let other = &w.second(&w.client).await;
        for n in 0..RACES {
            let name = format!("race_{n}");
            let upload = |w: &World, text: &str| {
                let parts = [("file", Some(name.as_str()), text)];
                w.send(&Request::new("POST", "B1/files").form(&parts))
            };
            let replies = at_once(|| upload(w, "one"), || upload(other, "two"));
            let mut statuses = replies.map(|reply| reply.status);
            statuses.sort_unstable();
            assert_eq!(statuses, [201, 400]);
        }
    });
}

#[test]
fn clones_that_nobody_named_get_a_name_each() {
    row(async |w| {
        let other = &w.second(&w.client).await;
        let path = "B1/instances/clone_instance/WebServer";
        for _ in 0..RACES / 2 {
            for reply in at_once(|| w.post(path, &json!({})), || other.post(path, &json!({}))) {
                reply.in_progress("clone");
            }
        }
        for n in 1..=RACES {
            let name = if n == 1 {
                "WebServer_clone".to_owned()
            } else {
                format!("WebServer_clone_{n}")
            };
            let path = format!("B1/instances/{name}");
            w.until("the clone is seen", || w.get(&path).status == 200).await;
        }
    });
}

#[test]
fn a_system_user_is_left_whatever_two_gateways_do() {
    row(async |w| {
        let other = &w.second(&w.client).await;
        let path = "B1/users/virtshell";
        let is_system = |w: &World, path: &str| w.get(path).json()["type"] == "system";
        for n in 0..RACES {
            w.put(path, &json!({"type": "system"})).ok("update");
            other.until("both are known", || is_system(other, path)).await;
            // Both gateways know of two system users, and each is to take one of them away.
            let regular = json!({"type": "regular"});
            let statuses = at_once(
                || w.put(path, &regular),
                || match n % 2 {
                    0 => other.put("B1/users/tester", &regular),
                    _ => other.delete("B1/users/tester"),
                },
            )
            .map(|reply| reply.status);
            let left = w.store.users.list_whole().await.unwrap();
            let left = left
                .iter()
                .filter(|user| user.spec.type_ == UserType::System)
                .count();
            assert!(left > 0, "{n}: {statuses:?}");
            fixtures::reset(w).await;
            other
                .until("tester is back", || other.get("B1/users/tester").status == 200)
                .await;
        }
    });
}

/// Of every collection that is written synchronously: a body, a change, and what is shown then.
fn collections() -> Vec<(&'static str, Value, Value)> {
    vec![
        ("hosts", json!({"name": "quick"}), json!({"os": "x"})),
        ("sections", json!({"name": "quick"}), json!({"description": "x"})),
        (
            "enviroments",
            json!({"name": "quick"}),
            json!({"description": "x"}),
        ),
        (
            "images",
            json!({"name": "quick", "type": "iso"}),
            json!({"details": "x"}),
        ),
        (
            "provisioners",
            json!({"name": "quick"}),
            json!({"description": "x"}),
        ),
        (
            "groups",
            json!({"name": "quick"}),
            json!({"users": [{"username": "x"}]}),
        ),
        ("users", json!({"username": "quick"}), json!({"login": "x"})),
    ]
}

#[test]
fn every_collection_shows_at_once_what_was_written() {
    row(async |w| {
        for round in 0..3 {
            for (collection, body, change) in collections() {
                let path = format!("B1/{collection}/quick");
                let key = if collection == "users" { "username" } else { "name" };
                let is_listed = || {
                    let list = w.get(&format!("B1/{collection}")).json();
                    list[collection]
                        .as_array()
                        .unwrap()
                        .iter()
                        .any(|item| item[key] == "quick")
                };
                w.post(&format!("B1/{collection}"), &body).ok("create");
                w.get(&path).is(200, &body);
                assert!(is_listed(), "{collection} {round}");
                w.put(&path, &change).ok("update");
                w.get(&path).is(200, &change);
                w.delete(&path).ok("delete");
                w.get(&path).error(404);
                assert!(!is_listed(), "{collection} {round}");
            }
            let file = |text| [("file", Some("quick"), text)];
            w.send(&Request::new("POST", "B1/files").form(&file("one")))
                .is(201, &json!({}));
            w.get("B1/files/quick").is(200, &json!({"size": 3}));
            w.send(&Request::new("PUT", "B1/files/quick").form(&file("three")))
                .ok("update");
            w.get("B1/files/quick").is(200, &json!({"size": 5}));
            w.delete("B1/files/quick").ok("delete");
            w.get("B1/files/quick").error(404);
        }
    });
}

#[test]
fn calls_show_at_once_what_they_wrote() {
    row(async |w| {
        w.send(&Request::new(
            "PUT",
            "B1/sections/development_mx/host/host-06-pdn",
        ))
        .ok("add_host");
        w.get("B1/sections/development_mx/hosts")
            .exactly(200, &json!({"hosts": ["host-06-pdn"]}));
        w.get("B1/hosts/host-06-pdn")
            .is(200, &json!({"section": "development_mx"}));
        w.post("B1/enviroments", &json!({"name": "apart"})).ok("create");
        w.post(
            "B1/enviroments/add_host/apart",
            &json!({"hosts": ["host-08-pdn"]}),
        )
        .ok("add_host");
        w.get("B1/enviroments/apart/hosts")
            .exactly(200, &json!({"hosts": ["host-08-pdn"]}));
        w.put("B1/groups/production", &json!({"users": ["demouser"]}))
            .ok("update");
        w.get("B1/users/demouser")
            .is(200, &json!({"groups": [{"name": "production"}]}));

        let one = json!({"name": "quick", "enviroment": "development", "provisioner": "all_backend", "driver": "lxc"});
        let made = w.post("B1/instances", &one).in_progress("create");
        w.get("B1/instances/quick").is(200, &json!({"name": "quick"}));
        w.put("B1/instances/quick", &json!({"description": "x"}))
            .ok("update");
        w.get("B1/instances/quick").is(200, &json!({"description": "x"}));
        let all = json!({"instances": ["WebServer"], "command": "true", "packages": ["mc"], "file": "my.cnf", "destination": "/"});
        let mut tasks = vec![made, w.delete("B1/instances/quick").in_progress("delete")];
        for call in [
            "start_instance",
            "stop_instance",
            "restart_instance",
            "execute_command",
            "copy_files",
        ] {
            tasks.push(w.post(&format!("B1/instances/{call}"), &all).is(200, &json!({})));
        }
        tasks.push(
            w.post("B1/instances/clone_instance", &json!({"name": "WebServer"}))
                .in_progress("clone"),
        );
        w.get("B1/instances/WebServer_clone").is(200, &json!({}));
        for method in ["POST", "PUT", "DELETE"] {
            tasks.push(
                w.send(&Request::new(method, "B1/packages").body(&all))
                    .is(202, &json!({})),
            );
        }
        for reply in tasks {
            let id = reply.json()["task"].as_str().unwrap().to_owned();
            w.get(&format!("B1/tasks/{id}")).is(200, &json!({"uuid": id}));
        }
        let record = w
            .post("B1/tasks", &json!({"description": "d"}))
            .ok("create")
            .json();
        let path = format!("B1/tasks/{}", record["task_id"].as_str().unwrap());
        w.get(&path).is(200, &json!({"status": "pending"}));
        w.put(&path, &json!({"status": "failed"})).ok("update");
        w.get(&path).is(200, &json!({"status": "failed"}));
        w.delete(&path).ok("delete");
        w.get(&path).error(404);
    });
}

#[test]
fn what_was_written_is_read_at_once() {
    row(async |w| {
        for n in 0..50 {
            let path = format!("B1/images/quick_{n}");
            w.post("B1/images", &json!({"name": format!("quick_{n}"), "type": "iso"}))
                .ok("create");
            w.get(&path).is(200, &json!({}));
            w.put(&path, &json!({"details": n.to_string()})).ok("update");
            w.get(&path).is(200, &json!({"details": n.to_string()}));
            w.delete(&path).ok("delete");
            w.get(&path).error(404);
        }
    });
}
