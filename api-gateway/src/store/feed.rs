//! Keeps a cache filled: a list, and then one watch after the other.
//!
//! A watch can die without a word: where packets vanish, no socket closes, and the silence looks like that of objects that
//! nobody changes. So every watch is a short one. The API server ends it, and mostly sends a bookmark before, and each of
//! these says that nothing was missed until then; a cache of which that was not said for a while is not trusted
//! ([`Cache::silence`]). The next watch goes on where the last one came to, so a pause costs no new list.

use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use kube::api::{ListParams, WatchEvent, WatchParams};
use kube::core::DeserializeGuard;
use kube::{Api, Error, Resource};
use serde::de::DeserializeOwned;
use tokio::time::{Instant, timeout, timeout_at};

use super::cache::Cache;
use super::index::{Cached, Source};

/// How long a watch lasts.
// Well within `super::PATIENCE` for a watch that died and one that came too late; 12 kinds begin three watches a second then,
// each of which costs the API server a fraction of a millisecond.
const WATCH: Duration = Duration::from_secs(4);
/// How much later than that its end may come.
const MARGIN: Duration = Duration::from_secs(2);
/// How long the API server may take for one object, or a page of a list.
const ANSWER: Duration = Duration::from_secs(10);
/// The version that was asked for is too old to go on from.
const GONE: u16 = 410;
/// Longest wait between two tries, so that contact is noticed soon after it is possible again.
const LONGEST_WAIT: Duration = Duration::from_secs(2);

/// Objects of one page of a list: enough that pages are few, and little beside what the cache holds.
// A page is read as text and as a tree before it is objects; of Instances it takes some 20 kB each for a moment.
const PAGE: u32 = 200;

/// What a cache is filled with.
pub struct Feed<K> {
    /// The objects, each with the error when it does not decode.
    pub guarded: Api<DeserializeGuard<K>>,
    /// The same collection, for single reads.
    pub plain: Api<K>,
    /// Only objects with these labels, if any.
    pub labels: Option<String>,
    /// Where they go.
    pub cache: Arc<Cache<K>>,
}

/// Why a list or a watch came to nothing.
#[derive(Debug, thiserror::Error)]
enum Interruption {
    #[error("no answer in time")]
    Silence,
    #[error("the watch ended before its time")]
    EndedEarly,
    #[error(transparent)]
    Failed(#[from] Error),
}

impl<K> Feed<K>
where
    K: Cached + Debug + DeserializeOwned,
{
    /// Feeds the cache until the process ends.
    ///
    /// One object that does not decode is reported and left out; it does not stall the others.
    pub async fn run(self) {
        let mut waits = Waits::default();
        // How far the cache is; `None` when only a list can tell.
        let mut version = None;
        loop {
            let step = match &mut version {
                None => self.list().await.map(|listed| version = Some(listed)),
                Some(reached) => self.watch(reached).await,
            };
            match step {
                Ok(()) => waits = Waits::default(),
                Err(Interruption::Failed(Error::Api(status))) if status.code == GONE => version = None,
                Err(error) => {
                    tracing::debug!(kind = %K::kind(&()), %error, "watch interrupted");
                    tokio::time::sleep(waits.next().unwrap_or(LONGEST_WAIT)).await;
                }
            }
        }
    }

    /// Fills the cache with what there is; the answer is the version of that.
    async fn list(&self) -> Result<String, Interruption> {
        self.cache.begin_list();
        let mut params = ListParams::default().limit(PAGE);
        params.label_selector.clone_from(&self.labels);
        loop {
            let page = timeout(ANSWER, self.guarded.list(&params))
                .await
                .map_err(|_| Interruption::Silence)??;
            for object in page.items {
                self.put(object, Source::List);
            }
            params.continue_token = page.metadata.continue_.filter(|token| !token.is_empty());
            if params.continue_token.is_none() {
                tracing::debug!(kind = %K::kind(&()), "listed");
                for name in self.cache.end_list() {
                    tokio::spawn(confirm(name, self.plain.clone(), self.cache.clone()));
                }
                return Ok(page.metadata.resource_version.unwrap_or_default());
            }
        }
    }

    /// Takes what happens after `reached`, for as long as one watch lasts.
    async fn watch(&self, reached: &mut String) -> Result<(), Interruption> {
        let begin = Instant::now();
        let end = begin + WATCH + MARGIN;
        let params = WatchParams {
            label_selector: self.labels.clone(),
            timeout: u32::try_from(WATCH.as_secs()).ok(),
            bookmarks: true,
            ..WatchParams::default()
        };
        let watch = timeout_at(end, self.guarded.watch(&params, reached));
        let watch = watch.await.map_err(|_| Interruption::Silence)??;
        let mut watch = std::pin::pin!(watch);
        while let Some(event) = timeout_at(end, watch.next())
            .await
            .map_err(|_| Interruption::Silence)?
        {
            let version = match event? {
                WatchEvent::Added(object) | WatchEvent::Modified(object) => {
                    let version = object.meta().resource_version.clone();
                    self.put(object, Source::Watch);
                    version
                }
                WatchEvent::Deleted(object) => {
                    if let Some(uid) = &object.meta().uid {
                        self.cache.remove(uid);
                    }
                    object.meta().resource_version.clone()
                }
                WatchEvent::Bookmark(bookmark) => {
                    self.cache.is_current();
                    Some(bookmark.metadata.resource_version)
                }
                WatchEvent::Error(status) => return Err(Error::Api(status).into()),
            };
            if let Some(version) = version {
                *reached = version;
            }
        }
        // What breaks off a connection in a regular way tells nothing.
        if begin.elapsed() < WATCH / 2 {
            return Err(Interruption::EndedEarly);
        }
        self.cache.is_current();
        Ok(())
    }

    fn put(&self, object: DeserializeGuard<K>, source: Source) {
        match object.0 {
            Ok(object) => {
                self.cache.put(object, source);
            }
            Err(invalid) => {
                if let Some(uid) = &invalid.metadata.uid {
                    self.cache.leave_out(uid);
                }
                tracing::warn!(
                    kind = %K::kind(&()),
                    name = invalid.metadata.name,
                    error = %invalid.error,
                    "object does not decode and is left out"
                );
            }
        }
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
    match timeout(ANSWER, api.get_opt(&name)).await {
        Ok(Ok(Some(object))) if object.meta().uid.as_deref() == Some(&known) => {
            cache.put(object, Source::Watch);
        }
        Ok(Ok(_)) => cache.remove(&known),
        // The next list asks again.
        Ok(Err(error)) => tracing::debug!(%name, %error, "write not confirmed"),
        Err(_) => tracing::debug!(%name, "write not confirmed in time"),
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
