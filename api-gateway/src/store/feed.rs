//! Keeps a cache filled from a watch.

use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use kube::Api;
use kube::core::DeserializeGuard;
use kube::runtime::utils::Backoff;
use kube::runtime::watcher::{self, Event};
use serde::de::DeserializeOwned;

use super::cache::Cache;
use super::index::{Cached, Source};

/// Longest wait between two tries, so that contact is noticed soon after it is possible again.
const LONGEST_WAIT: Duration = Duration::from_secs(2);

/// Objects of one page of a list: enough that pages are few, and little beside what the cache holds.
// A page is read as text and as a tree before it is objects; of Instances it takes some 20 kB each for a moment.
const PAGE: u32 = 200;

/// Watches `guarded` into the cache until the process ends; `plain` is the same collection for single reads.
///
/// One object that does not decode is reported and left out; it does not stall the others.
pub async fn run<K>(
    guarded: Api<DeserializeGuard<K>>,
    plain: Api<K>,
    config: watcher::Config,
    cache: Arc<Cache<K>>,
) where
    K: Cached + Debug + DeserializeOwned,
{
    let events = watcher::watcher(guarded, config.page_size(PAGE));
    let mut events = std::pin::pin!(events);
    let mut waits = Waits::default();
    while let Some(event) = events.next().await {
        match event {
            Ok(event) => {
                waits.reset();
                take(event, &plain, &cache);
            }
            Err(error) => {
                cache.failed();
                tracing::debug!(kind = %K::kind(&()), %error, "watch interrupted");
                tokio::time::sleep(waits.next().unwrap_or(LONGEST_WAIT)).await;
            }
        }
    }
}

fn take<K>(event: Event<DeserializeGuard<K>>, plain: &Api<K>, cache: &Arc<Cache<K>>)
where
    K: Cached + Debug + DeserializeOwned,
{
    match event {
        Event::Init => cache.begin_list(),
        Event::InitApply(object) => put(object, cache, Source::List),
        Event::InitDone => {
            tracing::debug!(kind = %K::kind(&()), "listed");
            for name in cache.end_list() {
                tokio::spawn(confirm(name, plain.clone(), cache.clone()));
            }
        }
        Event::Apply(object) => put(object, cache, Source::Watch),
        Event::Delete(DeserializeGuard(object)) => {
            let uid = match object {
                Ok(object) => object.meta().uid.clone(),
                Err(invalid) => invalid.metadata.uid,
            };
            if let Some(uid) = uid {
                cache.remove(&uid);
            }
        }
    }
}

fn put<K: Cached>(object: DeserializeGuard<K>, cache: &Cache<K>, source: Source) {
    match object.0 {
        Ok(object) => {
            cache.put(object, source);
        }
        Err(invalid) => tracing::warn!(
            kind = %K::kind(&()),
            name = invalid.metadata.name,
            error = %invalid.error,
            "object does not decode and is left out"
        ),
    }
}

/// A write of ours that a list did not confirm: is it newer than the list, or gone again?
async fn confirm<K>(name: String, api: Api<K>, cache: Arc<Cache<K>>)
where
    K: Cached + Debug + DeserializeOwned,
{
    let Some(known) = cache
        .by_object_name(&name)
        .and_then(|object| object.meta().uid.clone())
    else {
        return;
    };
    match api.get_opt(&name).await {
        Ok(Some(object)) if object.meta().uid.as_deref() == Some(&known) => {
            cache.put(object, Source::Watch);
        }
        Ok(_) => cache.remove(&known),
        // The next list asks again.
        Err(error) => tracing::debug!(%name, %error, "write not confirmed"),
    }
}

/// 0.1 s, 0.2 s, ... up to [`LONGEST_WAIT`].
#[derive(Default)]
struct Waits(u32);

impl Iterator for Waits {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let wait = Duration::from_millis(100) * 2_u32.pow(self.0);
        self.0 = (self.0 + 1).min(8);
        Some(wait.min(LONGEST_WAIT))
    }
}

impl Backoff for Waits {
    fn reset(&mut self) {
        self.0 = 0;
    }
}
