//! Follows the Instances of this host, and nothing else: the watch selects by `.spec.host`.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use futures::TryStreamExt;
use kube::api::Api;
use kube::core::DeserializeGuard;
use kube::runtime::watcher::{self, Event};
use kube::runtime::{WatchStreamExt, watcher as watch};
use kube::{Resource, ResourceExt};
use tokio::sync::Notify;
use virtshell_crds::{Instance, condition};

use super::context::Context;

/// How long a watch is believed before everything is listed again, should it have lost something.
const BELIEVED: Duration = Duration::from_mins(30);

/// Follows them until the process ends.
pub async fn run(context: Arc<Context>, look: Arc<Notify>) {
    loop {
        // Hosts that started together do not list together.
        let spread = context
            .host
            .bytes()
            .fold(0u32, |sum, byte| sum.wrapping_mul(31).wrapping_add(byte.into()));
        let believed = BELIEVED.mul_f64(1.0 + f64::from(spread % 256) / 512.0);
        let _ = tokio::time::timeout(believed, follow(&context, &look)).await;
    }
}

/// One watch, with a list of everything first. Errors back off inside the stream.
async fn follow(context: &Context, look: &Notify) {
    let api: Api<DeserializeGuard<Instance>> = Api::all(context.client.clone());
    let config = watcher::Config::default().fields(&format!("spec.host={}", context.host));
    let mut listed = HashSet::new();
    let mut events = std::pin::pin!(watch(api, config).default_backoff());
    loop {
        match events.try_next().await {
            Ok(Some(Event::Init)) => listed.clear(),
            Ok(Some(Event::InitApply(guarded))) => {
                listed.extend(guarded.meta().uid.clone());
                changed(context, guarded);
            }
            Ok(Some(Event::InitDone)) => {
                for gone in context.instances.beside(&listed) {
                    context.forget(&gone);
                }
                context.instances.set_listed();
                look.notify_one();
            }
            Ok(Some(Event::Apply(guarded))) => changed(context, guarded),
            Ok(Some(Event::Delete(guarded))) => {
                // It left the selection: deleted, or bound elsewhere. The domain, if one is left, shows up as an orphan.
                if let Some(uid) = &guarded.meta().uid {
                    context.forget(uid);
                }
            }
            Ok(None) => return,
            Err(error) => {
                tracing::warn!(%error, "the watch of Instances failed; it is opened again");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

fn changed(context: &Context, guarded: DeserializeGuard<Instance>) {
    let mut instance = match guarded.0 {
        Ok(instance) => instance,
        Err(error) => {
            // One object that does not decode must not stall the others.
            tracing::error!(
                instance.name = error.metadata.name,
                error = error.error,
                "an Instance does not decode"
            );
            return;
        }
    };
    instance.metadata.managed_fields = None;
    let Some(uid) = instance.uid() else { return };
    let news = asks(&instance);
    let old = context.instances.put(instance);
    if old.is_none_or(|old| asks(&old) != news) {
        context.requests.now(&uid);
    }
}

/// What of an Instance asks for a look; our own status is not part of it.
fn asks(instance: &Instance) -> impl PartialEq + use<> {
    let status = instance.status.as_ref();
    (
        instance.metadata.generation,
        instance.metadata.deletion_timestamp.is_some(),
        instance.metadata.finalizers.clone(),
        status.and_then(|s| s.resolved.clone()),
        status.is_some_and(|s| condition::is_true(&s.conditions, condition::SCHEDULED)),
    )
}
