//! Who uses an entry of the cache right now: work that was handed one and has not finished with it.
//!
//! A lease covers the time between "the image is there" and the disk or definition that refers to it; from then on
//! the reference itself keeps the entry, see `evict`.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// The leases of a cache.
#[derive(Debug, Default)]
pub(super) struct Leases(Mutex<HashMap<String, Held>>);

#[derive(Clone, Copy, Debug)]
struct Held {
    count: usize,
    /// When one was last taken or given back.
    last: Instant,
}

impl Leases {
    /// Takes one for the content with this checksum.
    pub(super) fn take(self: &Arc<Self>, sha256: &str) -> Lease {
        let now = Instant::now();
        let mut held = self.lock();
        let held = held
            .entry(sha256.to_owned())
            .or_insert(Held { count: 0, last: now });
        (held.count, held.last) = (held.count + 1, now);
        Lease(Some(Arc::new(Taken {
            sha256: sha256.to_owned(),
            leases: Arc::clone(self),
        })))
    }

    /// Whether one is held, or was held at any moment from `since` on.
    pub(super) fn held_since(&self, sha256: &str, since: Instant) -> bool {
        self.lock()
            .get(sha256)
            .is_some_and(|held| held.count > 0 || held.last >= since)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Held>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Keeps an entry of the cache while it, or a clone of it, is there. Equal to any other: it says nothing of the content.
#[derive(Clone, Default)]
pub struct Lease(Option<Arc<Taken>>);

struct Taken {
    sha256: String,
    leases: Arc<Leases>,
}

impl Drop for Taken {
    fn drop(&mut self) {
        if let Some(held) = self.leases.lock().get_mut(&self.sha256) {
            (held.count, held.last) = (held.count.saturating_sub(1), Instant::now());
        }
    }
}

impl PartialEq for Lease {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Lease {}

impl fmt::Debug for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "held" } else { "none" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_ends_with_its_last_clone() {
        let leases = Arc::new(Leases::default());
        assert!(!leases.held_since("a", Instant::now()));
        let first = leases.take("a");
        let second = first.clone();
        drop(first);
        assert!(leases.held_since("a", Instant::now()));
        assert!(!leases.held_since("b", Instant::now()));
        let before_the_end = Instant::now();
        drop(second);
        assert!(
            leases.held_since("a", before_the_end),
            "its reference may be younger than the question"
        );
        assert!(!leases.held_since("a", Instant::now()));
    }
}
