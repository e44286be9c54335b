//! Follows the Instances of this host, and nothing else: the watch selects by `.spec.host`.
//!
//! A watch that has stopped looks like a world that stands still, so it is compared with a list now and then, and opened
//! anew when it missed something.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use futures::TryStreamExt;
use kube::api::{Api, ListParams};
use kube::core::DeserializeGuard;
use kube::runtime::watcher::{self, Event};
use kube::runtime::{WatchStreamExt, watcher as watch};
use kube::{Resource, ResourceExt};
use tokio::sync::Notify;
use virtshell_crds::{Instance, condition};

use super::context::{Context, version};

/// The name of the watch among the streams of events.
const STREAM: &str = "instances";
/// How often it is compared with a list.
const CHECK: Duration = Duration::from_mins(5);
/// How far it may be behind the list.
const BEHIND: Duration = Duration::from_secs(15);

/// Follows them until the process ends. Errors back off inside the stream.
pub async fn run(context: Arc<Context>, look: Arc<Notify>) {
    loop {
        tokio::select! {
            () = follow(&context, &look) => return,
            missed = until_missed(&context) => {
                tracing::warn!(instance.uid = missed, "the watch of Instances missed a change; it is opened anew");
            }
        }
    }
}

/// Returns the uid of an Instance of which the watch does not know the newest.
async fn until_missed(context: &Context) -> String {
    loop {
        tokio::time::sleep(CHECK).await;
        match check(context).await {
            Ok(Some(uid)) => return uid,
            Ok(None) => context.metrics.heard(STREAM),
            Err(error) => tracing::debug!(%error, "no list to compare the watch with"),
        }
    }
}

/// Compares what the watch has shown with a list that it had time to follow.
async fn check(context: &Context) -> kube::Result<Option<String>> {
    let (listed, at) = list(context).await?;
    tokio::time::sleep(BEHIND).await;
    let known = || -> HashMap<String, u64> {
        let known = context.instances.all();
        let versions = known.iter().filter_map(|instance| {
            let of = &instance.metadata;
            Some((of.uid.clone()?, version(of)))
        });
        versions.collect()
    };
    if missed(&listed, &listed, at, &known()).is_none() {
        return Ok(None);
    }
    let (still, _) = list(context).await?;
    Ok(missed(&listed, &still, at, &known()))
}

/// The Instances of this host by uid, with their versions, and the version of the list.
async fn list(context: &Context) -> kube::Result<(HashMap<String, u64>, u64)> {
    let api: Api<Instance> = Api::all(context.client.clone());
    let select = ListParams::default().fields(&format!("spec.host={}", context.host));
    let list = api.list_metadata(&select).await?;
    let listed = list.items.iter().filter_map(|item| {
        let of = &item.metadata;
        Some((of.uid.clone()?, version(of)))
    });
    let at = list.metadata.resource_version.as_deref();
    Ok((listed.collect(), at.and_then(|v| v.parse().ok()).unwrap_or(0)))
}

/// An Instance whose change up to the list, made at version `at`, is not known: uids and versions on both sides. What is
/// not there `still`, was deleted since the list, and rightly is not known either.
fn missed(
    listed: &HashMap<String, u64>,
    still: &HashMap<String, u64>,
    at: u64,
    known: &HashMap<String, u64>,
) -> Option<String> {
    let older = |(uid, version): &(&String, &u64)| match known.get(*uid) {
        Some(known) => known < *version,
        None => still.contains_key(*uid),
    };
    let gone = |(uid, version): &(&String, &u64)| !listed.contains_key(*uid) && **version < at;
    let stale = listed.iter().find(older);
    stale
        .or_else(|| known.iter().find(gone))
        .map(|(uid, _)| uid.clone())
}

async fn follow(context: &Context, look: &Notify) {
    let api: Api<DeserializeGuard<Instance>> = Api::all(context.client.clone());
    let config = watcher::Config::default().fields(&format!("spec.host={}", context.host));
    let mut listed = HashSet::new();
    let mut events = std::pin::pin!(watch(api, config).default_backoff());
    loop {
        let event = events.try_next().await;
        if let Ok(Some(_)) = &event {
            context.metrics.heard(STREAM);
        }
        match event {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_watch_is_behind_when_it_does_not_know_what_a_list_knew() {
        let map = |list: &[(&str, u64)]| -> HashMap<String, u64> {
            list.iter().map(|(uid, v)| ((*uid).to_owned(), *v)).collect()
        };
        let a: &[_] = &[("a", 5)];
        for (rule, listed, still, known, expected) in [
            ("the same", a, a, a, None),
            ("newer than the list", a, a, &[("a", 12)][..], None),
            ("made after the list", &[], &[], &[("a", 11)], None),
            ("not heard of", a, a, &[], Some("a")),
            ("deleted since", a, &[], &[], None),
            ("an older one", a, a, &[("a", 4)], Some("a")),
            (
                "gone before the list",
                &[("b", 5)],
                &[("b", 5)],
                &[("a", 4), ("b", 5)],
                Some("a"),
            ),
        ] {
            assert_eq!(
                missed(&map(listed), &map(still), 10, &map(known)).as_deref(),
                expected,
                "{rule}"
            );
        }
    }
}
