//! What the gateway counts.

use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

/// Labels of a request: templates and not paths, so that their number is bounded.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Labels {
    dialect: &'static str,
    method: &'static str,
    route: &'static str,
    status: u16,
}

/// What the gateway counts.
pub struct Metrics {
    registry: Registry,
    requests: Family<Labels, Counter>,
    durations: Family<Labels, Histogram, fn() -> Histogram>,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("virtshell_gateway");
        let requests = Family::default();
        registry.register(
            "requests",
            "Requests by dialect, method, route template and status",
            requests.clone(),
        );
        let durations: Family<Labels, Histogram, fn() -> Histogram> = Family::new_with_constructor(histogram);
        registry.register(
            "request_duration_seconds",
            "Time from request to response",
            durations.clone(),
        );
        Self {
            registry,
            requests,
            durations,
        }
    }
}

impl Metrics {
    /// Counts a request.
    pub fn count(
        &self,
        dialect: &'static str,
        method: &str,
        route: &'static str,
        status: u16,
        took: Duration,
    ) {
        let labels = Labels {
            dialect,
            method: known_method(method),
            route,
            status,
        };
        self.requests.get_or_create(&labels).inc();
        self.durations.get_or_create(&labels).observe(took.as_secs_f64());
    }

    /// All of it, in the text format of `OpenMetrics`.
    ///
    /// # Errors
    /// When a value cannot be written.
    pub fn encode(&self) -> Result<String, std::fmt::Error> {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry)?;
        Ok(text)
    }
}

/// 0.1 ms to 13 s.
fn histogram() -> Histogram {
    Histogram::new(exponential_buckets(0.000_1, 2.0, 18))
}

/// A client may make up methods; labels may not grow with them.
fn known_method(method: &str) -> &'static str {
    ["GET", "POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS"]
        .into_iter()
        .find(|m| *m == method)
        .unwrap_or("other")
}
