//! Who looks again when a host has got more room.
//!
//! With ten thousand Instances that wait, asking each of them whenever one place becomes free would cost ten thousand decisions and
//! as many writes. So the host is offered to them, the oldest first, and only those that fit there together look again. As long
//! as somebody fits it is offered again a moment later, for who was asked may have found another place or be gone by then; so
//! no room stays free that somebody waits for.

use std::collections::HashMap;
use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use tokio::time::Instant;
use virtshell_crds::{Driver, HostType};

use super::cache::ObjectKey;
use super::context::{Context, Key};
use super::grouping::Territory;
use super::placement::{self, Candidate, Demand, Reach, Request, Used};
use super::roster::Offer;

/// How long room is gathered before it is offered: what is deleted together makes room together.
pub const GATHERING: Duration = Duration::from_millis(100);
/// Until a host is offered again after somebody fitted.
const AGAIN: Duration = Duration::from_secs(1);

/// An Instance that no host had room for, and what it asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waiting {
    /// Which one.
    pub instance: ObjectKey,
    /// When it was created.
    pub since: Option<Timestamp>,
    /// The Environment that it names.
    pub environment: ObjectKey,
    /// The only host (metadata.name) that it may go to.
    pub tie: Option<String>,
    /// How it is to run.
    pub driver: Driver,
    /// Kind of host.
    pub host_type: HostType,
    /// What it takes.
    pub demand: Demand,
}

/// Offers a host to those who wait; the answer is when to do so again.
pub fn offer(ctx: &Context, host: &ObjectKey) -> Option<Duration> {
    let offer = Offer::of(&*ctx.hosts.get(host)?);
    if ctx.pulse().is_silent(&offer.name, Instant::now()) {
        return None;
    }
    let (waiting, used) = {
        let desk = ctx.desk();
        (desk.waiting(), desk.ledger.used(&offer.name))
    };
    let mut reaches: HashMap<&ObjectKey, Reach> = HashMap::new();
    let reach = |at| {
        *reaches.entry(at).or_insert_with(|| {
            let environment = ctx.environments.find(&at.namespace, &at.name);
            Territory::of(&ctx.sections, environment.as_deref()).reach(&offer)
        })
    };
    let fitting = fitting(&offer, used, &waiting, reach);
    for instance in &fitting {
        ctx.queue.add_urgent(Key::Instance((*instance).clone()));
    }
    (!fitting.is_empty()).then_some(AGAIN)
}

/// Those that fit on a host together, beside what is taken there; who comes first is asked first.
fn fitting<'a>(
    offer: &Offer,
    mut used: Used,
    waiting: &'a [Waiting],
    mut reach: impl FnMut(&'a ObjectKey) -> Reach,
) -> Vec<&'a ObjectKey> {
    let mut fitting = Vec::new();
    for waiting in waiting {
        if waiting.tie.as_ref().is_some_and(|tie| *tie != offer.name) {
            continue;
        }
        let request = Request {
            environment: "",
            driver: waiting.driver,
            host_type: waiting.host_type,
            demand: waiting.demand,
        };
        let host = Candidate {
            used,
            ..offer.candidate(reach(&waiting.environment), waiting.driver)
        };
        if placement::check(&request, &host).is_ok() {
            used.add(waiting.demand);
            fitting.push(&waiting.instance);
        }
    }
    fitting
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn key(name: &str) -> ObjectKey {
        ObjectKey {
            namespace: "ns".to_owned(),
            name: name.to_owned(),
        }
    }

    fn waiting(name: &str, memory_mib: i64) -> Waiting {
        Waiting {
            instance: key(name),
            since: None,
            environment: key("ours"),
            tie: None,
            driver: Driver::Kvm,
            host_type: HostType::GeneralPurpose,
            demand: Demand {
                cpus: 1,
                memory_mib,
                disk_mib: 10,
            },
        }
    }

    fn with(mut waiting: Waiting, change: impl FnOnce(&mut Waiting)) -> Waiting {
        change(&mut waiting);
        waiting
    }

    /// A host with 1000 MiB of memory, of which so much is free.
    fn names(free: i64, waiting: &[Waiting]) -> Vec<&str> {
        let host = serde_json::from_value(json!({
            "apiVersion": "virtshell.io/v1alpha1", "kind": "Host", "metadata": {"name": "h"}, "spec": {"enabled": true},
            "status": {
                "capacity": {"cpus": 8, "memoryMiB": 1000, "diskMiB": 100_000}, "drivers": ["kvm"],
                "conditions": [{
                    "type": "Ready", "status": "True", "reason": "Serving", "message": "",
                    "lastTransitionTime": "2026-01-01T00:00:00Z",
                }],
            },
        }));
        let used = Used {
            memory_mib: 1000 - free,
            ..Used::default()
        };
        let reach = |environment: &ObjectKey| {
            if environment.name == "ours" {
                Reach::Inside
            } else {
                Reach::Outside
            }
        };
        let fitting = fitting(&Offer::of(&host.unwrap()), used, waiting, reach);
        fitting.into_iter().map(|key| key.name.as_str()).collect()
    }

    #[test]
    fn those_that_fit_together_are_asked_in_their_order() {
        let (big, mid, small) = (waiting("big", 900), waiting("mid", 300), waiting("small", 100));
        let elsewhere = with(waiting("elsewhere", 1), |w| w.environment = key("theirs"));
        let container = with(waiting("container", 1), |w| w.driver = Driver::Lxc);
        let pinned = |host: &str| with(waiting("pinned", 1), |w| w.tie = Some(host.to_owned()));
        let all = [big, mid, small];
        for (rule, free, waiting, expected) in [
            ("nothing is free", 0, &all[..], &[][..]),
            ("the first takes it all", 900, &all, &["big"]),
            ("who is too big keeps nobody", 400, &all, &["mid", "small"]),
            ("together, not each alone", 350, &all, &["mid"]),
            ("everybody", 1000, &all[1..], &["mid", "small"]),
            (
                "not its environment",
                900,
                &[elsewhere, all[2].clone()],
                &["small"],
            ),
            ("not its driver", 900, &[container, all[2].clone()], &["small"]),
            ("pinned to it", 900, &[pinned("h")], &["pinned"]),
            ("pinned elsewhere", 900, &[pinned("g")], &[]),
        ] {
            assert_eq!(names(free, waiting), expected, "{rule}");
        }
    }

    #[test]
    fn one_place_among_ten_thousand_wakes_one() {
        let waiting: Vec<Waiting> = (0..10_000).map(|n| waiting(&n.to_string(), 64)).collect();
        assert_eq!(names(64, &waiting), ["0"]);
        assert_eq!(names(63, &waiting).len(), 0);
    }
}
