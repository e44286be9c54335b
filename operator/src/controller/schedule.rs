//! Where an Instance goes: [`placement`] decides, on what [`super::roster`], [`super::pulse`] and the ledger know of the hosts.

use std::time::Duration;

use kube::ResourceExt;
use nix::time::{ClockId, clock_gettime};
use tokio::time::Instant;
use virtshell_crds::instance::Resolved;
use virtshell_crds::{Driver, Instance};

use super::accept::Acceptance;
use super::cache::ObjectKey;
use super::context::{Context, cluster_key};
use super::desk;
use super::grouping::Territory;
use super::ledger;
use super::placement::{self, Candidate, Request};
use super::room::Waiting;
use super::roster::Offer;

/// Where an Instance goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Placement {
    /// To this host (metadata.name), where it may be already.
    Placed(String),
    /// Nowhere for now.
    Refused {
        /// One word for the condition.
        reason: &'static str,
        /// What keeps it.
        message: String,
    },
}

/// Whose choice the host in the spec is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pin {
    /// The user's: it is checked, not overridden.
    Users,
    /// That of a controller which did not live to say so: no node has been told, so it may be made anew.
    Ours,
}

/// Where an Instance that no node has been told of goes. A place is taken in the ledger at once.
pub fn decide(ctx: &Context, instance: &Instance, acceptance: &Acceptance, pin: Pin) -> Placement {
    let (started, worked) = (std::time::Instant::now(), worked_so_far());
    let request = request(instance, &acceptance.resolved);
    let placement = match tie(ctx, instance, pin) {
        Ok(Some(host)) => check_tied(ctx, instance, &request, host),
        Ok(None) => choose(ctx, instance, &request),
        Err(refused) => refused,
    };
    let result = match placement {
        Placement::Placed(_) => "placed",
        Placement::Refused { .. } => "refused",
    };
    let worked = worked_so_far().saturating_sub(worked);
    ctx.metrics.placed(result, started.elapsed(), worked);
    placement
}

/// Processor time of this thread.
fn worked_so_far() -> Duration {
    // The clock is there on every Linux.
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map_or(Duration::ZERO, Duration::from)
}

/// The only host for an Instance, if it is not free to go anywhere: a domain that exists somewhere is never made a second time
/// elsewhere, the disks of a clone are copied where its source is, and a user may name one.
fn tie(ctx: &Context, instance: &Instance, pin: Pin) -> Result<Option<String>, Placement> {
    let there = instance.status.as_ref().and_then(|s| s.host.clone());
    let pinned = instance.spec.host.clone().filter(|_| pin == Pin::Users);
    let host = there.or(pinned);
    let Some(from) = &instance.spec.clone_from else {
        return Ok(host);
    };
    let source = ctx.clone_source(instance);
    let beside = source.and_then(|source| source.spec.host.clone());
    clone_host(&from.name, beside, host.as_deref()).map(Some)
}

fn clone_host(source: &str, host: Option<String>, pinned: Option<&str>) -> Result<String, Placement> {
    let refused = |reason, message| Err(Placement::Refused { reason, message });
    match (host, pinned) {
        (None, _) => refused("SourceNotPlaced", format!("instance {source} is on no host yet")),
        (Some(host), Some(pinned)) if host != pinned => refused(
            "SourceElsewhere",
            format!("Field host: a clone is made where its source is, on host {host}, not on {pinned}"),
        ),
        (Some(host), _) => Ok(host),
    }
}

fn choose(ctx: &Context, instance: &Instance, request: &Request<'_>) -> Placement {
    let hosts = ctx.listed_hosts();
    let reaches = ctx.roster.reaches(&hosts, &desk::environment(instance), || {
        let environment = ctx.environment_of(instance);
        let mut territory = Territory::of(&ctx.sections, environment.as_deref());
        hosts.iter().map(|host| territory.reach(&host.offer)).collect()
    });
    let uid = instance.uid().unwrap_or_default();
    let mut desk = ctx.desk();
    let used = desk.ledger.used_by_others(&uid);
    let candidates = hosts.iter().zip(reaches.iter()).map(|(host, reach)| {
        let offered = host.offer.candidate(*reach, request.driver);
        Candidate {
            ready: offered.ready && host.is_heard,
            used: used(host.slot),
            ..offered
        }
    });
    let placed = placement::place(request, candidates);
    drop(used);
    match placed {
        Ok(host) => {
            desk.ledger.assume(&uid, host, request.demand);
            Placement::Placed(host.to_owned())
        }
        Err(refusal) => {
            desk.refused(waiting(instance, request, None));
            Placement::Refused {
                reason: "Unschedulable",
                message: refusal.to_string(),
            }
        }
    }
}

fn check_tied(ctx: &Context, instance: &Instance, request: &Request<'_>, name: String) -> Placement {
    let Some(host) = ctx.hosts.get(&cluster_key(&name)) else {
        return Placement::Refused {
            reason: "HostNotFound",
            message: format!("host {name} not found"),
        };
    };
    let environment = ctx.environment_of(instance);
    let offer = Offer::of(&host);
    let reach = Territory::of(&ctx.sections, environment.as_deref()).reach(&offer);
    let mut candidate = offer.candidate(reach, request.driver);
    // A host that has not been heard of lately is not ready, whatever it said last.
    candidate.ready &= !ctx.pulse().is_silent(&name, Instant::now());
    let uid = instance.uid().unwrap_or_default();
    let mut desk = ctx.desk();
    let slot = desk.ledger.slot(&name);
    candidate.used = desk.ledger.used_by_others(&uid)(slot);
    match placement::check(request, &candidate) {
        Ok(()) => {
            desk.ledger.assume(&uid, &name, request.demand);
            Placement::Placed(name)
        }
        Err(unfit) => {
            let message = placement::explain(request, &name, unfit);
            desk.refused(waiting(instance, request, Some(name)));
            Placement::Refused {
                reason: "PinnedHostUnfit",
                message,
            }
        }
    }
}

fn request<'a>(instance: &Instance, resolved: &'a Resolved) -> Request<'a> {
    Request {
        environment: &resolved.environment,
        driver: resolved.driver.unwrap_or(Driver::Kvm),
        host_type: resolved.host_type.unwrap_or_default(),
        demand: ledger::demand_with(instance, Some(resolved)),
    }
}

fn waiting(instance: &Instance, request: &Request<'_>, tie: Option<String>) -> Waiting {
    Waiting {
        instance: ObjectKey::of(instance),
        since: instance.metadata.creation_timestamp.as_ref().map(|at| at.0),
        environment: desk::environment(instance),
        tie,
        driver: request.driver,
        host_type: request.host_type,
        demand: request.demand,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clone_goes_where_its_source_is() {
        let on = |host: &str| Some(host.to_owned());
        assert_eq!(clone_host("s", on("h"), None), Ok("h".to_owned()));
        assert_eq!(clone_host("s", on("h"), Some("h")), Ok("h".to_owned()));
        for (host, pinned, expected) in [
            (None, None, "SourceNotPlaced"),
            (None, Some("h"), "SourceNotPlaced"),
            (on("h"), Some("other"), "SourceElsewhere"),
        ] {
            let refused = clone_host("s", host, pinned);
            assert!(
                matches!(&refused, Err(Placement::Refused { reason, .. }) if *reason == expected),
                "{refused:?}"
            );
        }
    }
}
