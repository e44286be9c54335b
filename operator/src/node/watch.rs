//! Follows the Instances of this host, and nothing else: what changes in them leads to looks.

use std::collections::HashSet;
use std::sync::Arc;

use kube::core::DeserializeGuard;
use kube::runtime::watcher::Event;
use kube::{Resource, ResourceExt};
use tokio::sync::Notify;
use virtshell_crds::{Instance, condition};

use super::context::Context;
use super::stream::Stream;

/// Follows them until the process ends.
pub async fn run(context: Arc<Context>, look: Arc<Notify>) {
    let stream = Stream {
        client: &context.client,
        host: &context.host,
        metrics: &context.metrics,
        name: "instances",
    };
    let mut listed = HashSet::new();
    let hear = |event: Event<DeserializeGuard<Instance>>| match event {
        Event::Init => listed.clear(),
        Event::InitApply(guarded) => {
            listed.extend(guarded.meta().uid.clone());
            changed(&context, guarded);
        }
        Event::InitDone => {
            for gone in context.instances.beside(&listed) {
                context.forget(&gone);
            }
            context.instances.set_listed();
            look.notify_one();
        }
        Event::Apply(guarded) => changed(&context, guarded),
        Event::Delete(guarded) => {
            // It left the selection: deleted, or bound elsewhere. The domain, if one is left, shows up as an orphan.
            if let Some(uid) = &guarded.meta().uid {
                context.forget(uid);
            }
        }
    };
    stream.follow(hear).await;
}

fn changed(context: &Context, guarded: DeserializeGuard<Instance>) {
    let instance = match guarded.0 {
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
