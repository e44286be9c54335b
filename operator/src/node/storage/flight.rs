//! One piece of work however many wait for it, and how far it is.

use std::collections::HashMap;
use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use futures::FutureExt;
use futures::future::{BoxFuture, Shared};

use super::error::StorageError;

/// How far a fetch is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Bytes that came.
    pub bytes: u64,
    /// Bytes that will come, where the server says so.
    pub total: Option<u64>,
    /// Bytes per second since the start.
    pub bytes_per_second: u64,
}

impl Progress {
    /// Percent done, 0 to 100, where the total is known.
    #[must_use]
    pub fn percent(&self) -> Option<u64> {
        let total = self.total.filter(|total| *total > 0)?;
        Some((u128::from(self.bytes.min(total)) * 100 / u128::from(total)) as u64)
    }
}

/// Counts what a fetch has done; written by the fetch, read by whoever asks.
#[derive(Debug)]
pub(super) struct Meter {
    started: Instant,
    /// Bytes that were here before it started.
    start: AtomicU64,
    bytes: AtomicU64,
    /// 0 = not known.
    total: AtomicU64,
}

impl Meter {
    pub(super) fn new() -> Self {
        Self {
            started: Instant::now(),
            start: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            total: AtomicU64::new(0),
        }
    }

    /// So many bytes did not come now: they say nothing of the rate.
    pub(super) fn set_start(&self, bytes: u64) {
        self.start.store(bytes, Ordering::Relaxed);
        self.set_bytes(bytes);
    }

    pub(super) fn set_bytes(&self, bytes: u64) {
        self.bytes.store(bytes, Ordering::Relaxed);
    }

    pub(super) fn set_total(&self, total: Option<u64>) {
        self.total.store(total.unwrap_or(0), Ordering::Relaxed);
    }

    pub(super) fn progress(&self) -> Progress {
        let bytes = self.bytes.load(Ordering::Relaxed);
        let came = bytes.saturating_sub(self.start.load(Ordering::Relaxed));
        let millis = self.started.elapsed().as_millis().max(1);
        Progress {
            bytes,
            total: Some(self.total.load(Ordering::Relaxed)).filter(|total| *total > 0),
            bytes_per_second: (u128::from(came) * 1000 / millis) as u64,
        }
    }
}

type Outcome<T> = Result<T, StorageError>;

struct Running<T> {
    meter: Arc<Meter>,
    outcome: Shared<BoxFuture<'static, Outcome<T>>>,
}

/// Work under way, by key.
pub(super) struct Flights<T> {
    running: Arc<Mutex<HashMap<String, Running<T>>>>,
}

impl<T> Default for Flights<T> {
    fn default() -> Self {
        Self {
            running: Arc::default(),
        }
    }
}

impl<T: Clone + Send + Sync + 'static> Flights<T> {
    /// Waits for the work with this key, which `start` begins unless it is under way or `done` knows its result.
    ///
    /// The work goes on when a waiting caller gives up. It must make its result visible to `done` before it ends.
    pub(super) async fn join<F>(
        &self,
        key: &str,
        done: impl FnOnce() -> Option<T>,
        start: impl FnOnce(Arc<Meter>) -> F,
    ) -> Outcome<T>
    where
        F: Future<Output = Outcome<T>> + Send + 'static,
    {
        let outcome = {
            let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(flight) = running.get(key) {
                flight.outcome.clone()
            } else if let Some(result) = done() {
                return Ok(result);
            } else {
                let meter = Arc::new(Meter::new());
                let work = start(Arc::clone(&meter));
                let outcome = self.spawn(key.to_owned(), work);
                running.insert(
                    key.to_owned(),
                    Running {
                        meter,
                        outcome: outcome.clone(),
                    },
                );
                outcome
            }
        };
        outcome.await
    }

    fn spawn<F>(&self, key: String, work: F) -> Shared<BoxFuture<'static, Outcome<T>>>
    where
        F: Future<Output = Outcome<T>> + Send + 'static,
    {
        let landing = Landing {
            running: Arc::clone(&self.running),
            key: key.clone(),
        };
        let task = tokio::spawn(async move {
            let _landing = landing;
            work.await
        });
        async move {
            task.await.unwrap_or_else(|error| {
                Err(StorageError::DownloadFailed {
                    url: key,
                    why: error.to_string(),
                })
            })
        }
        .boxed()
        .shared()
    }

    /// How far the work with this key is; `None` when it is not under way.
    pub(super) fn progress(&self, key: &str) -> Option<Progress> {
        let running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        running.get(key).map(|flight| flight.meter.progress())
    }
}

/// Takes the work off the list when it ends, even by a panic.
struct Landing<T> {
    running: Arc<Mutex<HashMap<String, Running<T>>>>,
    key: String,
}

impl<T> Drop for Landing<T> {
    fn drop(&mut self) {
        self.running
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&self.key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percent() {
        let at = |bytes, total| Progress {
            bytes,
            total,
            bytes_per_second: 0,
        };
        assert_eq!(at(5, None).percent(), None);
        assert_eq!(at(0, Some(0)).percent(), None);
        assert_eq!(at(5, Some(10)).percent(), Some(50));
        assert_eq!(at(11, Some(10)).percent(), Some(100));
    }

    #[tokio::test]
    async fn a_panic_is_an_error_and_the_next_try_starts_anew() {
        let flights: Flights<u8> = Flights::default();
        let failed = flights
            .join("k", || None, |_| async { panic!("on purpose") })
            .await;
        assert_eq!(failed.expect_err("it panicked").reason(), "DownloadFailed");
        assert_eq!(flights.join("k", || None, |_| async { Ok(2) }).await.unwrap(), 2);
        assert_eq!(flights.progress("k"), None);
    }

    #[tokio::test]
    async fn work_goes_on_when_the_caller_gives_up() {
        let flights: Flights<u8> = Flights::default();
        let (send, receive) = tokio::sync::oneshot::channel::<()>();
        let done = Arc::new(AtomicU64::new(0));
        let seen = Arc::clone(&done);
        let waiting = flights.join(
            "k",
            || None,
            |_| async move {
                let _ = receive.await;
                seen.store(1, Ordering::SeqCst);
                Ok(1)
            },
        );
        assert!(
            tokio::time::timeout(std::time::Duration::from_millis(20), waiting)
                .await
                .is_err()
        );
        assert!(flights.progress("k").is_some());
        send.send(()).unwrap();
        let second = flights.join("k", || Some(9), |_| async { Ok(7) }).await.unwrap();
        assert!(second == 1 || second == 9, "{second}");
        assert_eq!(done.load(Ordering::SeqCst), 1);
    }
}
