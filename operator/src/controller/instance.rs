//! Brings one Instance to its host: accept, resolve, place, and say so.
//!
//! At most two writes, in this order: (1) a merge patch, guarded by the resource version, that sets `spec.host` and the
//! finalizer; (2) the status with the frozen values and `Scheduled=True`, which is what the node waits for. Everything
//! after that is the node's; the controller writes again only when the spec is edited or the host falls silent.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ManagedFieldsEntry;
use kube::ResourceExt;
use kube::api::Api;
use serde_json::{Value, json};
use tokio::time::Instant;
use virtshell_crds::condition::{self, ACCEPTED, READY, SCHEDULED, Status};
use virtshell_crds::{FINALIZER_DOMAIN, Instance, MANAGER_CONTROLLER, MANAGER_CONTROLLER_LOST, Phase};

use super::accept::{self, Acceptance, Refusal};
use super::cache::ObjectKey;
use super::context::{Context, cluster_key};
use super::depends;
use super::events::Level;
use super::ledger;
use super::placement;
use super::pulse::HostState;
use super::roster::Offer;
use super::schedule::{Pin, Placement, decide};
use super::write::{self, Error};
use crate::status::differs;

/// Reason of `Ready=Unknown` on Instances of a silent host.
pub const HOST_SILENT: &str = "HostSilent";

/// Looks at one Instance; the answer is when to look again.
pub async fn reconcile(ctx: &Context, key: &ObjectKey) -> Result<Option<Duration>, Error> {
    let Some(instance) = ctx.instances.get(key) else {
        return Ok(None);
    };
    if instance.metadata.deletion_timestamp.is_some() {
        super::launch::release(ctx, &instance).await?;
        return release(ctx, &instance).await.map(|()| None);
    }
    ctx.desk().looks_again(key);
    mark_silence(ctx, &instance).await?;
    let refs = ctx.references(&instance);
    let mut accepted = accept::accept(&instance, &refs);
    if let Some(launch) = super::launch::of(&instance, &accepted) {
        let again = super::launch::reconcile(ctx, instance.clone(), launch, accepted).await?;
        let announced = super::task::announced::make(ctx, &instance).await?;
        return Ok([again, announced].into_iter().flatten().min());
    }
    let (instance, placement) = match &mut accepted {
        Ok(acceptance) => match depends::look(ctx, &instance, acceptance).await? {
            Some(waits) => (instance, Some(waits)),
            None => bind(ctx, instance, acceptance).await?,
        },
        Err(_) => (instance, None),
    };
    report(ctx, &instance, &accepted, placement).await?;
    super::task::announced::make(ctx, &instance).await
}

/// An Instance that is being deleted waits for its node, unless no node was ever told of it, or its host is gone for good.
async fn release(ctx: &Context, instance: &Instance) -> Result<(), Error> {
    let mut finalizers = instance.finalizers().to_vec();
    if !finalizers.iter().any(|f| f == FINALIZER_DOMAIN) {
        return Ok(());
    }
    // Its node does the rest, now or when it is back. The host's falling silent puts it in line again.
    if is_scheduled(instance) && !is_host_gone(ctx, instance) {
        return Ok(());
    }
    finalizers.retain(|f| f != FINALIZER_DOMAIN);
    let patch = json!({"metadata": {"finalizers": finalizers}});
    patch_instance(ctx, instance, patch).await.map(drop)
}

/// Whether the host of an Instance is gone for good. One that is not known here may be there.
fn is_host_gone(ctx: &Context, instance: &Instance) -> bool {
    let host = instance.spec.host.as_deref().unwrap_or_default();
    ctx.pulse().state(host, Instant::now()) == HostState::Gone
}

/// Decides where the Instance goes, and writes that. Returns the Instance as it is then.
async fn bind(
    ctx: &Context,
    instance: Arc<Instance>,
    acceptance: &Acceptance,
) -> Result<(Arc<Instance>, Option<Placement>), Error> {
    let held = instance.finalizers().iter().any(|f| f == FINALIZER_DOMAIN);
    let mut placement = match final_place(&instance) {
        Some(host) => Placement::Placed(host.to_owned()),
        None => decide(ctx, &instance, acceptance, Pin::Users),
    };
    if held && matches!(placement, Placement::Refused { .. }) && is_our_choice(ctx, &instance).await? {
        placement = decide(ctx, &instance, acceptance, Pin::Ours);
    }
    let Placement::Placed(host) = &placement else {
        return Ok((instance, Some(placement)));
    };
    if held && instance.spec.host.as_deref() == Some(host) {
        return Ok((instance, Some(placement)));
    }
    let mut finalizers = instance.finalizers().to_vec();
    if !held {
        finalizers.push(FINALIZER_DOMAIN.to_owned());
    }
    let patch = json!({
        "metadata": {"finalizers": finalizers},
        "spec": {"host": host},
    });
    match patch_instance(ctx, &instance, patch).await {
        Ok(bound) => Ok((Arc::new(bound), Some(placement))),
        Err(error) => {
            ctx.forget_assumed(&instance.uid().unwrap_or_default());
            Err(error)
        }
    }
}

/// The host of an Instance whose node has been told of it: placement is final.
fn final_place(instance: &Instance) -> Option<&str> {
    let there = instance.status.as_ref().and_then(|s| s.host.as_deref());
    let host = instance.spec.host.as_deref().or(there);
    host.filter(|_| is_scheduled(instance))
}

/// Whether the host in the spec is one that a controller chose, which then did not live to tell the node. The API server knows
/// who wrote the field; caches do not.
async fn is_our_choice(ctx: &Context, instance: &Instance) -> Result<bool, Error> {
    let name = instance.name_any();
    let stored = api(ctx, instance)
        .get_metadata(&name)
        .await
        .map_err(Error::api(format!("read instance {name}")))?;
    let same = stored.metadata.resource_version == instance.metadata.resource_version;
    Ok(same && is_host_ours(stored.metadata.managed_fields.as_deref().unwrap_or_default()))
}

/// Whether nobody but controllers has written `spec.host`.
fn is_host_ours(fields: &[ManagedFieldsEntry]) -> bool {
    let has_host = |entry: &&ManagedFieldsEntry| {
        let fields = entry.fields_v1.as_ref();
        fields.is_some_and(|fields| fields.0.pointer("/f:spec/f:host").is_some())
    };
    let mut owners = fields.iter().filter(has_host).peekable();
    owners.peek().is_some() && owners.all(|entry| entry.manager.as_deref() == Some(MANAGER_CONTROLLER))
}

/// Writes the status when it differs, and tells people what changed.
async fn report(
    ctx: &Context,
    instance: &Instance,
    accepted: &Result<Acceptance, Refusal>,
    placement: Option<Placement>,
) -> Result<(), Error> {
    if let (Some(Placement::Placed(host)), false) = (&placement, is_scheduled(instance)) {
        // The node may ask for the Secret as soon as it sees Scheduled=True.
        super::identity::allow_secret(ctx, instance, host).await?;
    }
    let status = desired_status(instance, accepted, placement.as_ref());
    let present = json!(instance.status);
    let mut owned = vec!["resolved", "tags", "conditions"];
    if !node_reports(instance) {
        owned.extend(["phase", "message", "observedGeneration"]);
    }
    if !differs(&present, &status, &owned) {
        return Ok(());
    }
    let api: Api<Instance> = api(ctx, instance);
    let name = instance.name_any();
    let written = write::apply_as_read(&api, instance, MANAGER_CONTROLLER, &status)
        .await
        .map_err(Error::api(format!("write the status of instance {name}")))?;
    ctx.metrics.wrote("Instance");
    tell(ctx, instance, accepted, placement.as_ref());
    let (before, after) = (ledger::demand(instance), ledger::demand(&written));
    ctx.stored_instance(written);
    let grows = after.memory_mib > before.memory_mib || after.disk_mib > before.disk_mib;
    if grows && accept::frozen(instance).is_some() {
        tell_overcommitted(ctx, instance);
    }
    Ok(())
}

/// An edit is carried out whatever the host has left: who made it is told when that was not enough.
fn tell_overcommitted(ctx: &Context, instance: &Instance) {
    let Some(name) = ledger::bound_host(instance) else {
        return;
    };
    let Some(host) = ctx.hosts.get(&cluster_key(name)) else {
        return;
    };
    let offer = Offer::of(&host);
    let used = ctx.desk().ledger.used(name);
    if let Some(over) = placement::overcommitted(used, offer.memory_mib, offer.disk_mib) {
        let note = format!("this edit is more than host {name} has left: {over}");
        ctx.events
            .say(instance, Level::Warning, "Resize", "HostOvercommitted", &note);
    }
}

/// All that the controller's field manager owns in the status of an Instance.
fn desired_status(
    instance: &Instance,
    accepted: &Result<Acceptance, Refusal>,
    placement: Option<&Placement>,
) -> Value {
    let generation = instance.metadata.generation;
    let now = write::now();
    let present = instance.status.as_ref();
    let condition = |type_, status, reason: &str, message: &str| {
        condition::condition(type_, status, reason, message, generation, now.clone())
    };
    let accepted_condition = match accepted {
        Ok(_) => condition(ACCEPTED, Status::True, "Valid", ""),
        Err(refusal) => condition(ACCEPTED, Status::False, refusal.reason, &refusal.message),
    };
    let (scheduled, phase, message) = match (placement, accepted) {
        (Some(Placement::Placed(_)), _) => (
            condition(SCHEDULED, Status::True, "Placed", ""),
            Phase::Creating,
            String::new(),
        ),
        (Some(Placement::Refused { reason, message }), _) => (
            condition(SCHEDULED, Status::False, reason, message),
            if *reason == depends::FAILED {
                Phase::Failed
            } else {
                Phase::Pending
            },
            message.clone(),
        ),
        // An edit that makes no sense does not undo a placement.
        (None, Err(refusal)) if is_scheduled(instance) => (
            condition(SCHEDULED, Status::True, "Placed", ""),
            Phase::Creating,
            refusal.message.clone(),
        ),
        (None, Err(refusal)) => (
            condition(SCHEDULED, Status::False, "NotAccepted", ""),
            Phase::Pending,
            refusal.message.clone(),
        ),
        (None, Ok(_)) => (
            condition(SCHEDULED, Status::Unknown, "Undecided", ""),
            Phase::Pending,
            String::new(),
        ),
    };
    let (resolved, tags) = match accepted {
        Ok(acceptance) => (Some(&acceptance.resolved), Some(&acceptance.tags)),
        Err(_) => (
            present.and_then(|s| s.resolved.as_ref()),
            present.map(|s| &s.tags),
        ),
    };
    let conditions = present.map(|s| s.conditions.as_slice()).unwrap_or_default();
    let mut status = json!({
        "tags": tags.cloned().unwrap_or_default(),
        "conditions": write::conditions(conditions, [accepted_condition, scheduled]),
    });
    if let Some(resolved) = resolved {
        status["resolved"] = json!(resolved);
    }
    if !node_reports(instance) {
        status["phase"] = json!(phase);
        status["message"] = json!(message);
        status["observedGeneration"] = json!(generation);
    }
    status
}

/// From its first report on, phase, message and observed generation are the node's.
fn node_reports(instance: &Instance) -> bool {
    instance.status.as_ref().is_some_and(|s| s.host.is_some())
}

fn is_scheduled(instance: &Instance) -> bool {
    instance
        .status
        .as_ref()
        .is_some_and(|s| condition::is_true(&s.conditions, SCHEDULED))
}

/// An Event for why an Instance is not acted on, when that is news.
pub fn tell_refusal(ctx: &Context, instance: &Instance, refusal: &Refusal) {
    let conditions = instance.status.as_ref().map(|s| s.conditions.as_slice());
    let shown = condition::find(conditions.unwrap_or_default(), ACCEPTED);
    let is_known = shown.is_some_and(|c| {
        c.status == Status::False.as_str() && c.reason == refusal.reason && c.message == refusal.message
    });
    if !is_known {
        ctx.events.say(
            instance,
            Level::Warning,
            "Accept",
            refusal.reason,
            &refusal.message,
        );
    }
}

fn tell(
    ctx: &Context,
    instance: &Instance,
    accepted: &Result<Acceptance, Refusal>,
    placement: Option<&Placement>,
) {
    let present = instance
        .status
        .as_ref()
        .map(|s| s.conditions.as_slice())
        .unwrap_or_default();
    let events = &ctx.events;
    if let Err(refusal) = accepted {
        tell_refusal(ctx, instance, refusal);
    }
    match placement {
        Some(Placement::Placed(host)) if !is_scheduled(instance) => {
            tracing::info!(
                instance.namespace = instance.namespace(),
                instance.name = instance.name_any(),
                host.name = host,
                "placed"
            );
            events.say(
                instance,
                Level::Normal,
                "Place",
                "Scheduled",
                &format!("placed on host {host}"),
            );
        }
        // The numbers in the message change often; the reason seldom.
        Some(Placement::Refused { reason, message })
            if condition::find(present, SCHEDULED).is_none_or(|c| c.reason != *reason) =>
        {
            events.say(instance, Level::Warning, "Place", "FailedScheduling", message);
        }
        Some(_) | None => {}
    }
}

/// `Ready=Unknown` while the host is silent. It is the node's condition, written under a manager of its own and once per
/// silence, so that the two never fight. When the host is back its node reports again; only then is the mark taken back:
/// sooner would leave a condition of which only the type is left.
async fn mark_silence(ctx: &Context, instance: &Arc<Instance>) -> Result<(), Error> {
    let Some(host) = ledger::bound_host(instance) else {
        return Ok(());
    };
    let ready = instance
        .status
        .as_ref()
        .and_then(|s| condition::find(&s.conditions, READY));
    let shown = ready.is_some_and(|c| c.reason == HOST_SILENT);
    let silent = ctx.pulse().is_silent(host, Instant::now());
    let uid = instance.uid().unwrap_or_default();
    let status = if silent && !shown && ctx.pulse().mark(host, &uid) {
        let seconds = super::pulse::SILENCE.as_secs();
        let message = format!("host {host} has not been heard of for {seconds} s");
        let generation = instance.metadata.generation;
        let unknown = condition::condition(
            READY,
            Status::Unknown,
            HOST_SILENT,
            message,
            generation,
            write::now(),
        );
        json!({"conditions": [unknown]})
    } else if !silent && !shown && ctx.pulse().is_marked(host, &uid) {
        ctx.pulse().unmark(host, &uid);
        json!({})
    } else {
        return Ok(());
    };
    let written =
        write::apply_as_read(&api(ctx, instance), &**instance, MANAGER_CONTROLLER_LOST, &status).await;
    match written {
        Ok(written) => {
            ctx.metrics.wrote("Instance");
            ctx.stored_instance(written);
            Ok(())
        }
        Err(error) => {
            ctx.pulse().unmark(host, &uid);
            let doing = format!("mark instance {} of silent host {host}", instance.name_any());
            Err(Error::api(doing)(error))
        }
    }
}

/// A merge patch of the Instance as it was read; the answer goes to the cache and comes back.
pub async fn patch_instance(ctx: &Context, instance: &Instance, patch: Value) -> Result<Instance, Error> {
    let name = instance.name_any();
    let patched = write::patch_as_read(&api(ctx, instance), instance, patch)
        .await
        .map_err(Error::api(format!("patch instance {name}")))?;
    ctx.metrics.wrote("Instance");
    ctx.stored_instance(patched.clone());
    Ok(patched)
}

fn api(ctx: &Context, instance: &Instance) -> Api<Instance> {
    Api::namespaced(ctx.client.clone(), &instance.namespace().unwrap_or_default())
}

#[cfg(test)]
mod tests;
