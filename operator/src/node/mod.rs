//! The role beside libvirt: drives the domains of its host to what their Instances ask for.
//!
//! ```text
//! Instances --watch--+                         +--> libvirt, storage
//! libvirt --events---+--> queue --> reconcile -+
//! timers, guests ----+                         +--> status, Events
//! ```
//!
//! [`reconcile`] is the loop: it observes, asks [`plan`](mod@plan) what to do for the [`goal`](mod@goal), performs it step by
//! step ([`perform`]) and reports ([`report`]). [`connection`] keeps each libvirt connected and its calls bounded.
//! [`guest`] listens to guests in the background, [`access`] leads into them, [`tasks`] runs there what was assigned.
//! [`host`] keeps the Host, [`lease`] and [`token`] keep the agent known, [`api`] serves what is not state.

pub mod access;
pub mod api;
pub mod applied;
pub mod backoff;
pub mod carried;
pub mod clone;
pub mod connection;
pub mod context;
pub mod domain_xml;
pub mod errands;
pub mod events;
pub mod files;
pub mod goal;
pub mod guest;
pub mod host;
pub mod hypervisor;
pub mod images;
pub mod lease;
pub mod libvirt;
pub mod metadata;
pub mod metrics;
pub mod observed;
pub mod own;
pub mod perform;
pub mod plan;
pub mod provision;
pub mod queue;
pub mod reconcile;
pub mod report;
pub mod storage;
pub mod stream;
pub mod tasks;
pub mod token;
pub mod watch;
pub mod xml;

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use ipnet::IpNet;
use k8s_openapi::api::core::v1::ServiceAccount;
use kube::Client;
use kube::api::Api;
use libvirt_ffi::{DomainEvent, Notice};
use prometheus_client::registry::Registry;
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinSet;
use virtshell_crds::instance::Driver;
use virtshell_crds::{host_account, node_manager};

use crate::probes::{Probes, Readiness};
use crate::{cluster, telemetry};
use access::ssh;
use connection::{Connection, Signal};
use context::{Context, Instances};
use errands::Errands;
use files::Files;
use goal::Offer;
use guest::Guests;
use metrics::Metrics;
use own::Echoes;
use storage::{CacheLimits, Options, Storage, Web, kvm_probe};

/// How long a start waits for the first libvirt connection before it serves without one.
const FIRST_CONNECTION: Duration = Duration::from_secs(10);

/// Arguments of the node agent.
#[derive(clap::Args, Clone, Debug)]
pub struct Args {
    /// Kubeconfig; default: the environment's, or the pod's service account.
    #[arg(long, env = "VIRTSHELL_KUBECONFIG")]
    pub kubeconfig: Option<PathBuf>,
    /// File with this agent's service account token; kept fresh by the agent.
    #[arg(long)]
    pub token_file: Option<PathBuf>,
    /// The operator's own namespace: Leases and the service accounts of hosts.
    #[arg(long, env = "VIRTSHELL_NAMESPACE", default_value = "virtshell-system")]
    pub namespace: String,
    /// metadata.name of the Host that this agent serves; default: the machine's host name.
    #[arg(long, env = "VIRTSHELL_HOST_NAME")]
    pub host_name: Option<String>,
    /// The Kubernetes node that this agent runs on.
    #[arg(long, env = "VIRTSHELL_NODE_NAME")]
    pub node_name: Option<String>,
    /// Images, disks and seeds; must be readable by QEMU's user.
    #[arg(long, default_value = "/var/lib/virtshell")]
    pub data_dir: PathBuf,
    /// libvirt connection of a driver, `DRIVER=URI`; may repeat. Given once, only those given are there. Default: kvm and qemu at `qemu:///system`, lxc at
    /// `lxc:///system`.
    #[arg(long = "driver", value_name = "DRIVER=URI")]
    pub drivers: Vec<String>,
    /// Calls that libvirtd serves at a time (`max_workers` in its configuration, 20 unless set there). Those that guests hold
    /// up keep one each: a host where more than 14 guests may hang at once needs more than 20.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u16).range(8..=400))]
    pub libvirt_workers: u16,
    /// Run guests of driver kvm emulated where hardware virtualization is not usable.
    #[arg(long)]
    pub allow_emulation: bool,
    /// Allow images with file:// URLs.
    #[arg(long)]
    pub allow_file_images: bool,
    /// Allow images by http(s) from addresses of this network though they are the host's own (loopback, link-local, metadata
    /// services), such as 127.0.0.1/32; may repeat.
    #[arg(long, value_name = "CIDR")]
    pub image_source_allow: Vec<IpNet>,
    /// MiB that cached images may take together; 0 = no limit. Images in use count, and stay.
    #[arg(long, default_value_t = 0)]
    pub image_cache_mib: u64,
    /// How long a cached image stays after its last use, such as 14d or 12h; 0 = as long as there is room.
    #[arg(long, default_value = "14d", value_parser = images::age)]
    pub image_cache_age: Duration,
    /// Where agents reach the gateway, which keeps the content of large stored files.
    #[arg(long, env = "VIRTSHELL_GATEWAY_URL", value_name = "URL", value_parser = cluster::http_url)]
    pub gateway_url: Option<reqwest::Url>,
    /// Address of /healthz, /readyz and /metrics.
    #[arg(long, default_value = "127.0.0.1:10352")]
    pub listen: SocketAddr,
    /// Address of the Node API: statistics, consoles and screens of guests, for callers with a token (HTTPS).
    #[arg(long, env = "VIRTSHELL_NODE_LISTEN_API", default_value = "0.0.0.0:10350")]
    pub listen_api: SocketAddr,
}

/// Runs until the process is asked to end. Guests run on.
///
/// # Errors
/// When the configuration makes no sense, another agent has the data directory, or the address cannot be listened on.
pub async fn run(args: Args) -> anyhow::Result<()> {
    let drivers = drivers(&args.drivers)?;
    let config = cluster::config(args.kubeconfig.as_deref()).await?;
    let server = cluster::address(&config).await;
    let client = cluster::client(config)?;
    let hostname = nix::unistd::gethostname()
        .ok()
        .and_then(|name| name.into_string().ok())
        .unwrap_or_default();
    let host = args.host_name.clone().unwrap_or_else(|| hostname.to_lowercase());
    let (storage, files) = open_storage(&args, &host, client.clone()).await?;
    let ssh_key = ssh_key(&args.data_dir, &host).await;
    libvirt_ffi::start_event_loop()
        .map_err(|why| anyhow::anyhow!("libvirt's event loop cannot be started: {why}"))?;
    let names = api::Names {
        host: host.clone(),
        hostname: hostname.clone(),
        address: server.map_or(IpAddr::from([127, 0, 0, 1]), api::address_towards),
    };
    let listening = api::Listening::open(args.listen_api, &args.data_dir, names)
        .await
        .with_context(|| format!("cannot serve the Node API at {}", args.listen_api))?;
    let kvm = kvm_probe::probe().await;
    tracing::info!(host.name = host, ?kvm, "serving this host");

    let mut registry = Registry::default();
    let metrics = Metrics::new(&mut registry);
    let readiness = Readiness::default();
    let (signals, heard) = mpsc::unbounded_channel();
    let (requests, queue) = queue::queue();
    let connections = connections(&drivers, args.libvirt_workers.into(), &metrics, &signals);
    let (events, publishing) = crate::events::events(client.clone(), "virtshell-node", host.clone());
    let context = Arc::new(Context {
        events,
        client: client.clone(),
        manager: node_manager(&host),
        host: host.clone(),
        connections,
        storage,
        files,
        ssh_key,
        instances: Instances::default(),
        offer: RwLock::new(Offer::default()),
        endpoint: RwLock::new(listening.endpoint()),
        records: Mutex::new(HashMap::new()),
        guests: Arc::new(Guests::default()),
        jobs: provision::Jobs::default(),
        clones: Arc::default(),
        fetches: Errands::default(),
        copies: Errands::default(),
        echoes: Echoes::default(),
        requests,
        metrics: metrics.clone(),
        started: Instant::now(),
    });
    let machine = host::Machine {
        node_name: args.node_name.clone().unwrap_or_default(),
        hostname,
        kvm,
        allow_emulation: args.allow_emulation,
    };

    let probes = Probes::new(readiness.clone(), registry);
    let look = Arc::new(Notify::new());
    let serving = {
        let (publishing, look) = (Arc::clone(&context), Arc::clone(&look));
        listening.serve(Arc::clone(&context), probes.clone(), move |endpoint| {
            *publishing
                .endpoint
                .write()
                .unwrap_or_else(PoisonError::into_inner) = endpoint;
            look.notify_one();
        })
    };
    let mut team = JoinSet::new();
    team.spawn(publishing);
    for (_, connection) in context.libvirts() {
        team.spawn(Arc::clone(connection).run());
    }
    if let Some(file) = args.token_file {
        let api: Api<ServiceAccount> = Api::namespaced(client, &args.namespace);
        team.spawn(token::run(api, host_account(&host), file));
    }
    team.spawn(lease::run(Arc::clone(&context), args.namespace));
    team.spawn(listen(Arc::clone(&context), heard, Arc::clone(&look)));
    team.spawn(images::run(Arc::clone(&context), Arc::clone(&look)));
    team.spawn(work(Arc::clone(&context), machine, look, queue, readiness));
    tokio::select! {
        ended = probes.serve(args.listen) => {
            ended.with_context(|| format!("cannot serve health and metrics at {}", args.listen))
        }
        ended = serving => ended.context("cannot serve the Node API"),
        asked = telemetry::shutdown_signal() => asked.context("cannot listen for signals"),
    }
}

async fn open_storage(args: &Args, host: &str, client: Client) -> anyhow::Result<(Storage, Arc<Files>)> {
    let options = Options {
        allow_file_images: args.allow_file_images,
        cache: CacheLimits {
            max_mib: args.image_cache_mib,
            max_idle: args.image_cache_age,
        },
        ..Options::default()
    };
    let web = Web::new(args.image_source_allow.clone()).context("cannot prepare downloads")?;
    let http = files::http_client().context("cannot prepare downloads")?;
    let gateway = args.gateway_url.clone();
    let files = Arc::new(Files::new(client, http, host, &args.namespace, gateway));
    let (data_dir, shared) = (args.data_dir.clone(), Arc::clone(&files));
    let open = move || Storage::open(&data_dir, options, web, shared);
    Ok((tokio::task::spawn_blocking(open).await??, files))
}

/// The key for guests without an agent. Without it there is one way less into them, and all else works.
async fn ssh_key(data_dir: &Path, host: &str) -> Option<Arc<ssh::Key>> {
    let (data_dir, host) = (data_dir.to_owned(), host.to_owned());
    let made = tokio::task::spawn_blocking(move || ssh::Key::load_or_make(&data_dir, &host)).await;
    match made {
        Ok(Ok(key)) => Some(Arc::new(key)),
        Ok(Err(error)) => {
            tracing::warn!(%error, "no key for SSH into guests: is openssh-client installed?");
            None
        }
        Err(_) => None,
    }
}

/// Everything that acts waits for libvirt's first answer, so that a start does not report hosts and guests as unknown
/// that are well a moment later.
async fn work(
    context: Arc<Context>,
    machine: host::Machine,
    look: Arc<Notify>,
    queue: queue::Queue,
    readiness: Readiness,
) {
    let up = async {
        while !context.libvirts().all(|(_, c)| c.facts().is_some()) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let _ = tokio::time::timeout(FIRST_CONNECTION, up).await;
    let reconciles = {
        let context = Arc::clone(&context);
        let metrics = context.metrics.clone();
        queue::run(queue, metrics, move |uid| {
            reconcile::reconcile(Arc::clone(&context), uid)
        })
    };
    tokio::join!(
        host::follow(Arc::clone(&context), Arc::clone(&look)),
        host::run(Arc::clone(&context), machine, Arc::clone(&look), readiness),
        tasks::run(Arc::clone(&context)),
        watch::run(context, look),
        reconciles
    );
}

/// Which driver is where. The defaults are the system connections; `--driver` replaces or adds.
fn drivers(given: &[String]) -> anyhow::Result<BTreeMap<Driver, String>> {
    let mut drivers: BTreeMap<Driver, String> = [
        (Driver::Kvm, "qemu:///system"),
        (Driver::Qemu, "qemu:///system"),
        (Driver::Lxc, "lxc:///system"),
    ]
    .map(|(driver, uri)| (driver, uri.to_owned()))
    .into();
    if !given.is_empty() {
        drivers.clear();
    }
    for pair in given {
        let Some((word, uri)) = pair.split_once('=').filter(|(_, uri)| !uri.is_empty()) else {
            bail!("--driver {pair}: write DRIVER=URI, for example kvm=qemu:///system");
        };
        let driver = match word {
            "kvm" => Driver::Kvm,
            "qemu" => Driver::Qemu,
            "lxc" => Driver::Lxc,
            other => bail!("--driver {pair}: {other} is no driver; use kvm, qemu or lxc"),
        };
        drivers.insert(driver, uri.to_owned());
    }
    Ok(drivers)
}

/// What a connection told, and which.
type Heard = (String, Signal);

/// One connection for each URI, shared by its drivers.
fn connections(
    drivers: &BTreeMap<Driver, String>,
    workers: usize,
    metrics: &Metrics,
    signals: &mpsc::UnboundedSender<Heard>,
) -> BTreeMap<Driver, Arc<Connection>> {
    let mut by_uri: BTreeMap<&str, Arc<Connection>> = BTreeMap::new();
    let mut connections = BTreeMap::new();
    for (driver, uri) in drivers {
        let connection = by_uri.entry(uri).or_insert_with(|| {
            let (signals, name) = (signals.clone(), uri.clone());
            // The receiver lives as long as the process.
            Connection::new(uri, workers, metrics.clone(), move |signal| {
                drop(signals.send((name.clone(), signal)));
            })
        });
        connections.insert(*driver, Arc::clone(connection));
    }
    connections
}

/// Turns what libvirt tells into looks.
async fn listen(context: Arc<Context>, mut heard: mpsc::UnboundedReceiver<Heard>, look: Arc<Notify>) {
    while let Some((uri, signal)) = heard.recv().await {
        match signal {
            Signal::Up | Signal::Down => {
                tracing::debug!(uri, ?signal, "libvirt");
                if matches!(signal, Signal::Up) {
                    tokio::spawn(clone::sweep(Arc::clone(&context), uri));
                }
                // What happened in between was not heard: everything is looked at.
                for instance in context.instances.all() {
                    context
                        .requests
                        .now(instance.metadata.uid.as_deref().unwrap_or_default());
                }
                look.notify_one();
            }
            Signal::Notice(Notice::Domain { uuid, event, .. }) => {
                if context.instances.get(&uuid).is_some() {
                    match event {
                        DomainEvent::Agent { .. } => context.guests.poke(&uuid),
                        DomainEvent::Lifecycle(what) if context.echoes.take(&uuid, what, context.now()) => {}
                        DomainEvent::Lifecycle(_)
                        | DomainEvent::Rebooted
                        | DomainEvent::DeviceAdded { .. }
                        | DomainEvent::DeviceRemoved { .. }
                        | DomainEvent::DeviceRemovalFailed { .. }
                        | DomainEvent::BlockJob { .. }
                        | DomainEvent::IoError { .. }
                        | DomainEvent::MetadataChanged { .. }
                        | DomainEvent::BalloonChanged { .. } => context.requests.now(&uuid),
                    }
                } else {
                    look.notify_one();
                }
            }
            Signal::Described => look.notify_one(),
            Signal::Notice(Notice::Closed) => {}
            Signal::Unstuck(uid) => context.requests.now(&uid),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drivers_are_read_or_refused_with_what_would_be_right() {
        let given = |list: &[&str]| drivers(&list.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>());
        assert_eq!(given(&[]).unwrap()[&Driver::Lxc], "lxc:///system");
        let test = given(&["kvm=test:///default"]).unwrap();
        assert_eq!((test.len(), test[&Driver::Kvm].as_str()), (1, "test:///default"));
        for (bad, words) in [
            ("kvm", "DRIVER=URI"),
            ("kvm=", "DRIVER=URI"),
            ("xen=x", "use kvm, qemu or lxc"),
        ] {
            assert!(given(&[bad]).unwrap_err().to_string().contains(words), "{bad}");
        }
    }
}
