//! The work queue: which Instance is looked at when.
//!
//! Keys are uids. One key is worked on by one task at a time; a request that comes meanwhile leads to one more look
//! after it, however many come. The earliest of several times wins.

use std::collections::{BTreeSet, HashMap};
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Semaphore, mpsc};
use tokio::time::Instant;

use super::metrics::Metrics;

/// Instances that are worked on at the same time; what waits (a download, a guest) is not work.
const WORKERS: usize = 64;

/// Asks for looks. Cheap to clone.
#[derive(Clone)]
pub struct Requests(mpsc::UnboundedSender<Message>);

enum Message {
    At(String, Instant),
    Done(String, Option<Instant>),
}

impl Requests {
    /// Look at it now.
    pub fn now(&self, key: &str) {
        self.after(key, Duration::ZERO);
    }

    /// Look at it then, unless it is looked at earlier.
    pub fn after(&self, key: &str, pause: Duration) {
        // The dispatcher lives as long as the process: a request cannot be lost but at its end.
        let _ = self.0.send(Message::At(key.to_owned(), Instant::now() + pause));
    }
}

/// The receiving end, for [`run`].
pub struct Queue {
    messages: mpsc::UnboundedReceiver<Message>,
    requests: Requests,
}

/// A queue, and what asks it for looks.
#[must_use]
pub fn queue() -> (Requests, Queue) {
    let (sender, messages) = mpsc::unbounded_channel();
    let requests = Requests(sender);
    (requests.clone(), Queue { messages, requests })
}

#[derive(Default)]
struct Schedule {
    entries: HashMap<String, Entry>,
    due: BTreeSet<(Instant, String)>,
    working: usize,
}

#[derive(Default)]
struct Entry {
    working: bool,
    next: Option<Instant>,
}

impl Schedule {
    fn request(&mut self, key: &str, at: Instant) {
        let entry = self.entries.entry(key.to_owned()).or_default();
        if entry.next.is_some_and(|next| next <= at) {
            return;
        }
        if let Some(later) = entry.next.replace(at) {
            self.due.remove(&(later, key.to_owned()));
        }
        if !entry.working {
            self.due.insert((at, key.to_owned()));
        }
    }

    /// The work has ended; `next` is when it wants to look again.
    fn done(&mut self, key: &str, next: Option<Instant>) {
        let Some(entry) = self.entries.get_mut(key) else {
            return;
        };
        entry.working = false;
        self.working -= 1;
        let next = [entry.next.take(), next].into_iter().flatten().min();
        match next {
            Some(next) => self.request(key, next),
            None => drop(self.entries.remove(key)),
        }
    }

    fn take_due(&mut self, now: Instant) -> Option<String> {
        let (at, _) = self.due.first()?;
        if *at > now {
            return None;
        }
        let (_, key) = self.due.pop_first()?;
        let entry = self.entries.entry(key.clone()).or_default();
        entry.working = true;
        entry.next = None;
        self.working += 1;
        Some(key)
    }

    fn next_due(&self) -> Option<Instant> {
        self.due.first().map(|(at, _)| *at)
    }
}

/// Calls `work` for each key that is due; it returns after how long it wants to look again. Ends with the process.
pub async fn run<W, F>(mut queue: Queue, metrics: Metrics, work: W)
where
    W: Fn(String) -> F,
    F: Future<Output = Option<Duration>> + Send + 'static,
{
    let mut schedule = Schedule::default();
    let workers = Arc::new(Semaphore::new(WORKERS));
    loop {
        while let Some(key) = schedule.take_due(Instant::now()) {
            let (requests, workers, working) =
                (queue.requests.clone(), Arc::clone(&workers), work(key.clone()));
            tokio::spawn(async move {
                let _worker = workers.acquire_owned().await;
                // A task of its own, so that a panic ends one look and not the queue's knowledge of it.
                let next = tokio::spawn(working).await.unwrap_or_else(|panic| {
                    tracing::error!(%panic, "a reconcile panicked");
                    Some(Duration::from_mins(1))
                });
                let _ = requests
                    .0
                    .send(Message::Done(key, next.map(|pause| Instant::now() + pause)));
            });
        }
        metrics.queue_length(schedule.working);
        let due = schedule.next_due();
        let sleep = async {
            match due {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            message = queue.messages.recv() => match message {
                Some(Message::At(key, at)) => schedule.request(&key, at),
                Some(Message::Done(key, next)) => schedule.done(&key, next),
                None => return,
            },
            () = sleep => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_key_is_worked_on_once_and_the_earliest_time_wins() {
        let (now, mut schedule) = (Instant::now(), Schedule::default());
        let at = |seconds| now + Duration::from_secs(seconds);
        schedule.request("a", at(10));
        schedule.request("a", at(5));
        schedule.request("a", at(7));
        assert_eq!(
            (schedule.next_due(), schedule.take_due(at(4))),
            (Some(at(5)), None)
        );
        assert_eq!(schedule.take_due(at(5)).as_deref(), Some("a"));
        // While it is worked on, requests wait and become one.
        schedule.request("a", at(6));
        schedule.request("a", at(6));
        assert_eq!(schedule.take_due(at(9)), None);
        schedule.done("a", Some(at(60)));
        assert_eq!(schedule.take_due(at(6)).as_deref(), Some("a"));
        assert_eq!(schedule.take_due(at(100)), None);
        schedule.done("a", None);
        assert!(schedule.entries.is_empty() && schedule.due.is_empty());
    }
}
