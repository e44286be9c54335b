//! The running gateway: its configuration, listeners and end.

use std::future::Future;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use kube::Client;
use kube::config::{KubeConfigOptions, Kubeconfig};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::auth::{Authenticator, Mode};
use crate::blobs::{Blobs, Place};
use crate::dialects::agents::Agents;
use crate::dialects::virtshell::{Limits, VirtShell};
use crate::metrics::Metrics;
use crate::nodes::{Account, Nodes};
use crate::router::{Gateway, Peer, router};
use crate::service::Service;
use crate::store::Store;

/// How long a client may take for the head of a request, and keep a connection without one.
const HEADER_PATIENCE: Duration = Duration::from_secs(30);
/// How long requests may take to finish after the process was asked to end.
const DRAIN: Duration = Duration::from_secs(10);

/// Configuration.
#[derive(clap::Parser, Clone, Debug)]
#[command(name = "virtshell-gateway", version, about = "VirtShell's REST gateway")]
pub struct Args {
    /// Kubeconfig; default: the environment's, or the pod's service account.
    #[arg(long, env = "VIRTSHELL_KUBECONFIG")]
    pub kubeconfig: Option<PathBuf>,
    /// The namespace it serves.
    #[arg(long, env = "VIRTSHELL_NAMESPACE", default_value = "virtshell")]
    pub namespace: String,
    /// The namespace of its own service account.
    #[arg(
        long,
        env = "VIRTSHELL_OPERATOR_NAMESPACE",
        default_value = "virtshell-system"
    )]
    pub operator_namespace: String,
    /// Its own service account, as which it asks node agents for live values.
    #[arg(long, env = "VIRTSHELL_SERVICE_ACCOUNT", default_value = "virtshell-gateway")]
    pub service_account: String,
    /// Address of the API, /healthz, /readyz and /metrics.
    #[arg(long, default_value = "127.0.0.1:8080")]
    pub listen: SocketAddr,
    /// Address where VirtShell's API has the bare root to itself; default: nowhere.
    #[arg(long)]
    pub virtshell_root_listen: Option<SocketAddr>,
    /// Whether requests must be signed; disabled only on loopback addresses.
    #[arg(long, value_enum, default_value = "required")]
    pub auth: Mode,
    /// Where stored files of more than 64 KiB are: a directory, or `s3://bucket/prefix` with `AWS_*` in the environment.
    /// Below it, each namespace has a part of its own.
    #[arg(
        long,
        env = "VIRTSHELL_FILE_STORE",
        default_value = "/var/lib/virtshell/files"
    )]
    pub file_store: Place,
    /// Most bytes of one upload.
    #[arg(long, default_value_t = 1 << 30)]
    pub max_upload: u64,
    /// Refuse requests that have a body and no Content-MD5.
    #[arg(long)]
    pub require_content_md5: bool,
}

/// Serves until the process is asked to end.
///
/// # Errors
/// When the configuration makes no sense or an address is taken; each says what would help.
pub async fn run(args: Args) -> anyhow::Result<()> {
    let listeners = Listeners::bind(&args).await?;
    let client = client(&args).await?;
    let ended = CancellationToken::new();
    let signal = ended.clone();
    tokio::spawn(async move {
        if let Err(error) = crate::telemetry::shutdown_signal().await {
            tracing::error!(%error, "cannot listen for signals");
        }
        signal.cancel();
    });
    let (store, feeds) = Store::open(&client, &args.namespace);
    serve(&args, &client, store, listeners, ended).await?;
    drop(feeds);
    Ok(())
}

/// Addresses that are ours.
pub struct Listeners {
    main: TcpListener,
    root: Option<TcpListener>,
}

impl Listeners {
    /// Takes the addresses of the configuration.
    ///
    /// # Errors
    /// When one is taken, or unsigned requests would be served beyond the loopback interface.
    pub async fn bind(args: &Args) -> anyhow::Result<Self> {
        let addresses = [Some(args.listen), args.virtshell_root_listen];
        if args.auth == Mode::Disabled
            && addresses
                .into_iter()
                .flatten()
                .any(|address| !address.ip().is_loopback())
        {
            bail!(
                "--auth disabled lets everybody do everything, so it needs loopback addresses: listen on 127.0.0.1"
            );
        }
        let main = bind(args.listen, "--listen").await?;
        let root = match args.virtshell_root_listen {
            Some(address) => Some(bind(address, "--virtshell-root-listen").await?),
            None => None,
        };
        Ok(Self { main, root })
    }

    /// Where the main listener is.
    ///
    /// # Errors
    /// When the system does not say.
    pub fn main_address(&self) -> std::io::Result<SocketAddr> {
        self.main.local_addr()
    }

    /// Where the root listener is, if there is one.
    #[must_use]
    pub fn root_address(&self) -> Option<SocketAddr> {
        self.root.as_ref().and_then(|listener| listener.local_addr().ok())
    }
}

/// Serves what `store` holds until `ended`.
///
/// # Errors
/// When a listener fails.
pub async fn serve(
    args: &Args,
    client: &Client,
    store: Arc<Store>,
    listeners: Listeners,
    ended: CancellationToken,
) -> anyhow::Result<()> {
    let account = Account {
        namespace: args.operator_namespace.clone(),
        name: args.service_account.clone(),
    };
    let place = args.file_store.of_namespace(&args.namespace);
    let blobs = Blobs::open(&place).context("--file-store cannot be used")?;
    let service = Service::new(store.clone(), blobs, Nodes::new(client.clone(), account));
    let authenticator = Arc::new(Authenticator::new(store.clone(), args.auth));
    let metrics = Arc::new(Metrics::default());
    let sweeping = service.clone();
    let sweeper = tokio::spawn(async move { sweeping.sweep_blobs().await });
    let limits = Limits {
        require_content_md5: args.require_content_md5,
        max_upload: args.max_upload,
    };
    let virtshell = || VirtShell::new(service.clone(), authenticator.clone(), limits);
    let main = Gateway {
        // One line per dialect.
        dialects: vec![
            Arc::new(Agents::new(service.clone(), client.clone())),
            // The last one refuses what none claims.
            Arc::new(virtshell().mounted()),
        ],
        store: store.clone(),
        metrics: metrics.clone(),
    };
    let root = Gateway {
        dialects: vec![Arc::new(virtshell().at_the_root().mounted())],
        store,
        metrics,
    };
    tracing::info!(address = %listeners.main_address()?, namespace = args.namespace, auth = ?args.auth, "serving");
    let mut servers = tokio::task::JoinSet::new();
    servers.spawn(listen(listeners.main, main, ended.clone()));
    if let Some(listener) = listeners.root {
        tracing::info!(address = %listener.local_addr()?, "serving VirtShell's API at the root");
        servers.spawn(listen(listener, root, ended.clone()));
    }
    let drained = async {
        while let Some(server) = servers.join_next().await {
            server.context("a listener panicked")?;
        }
        anyhow::Ok(())
    };
    let served = within_drain(drained, &ended).await;
    sweeper.abort();
    served
}

/// Serves HTTP/1.1 until `ended`, and then until what was asked is answered. `axum::serve` would wait for ever for a client
/// that never finishes its request.
async fn listen(mut listener: TcpListener, gateway: Gateway, ended: CancellationToken) {
    let router = router(gateway);
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEADER_PATIENCE);
    let connections = TaskTracker::new();
    loop {
        // It waits and goes on where the system has no more sockets to give.
        let accepted = axum::serve::Listener::accept(&mut listener);
        let Some((stream, peer)) = ended.run_until_cancelled(accepted).await else {
            break;
        };
        // Answers are written whole: to wait for more would only delay them.
        let _ = stream.set_nodelay(true);
        let service = TowerToHyperService::new(router.clone().layer(axum::Extension(Peer(peer))));
        let connection = http.serve_connection(TokioIo::new(stream), service);
        let ended = ended.clone();
        connections.spawn(async move {
            let mut connection = std::pin::pin!(connection);
            let served = tokio::select! {
                served = connection.as_mut() => served,
                () = ended.cancelled() => {
                    connection.as_mut().graceful_shutdown();
                    connection.await
                }
            };
            if let Err(error) = served {
                tracing::debug!(%error, "a connection broke off");
            }
        });
    }
    drop(listener);
    connections.close();
    connections.wait().await;
}

/// Runs to the end, but not longer than [`DRAIN`] after `ended`: an idle client may keep its connection for ever.
async fn within_drain(
    work: impl Future<Output = anyhow::Result<()>>,
    ended: &CancellationToken,
) -> anyhow::Result<()> {
    let too_late = async {
        ended.cancelled().await;
        tokio::time::sleep(DRAIN).await;
    };
    tokio::select! {
        result = work => result,
        () = too_late => {
            tracing::warn!("requests were still running {} s after the end was asked for", DRAIN.as_secs());
            Ok(())
        }
    }
}

async fn bind(address: SocketAddr, flag: &str) -> anyhow::Result<TcpListener> {
    use std::io::ErrorKind::{AddrInUse, PermissionDenied};
    TcpListener::bind(address).await.map_err(|error| {
        let kind = error.kind();
        if kind == AddrInUse {
            let port = address.port();
            anyhow::anyhow!(
                "{address} is taken by another process: stop that one (`ss -ltnp 'sport = :{port}'` names it), or \
                 choose another address with {flag}"
            )
        } else if kind == PermissionDenied {
            anyhow::anyhow!(
                "{address} may not be listened on: choose a port above 1023 with {flag}, or allow it \
                 (CAP_NET_BIND_SERVICE)"
            )
        } else {
            anyhow::anyhow!("{address} cannot be listened on ({error}): choose another address with {flag}")
        }
    })
}

/// A client for the cluster of the configuration.
async fn client(args: &Args) -> anyhow::Result<Client> {
    let mut config = match &args.kubeconfig {
        Some(path) => {
            let kubeconfig = Kubeconfig::read_from(path).with_context(|| {
                format!(
                    "{} cannot be read as a kubeconfig: check --kubeconfig",
                    path.display()
                )
            })?;
            kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
                .await
                .with_context(|| format!("{} names no usable cluster", path.display()))?
        }
        None => kube::Config::infer()
            .await
            .context("no Kubernetes API is known: set --kubeconfig or KUBECONFIG, or run in a pod")?,
    };
    config.connect_timeout = Some(Duration::from_secs(5));
    Client::try_from(config).context("the Kubernetes client cannot be made")
}
