//! A node agent without guests: it publishes its endpoint in a Host, answers the Node API's questions, and lets the API
//! server say whether the caller's token was made for this host.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec};
use k8s_openapi::api::core::v1::{Namespace, ServiceAccount};
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use virtshell_crds::{Host, node_audience};

use super::World;

/// The account under which the gateway of the tests asks.
pub const ACCOUNT: &str = "virtshell-gateway";

/// A node agent that runs until it is dropped.
pub struct Node {
    answers: Arc<Mutex<BTreeMap<String, Value>>>,
    asked: Arc<Mutex<Vec<String>>>,
    server: tokio::task::JoinHandle<()>,
}

impl Drop for Node {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl Node {
    /// Serves for this Host, and waits until the gateway knows where.
    pub async fn of(world: &World, host: &str) -> Self {
        accounts(world).await;
        let key =
            rcgen::generate_simple_self_signed(["localhost".to_owned(), "127.0.0.1".to_owned()]).unwrap();
        let secret = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.signing_key.serialize_der()));
        let config = ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(vec![key.cert.der().clone()], secret)
            .unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("https://{}", listener.local_addr().unwrap());
        let answers: Arc<Mutex<BTreeMap<String, Value>>> = Arc::default();
        let asked: Arc<Mutex<Vec<String>>> = Arc::default();
        let (known, heard) = (answers.clone(), asked.clone());
        let (client, name) = (world.client.clone(), host.to_owned());
        let server = tokio::spawn(async move {
            let acceptor = TlsAcceptor::from(Arc::new(config));
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (acceptor, client, name) = (acceptor.clone(), client.clone(), name.clone());
                let (known, heard) = (known.clone(), heard.clone());
                tokio::spawn(async move { serve(stream, acceptor, client, &name, &known, &heard).await });
            }
        });
        let hosts: Api<Host> = Api::all(world.client.clone());
        let status = json!({"status": {"endpoint": {"url": url, "certificate": key.cert.pem()},
            "capacity": {"cpus": 16, "memoryMiB": 65536, "diskMiB": 500_000}}});
        hosts
            .patch_status(host, &PatchParams::default(), &Patch::Merge(status))
            .await
            .unwrap();
        let endpoint = || {
            let host = world.store.hosts.by_object_name(host)?;
            Some(host.status.clone()?.endpoint?.url)
        };
        world
            .until("the endpoint is seen", || endpoint().as_ref() == Some(&url))
            .await;
        Self {
            answers,
            asked,
            server,
        }
    }

    /// What it answers for a path below `instances/`, such as `web/stats`.
    pub fn answers(&self, path: &str, answer: Value) {
        self.answers.lock().unwrap().insert(path.to_owned(), answer);
    }

    /// The paths it was asked, by callers that it believed.
    pub fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }
}

/// The service account of the gateway.
async fn accounts(world: &World) {
    let namespaces: Api<Namespace> = Api::all(world.client.clone());
    let object = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "virtshell-system"}});
    super::apply(&namespaces, "virtshell-system", &object).await;
    let accounts: Api<ServiceAccount> = Api::namespaced(world.client.clone(), "virtshell-system");
    let object = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": ACCOUNT}});
    super::apply(&accounts, ACCOUNT, &object).await;
}

async fn serve(
    stream: TcpStream,
    acceptor: TlsAcceptor,
    client: Client,
    host: &str,
    answers: &Mutex<BTreeMap<String, Value>>,
    asked: &Mutex<Vec<String>>,
) {
    let Ok(mut stream) = acceptor.accept(stream).await else {
        return;
    };
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_) => return,
        }
    }
    let head = String::from_utf8(head).unwrap();
    let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
    let token = head
        .lines()
        .find_map(|line| line.strip_prefix("authorization: Bearer "))
        .unwrap_or_default();
    let (status, body) = if is_for(&client, host, token).await {
        asked.lock().unwrap().push(path.clone());
        let known = path
            .split_once("/instances/")
            .and_then(|(_, rest)| answers.lock().unwrap().get(rest).cloned());
        known.map_or(("409 Conflict", Value::Null), |answer| ("200 OK", answer))
    } else {
        ("401 Unauthorized", Value::Null)
    };
    let body = body.to_string();
    let response = format!(
        "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let _ = stream.write_all(response.as_bytes()).await;
    let _ = stream.shutdown().await;
}

/// Whether the API server knows the token as the gateway's, made for this host.
async fn is_for(client: &Client, host: &str, token: &str) -> bool {
    let review = TokenReview {
        spec: TokenReviewSpec {
            token: token.to_owned(),
            audiences: Some(vec![node_audience(host)]),
        },
        ..TokenReview::default()
    };
    let api: Api<TokenReview> = Api::all(client.clone());
    let answer = api.create(&PostParams::default(), &review).await.unwrap();
    let status = answer.status.unwrap();
    let user = status.user.and_then(|user| user.username);
    status.authenticated == Some(true)
        && user.as_deref() == Some("system:serviceaccount:virtshell-system:virtshell-gateway")
}
