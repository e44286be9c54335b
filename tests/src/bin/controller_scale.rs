//! How the controller behaves with ten thousand Instances on a hundred hosts: the time each takes as they become more, what it
//! writes, what a decision takes, its memory, and how long a cluster is without one when it is killed. The agents are a
//! model ([`Fleet`]); everything else is real, on a control plane of its own.
//!
//! `make scale-controller` builds and runs it: `controller_scale [HOSTS] [INSTANCES]`, by default 100 and 10000. A promise that
//! is not kept ends the run with an error, after all has been measured.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use futures::{StreamExt, TryStreamExt, stream};
use kube::api::{Api, ListParams, PostParams};
use kube::{Client, ResourceExt};
use virtshell_crds::{HostSpec, Instance};
use virtshell_tests::controller::Metrics;
use virtshell_tests::process::{cpu_seconds, peak_kib, resident_kib};
use virtshell_tests::scale::{NAMESPACE, furnish, instance, operator};
use virtshell_tests::{ControlPlane, Controller, Fleet, Limits, Requests};

/// Instances that are not Ready yet, at most: enough to keep the API server busy, and no backlog that hides what one costs.
const WINDOW: usize = 64;
/// Requests in flight of the one who creates.
const IN_FLIGHT: usize = 16;
/// Longer than anything here may take.
const PATIENCE: Duration = Duration::from_mins(20);
/// Points in time that the line is laid through.
const SAMPLES: usize = 40;
/// How long standing still is watched.
const STILL: Duration = Duration::from_mins(1);
/// Memory of every host in MiB: more than its share of Instances takes, so that sums are kept and nobody waits.
const HOST_MEMORY_MIB: i64 = 65_536;
/// Instances that are on their way when the leader is killed.
const IN_WORK: usize = 200;

/// How well the times lie on a straight line (R²).
const LINEAR: f64 = 0.99;
/// The time of each of all Instances, by that of each of the first tenth. Cost that grows with their number would make it ten.
const GROWTH: f64 = 1.5;
/// Writes to each Instance by the controller: its binding and one more, and a thousandth for what a conflict makes it repeat.
const WRITES: f64 = 2.001;
/// Writes by the controller to anything but its Lease, and by anybody to Instances, while nothing happens.
const STILL_WRITES: f64 = 0.0;
/// MiB resident at most, lists included: 100 MB.
const MEMORY_MIB: f64 = 95.3;
/// Microseconds of processor time that a decision of placement takes. On two cores with the API server beside it some are put aside
/// in their middle, for as long as the kernel likes: what they take by the clock is printed, too.
const DECISION_P99_US: f64 = 100.0;
/// Seconds from the leader's death until what was asked for after it is Ready.
const FAILOVER_S: f64 = 20.0;

#[tokio::main]
async fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let mut number = |default: usize| arguments.next().map_or(Ok(default), |n| n.parse());
    let usage = "usage: controller_scale [HOSTS] [INSTANCES]";
    let hosts = number(100).context(usage)?;
    let instances = number(10_000).context(usage)?;
    let control_plane = ControlPlane::start()?;
    let world = World::start(&control_plane, hosts).await?;
    let mut limits = Limits::default();
    world.grow(instances, &mut limits).await?;
    world.stand_still(&mut limits).await?;
    world.relist(&mut limits).await?;
    world.fail_over(instances, &mut limits).await?;
    limits.verdict()
}

struct World<'a> {
    control_plane: &'a ControlPlane,
    client: Client,
    fleet: Fleet,
    leader: Controller,
}

impl<'a> World<'a> {
    async fn start(control_plane: &'a ControlPlane, hosts: usize) -> Result<Self> {
        furnish(control_plane)?;
        let leader = Controller::start(control_plane, &operator()?, "controller-1").await?;
        let spec = HostSpec {
            enabled: true,
            section: Some("default".to_owned()),
            ..HostSpec::default()
        };
        let fleet = Fleet::join(control_plane, "host", hosts, &spec, HOST_MEMORY_MIB).await?;
        Ok(Self {
            client: control_plane.admin().await?,
            control_plane,
            fleet,
            leader,
        })
    }

    fn instances(&self) -> Api<Instance> {
        Api::namespaced(self.client.clone(), NAMESPACE)
    }

    async fn create(&self, name: String) -> Result<Instance> {
        let object = instance(&name)?;
        Ok(self.instances().create(&PostParams::default(), &object).await?)
    }

    /// Creates Instances, never more than [`WINDOW`] ahead of those that are Ready.
    async fn grow(&self, instances: usize, limits: &mut Limits) -> Result<()> {
        let before = (
            Requests::so_far(self.control_plane)?,
            self.leader.metrics().await?,
        );
        let (agents, cpu) = (self.fleet.writes(), cpu_seconds(self.leader.program.pid())?);
        let began = Instant::now();
        let creations = stream::iter(0..instances).map(|n| async move {
            self.fleet.until_ready(n.saturating_sub(WINDOW), PATIENCE).await?;
            self.create(format!("scale-{n}")).await
        });
        let samples = async {
            let mut samples = Vec::new();
            for count in (1..=SAMPLES).map(|n| instances * n / SAMPLES) {
                self.fleet.until_ready(count, PATIENCE).await?;
                samples.push((count as f64, began.elapsed().as_secs_f64()));
            }
            Ok::<_, anyhow::Error>(samples)
        };
        let creations = creations
            .buffer_unordered(IN_FLIGHT)
            .try_for_each(|_| async { Ok(()) });
        let ((), samples) = tokio::try_join!(creations, samples)?;
        self.fleet.until_ready(instances, PATIENCE).await?;

        let each = [1, 3, 10].map(|tenths| {
            let (n, seconds) = samples[SAMPLES * tenths / 10 - 1];
            let each = seconds * 1000.0 / n;
            println!("{n:>6} Instances Ready after      {seconds:>8.1} s: {each:.2} ms each");
            each
        });
        limits.at_most(
            "the time of each Instance by that of the first tenth",
            each[2] / each[0],
            GROWTH,
        );
        let fit = Fit::of(&samples);
        println!(
            "linear fit                       {:.2} ms for each Instance {:+.1} s, R\u{b2} = {:.5}",
            fit.slope * 1000.0,
            fit.offset,
            fit.r_squared
        );
        limits.at_least("the fit of a straight line", fit.r_squared, LINEAR);

        let after = self.leader.metrics().await?;
        let cpu = cpu_seconds(self.leader.program.pid())? - cpu;
        println!(
            "controller's CPU                 {:>8.2} ms for each Instance",
            cpu * 1000.0 / instances as f64
        );
        let requests = Requests::so_far(self.control_plane)?.since(&before.0);
        let agents = self.fleet.writes() - agents;
        let others = requests.writes("instances") - instances as u64 - agents;
        let each = others as f64 / instances as f64;
        println!(
            "writes to Instances              {each:.4} each by the controller, its binding among them ({:.4} by its own count)",
            (after.with("writes_total", INSTANCE) - before.1.with("writes_total", INSTANCE))
                / instances as f64
        );
        limits.at_most("the writes to each Instance", each, WRITES);
        println!("all requests                     {requests}");
        decisions(&after, limits);
        Ok(())
    }

    /// What is written, and what it costs, when nothing happens.
    async fn stand_still(&self, limits: &mut Limits) -> Result<()> {
        // Sums are written once in five seconds; the last may be due.
        tokio::time::sleep(Duration::from_secs(10)).await;
        let pid = self.leader.program.pid();
        let before = (
            Requests::so_far(self.control_plane)?,
            self.leader.metrics().await?,
            cpu_seconds(pid)?,
        );
        tokio::time::sleep(STILL).await;
        let requests = Requests::so_far(self.control_plane)?.since(&before.0);
        let metrics = self.leader.metrics().await?;
        let to_instances = requests.writes("instances") as f64;
        let by_controller = metrics.sum("writes_total") - before.1.sum("writes_total");
        println!(
            "standing still for {STILL:?}          {to_instances} writes to Instances, {by_controller} by the controller to anything but its Lease; {:.2} % of a core",
            (cpu_seconds(pid)? - before.2) * 100.0 / STILL.as_secs_f64()
        );
        limits.at_most("writes to Instances, standing still", to_instances, STILL_WRITES);
        limits.at_most(
            "writes by the controller, standing still",
            by_controller,
            STILL_WRITES,
        );
        println!(
            "controller's memory              {:>8.1} MiB now, {:.1} MiB at most so far",
            mib(resident_kib(pid)?),
            mib(peak_kib(pid)?)
        );
        Ok(())
    }

    /// The API server forgets its watches: everything is listed anew.
    async fn relist(&self, limits: &mut Limits) -> Result<()> {
        let pid = self.leader.program.pid();
        let lists = self.leader.metrics().await?.with("lists_total", INSTANCE);
        self.control_plane.stop_api_server()?;
        self.control_plane.start_api_server()?;
        let began = Instant::now();
        while began.elapsed() < STILL {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        let lists = self.leader.metrics().await?.with("lists_total", INSTANCE) - lists;
        let peak = mib(peak_kib(pid)?);
        println!(
            "after a restart of the API server{:>8.1} MiB now, {peak:.1} MiB at most ({lists} list of Instances by it)",
            mib(resident_kib(pid)?),
        );
        limits.at_most("the controller's memory in MiB", peak, MEMORY_MIB);
        Ok(())
    }

    /// The leader is killed in the middle of its work, with another one waiting.
    async fn fail_over(mut self, instances: usize, limits: &mut Limits) -> Result<()> {
        let second = Controller::start(self.control_plane, &operator()?, "controller-2").await?;
        let creations = stream::iter(0..IN_WORK)
            .map(|n| self.create(format!("work-{n}")))
            .buffer_unordered(IN_FLIGHT)
            .try_for_each(|_| async { Ok(()) });
        let begun = self.fleet.until_ready(instances + IN_WORK / 4, PATIENCE);
        tokio::try_join!(creations, begun)?;
        self.leader.program.signal("KILL")?;
        let killed = Instant::now();
        let done_before = self.fleet.ready() - instances;
        let probe = self.create("probe".to_owned()).await?;
        second.until_leading(PATIENCE).await?;
        let leading = killed.elapsed();
        self.fleet.until_ready(instances + IN_WORK + 1, PATIENCE).await?;
        let since = self.fleet.ready_since(&probe.uid().unwrap_or_default());
        let first = since.context("the probe is Ready")?.duration_since(killed);
        let pid = second.program.pid();
        println!(
            "leader killed, {done_before} of {IN_WORK} done      another one leads after {:.1} s, what was asked meanwhile is Ready after {:.1} s",
            leading.as_secs_f64(),
            first.as_secs_f64()
        );
        limits.at_most("a failover in seconds", first.as_secs_f64(), FAILOVER_S);
        self.leader = second;
        self.fleet.ensure_nothing_ran_twice()?;
        let listed = self.instances().list_metadata(&ListParams::default()).await?;
        let (there, expected) = (listed.items.len(), instances + IN_WORK + 1);
        ensure!(there == expected, "{there} Instances are there, not {expected}");
        println!("nothing lost or doubled          {there} Instances, each Ready on one host");
        let peak = mib(peak_kib(pid)?);
        println!(
            "second controller's memory       {:>8.1} MiB now, {peak:.1} MiB at most, its lists included",
            mib(resident_kib(pid)?),
        );
        limits.at_most("the second controller's memory in MiB", peak, MEMORY_MIB);
        Ok(())
    }
}

const INSTANCE: &str = "kind=\"Instance\"";

/// What decisions of placement took, by the controller's own histograms: percentiles are their buckets' upper bounds.
fn decisions(metrics: &Metrics, limits: &mut Limits) {
    for (what, name) in [
        ("a decision works", "placement_cpu_seconds"),
        ("a decision takes, by the clock", "placement_seconds"),
    ] {
        let count = metrics.sum(&format!("{name}_count"));
        let mean = metrics.sum(&format!("{name}_sum")) * 1e6 / count;
        let [p50, p90, p99] = [50.0, 90.0, 99.0].map(|p| (metrics.percentile(name, p) * 1e6).round());
        println!(
            "{what:<32} {mean:>8.1} µs on average, P50 {p50:.0}, P90 {p90:.0}, P99 {p99:.0} µs at most (n={count})"
        );
        if name == "placement_cpu_seconds" {
            limits.at_most("the P99 of a decision in µs", p99, DECISION_P99_US);
        }
    }
}

/// The straight line closest to the samples (least squares).
struct Fit {
    slope: f64,
    offset: f64,
    r_squared: f64,
}

impl Fit {
    fn of(samples: &[(f64, f64)]) -> Self {
        let n = samples.len() as f64;
        let mean = |f: fn(&(f64, f64)) -> f64| samples.iter().map(f).sum::<f64>() / n;
        let (x, y) = (mean(|s| s.0), mean(|s| s.1));
        let covariance: f64 = samples.iter().map(|s| (s.0 - x) * (s.1 - y)).sum();
        let (vx, vy): (f64, f64) = (
            samples.iter().map(|s| (s.0 - x).powi(2)).sum(),
            samples.iter().map(|s| (s.1 - y).powi(2)).sum(),
        );
        let slope = covariance / vx;
        Self {
            slope,
            offset: y - slope * x,
            r_squared: covariance.powi(2) / (vx * vy),
        }
    }
}

fn mib(kib: u64) -> f64 {
    kib as f64 / 1024.0
}
