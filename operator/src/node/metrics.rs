//! What the agent counts.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

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
    streams: Streams,
}

/// When each stream of events was last known to be well: it said something, or it was compared with what it speaks of.
#[derive(Clone, Debug, Default)]
struct Streams(Arc<Mutex<BTreeMap<String, Instant>>>);

impl Collector for Streams {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let streams = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut ages = encoder.encode_descriptor(
            "stream_age",
            "Time since a stream of events last said something or was last seen to miss nothing",
            Some(&Unit::Seconds),
            MetricType::Gauge,
        )?;
        for (stream, heard) in &streams {
            let age = ConstGauge::new(heard.elapsed().as_secs_f64());
            age.encode(ages.encode_family(&[("stream", stream.as_str())])?)?;
        }
        Ok(())
    }
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
            streams: Streams::default(),
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
        registry.register_collector(Box::new(inner.streams.clone()));
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

    /// A stream of events said something, or was seen to miss nothing.
    pub fn heard(&self, stream: &str) {
        let mut streams = self.0.streams.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(heard) = streams.get_mut(stream) {
            *heard = Instant::now();
        } else {
            streams.insert(stream.to_owned(), Instant::now());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_grows_old_until_it_is_heard_again() {
        let mut registry = Registry::default();
        let metrics = Metrics::new(&mut registry);
        let age = || -> f64 {
            let mut text = String::new();
            prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
            let name = "virtshell_node_stream_age_seconds{stream=\"qemu:///system\"} ";
            let line = text.lines().find_map(|line| line.strip_prefix(name));
            line.unwrap_or_else(|| panic!("{text}")).parse().unwrap()
        };
        metrics.heard("qemu:///system");
        std::thread::sleep(Duration::from_millis(50));
        let old = age();
        assert!((0.05..5.0).contains(&old), "{old}");
        metrics.heard("qemu:///system");
        assert!(age() < old);
    }
}
