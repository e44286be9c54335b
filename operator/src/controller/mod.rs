//! The cluster-wide role: accepts, resolves and places Instances, watches over hosts.
//!
//! Any number of controllers run; [`leader`] makes one of them write. While it leads, [`cache`] follows every kind,
//! [`context`] puts in line what a change could affect ([`queue`]), and one module per kind looks at it: [`instance`]
//! ([`accept`] and [`schedule`] decide, [`ledger`] keeps the room on hosts, [`room`] offers what becomes free), [`host`] ([`pulse`] decides who lives,
//! [`identity`](mod@identity) who its agent is, [`guard`] keeps it while it is in use), [`grouping`] (sections and environments), [`user`] (keys, groups).
//!
//! ```text
//! API server --watch--> cache --change--> queue --key--> reconcile --write--> API server
//!                         ^                                  |
//!                         +------- answer to the write ------+
//! ```

pub mod accept;
pub mod cache;
pub mod context;
pub mod depends;
pub mod desk;
pub mod grouping;
pub mod guard;
pub mod host;
pub mod identity;
pub mod index;
pub mod instance;
pub mod kinds;
pub mod launch;
pub mod leader;
pub mod ledger;
pub mod metrics;
pub mod node_name;
pub mod placement;
pub mod pulse;
pub mod queue;
pub mod room;
pub mod roster;
pub mod schedule;
pub mod stored;
pub mod task;
#[cfg(test)]
mod testing;
pub mod user;
pub mod wire_name;
pub mod write;

use std::net::SocketAddr;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use futures::FutureExt;
use kube::Client;
use kube::api::Api;
use kube::core::DeserializeGuard;
use kube::runtime::watcher;
use prometheus_client::registry::Registry;
use tokio::task::JoinSet;

use crate::probes::{Probes, Readiness};
use crate::{cluster, events, telemetry};
use cache::{Cache, Cached, Change};
use context::{Context, Key};
use metrics::Metrics;
use write::Error;

/// Looks that run at the same time, each at another object.
// 16 requests in flight use the API server's throughput (measured); more only wait there.
const WORKERS: usize = 16;

/// Arguments of the controller.
#[derive(clap::Args, Clone, Debug)]
pub struct Args {
    /// Kubeconfig; default: the environment's, or the pod's service account.
    #[arg(long, env = "VIRTSHELL_KUBECONFIG")]
    pub kubeconfig: Option<std::path::PathBuf>,
    /// The operator's own namespace: Leases and the service accounts of hosts.
    #[arg(long, env = "VIRTSHELL_NAMESPACE", default_value = "virtshell-system")]
    pub namespace: String,
    /// Address of /healthz, /readyz and /metrics.
    #[arg(long, default_value = "127.0.0.1:10351")]
    pub listen: SocketAddr,
    /// How long finished Tasks are kept: a number with s, m, h or d.
    #[arg(long, env = "VIRTSHELL_TASK_RETENTION", default_value = "7d", value_parser = duration)]
    pub task_retention: Duration,
    /// URLs under which clients reach the gateway, separated by commas: an Image's URL that leads to a file there is taken
    /// from the stored File.
    #[arg(long = "gateway-url", env = "VIRTSHELL_GATEWAY_URLS", value_name = "URL", value_delimiter = ',', value_parser = crate::cluster::http_url)]
    pub gateway_urls: Vec<reqwest::Url>,
}

/// `90s`, `15m`, `24h`, `7d`.
fn duration(text: &str) -> Result<Duration, String> {
    let unit = match text.chars().last() {
        Some('s') => 1,
        Some('m') => 60,
        Some('h') => 3600,
        Some('d') => 24 * 3600,
        Some(_) | None => 0,
    };
    let number = text.get(..text.len().saturating_sub(1)).unwrap_or_default();
    let seconds = number.parse::<u64>().ok().and_then(|n| n.checked_mul(unit));
    match seconds {
        Some(seconds) if unit > 0 => Ok(Duration::from_secs(seconds)),
        Some(_) | None => Err(format!("{text} is not a number with s, m, h or d, such as 7d")),
    }
}

/// Runs until the process is asked to end.
///
/// # Errors
/// When the kubeconfig cannot be used, or the address cannot be listened on.
pub async fn run(args: Args) -> anyhow::Result<()> {
    let config = cluster::config(args.kubeconfig.as_deref()).await?;
    let me = identity();
    let readiness = Readiness::default();
    let mut registry = Registry::default();
    let metrics = Metrics::new(&mut registry);
    let probes = Probes::new(readiness.clone(), registry).serve(args.listen);
    let settings = Settings {
        namespace: args.namespace,
        task_retention: args.task_retention,
        gateways: Arc::new(stored::Gateways::new(&args.gateway_urls)),
    };
    let lead = follow_and_lead(config, settings, me, readiness, metrics);
    tokio::select! {
        ended = probes => ended.with_context(|| format!("cannot serve health and metrics at {}", args.listen)),
        ended = lead => ended,
    }
}

/// What a leader needs to know from the command line.
#[derive(Clone)]
struct Settings {
    namespace: String,
    task_retention: Duration,
    gateways: Arc<stored::Gateways>,
}

/// Unique per process: the machine, and random bits that tell restarts apart.
fn identity() -> String {
    use std::hash::{BuildHasher, RandomState};
    let machine = nix::unistd::gethostname()
        .ok()
        .and_then(|name| name.into_string().ok());
    let random = RandomState::new().hash_one(std::process::id());
    format!("{}_{random:016x}", machine.as_deref().unwrap_or("controller"))
}

async fn follow_and_lead(
    config: kube::Config,
    settings: Settings,
    me: String,
    readiness: Readiness,
    metrics: Metrics,
) -> anyhow::Result<()> {
    let mut asked_to_end = Box::pin(telemetry::shutdown_signal());
    let client = cluster::client(config.clone())?;
    let mut elector = leader::Elector::new(client, &settings.namespace, me.clone());
    loop {
        tracing::info!(identity = me, "waiting to lead");
        let term = tokio::select! {
            ended = &mut asked_to_end => return ended.context("cannot listen for signals"),
            term = elector.acquire(&readiness) => term,
        };
        tracing::info!(identity = me, "leading");
        metrics.leader.set(1);
        let ours = term.clone();
        let client = cluster::client_while(config.clone(), move || ours.lasts())?;
        let mut team = start(client, settings.clone(), me.clone(), metrics.clone());
        let ended = tokio::select! {
            ended = &mut asked_to_end => Some(ended),
            () = elector.hold(&term) => None,
        };
        // Nothing of ours writes any more when the Lease is let go.
        team.shutdown().await;
        metrics.leader.set(0);
        if let Some(ended) = ended {
            elector.release().await;
            tracing::info!("ended");
            return ended.context("cannot listen for signals");
        }
    }
}

/// Starts everything a leader does. The lists are made now, after leadership was won: they show all that the last leader
/// wrote.
fn start(client: Client, settings: Settings, me: String, metrics: Metrics) -> JoinSet<()> {
    let mut team = JoinSet::new();
    let (events, publish) = events::events(
        client.clone(),
        format!("virtshell.io/{}", virtshell_crds::MANAGER_CONTROLLER),
        me,
    );
    team.spawn(publish);
    let ctx = Arc::new(Context::new(
        client,
        settings.namespace,
        metrics,
        events,
        settings.task_retention,
        settings.gateways,
    ));
    follow(
        &mut team,
        &ctx,
        |c| &c.instances,
        |c, change| c.instance_changed(&change),
    );
    follow(&mut team, &ctx, |c| &c.hosts, |c, change| c.host_changed(&change));
    follow(
        &mut team,
        &ctx,
        |c| &c.sections,
        |c, change| c.section_changed(&change),
    );
    follow(
        &mut team,
        &ctx,
        |c| &c.environments,
        |c, change| c.environment_changed(&change),
    );
    follow(
        &mut team,
        &ctx,
        |c| &c.images,
        |c, change| c.image_changed(&change),
    );
    follow(
        &mut team,
        &ctx,
        |c| &c.provisioners,
        |c, change| c.provisioner_changed(&change),
    );
    follow(&mut team, &ctx, |c| &c.users, |c, change| c.user_changed(&change));
    follow(
        &mut team,
        &ctx,
        |c| &c.groups,
        |c, change| c.group_changed(&change),
    );
    follow(&mut team, &ctx, |c| &c.files, |c, change| c.file_changed(&change));
    follow(&mut team, &ctx, |c| &c.nodes, |c, change| c.node_changed(&change));
    follow(&mut team, &ctx, |c| &c.tasks, |c, change| c.task_changed(&change));
    follow(
        &mut team,
        &ctx,
        |c| &c.assignments,
        |c, change| c.assignment_changed(&change),
    );
    let leases = Api::namespaced(ctx.client.clone(), &ctx.namespace);
    let watcher = watcher::Config::default().fields(&format!("metadata.name!={}", leader::LEASE));
    follow_api(
        &mut team,
        &ctx,
        leases,
        watcher,
        |c| &c.leases,
        |c, change| c.lease_changed(&change),
    );
    team.spawn(work_when_synced(ctx));
    team
}

fn follow<K: Cached>(
    team: &mut JoinSet<()>,
    ctx: &Arc<Context>,
    cache: fn(&Context) -> &Cache<K>,
    notify: fn(&Context, Change<K>),
) {
    let api = Api::all(ctx.client.clone());
    follow_api(team, ctx, api, watcher::Config::default(), cache, notify);
}

fn follow_api<K: Cached>(
    team: &mut JoinSet<()>,
    ctx: &Arc<Context>,
    api: Api<DeserializeGuard<K>>,
    config: watcher::Config,
    cache: fn(&Context) -> &Cache<K>,
    notify: fn(&Context, Change<K>),
) {
    let ctx = ctx.clone();
    team.spawn(async move {
        let kind = std::any::type_name::<K>().rsplit("::").next().unwrap_or_default();
        let listed = || ctx.metrics.listed(kind);
        let failed = || ctx.metrics.watch_failed(kind);
        cache(&ctx)
            .follow(api, config, |change| notify(&ctx, change), listed, failed)
            .await;
    });
}

/// Decides nothing before every cache is complete: a host that is not seen yet must not look like one that is not there.
async fn work_when_synced(ctx: Arc<Context>) {
    tokio::join!(
        ctx.instances.synced(),
        ctx.hosts.synced(),
        ctx.leases.synced(),
        ctx.sections.synced(),
        ctx.environments.synced(),
        ctx.images.synced(),
        ctx.provisioners.synced(),
        ctx.users.synced(),
        ctx.groups.synced(),
        ctx.files.synced(),
        ctx.nodes.synced(),
        ctx.tasks.synced(),
        ctx.assignments.synced(),
    );
    tracing::info!(
        instances = ctx.instances.keys().len(),
        hosts = ctx.hosts.keys().len(),
        "caches are complete"
    );
    let mut workers = JoinSet::new();
    for _ in 0..WORKERS {
        workers.spawn(work(ctx.clone()));
    }
    while workers.join_next().await.is_some() {}
}

async fn work(ctx: Arc<Context>) {
    loop {
        let key = ctx.queue.next().await;
        ctx.metrics.queue.set(ctx.queue.len() as i64);
        let started = std::time::Instant::now();
        let looked = AssertUnwindSafe(reconcile(&ctx, &key)).catch_unwind().await;
        let result = match looked {
            Ok(Ok(again)) => {
                ctx.queue.done(key.clone(), again);
                "ok"
            }
            // The watch brings what is new.
            Ok(Err(error)) if error.is_not_found() || error.is_conflict() => {
                let delay = ctx.queue.failed(key.clone());
                tracing::debug!(kind = key.kind(), object = %key.object(), ?delay, error = error.in_one_line(), "somebody else was faster");
                "conflict"
            }
            Ok(Err(error)) => {
                let delay = ctx.queue.failed(key.clone());
                tracing::warn!(kind = key.kind(), object = %key.object(), ?delay, error = error.in_one_line(), "will be tried again");
                "error"
            }
            Err(_) => {
                let delay = ctx.queue.failed(key.clone());
                tracing::error!(kind = key.kind(), object = %key.object(), ?delay, "a bug: the look at this object panicked");
                "panic"
            }
        };
        ctx.metrics
            .reconciled(key.kind(), result, started.elapsed().as_secs_f64());
    }
}

async fn reconcile(ctx: &Context, key: &Key) -> Result<Option<Duration>, Error> {
    match key {
        Key::Instance(at) => instance::reconcile(ctx, at).await,
        Key::Host(at) => host::reconcile(ctx, at).await,
        Key::Section(at) => grouping::reconcile_section(ctx, at).await.map(|()| None),
        Key::Environment(at) => grouping::reconcile_environment(ctx, at).await,
        Key::Image(at) => wire_name::reconcile_image(ctx, at).await.map(|()| None),
        Key::Provisioner(at) => wire_name::reconcile_provisioner(ctx, at).await.map(|()| None),
        Key::User(at) => user::reconcile(ctx, at).await,
        Key::Group(at) => user::reconcile_group(ctx, at).await.map(|()| None),
        Key::Task(at) => task::reconcile(ctx, at).await,
        Key::File(at) => wire_name::reconcile_file(ctx, at).await.map(|()| None),
        Key::Room(host) => Ok(room::offer(ctx, host)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_a_number_and_a_unit() {
        for (text, seconds) in [
            ("90s", Some(90)),
            ("15m", Some(900)),
            ("24h", Some(86_400)),
            ("7d", Some(604_800)),
            ("0s", Some(0)),
            ("7", None),
            ("d", None),
            ("", None),
            ("-1d", None),
            ("1.5h", None),
            ("7ä", None),
            ("99999999999999999999d", None),
            ("9999999999999999999d", None),
        ] {
            assert_eq!(duration(text).ok(), seconds.map(Duration::from_secs), "{text}");
        }
    }
}
