//! A cluster controller under test, with the account and the rights it has in a cluster.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::identity::SYSTEM;
use crate::program::Program;
use crate::wait::SOON;
use crate::{ControlPlane, ports, wait_for};

/// A running controller; ended when dropped.
#[derive(Debug)]
pub struct Controller {
    /// The process.
    pub program: Program,
    url: String,
    http: reqwest::Client,
}

impl Controller {
    /// Starts the program `operator` as controller and waits until it is ready, which one that does not lead is, too.
    ///
    /// # Errors
    /// When it does not become ready.
    pub async fn start(control_plane: &ControlPlane, operator: &Path, name: &str) -> anyhow::Result<Self> {
        let account = control_plane.account(SYSTEM, "virtshell-controller").await?;
        let [port] = ports::free()?;
        let mut command = Command::new(operator);
        command
            .arg("controller")
            .arg("--kubeconfig")
            .arg(&account.kubeconfig)
            .args(["--listen", &format!("127.0.0.1:{port}")]);
        let mut program = Program::start(name, &mut command, control_plane.directory())?;
        let url = format!("http://127.0.0.1:{port}");
        let limit = SOON + Duration::from_secs(30);
        program.wait_until_ready(&format!("{url}/readyz"), limit).await?;
        Ok(Self {
            program,
            url,
            http: reqwest::Client::builder()
                .timeout(Duration::from_secs(5))
                .build()?,
        })
    }

    /// What it counts.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn metrics(&self) -> anyhow::Result<Metrics> {
        let answer = self.http.get(format!("{}/metrics", self.url)).send().await?;
        Ok(Metrics(answer.error_for_status()?.text().await?))
    }

    /// Waits until it leads.
    ///
    /// # Errors
    /// When it does not within `limit`.
    pub async fn until_leading(&self, limit: Duration) -> anyhow::Result<()> {
        let look = async || self.metrics().await.map(|metrics| metrics.sum("leader"));
        let leads = |leader: &f64| (*leader - 1.0).abs() < f64::EPSILON;
        wait_for("the controller to lead", limit, look, leads)
            .await
            .map(drop)
    }
}

/// What a controller counts, as it says it.
#[derive(Clone, Debug)]
pub struct Metrics(String);

impl Metrics {
    /// The sum of a metric, named without the prefix `virtshell_controller_`, over all its labels.
    #[must_use]
    pub fn sum(&self, name: &str) -> f64 {
        self.values(name).map(|(_, value)| value).sum()
    }

    /// The value of a metric with a label, such as `kind="Instance"`; 0 where there is none.
    #[must_use]
    pub fn with(&self, name: &str, label: &str) -> f64 {
        let values = self
            .values(name)
            .filter(|(labels, _)| labels.split(',').any(|l| l == label));
        values.map(|(_, value)| value).sum()
    }

    /// What so many per cent of the values in a histogram are at most: the upper bound of the bucket that they end in, so never
    /// less than the truth; infinite beyond the last, and no number where there are no values.
    #[must_use]
    pub fn percentile(&self, name: &str, per_cent: f64) -> f64 {
        let meant = self.sum(&format!("{name}_count")) * per_cent / 100.0;
        let bucket = format!("{name}_bucket");
        let bounds = self.values(&bucket).filter_map(|(labels, below)| {
            let bound = labels.strip_prefix("le=\"")?.strip_suffix('"')?;
            Some((
                bound.trim_start_matches('+').parse().unwrap_or(f64::INFINITY),
                below,
            ))
        });
        let reached = bounds.filter(|(_, below)| *below >= meant && meant > 0.0);
        reached
            .map(|(bound, _)| bound)
            .reduce(f64::min)
            .unwrap_or(f64::NAN)
    }

    /// `labels` and value of a metric.
    pub fn values(&self, name: &str) -> impl Iterator<Item = (&str, f64)> {
        let name = format!("virtshell_controller_{name}");
        self.0.lines().filter_map(move |line| {
            let (left, value) = line.strip_prefix(name.as_str())?.rsplit_once(' ')?;
            let labels = match left {
                "" => "",
                labels => labels.strip_prefix('{')?.strip_suffix('}')?,
            };
            Some((labels, value.parse().ok()?))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_are_read_by_name_and_label() {
        let metrics = Metrics(
            "# TYPE virtshell_controller_leader gauge\nvirtshell_controller_leader 1\n\
             virtshell_controller_writes_total{kind=\"Instance\"} 3\nvirtshell_controller_writes_total{kind=\"Task\"} 4\n\
             virtshell_controller_writes_total_other 9\n"
                .to_owned(),
        );
        let sums = ["leader", "writes_total", "none"].map(|name| metrics.sum(name) as i64);
        assert_eq!(sums, [1, 7, 0]);
        assert_eq!(metrics.with("writes_total", "kind=\"Task\"") as i64, 4);
    }

    #[test]
    fn percentiles_are_upper_bounds() {
        let histogram = |buckets: [u64; 3]| {
            let lines = ["0.1", "0.5", "+Inf"].into_iter().zip(buckets);
            let lines = lines.map(|(le, n)| format!("virtshell_controller_s_bucket{{le=\"{le}\"}} {n}\n"));
            Metrics(format!("virtshell_controller_s_count {}\n", buckets[2]) + &lines.collect::<String>())
        };
        for (buckets, per_cent, expected) in [
            ([50, 99, 100], 50.0, 0.1),
            ([49, 99, 100], 50.0, 0.5),
            ([49, 99, 100], 99.0, 0.5),
            ([49, 98, 100], 99.0, f64::INFINITY),
            ([0, 0, 0], 50.0, f64::NAN),
        ] {
            let seen = histogram(buckets).percentile("s", per_cent);
            assert!(seen.total_cmp(&expected).is_eq(), "{buckets:?}: {seen}");
        }
    }
}
