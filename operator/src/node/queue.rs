//! The work queue: which Instance is looked at when.
//!
//! Keys are uids. One key is worked on by one task at a time; a request that comes meanwhile leads to one more look
//! after it, however many come. The earliest of several times wins.
//!
//! What a guest says of itself changes nothing but its status: it waits for a moment in which nothing else was begun, so
//! that a host where hundreds are created makes them first, but not for long.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::future::Future;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;

use super::metrics::Metrics;

/// Instances that are worked on at the same time; what waits (a download, a guest) is not work.
const WORKERS: usize = 64;
/// What guests said is looked at when nothing else was begun for so long,
const QUIET: Duration = Duration::from_secs(1);
/// or when it has waited for so long.
const NEWS_PATIENCE: Duration = Duration::from_secs(30);

/// Asks for looks. Cheap to clone.
#[derive(Clone)]
pub struct Requests(mpsc::UnboundedSender<Message>);

enum Message {
    At(String, Instant),
    News(String, Instant),
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

    /// Its guest said something: look at it when there is time.
    pub fn news(&self, key: &str) {
        let _ = self.0.send(Message::News(key.to_owned(), Instant::now()));
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
    news: VecDeque<(Instant, String)>,
    /// When something that was asked for was begun last.
    began: Option<Instant>,
    working: usize,
}

#[derive(Default)]
struct Entry {
    working: bool,
    next: Option<Instant>,
    /// When its guest said what nobody has looked at yet.
    news: Option<Instant>,
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

    fn hear(&mut self, key: &str, at: Instant) {
        let entry = self.entries.entry(key.to_owned()).or_default();
        if entry.news.is_none() {
            entry.news = Some(at);
            if !entry.working {
                self.news.push_back((at, key.to_owned()));
            }
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
        let news = entry.news.take();
        if next.is_none() && news.is_none() {
            self.entries.remove(key);
            return;
        }
        if let Some(next) = next {
            self.request(key, next);
        }
        if let Some(at) = news {
            self.hear(key, at);
        }
    }

    fn take_due(&mut self, now: Instant) -> Option<String> {
        if self.working >= WORKERS {
            return None;
        }
        if self.due.first().is_some_and(|(at, _)| *at <= now) {
            let (_, key) = self.due.pop_first()?;
            self.began = Some(now);
            return Some(self.begin(key));
        }
        if self.news_due()? > now {
            return None;
        }
        let (_, key) = self.news.pop_front()?;
        Some(self.begin(key))
    }

    fn begin(&mut self, key: String) -> String {
        let entry = self.entries.entry(key.clone()).or_default();
        if let Some(next) = entry.next.take() {
            self.due.remove(&(next, key.clone()));
        }
        entry.working = true;
        entry.news = None;
        self.working += 1;
        key
    }

    /// When the first news are looked at, if nothing else is begun until then.
    fn news_due(&mut self) -> Option<Instant> {
        // One that was worked on since has been heard.
        while let Some((at, key)) = self.news.front() {
            let entry = self.entries.get(key);
            if entry.is_some_and(|entry| entry.news == Some(*at) && !entry.working) {
                let quiet = self.began.map_or(*at, |began| began + QUIET);
                return Some(quiet.min(*at + NEWS_PATIENCE));
            }
            self.news.pop_front();
        }
        None
    }

    /// Keys that wait or are worked on.
    fn length(&self, now: Instant) -> usize {
        let waiting = self.due.iter().take_while(|(at, _)| *at <= now);
        self.working + waiting.count() + self.news.len()
    }

    fn next_due(&mut self) -> Option<Instant> {
        let first = self.due.first().map(|(at, _)| *at);
        [first, self.news_due()].into_iter().flatten().min()
    }
}

/// Calls `work` for each key that is due, as many at a time as there are workers; it returns after how long it wants to look again. Ends with the process.
pub async fn run<W, F>(mut queue: Queue, metrics: Metrics, work: W)
where
    W: Fn(String) -> F,
    F: Future<Output = Option<Duration>> + Send + 'static,
{
    let mut schedule = Schedule::default();
    loop {
        while let Some(key) = schedule.take_due(Instant::now()) {
            let (requests, working) = (queue.requests.clone(), work(key.clone()));
            tokio::spawn(async move {
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
        metrics.queue_length(schedule.length(Instant::now()));
        // A full house waits for one to end.
        let due = schedule.next_due().filter(|_| schedule.working < WORKERS);
        let sleep = async {
            match due {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            message = queue.messages.recv() => match message {
                Some(Message::At(key, at)) => schedule.request(&key, at),
                Some(Message::News(key, at)) => schedule.hear(&key, at),
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

    #[test]
    fn what_guests_say_waits_while_other_work_is_begun() {
        let (now, mut schedule) = (Instant::now(), Schedule::default());
        let ms = |ms| now + QUIET / 100 * ms;
        schedule.hear("a", now);
        assert_eq!(schedule.take_due(now).as_deref(), Some("a"), "at once");
        schedule.done("a", None);
        schedule.request("asked", ms(10));
        for guest in ["a", "b", "asked"] {
            schedule.hear(guest, ms(11));
            schedule.hear(guest, ms(12));
        }
        assert_eq!(schedule.take_due(ms(15)).as_deref(), Some("asked"));
        assert_eq!(
            (schedule.take_due(ms(16)), schedule.next_due()),
            (None, Some(ms(115)))
        );
        schedule.request("more", ms(100));
        assert_eq!(
            schedule.take_due(ms(115)).as_deref(),
            Some("more"),
            "it comes first"
        );
        assert_eq!(schedule.take_due(ms(116)), None);
        // What it said before it was looked at has been seen; what it says meanwhile has not.
        schedule.hear("asked", ms(120));
        schedule.done("asked", None);
        let quiet: Vec<_> = std::iter::from_fn(|| schedule.take_due(ms(220))).collect();
        assert_eq!(quiet, ["a", "b", "asked"]);
        for key in ["a", "b", "asked", "more"] {
            schedule.done(key, None);
        }
        assert!(schedule.entries.is_empty() && schedule.next_due().is_none() && schedule.working == 0);
    }

    #[test]
    fn what_guests_say_does_not_wait_for_ever() {
        let (now, mut schedule) = (Instant::now(), Schedule::default());
        schedule.request("x", now);
        assert!(schedule.take_due(now).is_some());
        schedule.hear("a", now);
        let mut at = now;
        while at < now + NEWS_PATIENCE {
            at += QUIET / 2;
            schedule.done("x", Some(at));
            let taken = schedule.take_due(at);
            assert_eq!(taken.as_deref(), Some("x"), "{:?}", at - now);
        }
        assert_eq!(schedule.take_due(at).as_deref(), Some("a"));
    }
}
