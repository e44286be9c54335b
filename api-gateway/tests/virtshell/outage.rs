//! What clients see while the API server cannot be reached.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kube::Client;
use serde_json::json;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use crate::support::{Request, World, config, row};

/// A way to the API server that can fail.
struct Cable {
    address: SocketAddr,
    state: Arc<watch::Sender<State>>,
}

#[derive(Clone, Copy)]
struct State {
    /// What becomes of what is sent.
    way: Way,
    /// Connections of an earlier time never work again.
    era: u32,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    Whole,
    /// Sockets are closed.
    Cut,
    /// Nobody hears of anything: as where a firewall drops packets.
    Swallowing,
}

impl Cable {
    async fn to(server: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let way = Way::Whole;
        let state = Arc::new(watch::Sender::new(State { way, era: 0 }));
        let now = state.clone();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(carry(client, server.clone(), now.subscribe()));
            }
        });
        Self { address, state }
    }

    /// A client of the API server that goes this way.
    async fn client() -> (Self, Client) {
        let mut config = config().await;
        let cable = Self::to(config.cluster_url.authority().unwrap().to_string()).await;
        config.cluster_url = format!("https://{}", cable.address).parse().unwrap();
        config.connect_timeout = Some(Duration::from_secs(5));
        (cable, Client::try_from(config).unwrap())
    }

    /// Every connection ends, in this way.
    fn breaks(&self, way: Way) {
        let era = self.state.borrow().era + 1;
        self.state.send_replace(State { way, era });
    }

    /// New connections work again.
    fn is_mended(&self) {
        self.state.send_modify(|state| state.way = Way::Whole);
    }
}

async fn carry(mut client: TcpStream, server: String, mut state: watch::Receiver<State>) {
    let State { way, era } = *state.borrow_and_update();
    match way {
        Way::Cut => return,
        Way::Swallowing => return swallow(&mut client).await,
        Way::Whole => {}
    }
    let Ok(mut server) = TcpStream::connect(server).await else {
        return;
    };
    let broken = tokio::select! {
        _ = copy_bidirectional(&mut client, &mut server) => return,
        broken = state.wait_for(|state| state.era != era) => broken.is_ok_and(|state| state.way != Way::Cut),
    };
    if broken {
        tokio::join!(swallow(&mut client), swallow(&mut server));
    }
}

async fn swallow(stream: &mut TcpStream) {
    let _ = tokio::io::copy(stream, &mut tokio::io::sink()).await;
    // The end is swallowed too.
    std::future::pending::<()>().await;
}

#[test]
fn v_012_the_kubernetes_api_is_unreachable() {
    row(async |w| {
        let (cable, client) = Cable::client().await;
        let w = &w.second(&client).await;
        w.get("B1/hosts").is(200, &json!({}));

        cable.breaks(Way::Cut);
        let cut = Instant::now();
        let write = w.put("B1/hosts/fx-gp", &json!({"os": "x"})).error(500);
        assert_eq!(write, "internal error: the Kubernetes API cannot be reached");
        w.get("B1/hosts").is(200, &json!({}));
        let status = || w.get("B1/hosts").status;
        w.until("reads are refused", || status() == 500).await;
        let after = cut.elapsed();
        assert!(
            (Duration::from_secs(5)..Duration::from_secs(11)).contains(&after),
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

        cable.is_mended();
        w.until("reads are back", || status() == 200 && ready() == 200)
            .await;
        w.put("B1/hosts/fx-gp", &json!({"os": "back"})).ok("update");
        w.get("B1/hosts/fx-gp").is(200, &json!({"os": "back"}));
    });
}

#[test]
fn a_network_that_swallows_everything_is_noticed() {
    row(async |w| {
        let (cable, client) = Cable::client().await;
        let behind = &w.second(&client).await;
        let os = |w: &World| {
            let reply = w.get("B1/hosts/fx-gp");
            (reply.status == 200).then(|| reply.json()["os"].clone())
        };
        w.put("B1/hosts/fx-gp", &json!({"os": "before"})).ok("update");
        behind
            .until("it is seen", || os(behind) == Some(json!("before")))
            .await;

        cable.breaks(Way::Swallowing);
        w.put("B1/hosts/fx-gp", &json!({"os": "meanwhile"})).ok("update");
        behind.until("reads are refused", || os(behind).is_none()).await;
        // Longer than it may show what is old, if it took the first answer to anything for the end of the outage.
        tokio::time::sleep(Duration::from_secs(5)).await;
        assert_eq!(os(behind), None);

        cable.is_mended();
        behind.until("reads are back", || os(behind).is_some()).await;
        assert_eq!(os(behind), Some(json!("meanwhile")));
    });
}

#[test]
fn a_watch_that_dies_alone_is_noticed() {
    row(async |w| {
        let (cable, client) = Cable::client().await;
        let behind = &w.second(&client).await;
        cable.breaks(Way::Swallowing);
        cable.is_mended();
        w.put("B1/hosts/fx-gp", &json!({"os": "later"})).ok("update");
        let seen = || behind.get("B1/hosts/fx-gp").json()["os"] == "later";
        let began = Instant::now();
        behind.until("it is seen", seen).await;
        assert!(began.elapsed() < Duration::from_secs(15), "{:?}", began.elapsed());
    });
}
