//! Live values of instances and hosts: what a guest uses now, as its node tells.
//!
//! Values that cannot be obtained now are absent; nobody waits longer than [`PATIENCE`] for all of them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures::StreamExt;
use virtshell_crds::instance::{Addresses, InterfaceStatus};
use virtshell_crds::{Host, Instance};

use super::effective::addresses;
use super::error::{object_name, uid};
use super::selection::Selector;
use super::{Caller, Kind, Service, ServiceError, Verb};
use crate::nodes::{Guest, GuestTasks, NodeError, Stats};
use crate::store::Cached;

/// How long the nodes may take for all values of one request.
const PATIENCE: Duration = Duration::from_secs(10);
/// Questions to nodes at the same time, of one request.
const AT_ONCE: usize = 32;
/// Between two samples of CPU time when there is no earlier one.
const SAMPLE: Duration = Duration::from_millis(250);
/// A sample older than this says nothing about now.
const SAMPLE_LIFE: Duration = Duration::from_mins(5);
/// Samples that are kept; each takes less than 100 bytes.
const SAMPLES: usize = 20_000;

/// What has properties.
#[derive(Clone, Debug)]
pub enum Subject {
    /// A virtual machine or container.
    Instance(Arc<Instance>),
    /// A machine.
    Host(Arc<Host>),
}

impl Subject {
    /// Wire name.
    #[must_use]
    pub fn name(&self) -> &str {
        match self {
            Self::Instance(instance) => instance.wire_name(),
            Self::Host(host) => host.wire_name(),
        }
    }

    /// uid.
    #[must_use]
    pub fn uid(&self) -> &str {
        match self {
            Self::Instance(instance) => uid(instance.as_ref()),
            Self::Host(host) => uid(host.as_ref()),
        }
    }
}

/// Which values are wanted: each costs a question.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Memory and virtual CPUs.
    pub stats: bool,
    /// CPU use: a second question, unless somebody asked a while ago.
    pub cpu_use: bool,
    /// What the guest's agent tells.
    pub guest: bool,
    /// Interfaces, which the cache does not keep.
    pub interfaces: bool,
}

/// Live values of a subject.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Live {
    /// Memory assigned now, MiB; of a host what its instances take.
    pub memory_mib: Option<i64>,
    /// Most memory it may have, MiB.
    pub total_memory_mib: Option<i64>,
    /// CPU use since the last sample, percent of all virtual CPUs.
    pub cpu_percent: Option<f64>,
    /// Virtual CPUs; of a host its CPUs.
    pub cpus: Option<i64>,
    /// Addresses.
    pub addresses: Addresses,
    /// Network mask of its first IPv4 address.
    pub mask: Option<String>,
    /// IPv4 address of its way to everywhere.
    pub gateway: Option<String>,
    /// Swap space it has, MiB.
    pub swap_mib: Option<i64>,
    /// Threads of its processes.
    pub tasks: Option<GuestTasks>,
    /// Interfaces.
    pub interfaces: Option<Vec<InterfaceStatus>>,
}

/// Earlier samples of CPU time, by uid of the instance.
#[derive(Debug, Default)]
pub struct Samples(Mutex<HashMap<String, Sample>>);

/// CPU time used until a moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Sample {
    at: Instant,
    cpu_time_ns: u64,
}

impl Service {
    /// What selectors mean: instances, and hosts by plain names that no instance has. By name.
    pub fn subjects(&self, caller: &Caller, selectors: &[Selector]) -> Result<Vec<Subject>, ServiceError> {
        let mut subjects = Vec::new();
        let mut others = Vec::new();
        for selector in selectors {
            match selector {
                Selector::Name(name) if self.find::<Instance>(name).is_err() => {
                    let host = self.find::<Host>(name).map_err(|_| ServiceError::NotFound {
                        kind: Kind::Instance,
                        name: name.clone(),
                    })?;
                    if !subjects
                        .iter()
                        .any(|known: &Subject| known.uid() == uid(host.as_ref()))
                    {
                        subjects.push(Subject::Host(host));
                    }
                }
                Selector::Name(_) | Selector::Matching(_) | Selector::Tag(_) | Selector::Address(_) => {
                    others.push(selector.clone());
                }
            }
        }
        if !others.is_empty() || subjects.is_empty() {
            let instances = match self.select(caller, Verb::Read, &others) {
                Err(ServiceError::NotFound { .. }) if !subjects.is_empty() => Vec::new(),
                selected => selected?,
            };
            subjects.extend(instances.into_iter().map(Subject::Instance));
        }
        subjects.sort_by(|a, b| a.name().cmp(b.name()));
        Ok(subjects)
    }

    /// Their values, in the same order.
    pub async fn live(&self, subjects: &[Subject], wanted: Wanted) -> Vec<Live> {
        let mut values: Vec<Live> = subjects.iter().map(|subject| self.known(subject)).collect();
        let questions: Vec<_> = subjects
            .iter()
            .enumerate()
            .filter_map(|(at, subject)| match subject {
                Subject::Instance(instance) => {
                    Some(
                        self.clone()
                            .ask_node(at, instance.clone(), wanted, values[at].clone()),
                    )
                }
                Subject::Host(_) => None,
            })
            .collect();
        let mut answers = futures::stream::iter(questions).buffer_unordered(AT_ONCE);
        let end = tokio::time::Instant::now() + PATIENCE;
        // What has not come by then is absent.
        while let Ok(Some((at, live))) = tokio::time::timeout_at(end, answers.next()).await {
            values[at] = live;
        }
        values
    }

    /// What needs no question.
    fn known(&self, subject: &Subject) -> Live {
        match subject {
            Subject::Instance(instance) => {
                let values = self.effective(instance);
                let [ipv4, ipv6] = addresses(instance).map(<[String]>::to_vec);
                Live {
                    total_memory_mib: instance.spec.max_memory_mib.or(values.memory_mib),
                    cpus: values.cpus.map(i64::from),
                    addresses: Addresses { ipv4, ipv6 },
                    ..Live::default()
                }
            }
            Subject::Host(host) => of_host(host),
        }
    }

    async fn ask_node(
        self,
        at: usize,
        instance: Arc<Instance>,
        wanted: Wanted,
        mut live: Live,
    ) -> (usize, Live) {
        let instance = instance.as_ref();
        if wanted.interfaces {
            let whole = self.store().instances.whole(object_name(instance)).await.ok();
            live.interfaces = whole.and_then(|whole| Some(whole.status?.interfaces));
        }
        let bound = instance.status.as_ref().and_then(|status| status.host.as_deref());
        let Some(host) = bound.and_then(|name| self.store().hosts.by_object_name(name)) else {
            return (at, live);
        };
        if wanted.stats || wanted.cpu_use {
            match self.stats(&host, instance, wanted.cpu_use).await {
                Ok((stats, cpu_percent)) => {
                    live.memory_mib = Some(mib(stats.memory.current_kib));
                    live.total_memory_mib = Some(mib(stats.memory.maximum_kib));
                    live.cpus = Some(i64::from(stats.vcpus));
                    live.cpu_percent = cpu_percent;
                }
                Err(error) => unanswered(instance, &error),
            }
        }
        if wanted.guest {
            match self.nodes().guest(&host, instance).await {
                Ok(guest) => {
                    live.mask = mask(&guest);
                    live.swap_mib = guest.swap.map(|swap| mib(swap.total_kib));
                    live.tasks = guest.tasks;
                    live.gateway = guest.gateway;
                }
                Err(error) => unanswered(instance, &error),
            }
        }
        (at, live)
    }

    async fn stats(
        &self,
        host: &Host,
        instance: &Instance,
        with_use: bool,
    ) -> Result<(Stats, Option<f64>), NodeError> {
        let stats = self.nodes().stats(host, instance).await?;
        let now = self.samples().take(uid(instance), &stats);
        if !with_use {
            return Ok((stats, None));
        }
        if let Some(percent) = now {
            return Ok((stats, Some(percent)));
        }
        tokio::time::sleep(SAMPLE).await;
        let stats = self.nodes().stats(host, instance).await?;
        let percent = self.samples().take(uid(instance), &stats);
        Ok((stats, percent))
    }
}

impl Samples {
    /// Keeps a sample; returns the use since the one before.
    fn take(&self, uid: &str, stats: &Stats) -> Option<f64> {
        let now = Sample {
            at: Instant::now(),
            cpu_time_ns: stats.cpu_time_ns,
        };
        let mut samples = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let before = samples.get(uid).copied();
        let percent = before.and_then(|before| cpu_percent(before, now, stats.vcpus));
        // Two that are too close stay one: else many callers would leave none of them a value.
        if before.is_none_or(|before| {
            percent.is_some() || before.cpu_time_ns > now.cpu_time_ns || now.at - before.at > SAMPLE_LIFE
        }) {
            if samples.len() >= SAMPLES {
                samples.retain(|_, sample| now.at - sample.at < SAMPLE_LIFE);
            }
            if samples.len() < SAMPLES {
                samples.insert(uid.to_owned(), now);
            }
        }
        percent
    }
}

/// Use between two samples, percent of all virtual CPUs with one decimal; `None` when they do not belong together.
fn cpu_percent(before: Sample, now: Sample, vcpus: u32) -> Option<f64> {
    let passed = now.at.checked_duration_since(before.at)?;
    if passed < SAMPLE * 4 / 5 || passed > SAMPLE_LIFE || vcpus == 0 {
        return None;
    }
    // The counter begins again with the domain.
    let used = now.cpu_time_ns.checked_sub(before.cpu_time_ns)?;
    let share = used as f64 / (passed.as_nanos() as f64 * f64::from(vcpus));
    Some((share.min(1.0) * 1000.0).round() / 10.0)
}

fn of_host(host: &Host) -> Live {
    let status = host.status.as_ref();
    let capacity = status.and_then(|status| status.capacity.as_ref());
    let declared = |mib: i64| (mib > 0).then_some(mib);
    let observed = status.and_then(|status| status.addresses.clone());
    let local = |text: &String| (!text.is_empty()).then(|| vec![text.clone()]);
    let observed = observed.unwrap_or_default();
    Live {
        memory_mib: status
            .and_then(|status| status.allocated.as_ref())
            .map(|allocated| allocated.memory_mib),
        total_memory_mib: declared(host.spec.memory_mib).or(capacity.map(|c| c.memory_mib)),
        cpus: capacity.map(|capacity| i64::from(capacity.cpus)),
        addresses: Addresses {
            ipv4: local(&host.spec.local_ipv4).unwrap_or(observed.ipv4),
            ipv6: local(&host.spec.local_ipv6).unwrap_or(observed.ipv6),
        },
        ..Live::default()
    }
}

/// Network mask of the first IPv4 address that leads outside.
fn mask(guest: &Guest) -> Option<String> {
    let interfaces = guest.interfaces.as_deref().unwrap_or_default();
    let outward = interfaces.iter().filter(|interface| interface.name != "lo");
    outward
        .flat_map(|interface| &interface.addresses)
        .find_map(|address| {
            let (ip, prefix) = address.split_once('/')?;
            ip.parse::<std::net::Ipv4Addr>().ok()?;
            let prefix: u32 = prefix.parse().ok().filter(|prefix| *prefix <= 32)?;
            let bits = u32::MAX.checked_shl(32 - prefix).unwrap_or(0);
            Some(std::net::Ipv4Addr::from_bits(bits).to_string())
        })
}

const fn mib(kib: u64) -> i64 {
    (kib / 1024) as i64
}

fn unanswered(instance: &Instance, error: &NodeError) {
    tracing::debug!(instance.name = object_name(instance), %error, source = ?std::error::Error::source(error), "no live values");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nodes::GuestInterface;

    #[test]
    fn cpu_use_is_a_share_of_all_virtual_cpus() {
        let began = Instant::now();
        let second = Duration::from_secs(1);
        let sample = |after: Duration, cpu_time_ns| Sample {
            at: began + after,
            cpu_time_ns,
        };
        let from = sample(Duration::ZERO, 1_000_000_000);
        for (rule, now, vcpus, expected) in [
            ("half of one", sample(second, 1_500_000_000), 1, Some(50.0)),
            ("half of one of two", sample(second, 1_500_000_000), 2, Some(25.0)),
            ("one decimal", sample(second, 1_123_456_789), 1, Some(12.3)),
            ("nothing", sample(second, 1_000_000_000), 1, Some(0.0)),
            ("never above all", sample(second, 9_000_000_000), 1, Some(100.0)),
            (
                "too close",
                sample(Duration::from_millis(10), 1_000_000_001),
                1,
                None,
            ),
            (
                "too long ago",
                sample(Duration::from_mins(6), 2_000_000_000),
                1,
                None,
            ),
            ("started anew", sample(second, 5), 1, None),
            ("no CPU", sample(second, 1_500_000_000), 0, None),
        ] {
            assert_eq!(cpu_percent(from, now, vcpus), expected, "{rule}");
        }
    }

    #[test]
    fn the_mask_is_that_of_the_first_address_that_leads_outside() {
        let guest = |interfaces: &[(&str, &[&str])]| Guest {
            interfaces: Some(
                interfaces
                    .iter()
                    .map(|(name, addresses)| GuestInterface {
                        name: (*name).to_owned(),
                        addresses: addresses.iter().map(|a| (*a).to_owned()).collect(),
                    })
                    .collect(),
            ),
            ..Guest::default()
        };
        for (interfaces, expected) in [
            (
                &[
                    ("lo", &["127.0.0.1/8"][..]),
                    ("eth0", &["fe80::1/64", "10.1.2.3/20"]),
                ][..],
                Some("255.255.240.0"),
            ),
            (&[("eth0", &["10.1.2.3/0"])], Some("0.0.0.0")),
            (&[("eth0", &["10.1.2.3/32"])], Some("255.255.255.255")),
            (&[("eth0", &["10.1.2.3/33", "10.1.2.3"])], None),
            (&[("lo", &["127.0.0.1/8"])], None),
        ] {
            assert_eq!(mask(&guest(interfaces)).as_deref(), expected, "{interfaces:?}");
        }
        assert_eq!(mask(&Guest::default()), None);
    }
}
