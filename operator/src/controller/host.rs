//! Looks after one Host: its identity, whether it is alive, and what its Instances take.

use std::time::Duration;

use kube::ResourceExt;
use kube::api::Api;
use serde_json::json;
use tokio::time::Instant;
use virtshell_crds::condition::{self, READY, Status};
use virtshell_crds::host::Allocated;
use virtshell_crds::{Host, MANAGER_CONTROLLER, MANAGER_CONTROLLER_LOST};

use super::cache::ObjectKey;
use super::context::Context;
use super::events::Level;
use super::write::{self, Error};
use super::{identity, pulse};
use crate::status::apply;

/// Reason of `Ready=Unknown` on a Host that is silent.
const SILENT: &str = "Silent";

/// Looks at one Host; the answer is when to look again.
pub async fn reconcile(ctx: &Context, key: &ObjectKey) -> Result<Option<Duration>, Error> {
    let Some(host) = ctx.hosts.get(key) else {
        ctx.identities.forget_host(&key.name);
        return Ok(None);
    };
    if host.metadata.deletion_timestamp.is_none() {
        identity::ensure_host(ctx, &host).await?;
    }
    let next_beat = watch_over(ctx, &host).await?;
    let next_sum = sum(ctx, &host).await?;
    Ok([next_beat, next_sum].into_iter().flatten().min())
}

/// `Ready=Unknown` while the host is silent; taken back when it speaks again, for its agent to say what is true.
async fn watch_over(ctx: &Context, host: &Host) -> Result<Option<Duration>, Error> {
    let name = host.name_any();
    let left = ctx.pulse().until_silent(&name, Instant::now());
    let present = host
        .status
        .as_ref()
        .map(|s| s.conditions.as_slice())
        .unwrap_or_default();
    let ready = condition::find(present, READY);
    let marked = ready.is_some_and(|c| c.reason == SILENT);
    let status = match (left, marked) {
        (None, false) => {
            let message = format!(
                "no renewal of its Lease has been seen for {} s",
                pulse::SILENCE.as_secs()
            );
            tracing::warn!(host.name = name, "a host is silent");
            ctx.events
                .say(host, Level::Warning, "Watch", "HostSilent", &message);
            let generation = host.metadata.generation;
            let unknown =
                condition::condition(READY, Status::Unknown, SILENT, message, generation, write::now());
            json!({"conditions": [unknown]})
        }
        (Some(_), true) => {
            tracing::info!(host.name = name, "a silent host is back");
            ctx.events.say(
                host,
                Level::Normal,
                "Watch",
                "HostBack",
                "its Lease is renewed again",
            );
            json!({})
        }
        (None, true) | (Some(_), false) => return Ok(left),
    };
    let api: Api<Host> = Api::all(ctx.client.clone());
    apply(&api, host, MANAGER_CONTROLLER_LOST, &status)
        .await
        .map_err(Error::api(format!("write whether host {name} is ready")))?;
    ctx.metrics.wrote("Host");
    ctx.wake_instances_of(&name);
    Ok(left)
}

/// What its Instances take together, written at most once in [`super::context::SUM_PERIOD`].
async fn sum(ctx: &Context, host: &Host) -> Result<Option<Duration>, Error> {
    let name = host.name_any();
    let used = ctx.desk().ledger.used(&name);
    let allocated = Allocated {
        cpus: used.cpus,
        memory_mib: used.memory_mib,
        disk_mib: used.disk_mib,
        instances: used.instances,
    };
    if host.status.as_ref().and_then(|s| s.allocated.as_ref()) == Some(&allocated) {
        return Ok(None);
    }
    if let Some(wait) = ctx.sum_due(&format!("Host {name}")) {
        return Ok(Some(wait));
    }
    let api: Api<Host> = Api::all(ctx.client.clone());
    apply(&api, host, MANAGER_CONTROLLER, &json!({"allocated": allocated}))
        .await
        .map_err(Error::api(format!("write what is allocated on host {name}")))?;
    ctx.metrics.wrote("Host");
    Ok(None)
}
