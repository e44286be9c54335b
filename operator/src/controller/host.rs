//! Looks after one Host: its identity, whether it is alive, and what its Instances take.

use std::time::Duration;

use kube::ResourceExt;
use kube::api::Api;
use serde_json::json;
use tokio::time::Instant;
use virtshell_crds::condition::{self, READY, Status};
use virtshell_crds::host::Allocated;
use virtshell_crds::{ANNOTATION_CONFIRM_GONE, Host, MANAGER_CONTROLLER, MANAGER_CONTROLLER_LOST};

use super::cache::{Cached, ObjectKey};
use super::context::Context;
use super::events::Level;
use super::write::{self, Error};
use super::{guard, identity, node_name, pulse};
use crate::status::{apply, differs};

/// Reason of `Ready=Unknown` on a Host that is silent.
const SILENT: &str = "Silent";

/// Whether an administrator has said that this host is gone for good.
#[must_use]
pub fn is_confirmed_gone(host: &Host) -> bool {
    let said = host.annotations().get(ANNOTATION_CONFIRM_GONE);
    said.is_some() && said == host.metadata.uid.as_ref()
}

/// Looks at one Host; the answer is when to look again.
pub async fn reconcile(ctx: &Context, key: &ObjectKey) -> Result<Option<Duration>, Error> {
    let Some(host) = ctx.hosts.get(key) else {
        ctx.identities.forget_host(&key.name);
        return Ok(None);
    };
    if host.metadata.deletion_timestamp.is_none() {
        identity::ensure_host(ctx, &host).await?;
        node_name::fill(ctx, &host).await?;
    }
    let next_beat = watch_over(ctx, &host).await?;
    let instances = ctx.desk().ledger.used(&key.name).instances;
    let holder = (instances > 0).then(|| format!("{instances} instances"));
    guard::guard(ctx, &Api::all(ctx.client.clone()), &*host, holder.as_deref()).await?;
    let next_sum = sum(ctx, &host, holder.as_deref()).await?;
    Ok([next_beat, next_sum].into_iter().flatten().min())
}

/// `Ready=Unknown` while the host is silent. Its agent says what is true when it is back; then the mark is taken back.
async fn watch_over(ctx: &Context, host: &Host) -> Result<Option<Duration>, Error> {
    let name = host.name_any();
    let uid = host.uid().unwrap_or_default();
    let left = ctx.pulse().until_silent(&name, Instant::now());
    let present = host
        .status
        .as_ref()
        .map(|s| s.conditions.as_slice())
        .unwrap_or_default();
    let shown = condition::find(present, READY).is_some_and(|c| c.reason == SILENT);
    let status = if left.is_none() && !shown && ctx.pulse().mark(&name, &uid) {
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
        return Ok(left);
    };
    let api: Api<Host> = Api::all(ctx.client.clone());
    let written = apply(&api, host, MANAGER_CONTROLLER_LOST, &status).await;
    if let Err(error) = written {
        ctx.pulse().unmark(&name, &uid);
        return Err(Error::api(format!("write whether host {name} is ready"))(error));
    }
    ctx.metrics.wrote("Host");
    ctx.wake_instances_of(&name);
    Ok(left)
}

/// What its Instances take together, and that they keep it if it is asked to go; written at most once in
/// [`super::context::SUM_PERIOD`].
async fn sum(ctx: &Context, host: &Host, holder: Option<&str>) -> Result<Option<Duration>, Error> {
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
    let in_use = guard::condition(host, "host", host.wire_name(), holder);
    let status = json!({"allocated": allocated, "conditions": write::conditions(present, in_use)});
    if !differs(&json!(host.status), &status, &["allocated", "conditions"]) {
        return Ok(None);
    }
    if let Some(wait) = ctx.sum_due(&format!("Host {name}")) {
        return Ok(Some(wait));
    }
    let api: Api<Host> = Api::all(ctx.client.clone());
    apply(&api, host, MANAGER_CONTROLLER, &status)
        .await
        .map_err(Error::api(format!("write what is allocated on host {name}")))?;
    ctx.metrics.wrote("Host");
    Ok(None)
}
