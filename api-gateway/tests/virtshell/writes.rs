//! What was written is read at once, and of two gateways that write at once both answers are true.

use serde_json::json;

use crate::support::row;

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
