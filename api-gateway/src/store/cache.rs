//! One watch cache: an [`Index`] behind a lock, and how far behind the API server it may be.

use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use super::index::{Cached, Index, Source};

/// How long a removed uid is remembered.
// An answer to a write of ours arrives within the request's deadline (see `super::collection`), which is shorter.
const REMEMBER_REMOVALS: Duration = Duration::from_mins(1);
/// Errors further apart than this are two disconnections: the feed tries again at least every 2 s.
const QUIET: Duration = Duration::from_secs(6);

/// Objects of one kind as the API server last showed them.
pub struct Cache<K> {
    index: RwLock<Index<K>>,
    changed: Notify,
    contact: Mutex<Contact>,
    began: Instant,
}

/// When the feed last failed.
#[derive(Clone, Copy, Debug, Default)]
struct Contact {
    filled: bool,
    /// The first and the last of the errors in a row.
    errors: Option<(Instant, Instant)>,
}

impl<K> Default for Cache<K> {
    fn default() -> Self {
        Self {
            index: RwLock::default(),
            changed: Notify::new(),
            contact: Mutex::default(),
            began: Instant::now(),
        }
    }
}

impl<K: Cached> Cache<K> {
    /// Takes a version of an object; see [`Index::put`].
    pub fn put(&self, object: K, source: Source) -> Option<Arc<K>> {
        let held = self.write().put(object, source);
        self.changed.notify_waiters();
        held
    }

    /// Removes an object for good.
    pub fn remove(&self, uid: &str) {
        let now = self.now();
        let mut index = self.write();
        index.remove(uid, now);
        index.forget_removals(now.saturating_sub(REMEMBER_REMOVALS.as_millis() as u64));
        drop(index);
        self.changed.notify_waiters();
    }

    /// A list is about to be asked for.
    pub fn begin_list(&self) {
        self.write().begin_list();
    }

    /// The list is complete; see [`Index::end_list`].
    pub fn end_list(&self) -> Vec<String> {
        let now = self.now();
        let unconfirmed = self.write().end_list(now);
        self.contact().filled = true;
        self.changed.notify_waiters();
        unconfirmed
    }

    /// The object with this uid, whatever its case.
    pub fn by_uid(&self, uid: &str) -> Option<Arc<K>> {
        self.read().by_uid(&uid.to_ascii_lowercase())
    }

    /// The object with this wire name.
    pub fn by_wire_name(&self, name: &str) -> Option<Arc<K>> {
        self.read().by_wire_name(name)
    }

    /// The object with this `metadata.name`.
    pub fn by_object_name(&self, name: &str) -> Option<Arc<K>> {
        self.read().by_object_name(name)
    }

    /// The objects with this further key.
    pub fn by_key(&self, index: &'static str, value: &str) -> Vec<Arc<K>> {
        self.read().by_key(index, value)
    }

    /// All objects, by creation time and wire name.
    pub fn list(&self) -> Vec<Arc<K>> {
        self.read().list()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.read().len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Waits until the uid is not here; `false` when it still is at the end of `patience`.
    pub async fn is_gone(&self, uid: &str, patience: Duration) -> bool {
        let gone = async {
            loop {
                let changed = self.changed.notified();
                tokio::pin!(changed);
                // Before the look, so that a change between look and wait is not missed.
                changed.as_mut().enable();
                if self.by_uid(uid).is_none() {
                    return;
                }
                changed.await;
            }
        };
        tokio::time::timeout(patience, gone).await.is_ok()
    }

    /// Notes that the feed failed.
    pub fn failed(&self) {
        let now = Instant::now();
        let mut contact = self.contact();
        contact.errors = match contact.errors {
            Some((first, last)) if now.duration_since(last) < QUIET => Some((first, now)),
            Some(_) | None => Some((now, now)),
        };
    }

    /// How long the cache has been without contact; `None` while it has not been filled once.
    pub fn silence(&self) -> Option<Duration> {
        let contact = *self.contact();
        if !contact.filled {
            return None;
        }
        // A watch that is up again says so only with its next event, but a feed that is down fails every 2 s.
        Some(match contact.errors {
            Some((first, last)) if last.elapsed() < QUIET => first.elapsed(),
            Some(_) | None => Duration::ZERO,
        })
    }

    fn now(&self) -> u64 {
        self.began.elapsed().as_millis() as u64
    }

    fn read(&self) -> RwLockReadGuard<'_, Index<K>> {
        // A panic while the lock was held cannot leave the index half changed in a way that matters more than stopping.
        self.index.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Index<K>> {
        self.index.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn contact(&self) -> std::sync::MutexGuard<'_, Contact> {
        self.contact.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
