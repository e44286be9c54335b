//! Looks after one Host: its identity, whether it is alive, and what its Instances take.

use std::sync::Arc;
use std::time::Duration;

use kube::ResourceExt;
use kube::api::Api;
use serde_json::json;
use tokio::time::Instant;
use virtshell_crds::condition::{self, OVERCOMMITTED, READY, Status};
use virtshell_crds::host::Allocated;
use virtshell_crds::{ANNOTATION_CONFIRM_GONE, Host, MANAGER_CONTROLLER, MANAGER_CONTROLLER_LOST};

use super::cache::{Cached, ObjectKey};
use super::context::Context;
use super::events::Level;
use super::roster::Offer;
use super::write::{self, Error};
use super::{guard, identity, ledger, node_name, placement, pulse, wire_name};
use crate::status::differs;

/// Reason of `Ready=Unknown` on a Host that is silent.
const SILENT: &str = "Silent";

/// Whether an administrator has said that this host is gone for good. Whether it is, [`Pulse::state`](pulse::Pulse::state)
/// knows.
#[must_use]
pub fn is_confirmed_gone(host: &Host) -> bool {
    let said = host.annotations().get(ANNOTATION_CONFIRM_GONE);
    said.is_some() && said == host.metadata.uid.as_ref()
}

/// Looks at one Host; the answer is when to look again.
pub async fn reconcile(ctx: &Context, key: &ObjectKey) -> Result<Option<Duration>, Error> {
    let Some(mut host) = ctx.hosts.get(key) else {
        ctx.identities.forget_host(&key.name);
        return Ok(None);
    };
    // Each write rests on the one before.
    let keep = |host: &mut Arc<Host>, written: Option<Host>| {
        if let Some(written) = written {
            *host = Arc::new(written.clone());
            ctx.stored_host(written);
        }
    };
    if host.metadata.deletion_timestamp.is_none() {
        identity::ensure_host(ctx, &host).await?;
        let filled = node_name::fill(ctx, &host).await?;
        keep(&mut host, filled);
    }
    let contradicted = contradict(ctx, &host).await?;
    keep(&mut host, contradicted);
    let (next_beat, marked) = watch_over(ctx, &host).await?;
    keep(&mut host, marked);
    let user = user(ctx, &key.name);
    let guarded = guard::guard(ctx, &Api::all(ctx.client.clone()), &*host, user.as_deref()).await?;
    keep(&mut host, guarded);
    let (next_sum, summed) = sum(ctx, &host, user.as_deref()).await?;
    keep(&mut host, summed);
    Ok([next_beat, next_sum].into_iter().flatten().min())
}

/// What uses a host.
fn user(ctx: &Context, name: &str) -> Option<String> {
    let there = ctx.instances_on(name);
    let there = there.iter().filter_map(|key| ctx.instances.get(key));
    let mut bound = there.filter(|instance| ledger::bound_host(instance).is_some());
    let first = bound.next();
    let first = first.as_ref().map(|instance| instance.wire_name());
    guard::instances(usize::from(first.is_some()) + bound.count(), first)
}

/// A host that beats is not gone, whoever said so: his word is taken back, so that the next silence needs a new one. Returns the
/// Host as it is then.
async fn contradict(ctx: &Context, host: &Host) -> Result<Option<Host>, Error> {
    let name = host.name_any();
    if !is_confirmed_gone(host) || !ctx.pulse().contradicts(&name) {
        return Ok(None);
    }
    let api: Api<Host> = Api::all(ctx.client.clone());
    let patch = json!({"metadata": {"annotations": {ANNOTATION_CONFIRM_GONE: null}}});
    let written = write::patch_as_read(&api, host, patch)
        .await
        .map_err(Error::api(format!("take back that host {name} is gone")))?;
    ctx.metrics.wrote("Host");
    tracing::warn!(host.name = name, "a host that was said to be gone is back");
    let note = format!(
        "it was said to be gone, and its agent reports: annotation {ANNOTATION_CONFIRM_GONE} is taken back"
    );
    ctx.events
        .say(host, Level::Warning, "Watch", "HostNotGone", &note);
    Ok(Some(written))
}

/// `Ready=Unknown` while the host is silent. Its agent says what is true when it is back; then the mark is taken back.
/// Returns when it will be silent, and the Host as it is then, where that was a write.
async fn watch_over(ctx: &Context, host: &Host) -> Result<(Option<Duration>, Option<Host>), Error> {
    let name = host.name_any();
    let uid = host.uid().unwrap_or_default();
    let left = ctx.pulse().until_silent(&name, Instant::now());
    let present = host
        .status
        .as_ref()
        .map(|s| s.conditions.as_slice())
        .unwrap_or_default();
    let shown = condition::find(present, READY).is_some_and(|c| c.reason == SILENT);
    let falls_silent = left.is_none() && ctx.pulse().mark(&name, &uid);
    let status = if falls_silent && shown {
        // An earlier controller has said so; who waits for it asks us.
        ctx.wake_instances_of(&name);
        return Ok((left, None));
    } else if falls_silent {
        let message = format!(
            "no renewal of its Lease has been seen for {} s",
            pulse::SILENCE.as_secs()
        );
        tracing::warn!(host.name = name, "a host is silent");
        ctx.events
            .say(host, Level::Warning, "Watch", "HostSilent", &message);
        let generation = host.metadata.generation;
        let unknown = condition::condition(READY, Status::Unknown, SILENT, message, generation, write::now());
        json!({"conditions": [unknown]})
    } else if left.is_some() && !shown && ctx.pulse().is_marked(&name, &uid) {
        tracing::info!(host.name = name, "a silent host is back");
        ctx.events.say(
            host,
            Level::Normal,
            "Watch",
            "HostBack",
            "its agent reports again",
        );
        ctx.pulse().unmark(&name, &uid);
        json!({})
    } else {
        return Ok((left, None));
    };
    let api: Api<Host> = Api::all(ctx.client.clone());
    match write::apply_as_read(&api, host, MANAGER_CONTROLLER_LOST, &status).await {
        Ok(written) => {
            ctx.metrics.wrote("Host");
            ctx.wake_instances_of(&name);
            Ok((left, Some(written)))
        }
        Err(error) => {
            ctx.pulse().unmark(&name, &uid);
            Err(Error::api(format!("write whether host {name} is ready"))(error))
        }
    }
}

/// Whether it makes sense, that its Instances keep it if it is asked to go, and what they take together; sums alone are
/// written at most once in [`super::context::SUM_PERIOD`]. Returns when they may be, and the Host as it is then, where that
/// was a write.
async fn sum(
    ctx: &Context,
    host: &Host,
    user: Option<&str>,
) -> Result<(Option<Duration>, Option<Host>), Error> {
    let name = host.name_any();
    let used = ctx.desk().ledger.used(&name);
    let allocated = Allocated {
        cpus: used.cpus,
        memory_mib: used.memory_mib,
        disk_mib: used.disk_mib,
        instances: used.instances,
    };
    let present = host
        .status
        .as_ref()
        .map(|s| s.conditions.as_slice())
        .unwrap_or_default();
    let section = host.spec.section.as_deref();
    let missing = section.filter(|name| ctx.sections.find("", name).is_none());
    let missing = missing.map(|name| ("SectionNotFound", format!("section {name} not found")));
    let flaw = wire_name::conflict(&ctx.hosts, host, "host").or(missing);
    let accepted = wire_name::accepted(host.metadata.generation, flaw);
    let in_use = guard::condition(host, "host", host.wire_name(), user);
    let offer = Offer::of(host);
    let over = placement::overcommitted(used, offer.memory_mib, offer.disk_mib);
    let was_over = condition::find(present, OVERCOMMITTED).is_some();
    let overcommitted = over.as_ref().map(|_| {
        // The numbers are in the status; here they would be written whenever they change.
        let message =
            "its Instances were edited to take more than it has (status.allocated, status.capacity)";
        let generation = host.metadata.generation;
        condition::condition(
            OVERCOMMITTED,
            Status::True,
            "Edited",
            message,
            generation,
            write::now(),
        )
    });
    let mine = [accepted].into_iter().chain(in_use).chain(overcommitted);
    let mine = write::conditions(present, mine);
    let status = json!({"allocated": allocated, "conditions": mine});
    let present = json!(host.status);
    if !differs(&present, &status, &["allocated", "conditions"]) {
        return Ok((None, None));
    }
    let wait = ctx.sum_due(&format!("Host {name}"));
    if wait.is_some() && !differs(&present, &status, &["conditions"]) {
        return Ok((wait, None));
    }
    let api: Api<Host> = Api::all(ctx.client.clone());
    let written = write::apply_as_read(&api, host, MANAGER_CONTROLLER, &status)
        .await
        .map_err(Error::api(format!("write what is allocated on host {name}")))?;
    if let Some(over) = over.filter(|_| !was_over) {
        ctx.events.say(host, Level::Warning, "Sum", OVERCOMMITTED, &over);
    }
    ctx.metrics.wrote("Host");
    Ok((None, Some(written)))
}
