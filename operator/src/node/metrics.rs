//! What the agent counts.

use std::sync::Arc;
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Call {
    call: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Reason {
    reason: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Ended {
    reason: String,
}

/// The agent's metrics. Cheap to clone: clones share them.
#[derive(Clone)]
pub struct Metrics(Arc<Inner>);

struct Inner {
    reconciles: Histogram,
    errors: Family<Reason, Counter>,
    calls: Family<Call, Histogram>,
    queue: Gauge,
    writes: Counter,
    commands: Gauge,
    results: Family<Ended, Counter>,
}

/// From a quarter of a millisecond to 8 s.
fn seconds() -> Histogram {
    Histogram::new(exponential_buckets(0.000_25, 2.0, 16))
}

impl Metrics {
    /// Registers them.
    pub fn new(registry: &mut Registry) -> Self {
        let inner = Inner {
            reconciles: seconds(),
            errors: Family::default(),
            calls: Family::new_with_constructor(seconds as fn() -> Histogram),
            queue: Gauge::default(),
            writes: Counter::default(),
            commands: Gauge::default(),
            results: Family::default(),
        };
        let registry = registry.sub_registry_with_prefix("virtshell_node");
        registry.register(
            "reconcile_seconds",
            "How long reconciles took",
            inner.reconciles.clone(),
        );
        registry.register(
            "reconcile_errors",
            "Reconciles that failed, by reason",
            inner.errors.clone(),
        );
        registry.register(
            "libvirt_call_seconds",
            "How long calls to libvirt took",
            inner.calls.clone(),
        );
        registry.register(
            "queue_length",
            "Instances that wait for or are in a reconcile",
            inner.queue.clone(),
        );
        registry.register(
            "status_writes",
            "Writes to the status of Instances",
            inner.writes.clone(),
        );
        registry.register(
            "guest_commands",
            "Parts of tasks that run in guests now",
            inner.commands.clone(),
        );
        registry.register(
            "task_results",
            "Parts of tasks that ended, by reason; no reason is success",
            inner.results.clone(),
        );
        Self(Arc::new(inner))
    }

    /// A reconcile has ended.
    pub fn reconciled(&self, took: Duration, error: Option<&'static str>) {
        self.0.reconciles.observe(took.as_secs_f64());
        if let Some(reason) = error {
            self.0.errors.get_or_create(&Reason { reason }).inc();
        }
    }

    /// A call to libvirt has ended, or was given up.
    pub fn libvirt_call(&self, call: &'static str, took: Duration) {
        self.0
            .calls
            .get_or_create(&Call { call })
            .observe(took.as_secs_f64());
    }

    /// The queue has this length.
    pub fn queue_length(&self, length: usize) {
        self.0.queue.set(i64::try_from(length).unwrap_or(i64::MAX));
    }

    /// So many parts of tasks run in guests.
    pub fn commands_running(&self, count: usize) {
        self.0.commands.set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    /// A part of a task ended for this reason.
    pub fn task_ended(&self, reason: &str) {
        let reason = reason.to_owned();
        self.0.results.get_or_create(&Ended { reason }).inc();
    }

    /// The status of an Instance was written.
    pub fn status_written(&self) {
        self.0.writes.inc();
    }
}
