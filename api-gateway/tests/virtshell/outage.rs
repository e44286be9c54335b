//! What clients see while the API server cannot be reached, and through two gateways at once.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kube::Client;
use serde_json::json;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use crate::support::{Request, config, row};

/// A way to the API server that can be cut.
struct Cable {
    address: SocketAddr,
    is_whole: Arc<watch::Sender<bool>>,
}

impl Cable {
    async fn to(server: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let is_whole = Arc::new(watch::Sender::new(true));
        let state = is_whole.clone();
        tokio::spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                let (mut cut, server) = (state.subscribe(), server.clone());
                if !*cut.borrow_and_update() {
                    continue;
                }
                tokio::spawn(async move {
                    let Ok(mut server) = TcpStream::connect(server).await else {
                        return;
                    };
                    tokio::select! {
                        _ = copy_bidirectional(&mut client, &mut server) => {}
                        _ = cut.wait_for(|whole| !whole) => {}
                    }
                });
            }
        });
        Self { address, is_whole }
    }
}

#[test]
fn v_012_the_kubernetes_api_is_unreachable() {
    row(async |w| {
        let mut config = config().await;
        let cable = Cable::to(config.cluster_url.authority().unwrap().to_string()).await;
        config.cluster_url = format!("https://{}", cable.address).parse().unwrap();
        config.connect_timeout = Some(Duration::from_secs(5));
        let w = &w.second(&Client::try_from(config).unwrap()).await;
        w.get("B1/hosts").is(200, &json!({}));

        cable.is_whole.send_replace(false);
        let cut = Instant::now();
        let write = w.put("B1/hosts/fx-gp", &json!({"os": "x"})).error(500);
        assert_eq!(write, "internal error: the Kubernetes API cannot be reached");
        w.get("B1/hosts").is(200, &json!({}));
        let status = || w.get("B1/hosts").status;
        w.until("reads are refused", || status() == 500).await;
        let after = cut.elapsed();
        assert!(
            (Duration::from_secs(9)..Duration::from_secs(20)).contains(&after),
            "{after:?}"
        );
        let message = w.get("B1/hosts").error(500);
        assert!(
            message.starts_with("internal error: no contact with the Kubernetes API for "),
            "{message}"
        );
        let ready = || {
            w.send_raw("/readyz", &Request::new("GET", "/readyz").unsigned())
                .status
        };
        assert_eq!(ready(), 503);
        // What is not served stays not served, and who does not take JSON gets none.
        w.get("B1/volumes").error(501);
        assert_eq!(
            w.send(&Request::new("GET", "B1/hosts").header("Accept", "text/html"))
                .status,
            406
        );

        cable.is_whole.send_replace(true);
        w.until("reads are back", || status() == 200 && ready() == 200)
            .await;
        w.put("B1/hosts/fx-gp", &json!({"os": "back"})).ok("update");
        w.get("B1/hosts/fx-gp").is(200, &json!({"os": "back"}));
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
