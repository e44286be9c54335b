//! Metrics of the controller. Labels come from closed sets.

use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

/// Upper bounds in seconds: close together below 100 µs, which is what a decision is to take at most.
const PLACEMENT_BUCKETS: [f64; 16] = [
    0.000_01, 0.000_02, 0.000_03, 0.000_04, 0.000_05, 0.000_06, 0.000_07, 0.000_08, 0.000_09, 0.000_1,
    0.000_15, 0.000_2, 0.000_5, 0.001, 0.01, 0.1,
];

/// A kind.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Kind {
    kind: &'static str,
}

/// A kind and how it went.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Outcome {
    kind: &'static str,
    result: &'static str,
}

/// The metrics; cloning shares them.
#[derive(Clone)]
pub struct Metrics {
    /// 1 while this process leads.
    pub leader: Gauge,
    /// Keys in line.
    pub queue: Gauge,
    reconciles: Family<Outcome, Counter>,
    seconds: Family<Kind, Histogram>,
    placements: Family<Outcome, Counter>,
    placement_seconds: Histogram,
    placement_cpu_seconds: Histogram,
    writes: Family<Kind, Counter>,
    lists: Family<Kind, Counter>,
    watch_failures: Family<Kind, Counter>,
}

impl Metrics {
    /// Makes them and registers them.
    pub fn new(registry: &mut Registry) -> Self {
        let metrics = Self {
            leader: Gauge::default(),
            queue: Gauge::default(),
            reconciles: Family::default(),
            seconds: Family::new_with_constructor(|| Histogram::new(exponential_buckets(0.0001, 4.0, 9))),
            placements: Family::default(),
            placement_seconds: Histogram::new(PLACEMENT_BUCKETS),
            placement_cpu_seconds: Histogram::new(PLACEMENT_BUCKETS),
            writes: Family::default(),
            lists: Family::default(),
            watch_failures: Family::default(),
        };
        let m = metrics.clone();
        let registry = registry.sub_registry_with_prefix("virtshell_controller");
        registry.register("leader", "1 while this process leads", m.leader);
        registry.register("queue_depth", "Objects in line to be looked at", m.queue);
        registry.register(
            "reconciles",
            "Looks at an object, by kind and result (ok, conflict, error, panic)",
            m.reconciles,
        );
        registry.register("reconcile_seconds", "Time a look at an object took", m.seconds);
        registry.register(
            "placements",
            "Placement decisions, by result (placed, refused)",
            m.placements,
        );
        registry.register(
            "placement_seconds",
            "Time a placement decision took, look-ups included",
            m.placement_seconds,
        );
        registry.register(
            "placement_cpu_seconds",
            "Processor time of a placement decision: what it costs, whoever else wants the processor meanwhile",
            m.placement_cpu_seconds,
        );
        registry.register("writes", "Writes to the API server, by kind of object", m.writes);
        registry.register(
            "lists",
            "Lists begun: one per kind and leadership, and one each time a watch cannot go on",
            m.lists,
        );
        registry.register(
            "watch_failures",
            "Watches that failed and were started again",
            m.watch_failures,
        );
        metrics
    }

    /// One look at an object.
    pub fn reconciled(&self, kind: &'static str, result: &'static str, seconds: f64) {
        self.reconciles.get_or_create(&Outcome { kind, result }).inc();
        self.seconds.get_or_create(&Kind { kind }).observe(seconds);
    }

    /// One placement decision: how long it took, and how much of that it worked.
    pub fn placed(&self, result: &'static str, took: Duration, worked: Duration) {
        let kind = "Instance";
        self.placements.get_or_create(&Outcome { kind, result }).inc();
        self.placement_seconds.observe(took.as_secs_f64());
        self.placement_cpu_seconds.observe(worked.as_secs_f64());
    }

    /// One write.
    pub fn wrote(&self, kind: &'static str) {
        self.writes.get_or_create(&Kind { kind }).inc();
    }

    /// One list.
    pub fn listed(&self, kind: &'static str) {
        self.lists.get_or_create(&Kind { kind }).inc();
    }

    /// One failed watch.
    pub fn watch_failed(&self, kind: &'static str) {
        self.watch_failures.get_or_create(&Kind { kind }).inc();
    }
}
