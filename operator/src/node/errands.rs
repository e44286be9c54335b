//! Work for one Instance that takes its time and needs no worker of the queue: a download, a copy of disks.
//!
//! A look begins an errand and leaves; whoever looks when it has ended gets the result. The end asks for that look. An
//! errand that nobody asks about any more goes on, and its result is dropped.

use std::collections::HashMap;
use std::future::Future;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::task::JoinHandle;

/// Errands, by the uid of their Instance: at most one of a kind each.
pub struct Errands<T>(Mutex<HashMap<String, Errand<T>>>);

struct Errand<T> {
    /// What is to be brought: another wish is another errand.
    wish: String,
    task: JoinHandle<T>,
}

impl<T> Default for Errands<T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<T: Send + 'static> Errands<T> {
    /// The result of this errand, begun now unless it is under way; `None` when it takes longer than `patience`, or broke
    /// down. Then `ended` is called at its end.
    ///
    /// One at a time asks for one Instance: see [`super::queue`].
    pub async fn result(
        &self,
        uid: &str,
        wish: String,
        patience: Duration,
        work: impl Future<Output = T> + Send + 'static,
        ended: impl FnOnce() + Send + 'static,
    ) -> Option<T> {
        let present = self.lock().remove(uid).filter(|errand| errand.wish == wish);
        let mut errand = present.unwrap_or_else(|| {
            let task = tokio::spawn(async move {
                // Also when it breaks down.
                let _ended = Ended(Some(ended));
                work.await
            });
            Errand { wish, task }
        });
        match tokio::time::timeout(patience, &mut errand.task).await {
            Ok(Ok(result)) => Some(result),
            Ok(Err(panic)) => {
                tracing::error!(instance.uid = uid, %panic, "an errand broke down; it is begun again");
                None
            }
            Err(_) => {
                self.lock().insert(uid.to_owned(), errand);
                None
            }
        }
    }

    /// Whether an errand for this Instance is under way.
    pub fn is_under_way(&self, uid: &str) -> bool {
        self.lock()
            .get(uid)
            .is_some_and(|errand| !errand.task.is_finished())
    }

    /// Nobody will ask any more.
    pub fn forget(&self, uid: &str) {
        self.lock().remove(uid);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Errand<T>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Ended<F: FnOnce()>(Option<F>);

impl<F: FnOnce()> Drop for Ended<F> {
    fn drop(&mut self) {
        if let Some(ended) = self.0.take() {
            ended();
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::{mpsc, oneshot};

    use super::*;

    const PATIENCE: Duration = Duration::from_millis(20);

    /// Asks for an errand that ends when told to.
    async fn ask(
        errands: &Errands<u8>,
        wish: &str,
        end: oneshot::Receiver<u8>,
    ) -> (Option<u8>, mpsc::Receiver<()>) {
        let (told, ended) = mpsc::channel(1);
        let work = async { end.await.unwrap() };
        let ended_now = move || told.try_send(()).unwrap();
        let result = errands
            .result("a", wish.to_owned(), PATIENCE, work, ended_now)
            .await;
        (result, ended)
    }

    #[tokio::test]
    async fn a_long_errand_lets_go_and_gives_its_result_to_the_look_that_its_end_asks_for() {
        let errands = Errands::default();
        let (end, told_to) = oneshot::channel();
        let (result, mut ended) = ask(&errands, "image", told_to).await;
        assert_eq!((result, errands.is_under_way("a")), (None, true));
        // A look that something else led to begins no second one.
        let (_unused, never) = oneshot::channel();
        assert_eq!(ask(&errands, "image", never).await.0, None);
        end.send(7).unwrap();
        ended.recv().await.unwrap();
        let (_unused, never) = oneshot::channel();
        assert_eq!(ask(&errands, "image", never).await.0, Some(7));
        assert!(!errands.is_under_way("a") && errands.lock().is_empty());
    }

    #[tokio::test]
    async fn a_short_errand_is_waited_for_and_another_wish_is_another_errand() {
        let errands = Errands::default();
        let (end, told_to) = oneshot::channel();
        end.send(7).unwrap();
        assert_eq!(ask(&errands, "image", told_to).await.0, Some(7));
        let (_pending, told_to) = oneshot::channel();
        assert_eq!(ask(&errands, "image", told_to).await.0, None);
        let (end, told_to) = oneshot::channel();
        end.send(8).unwrap();
        assert_eq!(ask(&errands, "image and disk", told_to).await.0, Some(8));
    }

    #[tokio::test]
    async fn one_that_breaks_down_asks_for_a_look_and_is_begun_again() {
        let errands = Errands::default();
        let (end, told_to) = oneshot::channel();
        drop(end);
        let (result, mut ended) = ask(&errands, "image", told_to).await;
        assert_eq!(result, None);
        ended.recv().await.unwrap();
        let (end, told_to) = oneshot::channel();
        end.send(7).unwrap();
        assert_eq!(ask(&errands, "image", told_to).await.0, Some(7));
    }
}
