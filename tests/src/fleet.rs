//! Many node agents without libvirt, in this process: each watches its own Instances and says of every one that it is as the
//! spec asks as soon as it may be acted on, in one write of the size that a real agent's has; what is deleted it lets go.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use futures::{StreamExt, TryStreamExt, stream};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, ResourceExt};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::task::JoinSet;
use virtshell_crds::condition::{self, READY, SCHEDULED};
use virtshell_crds::{FINALIZER_DOMAIN, HostSpec, Instance};

use crate::ControlPlane;
use crate::identity::SimulatedNode;

/// How often an agent renews its Lease.
const RENEWAL: Duration = Duration::from_secs(10);
/// Joins at the same time.
const JOINING: usize = 4;

/// Hosts with their agents; they stop when this is dropped.
pub struct Fleet {
    /// The hosts' names.
    pub hosts: Vec<String>,
    seen: Arc<Seen>,
    _agents: JoinSet<()>,
}

/// What the agents have reported.
struct Seen {
    /// The hosts that have reported an Instance (uid) as Ready, and when the first did.
    reports: Mutex<BTreeMap<String, (BTreeSet<String>, Instant)>>,
    ready: watch::Sender<usize>,
    writes: AtomicU64,
}

impl Fleet {
    /// `count` hosts, each with so much `memory_mib` and plenty of everything else, ready.
    ///
    /// # Errors
    /// Whatever the API server answers.
    pub async fn join(
        control_plane: &ControlPlane,
        prefix: &str,
        count: usize,
        spec: &HostSpec,
        memory_mib: i64,
    ) -> anyhow::Result<Self> {
        let joins = (0..count).map(|n| async move {
            let name = format!("{prefix}-{n:03}");
            let node = SimulatedNode::join(control_plane, &name, spec.clone()).await?;
            node.report_host(json!({
                "capacity": {"cpus": 64, "memoryMiB": memory_mib, "diskMiB": 1 << 30}, "drivers": ["kvm"],
                "conditions": [condition(READY, "True", 1)],
            }))
            .await?;
            anyhow::Ok(Arc::new(node))
        });
        let nodes: Vec<_> = stream::iter(joins).buffered(JOINING).try_collect().await?;
        let seen = Arc::new(Seen {
            reports: Mutex::default(),
            ready: watch::Sender::new(0),
            writes: AtomicU64::new(0),
        });
        let mut agents = JoinSet::new();
        for node in &nodes {
            agents.spawn(serve(node.clone(), seen.clone()));
            agents.spawn(keep_alive(node.clone()));
        }
        Ok(Self {
            hosts: nodes.iter().map(|node| node.host.clone()).collect(),
            seen,
            _agents: agents,
        })
    }

    /// How many Instances have been reported as Ready since the beginning.
    #[must_use]
    pub fn ready(&self) -> usize {
        *self.seen.ready.borrow()
    }

    /// Waits until so many have been.
    ///
    /// # Errors
    /// When `limit` is over.
    pub async fn until_ready(&self, count: usize, limit: Duration) -> anyhow::Result<()> {
        let mut ready = self.seen.ready.subscribe();
        let waited = tokio::time::timeout(limit, ready.wait_for(|ready| *ready >= count)).await;
        let reached = waited
            .with_context(|| format!("{} of {count} Instances are Ready after {limit:?}", self.ready()))?;
        reached.context("the fleet counts").map(drop)
    }

    /// When an Instance (uid) was first reported as Ready.
    #[must_use]
    pub fn ready_since(&self, uid: &str) -> Option<Instant> {
        locked(&self.seen.reports).get(uid).map(|(_, at)| *at)
    }

    /// Writes to Instances that the agents have made.
    #[must_use]
    pub fn writes(&self) -> u64 {
        self.seen.writes.load(Ordering::Relaxed)
    }

    /// Says which Instances (uid) more than one host has run, and fails if there are any.
    ///
    /// # Errors
    /// When an Instance ran on two hosts.
    pub fn ensure_nothing_ran_twice(&self) -> anyhow::Result<()> {
        let reports = locked(&self.seen.reports);
        let twice: Vec<_> = reports.iter().filter(|(_, (hosts, _))| hosts.len() > 1).collect();
        ensure!(twice.is_empty(), "Instances ran on two hosts: {twice:?}");
        Ok(())
    }
}

async fn keep_alive(node: Arc<SimulatedNode>) {
    loop {
        // One that fails is made up for by the next: a host may miss three.
        let _ = node.renew().await;
        tokio::time::sleep(RENEWAL).await;
    }
}

async fn serve(node: Arc<SimulatedNode>, seen: Arc<Seen>) {
    let api: Api<Instance> = Api::all(node.account.client.clone());
    let own = watcher::Config::default().fields(&format!("spec.host={}", node.host));
    let mut events = std::pin::pin!(watcher(api, own).default_backoff().applied_objects());
    while let Some(event) = events.next().await {
        let Ok(instance) = event else { continue };
        // What fails comes again with the next change; conflicts are not: an apply is by force.
        while let Err(error) = act(&node, &seen, &instance).await {
            if matches!(&error, kube::Error::Api(status) if status.is_not_found() || status.is_forbidden()) {
                break;
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }
}

async fn act(node: &SimulatedNode, seen: &Seen, instance: &Instance) -> kube::Result<()> {
    let namespace = instance.namespace().unwrap_or_default();
    let name = instance.name_any();
    let is_held = instance.finalizers().iter().any(|f| f == FINALIZER_DOMAIN);
    let conditions = instance.status.as_ref().map(|s| s.conditions.as_slice());
    let conditions = conditions.unwrap_or_default();
    if instance.metadata.deletion_timestamp.is_some() {
        if is_held {
            node.release(&namespace, &name).await?;
            seen.writes.fetch_add(1, Ordering::Relaxed);
        }
        return Ok(());
    }
    let observed = instance.status.as_ref().and_then(|s| s.observed_generation);
    let is_done = condition::is_true(conditions, READY) && observed == instance.metadata.generation;
    if !is_held || !condition::is_true(conditions, SCHEDULED) || is_done {
        return Ok(());
    }
    node.report_instance(&namespace, &name, as_asked(instance, &node.host))
        .await?;
    seen.writes.fetch_add(1, Ordering::Relaxed);
    let mut reports = locked(&seen.reports);
    let entry = reports
        .entry(instance.uid().unwrap_or_default())
        .or_insert_with(|| (BTreeSet::new(), Instant::now()));
    entry.0.insert(node.host.clone());
    seen.ready.send_replace(reports.len());
    Ok(())
}

/// What an agent says of a guest that is as it should be.
fn as_asked(instance: &Instance, host: &str) -> Value {
    let generation = instance.metadata.generation.unwrap_or_default();
    let uid = instance.uid().unwrap_or_default();
    let name = instance.name_any();
    let power = instance.spec.power_state;
    let file = format!("/var/lib/virtshell/instances/{uid}/root.qcow2");
    let true_ = |type_| condition(type_, "True", generation);
    json!({
        "observedGeneration": generation, "phase": power, "host": host, "powerState": power, "provisioned": true,
        "lastRestartToken": instance.spec.restart_token,
        "domain": {"name": format!("{name}-{}", uid.get(..8).unwrap_or_default()), "uuid": uid, "type": "qemu"},
        "addresses": {"ipv4": ["192.168.122.50"], "ipv6": []},
        "interfaces": [{"name": "eth0", "mac": "52:54:00:aa:bb:01", "ipv4": ["192.168.122.50"], "ipv6": []}],
        "disks": [{"name": "root", "path": file, "sizeMiB": 16, "detached": false}],
        "startedAt": "2026-01-01T00:00:00Z",
        "timings": {"imageMs": 0, "defineMs": 8, "startMs": 340, "agentMs": 2900},
        "conditions": [true_(READY), true_("Converged"), true_("ImageReady"), true_("AgentConnected")],
    })
}

fn condition(type_: &str, status: &str, generation: i64) -> Value {
    json!({
        "type": type_, "status": status, "reason": "Simulated", "message": "", "observedGeneration": generation,
        "lastTransitionTime": "2026-01-01T00:00:00Z",
    })
}

fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
