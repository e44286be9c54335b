//! Chooses a Host for an Instance.
//!
//! Pure. A host falls out for the first [`Unfit`] reason that holds, in the order of that enum; of those left the one
//! with the fewest Instances wins, then the one with the most free memory, then the first by name. Who may use which
//! host ([`Reach`]) and what hosts have left (`used`) is the caller's to know.

use std::borrow::Borrow;
use std::fmt;

use virtshell_crds::{Driver, HostType};

/// What an Instance takes on its host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Demand {
    /// Virtual CPUs. They are shared: no number of them is too much.
    pub cpus: i32,
    /// Memory in MiB.
    pub memory_mib: i64,
    /// All disks together, in MiB.
    pub disk_mib: i64,
}

/// What Instances take more of than their host has, in words; `None` = nothing. Placement never leads here, edits can. A host of
/// which nothing is known yet has no bounds.
#[must_use]
pub fn overcommitted(used: Used, memory_mib: i64, disk_mib: i64) -> Option<String> {
    let over = [
        ("memory", used.memory_mib, memory_mib),
        ("disk", used.disk_mib, disk_mib),
    ];
    let over: Vec<String> = over
        .into_iter()
        .filter(|(_, used, has)| *has > 0 && used > has)
        .map(|(what, used, has)| format!("{used} MiB of {what} (it has {has} MiB)"))
        .collect();
    (!over.is_empty()).then(|| format!("its Instances take {}", over.join(" and ")))
}

/// What an Instance asks of a host.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// Wire name of the Environment, for messages.
    pub environment: &'a str,
    /// How the guest runs.
    pub driver: Driver,
    /// Kind of host.
    pub host_type: HostType,
    /// What it takes.
    pub demand: Demand,
}

/// What all Instances on a host take together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Used {
    /// Virtual CPUs.
    pub cpus: i32,
    /// Memory in MiB.
    pub memory_mib: i64,
    /// Disk in MiB.
    pub disk_mib: i64,
    /// How many Instances.
    pub instances: i32,
}

impl Used {
    /// Adds one Instance.
    pub fn add(&mut self, demand: Demand) {
        self.cpus += demand.cpus;
        self.memory_mib += demand.memory_mib;
        self.disk_mib += demand.disk_mib;
        self.instances += 1;
    }

    /// Takes one Instance away.
    pub fn remove(&mut self, demand: Demand) {
        self.cpus -= demand.cpus;
        self.memory_mib -= demand.memory_mib;
        self.disk_mib -= demand.disk_mib;
        self.instances -= 1;
    }
}

/// Whether an Environment may use a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// The host is in its section, or named by it.
    Inside,
    /// Neither.
    Outside,
}

/// A host as placement sees it.
#[derive(Clone, Debug)]
pub struct Candidate<'a> {
    /// metadata.name.
    pub name: &'a str,
    /// Whether the Environment may use it.
    pub reach: Reach,
    /// Declared to take new Instances, and not being deleted.
    pub enabled: bool,
    /// No other Host has its name.
    pub has_its_name: bool,
    /// What the machine is good for.
    pub type_: HostType,
    /// Whether it offers the driver that is asked for.
    pub offers_driver: bool,
    /// Its agent serves it, and has been heard of lately.
    pub ready: bool,
    /// Its disks are not nearly full, whatever was promised to others.
    pub has_room: bool,
    /// Memory for guests, in MiB.
    pub memory_mib: i64,
    /// Disk for guests, in MiB.
    pub disk_mib: i64,
    /// What is taken.
    pub used: Used,
}

impl Candidate<'_> {
    fn free_memory(&self) -> i64 {
        self.memory_mib - self.used.memory_mib
    }

    fn free_disk(&self) -> i64 {
        self.disk_mib - self.used.disk_mib
    }
}

/// Why a host cannot take an Instance; the first that holds, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Unfit {
    /// The Environment may not use it.
    Outside,
    /// It takes no new Instances.
    Disabled,
    /// Another Host has its name.
    NameTaken,
    /// It is of another type.
    WrongType,
    /// Nobody serves it now.
    NotReady,
    /// It does not offer the driver.
    NoDriver,
    /// Its disks are nearly full.
    Full,
    /// Too little free memory, in MiB.
    Memory {
        /// What is free.
        free: i64,
    },
    /// Too little free disk, in MiB.
    Disk {
        /// What is free.
        free: i64,
    },
}

/// Whether one host can take an Instance.
pub fn check(request: &Request<'_>, host: &Candidate<'_>) -> Result<(), Unfit> {
    if host.reach == Reach::Outside {
        Err(Unfit::Outside)
    } else if !host.enabled {
        Err(Unfit::Disabled)
    } else if !host.has_its_name {
        Err(Unfit::NameTaken)
    } else if !host.type_.serves(request.host_type) {
        Err(Unfit::WrongType)
    } else if !host.ready {
        Err(Unfit::NotReady)
    } else if !host.offers_driver {
        Err(Unfit::NoDriver)
    } else if !host.has_room {
        Err(Unfit::Full)
    } else if host.free_memory() < request.demand.memory_mib {
        Err(Unfit::Memory {
            free: host.free_memory(),
        })
    } else if host.free_disk() < request.demand.disk_mib {
        Err(Unfit::Disk {
            free: host.free_disk(),
        })
    } else {
        Ok(())
    }
}

/// The host for an Instance, or why there is none.
pub fn place<'a, C>(request: &Request<'_>, hosts: impl IntoIterator<Item = C>) -> Result<&'a str, Refusal>
where
    C: Borrow<Candidate<'a>>,
{
    let mut unfit = Groups::default();
    let mut best: Option<((i32, i64, &'a str), &'a str)> = None;
    for host in hosts {
        let host = host.borrow();
        match check(request, host) {
            Ok(()) => {
                let rank = (host.used.instances, -host.free_memory(), host.name);
                if best.is_none_or(|(first, _)| rank < first) {
                    best = Some((rank, host.name));
                }
            }
            Err(reason) => unfit.add(reason),
        }
    }
    best.map(|(_, name)| name)
        .ok_or_else(|| Refusal::new(request, &unfit))
}

/// How many hosts fell out for each reason, in the order of the reasons, and the one of them with the most free.
#[derive(Clone, Copy, Debug, Default)]
struct Groups([Option<(usize, Unfit)>; 9]);

impl Groups {
    fn add(&mut self, reason: Unfit) {
        let (count, most) = self.0[rank(&reason)].unwrap_or((0, reason));
        self.0[rank(&reason)] = Some((count + 1, most.max(reason)));
    }
}

/// Why one host cannot take an Instance that is pinned to it.
#[must_use]
pub fn explain(request: &Request<'_>, host: &str, unfit: Unfit) -> String {
    format!("host {host}: {}", clause(request, &unfit))
}

/// Why no host can take an Instance: how many fell out for each reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    hosts: usize,
    clauses: Vec<(usize, String)>,
}

impl Refusal {
    fn new(request: &Request<'_>, unfit: &Groups) -> Self {
        let groups = unfit.0.iter().flatten();
        Self {
            hosts: groups.clone().map(|(count, _)| count).sum(),
            clauses: groups
                .map(|(count, reason)| (*count, clause(request, reason)))
                .collect(),
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.hosts == 0 {
            return f.write_str("0/0 hosts: none has been registered yet");
        }
        write!(f, "0/{} hosts: ", self.hosts)?;
        for (i, (count, clause)) in self.clauses.iter().enumerate() {
            let comma = if i == 0 { "" } else { ", " };
            write!(f, "{comma}{count} {clause}")?;
        }
        Ok(())
    }
}

const fn rank(unfit: &Unfit) -> usize {
    match unfit {
        Unfit::Outside => 0,
        Unfit::Disabled => 1,
        Unfit::NameTaken => 2,
        Unfit::WrongType => 3,
        Unfit::NotReady => 4,
        Unfit::NoDriver => 5,
        Unfit::Full => 6,
        Unfit::Memory { .. } => 7,
        Unfit::Disk { .. } => 8,
    }
}

fn clause(request: &Request<'_>, unfit: &Unfit) -> String {
    match unfit {
        Unfit::Outside => format!("not in enviroment {}", request.environment),
        Unfit::Disabled => "disabled".to_owned(),
        Unfit::NameTaken => "with the name of another host".to_owned(),
        Unfit::WrongType => format!("not of type {}", request.host_type.as_str()),
        Unfit::NoDriver => format!("without driver {}", request.driver),
        Unfit::NotReady => "not ready".to_owned(),
        Unfit::Full => "with storage nearly full".to_owned(),
        Unfit::Memory { free } => format!(
            "not enough memory (need {} MiB, most free {} MiB)",
            request.demand.memory_mib, free
        ),
        Unfit::Disk { free } => format!(
            "not enough disk (need {} MiB, most free {} MiB)",
            request.demand.disk_mib, free
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::controller::testing::{Random, roomy};

    const REQUEST: Request<'static> = Request {
        environment: "e",
        driver: Driver::Kvm,
        host_type: HostType::GeneralPurpose,
        demand: Demand {
            cpus: 1,
            memory_mib: 2048,
            disk_mib: 1000,
        },
    };

    fn host(name: &'static str) -> Candidate<'static> {
        roomy(name, 8192, 50_000)
    }

    fn with(
        mut host: Candidate<'static>,
        change: impl FnOnce(&mut Candidate<'static>),
    ) -> Candidate<'static> {
        change(&mut host);
        host
    }

    #[test]
    fn who_takes_more_than_there_is_is_told_how_much() {
        for (rule, memory, disk, expected) in [
            ("all of it", 100, 200, None),
            (
                "memory",
                101,
                200,
                Some("its Instances take 101 MiB of memory (it has 100 MiB)"),
            ),
            (
                "both",
                101,
                201,
                Some(
                    "its Instances take 101 MiB of memory (it has 100 MiB) and 201 MiB of disk (it has 200 MiB)",
                ),
            ),
        ] {
            let used = Used {
                memory_mib: memory,
                disk_mib: disk,
                ..Used::default()
            };
            assert_eq!(overcommitted(used, 100, 200).as_deref(), expected, "{rule}");
            assert_eq!(
                overcommitted(used, 0, 0),
                None,
                "{rule}: nothing is known of the host"
            );
        }
    }

    #[test]
    fn the_least_used_then_the_roomiest_then_the_first() {
        let busy = |name| with(host(name), |h| h.used.instances = 3);
        let tight = |name| with(host(name), |h| h.memory_mib = 2048);
        for (rule, hosts, expected) in [
            ("by name", vec![host("b"), host("a")], "a"),
            ("fewest instances", vec![busy("a"), host("b")], "b"),
            ("most free memory", vec![tight("a"), host("b")], "b"),
            ("instances before memory", vec![busy("a"), tight("b")], "b"),
            ("exactly enough", vec![tight("a")], "a"),
        ] {
            assert_eq!(place(&REQUEST, &hosts), Ok(expected), "{rule}");
        }
    }

    #[test]
    fn a_refusal_counts_every_host_once_for_its_first_reason() {
        let small = |name, free| with(host(name), |h| h.memory_mib = free);
        let hosts = [
            with(host("a"), |h| h.enabled = false),
            with(host("b"), |h| {
                h.enabled = false;
                h.ready = false;
            }),
            small("c", 1500),
            small("d", 100),
            small("e", 0),
        ];
        assert_eq!(
            place(&REQUEST, &hosts).unwrap_err().to_string(),
            "0/5 hosts: 2 disabled, 3 not enough memory (need 2048 MiB, most free 1500 MiB)"
        );
        let others = [
            with(host("a"), |h| h.reach = Reach::Outside),
            with(host("g"), |h| h.has_its_name = false),
            with(host("b"), |h| h.type_ = HostType::StorageOptimized),
            with(host("c"), |h| h.offers_driver = false),
            with(host("d"), |h| h.ready = false),
            with(host("f"), |h| h.has_room = false),
            with(host("e"), |h| h.disk_mib = 999),
        ];
        assert_eq!(
            place(&REQUEST, &others).unwrap_err().to_string(),
            "0/7 hosts: 1 not in enviroment e, 1 with the name of another host, 1 not of type GeneralPurpose, 1 not ready, 1 without driver kvm, \
             1 with storage nearly full, 1 not enough disk (need 1000 MiB, most free 999 MiB)"
        );
        assert_eq!(
            place(&REQUEST, &[]).unwrap_err().to_string(),
            "0/0 hosts: none has been registered yet"
        );
        assert_eq!(
            explain(&REQUEST, "h", Unfit::Memory { free: 7 }),
            "host h: not enough memory (need 2048 MiB, most free 7 MiB)"
        );
    }

    const NAMES: [&str; 6] = ["a", "b", "c", "d", "e", "f"];

    fn candidates(random: &mut Random) -> Vec<Candidate<'static>> {
        let hosts = random.below(NAMES.len() as u64 + 1) as usize;
        NAMES[..hosts]
            .iter()
            .map(|name| Candidate {
                name,
                // Mostly fit, so that the interesting part is the room.
                reach: if random.below(8) == 0 {
                    Reach::Outside
                } else {
                    Reach::Inside
                },
                enabled: random.below(8) != 0,
                has_its_name: random.below(8) != 0,
                type_: HostType::GeneralPurpose,
                has_room: random.below(8) != 0,
                offers_driver: random.below(8) != 0,
                ready: random.below(8) != 0,
                memory_mib: random.below(9000) as i64,
                disk_mib: random.below(9000) as i64,
                used: Used {
                    cpus: 0,
                    memory_mib: random.below(4000) as i64,
                    disk_mib: random.below(4000) as i64,
                    instances: random.below(5) as i32,
                },
            })
            .collect()
    }

    #[test]
    fn always_placed_when_a_host_fits_and_only_there() {
        for seed in 0..5000 {
            let random = &mut Random::new(seed);
            let hosts = candidates(random);
            let memory_mib = random.below(4096) as i64;
            let request = Request {
                demand: Demand {
                    memory_mib,
                    ..REQUEST.demand
                },
                ..REQUEST
            };
            match place(&request, &hosts) {
                Ok(name) => {
                    let chosen = hosts.iter().find(|h| h.name == name).unwrap();
                    assert_eq!(check(&request, chosen), Ok(()), "seed {seed}");
                    assert!(
                        chosen.used.memory_mib + memory_mib <= chosen.memory_mib,
                        "seed {seed}"
                    );
                }
                Err(refusal) => {
                    assert!(hosts.iter().all(|h| check(&request, h).is_err()), "seed {seed}");
                    let counted: usize = refusal.clauses.iter().map(|(count, _)| count).sum();
                    assert_eq!(counted, hosts.len(), "seed {seed}");
                }
            }
        }
    }

    #[test]
    fn the_order_of_hosts_does_not_matter() {
        for seed in 0..2000 {
            let mut hosts = candidates(&mut Random::new(seed));
            let forward = place(&REQUEST, &hosts).ok();
            hosts.reverse();
            assert_eq!(place(&REQUEST, &hosts).ok(), forward, "seed {seed}");
        }
    }

    #[test]
    fn placing_until_refused_never_overcommits() {
        for seed in 0..1000 {
            let random = &mut Random::new(seed);
            let mut hosts = candidates(random);
            // The world may start overcommitted (an edit can do that); placement must not add to it.
            let before: Vec<Used> = hosts.iter().map(|h| h.used).collect();
            for _ in 0..40 {
                let size = random.below(3000) as i64 + 1;
                let request = Request {
                    demand: Demand {
                        cpus: 1,
                        memory_mib: size,
                        disk_mib: size,
                    },
                    ..REQUEST
                };
                if let Ok(name) = place(&request, &hosts) {
                    let chosen = hosts.iter_mut().find(|h| h.name == name).unwrap();
                    chosen.used.add(request.demand);
                }
            }
            for (host, before) in hosts.iter().zip(before) {
                let roomy = host.free_memory() >= 0 && host.free_disk() >= 0;
                assert!(host.used == before || roomy, "seed {seed}");
            }
        }
    }
}
