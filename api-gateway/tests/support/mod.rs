//! A gateway over a real API server, with the fixtures of the contract, fresh for every row.

pub mod document;
pub mod fixtures;
pub mod node;

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use clap::Parser;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Namespace;
use kube::api::{Patch, PatchParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, ResourceExt};
use serde_json::{Value, json};
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;
use virtshell_gateway::auth::signature::Signed;
use virtshell_gateway::server::{self, Args, Listeners};
use virtshell_gateway::store::{Feeds, Store};

/// How long anything may take that takes milliseconds.
const SOON: Duration = Duration::from_secs(30);
/// The user that signs unless a row says otherwise.
pub const TESTER: &str = "tester";

/// A gateway and the cluster behind it.
pub struct World {
    pub client: Client,
    pub namespace: String,
    pub store: Arc<Store>,
    main: SocketAddr,
    root: SocketAddr,
    versions: Mutex<fixtures::Versions>,
    _feeds: Feeds,
}

/// Runs one row on fresh fixtures. Rows run one after the other: hosts and sections belong to the whole cluster.
pub fn row(test: impl AsyncFnOnce(&World)) {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    static WORLD: OnceLock<World> = OnceLock::new();
    static TURN: Mutex<()> = Mutex::new(());
    let runtime = RUNTIME.get_or_init(|| Runtime::new().unwrap());
    let world = WORLD.get_or_init(|| runtime.block_on(World::start()));
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    runtime.block_on(async {
        fixtures::reset(world).await;
        test(world).await;
    });
}

/// A request of a row; `Bn/...` paths are below that base, `B0` on the root listener.
#[derive(Clone)]
pub struct Request<'a> {
    pub method: &'a str,
    pub path: &'a str,
    pub body: String,
    pub user: Option<&'a str>,
    pub headers: Vec<(&'a str, String)>,
    pub date: Timestamp,
    pub signature_header: &'a str,
}

impl<'a> Request<'a> {
    pub fn new(method: &'a str, path: &'a str) -> Self {
        Self {
            method,
            path,
            body: String::new(),
            user: Some(TESTER),
            headers: vec![("Accept", "application/json".to_owned())],
            date: Timestamp::now(),
            signature_header: "X-VirtShell-Authorization",
        }
    }

    pub fn body(mut self, body: &Value) -> Self {
        self.body = body.to_string();
        // As `curl -d` does.
        self.header("Content-Type", "application/x-www-form-urlencoded")
    }

    /// A multipart form: name, file name if it is a file, content.
    pub fn form(self, parts: &[(&str, Option<&str>, &str)]) -> Self {
        let mut body = String::new();
        for (name, file, content) in parts {
            body += "--b0und4ry\r\nContent-Disposition: form-data; name=\"";
            body += name;
            if let Some(file) = file {
                body += "\"; filename=\"";
                body += file;
            }
            body.extend(["\"\r\n\r\n", content, "\r\n"]);
        }
        body += "--b0und4ry--\r\n";
        self.text(&body)
            .header("Content-Type", "multipart/form-data; boundary=b0und4ry")
    }

    pub fn text(mut self, body: &str) -> Self {
        body.clone_into(&mut self.body);
        self
    }

    pub fn by(mut self, user: &'a str) -> Self {
        self.user = Some(user);
        self
    }

    pub fn unsigned(mut self) -> Self {
        self.user = None;
        self
    }

    pub fn header(mut self, name: &'a str, value: &str) -> Self {
        self.headers.retain(|(known, _)| *known != name);
        self.headers.push((name, value.to_owned()));
        self
    }

    pub fn without(mut self, name: &str) -> Self {
        self.headers.retain(|(known, _)| *known != name);
        self
    }
}

/// An answer.
#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    pub headers: BTreeMap<String, String>,
    pub body: Vec<u8>,
}

impl Reply {
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|_| panic!("no JSON: {self:?}"))
    }

    /// Status exact, every listed member present and equal; `"<U>"` is any uuid.
    #[track_caller]
    pub fn is(self, status: u16, expected: &Value) -> Self {
        assert_eq!(self.status, status, "{}", String::from_utf8_lossy(&self.body));
        assert_eq!(
            self.headers.get("content-type").map(String::as_str),
            Some("application/json")
        );
        let body = self.json();
        assert!(is_subset(expected, &body), "expected {expected}\nin {body}");
        self
    }

    /// `{"<verb>":"success"}`
    #[track_caller]
    pub fn ok(self, verb: &str) -> Self {
        self.is(200, &json!({verb: "success"}))
    }

    /// `{"<verb>":"in progress","task":U}`
    #[track_caller]
    pub fn in_progress(self, verb: &str) -> Self {
        self.is(200, &json!({verb: "in progress", "task": "<U>"}))
    }

    /// An error envelope.
    #[track_caller]
    pub fn error(self, status: u16) -> String {
        assert_eq!(self.status, status, "{}", String::from_utf8_lossy(&self.body));
        assert_eq!(
            self.headers.get("content-type").map(String::as_str),
            Some("application/json")
        );
        let body = self.json();
        let message = body["error"].as_str().unwrap_or_default().to_owned();
        assert!(!message.is_empty(), "{body}");
        message
    }

    /// Exactly this body.
    #[track_caller]
    pub fn exactly(self, status: u16, expected: &Value) {
        assert_eq!((self.status, &self.json()), (status, expected));
        assert_eq!(
            self.headers.get("content-type").map(String::as_str),
            Some("application/json")
        );
    }
}

fn is_subset(expected: &Value, seen: &Value) -> bool {
    match (expected, seen) {
        (Value::Object(expected), Value::Object(seen)) => expected
            .iter()
            .all(|(key, value)| seen.get(key).is_some_and(|seen| is_subset(value, seen))),
        (Value::String(any), Value::String(uuid)) if any == "<U>" => {
            virtshell_gateway::service::is_uuid(uuid)
        }
        (expected, seen) => expected == seen,
    }
}

impl World {
    async fn start() -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let config = config().await;
        let client = Client::try_from(config).unwrap();
        install(&client).await;
        let namespace = namespace();
        let object = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}});
        apply(&Api::<Namespace>::all(client.clone()), &namespace, &object).await;
        let (main, root, store, feeds) = gateway(&client, &namespace, &[]).await;
        let world = Self {
            client,
            namespace,
            store,
            main,
            root,
            versions: Mutex::default(),
            _feeds: feeds,
        };
        world
            .until("the caches are filled", || world.store.health().is_ok())
            .await;
        world
    }

    /// Another gateway of this world, behind a client of its own.
    pub async fn second(&self, client: &Client) -> Self {
        self.second_with(client, &[]).await
    }

    /// The same with further flags.
    pub async fn second_with(&self, client: &Client, flags: &[&str]) -> Self {
        let (main, root, store, feeds) = gateway(client, &self.namespace, flags).await;
        let versions = Mutex::default();
        let (client, namespace) = (client.clone(), self.namespace.clone());
        let world = Self {
            client,
            namespace,
            store,
            main,
            root,
            versions,
            _feeds: feeds,
        };
        world
            .until("the caches are filled", || world.store.health().is_ok())
            .await;
        world
    }

    /// Sends a request, signed unless it says otherwise.
    pub fn send(&self, request: &Request<'_>) -> Reply {
        let (base, rest) = request.path.split_at(2);
        let (address, base) = match base {
            "B0" => (self.root, ""),
            "B1" => (self.main, "/virtshell/api/v1"),
            "B2" => (self.main, "/api/virtshell/v1"),
            "B3" => (self.main, "/api/virtsh/v1"),
            "B4" => (self.main, "/api/v1"),
            _ => panic!("no base: {}", request.path),
        };
        Self::send_to(address, &format!("{base}{rest}"), request)
    }

    /// Host and port of the main listener.
    pub fn address(&self) -> String {
        self.main.to_string()
    }

    /// Sends a request to a target on the main listener that is below no base.
    pub fn send_raw(&self, target: &str, request: &Request<'_>) -> Reply {
        Self::send_to(self.main, target, request)
    }

    /// Sends a request to a target of any gateway of the world's namespace.
    pub fn send_to(address: SocketAddr, target: &str, request: &Request<'_>) -> Reply {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(SOON)).unwrap();
        stream
            .write_all(Self::head(address, target, request).as_bytes())
            .unwrap();
        // A server that refuses early may close before it has read everything.
        let _ = stream.write_all(request.body.as_bytes());
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).unwrap();
        let reply = parse(&bytes);
        document::allows(request.method, target, &reply);
        reply
    }

    /// What goes before the body.
    pub fn head(address: SocketAddr, target: &str, request: &Request<'_>) -> String {
        let mut headers = request.headers.clone();
        let host = address.to_string();
        if let Some(user) = request.user {
            let date = request.date.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string();
            let value = |name: &str| {
                headers
                    .iter()
                    .find(|(n, _)| n.eq_ignore_ascii_case(name))
                    .map_or("", |(_, v)| v.as_str())
            };
            let given = value("Date").to_owned();
            let date = if given.is_empty() { date } else { given };
            let signed = Signed {
                method: request.method,
                host: &host,
                content_md5: value("Content-MD5"),
                content_type: value("Content-Type"),
                date: &date,
                resource: target.split('?').next().unwrap_or_default(),
            };
            let signature = format!(
                "{}:{}",
                fixtures::key_id(user),
                signed.sign(&fixtures::secret(user))
            );
            headers.retain(|(name, _)| *name != "Date");
            headers.push(("Date", date.clone()));
            headers.push((request.signature_header, signature));
        }
        let mut text = format!(
            "{} {target} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n",
            request.method
        );
        for (name, value) in &headers {
            text.extend([name, ": ", value, "\r\n"]);
        }
        if !request.body.is_empty() || matches!(request.method, "POST" | "PUT") {
            text.extend(["Content-Length: ", &request.body.len().to_string(), "\r\n"]);
        }
        text += "\r\n";
        text
    }

    pub fn get(&self, path: &str) -> Reply {
        self.send(&Request::new("GET", path))
    }

    pub fn post(&self, path: &str, body: &Value) -> Reply {
        self.send(&Request::new("POST", path).body(body))
    }

    pub fn put(&self, path: &str, body: &Value) -> Reply {
        self.send(&Request::new("PUT", path).body(body))
    }

    pub fn delete(&self, path: &str) -> Reply {
        self.send(&Request::new("DELETE", path))
    }

    /// Waits for something that happens soon.
    pub async fn until(&self, what: &str, holds: impl Fn() -> bool) {
        let deadline = Instant::now() + SOON;
        while !holds() {
            assert!(Instant::now() < deadline, "not in time: {what}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Merges into an object as kubectl would, and waits until the gateway knows.
    pub async fn patch<K>(
        &self,
        cache: &virtshell_gateway::store::Collection<K>,
        wire_name: &str,
        patch: Value,
    ) where
        K: virtshell_gateway::store::Cached
            + kube::Resource<Scope = kube::core::NamespaceResourceScope>
            + std::fmt::Debug
            + serde::de::DeserializeOwned
            + serde::Serialize,
    {
        let name = virtshell_crds::names::object_name(wire_name);
        let patched = self
            .api::<K>()
            .patch(&name, &PatchParams::default(), &Patch::Merge(patch))
            .await
            .unwrap();
        let version = patched.resource_version();
        let seen = || {
            cache
                .by_object_name(&name)
                .and_then(|object| object.resource_version())
                == version
        };
        self.until("the patch is seen", seen).await;
    }

    /// Removes every fixture of a kind, and waits until the gateway knows.
    pub async fn clear<K>(&self, seen: impl Fn() -> bool)
    where
        K: kube::Resource<DynamicType = (), Scope = kube::core::NamespaceResourceScope>
            + Clone
            + std::fmt::Debug
            + serde::de::DeserializeOwned,
    {
        let all = kube::api::ListParams::default();
        self.api::<K>()
            .delete_collection(&kube::api::DeleteParams::default(), &all)
            .await
            .unwrap();
        self.until("the fixtures are gone", seen).await;
    }

    /// An API of this world's namespace.
    pub fn api<K>(&self) -> Api<K>
    where
        K: kube::Resource<DynamicType = (), Scope = kube::core::NamespaceResourceScope>,
    {
        Api::namespaced(self.client.clone(), &self.namespace)
    }
}

/// The kubeconfig of the cluster of the tests.
pub fn kubeconfig() -> &'static Path {
    static KUBECONFIG: OnceLock<PathBuf> = OnceLock::new();
    KUBECONFIG.get_or_init(control_plane)
}

/// The cluster of the tests.
pub async fn config() -> kube::Config {
    let kubeconfig = Kubeconfig::read_from(kubeconfig()).unwrap();
    kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
        .await
        .unwrap()
}

/// Starts a gateway on free ports: main address, root address, what it knows.
async fn gateway(
    client: &Client,
    namespace: &str,
    flags: &[&str],
) -> (SocketAddr, SocketAddr, Arc<Store>, Feeds) {
    let free = "127.0.0.1:0";
    let args = [
        "virtshell-gateway",
        "--namespace",
        namespace,
        "--listen",
        free,
        "--virtshell-root-listen",
        free,
        "--file-store",
        file_store().to_str().unwrap(),
        "--max-upload",
        "2097152",
    ];
    let args = Args::parse_from(args.iter().chain(flags));
    let listeners = Listeners::bind(&args).await.unwrap();
    let (main, root) = (
        listeners.main_address().unwrap(),
        listeners.root_address().unwrap(),
    );
    let (store, feeds) = Store::open(client, namespace);
    let (served, client) = (store.clone(), client.clone());
    tokio::spawn(
        async move { server::serve(&args, &client, served, listeners, CancellationToken::new()).await },
    );
    (main, root, store, feeds)
}

/// The namespace of this process.
fn namespace() -> String {
    format!("gateway-{}", std::process::id())
}

/// Where the blobs of the namespace are.
pub fn blob_store() -> PathBuf {
    file_store().join(namespace())
}

/// Where the gateways of this process keep blobs.
pub fn file_store() -> &'static Path {
    static STORE: OnceLock<tempfile::TempDir> = OnceLock::new();
    STORE.get_or_init(|| tempfile::tempdir().unwrap()).path()
}

fn parse(bytes: &[u8]) -> Reply {
    let end = bytes
        .windows(4)
        .position(|w| w == b"\r\n\r\n")
        .expect("a response");
    let head = std::str::from_utf8(&bytes[..end]).unwrap();
    let mut lines = head.split("\r\n");
    let status = lines
        .next()
        .and_then(|line| line.split(' ').nth(1))
        .unwrap()
        .parse()
        .unwrap();
    let headers = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
        .collect();
    let headers: BTreeMap<String, String> = headers;
    let body = &bytes[end + 4..];
    let body = match headers.get("transfer-encoding").map(String::as_str) {
        Some("chunked") => unchunked(body),
        _ => body.to_vec(),
    };
    Reply {
        status,
        headers,
        body,
    }
}

fn unchunked(mut body: &[u8]) -> Vec<u8> {
    let mut whole = Vec::new();
    loop {
        let end = body.windows(2).position(|w| w == b"\r\n").expect("a chunk");
        let size = usize::from_str_radix(std::str::from_utf8(&body[..end]).unwrap(), 16).unwrap();
        if size == 0 {
            return whole;
        }
        whole.extend_from_slice(&body[end + 2..end + 2 + size]);
        body = &body[end + 2 + size + 2..];
    }
}

/// A control plane: the one of `VIRTSHELL_TEST_KUBECONFIG`, or one started for this process.
fn control_plane() -> PathBuf {
    if let Some(kubeconfig) = std::env::var_os("VIRTSHELL_TEST_KUBECONFIG") {
        return kubeconfig.into();
    }
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../hack/controlplane.sh");
    let directory = std::env::temp_dir().join(format!("virtshell-gateway-test-{}", std::process::id()));
    // A shell that outlives this process by as long as stopping takes, however this process ends.
    let stop = format!(
        "cat >/dev/null; {} stop {d}; rm -rf {d}",
        script.display(),
        d = directory.display()
    );
    let guard = Command::new("sh")
        .args(["-c", &stop])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    // Its standard input closes when this process is gone.
    std::mem::forget(guard);
    let status = Command::new(&script)
        .arg("start")
        .arg(&directory)
        .env("VIRTSHELL_APISERVER_PORT", "auto")
        .env("VIRTSHELL_UNSAFE_NO_FSYNC", "1")
        .status()
        .unwrap_or_else(|error| panic!("{}: {error}", script.display()));
    assert!(
        status.success(),
        "the control plane did not start; set VIRTSHELL_TEST_KUBECONFIG to use another"
    );
    directory.join("admin.kubeconfig")
}

async fn install(client: &Client) {
    let api: Api<
        k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
    > = Api::all(client.clone());
    for definition in virtshell_crds::manifests::definitions() {
        apply(
            &api,
            &definition.name_any(),
            &serde_json::to_value(&definition).unwrap(),
        )
        .await;
    }
    for definition in virtshell_crds::manifests::definitions() {
        let name = definition.name_any();
        let established = kube::runtime::conditions::is_crd_established();
        let wait = kube::runtime::wait::await_condition(api.clone(), &name, established);
        tokio::time::timeout(SOON, wait).await.expect(&name).unwrap();
    }
}

async fn apply<K>(api: &Api<K>, name: &str, object: &Value)
where
    K: kube::Resource + Clone + serde::de::DeserializeOwned + std::fmt::Debug,
{
    let mut object = object.clone();
    object.as_object_mut().unwrap().remove("status");
    api.patch(
        name,
        &PatchParams::apply("virtshell-gateway-tests").force(),
        &Patch::Apply(object),
    )
    .await
    .unwrap();
}
