//! One watch cache: an [`Index`] behind a lock, and how far behind the API server it may be.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use super::index::{Cached, Index, Source};

/// How long a removed uid is remembered.
// An answer to a write of ours arrives within the request's deadline (see `super::collection`), which is shorter.
const REMEMBER_REMOVALS: Duration = Duration::from_mins(1);

/// Objects of one kind as the API server last showed them.
pub struct Cache<K> {
    index: RwLock<Index<K>>,
    changed: Notify,
    /// When the API server last said that nothing was missed; never, until the cache was filled once.
    current: Mutex<Option<Instant>>,
    began: Instant,
}

impl<K> Default for Cache<K> {
    fn default() -> Self {
        Self {
            index: RwLock::default(),
            changed: Notify::new(),
            current: Mutex::default(),
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

    /// Notes that there is an object that does not decode; see [`Index::leave_out`].
    pub fn leave_out(&self, uid: &str) {
        self.write().leave_out(uid);
    }

    /// Whether every object there is decodes. Who decides by what is *not* here must ask.
    pub fn is_complete(&self) -> bool {
        self.read().is_complete()
    }

    /// A list is about to be asked for.
    pub fn begin_list(&self) {
        self.write().begin_list();
    }

    /// The list is complete; see [`Index::end_list`].
    pub fn end_list(&self) -> Vec<String> {
        let now = self.now();
        let unconfirmed = self.write().end_list(now);
        self.is_current();
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

    /// Notes that the API server has said: until now, nothing was missed.
    pub fn is_current(&self) {
        *self.current() = Some(Instant::now());
    }

    /// How long ago that was said; `None` while the cache has not been filled once.
    pub fn silence(&self) -> Option<Duration> {
        self.current().map(|current| current.elapsed())
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

    fn current(&self) -> MutexGuard<'_, Option<Instant>> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
