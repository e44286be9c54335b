//! A work queue: every key at most once in line, never twice in work, retried with growing delays.
//!
//! Adding a key that is in work makes it run once more afterwards, so that no change is missed. Keys that fail wait
//! longer each time; one key that always fails never keeps others from their turn.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::hash::{BuildHasher, Hash, RandomState};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

/// First delay after a failure; doubles each time.
const FIRST_DELAY: Duration = Duration::from_millis(100);
/// Longest delay between two tries.
const LONGEST_DELAY: Duration = Duration::from_mins(1);

/// The queue.
pub struct Queue<K> {
    state: Mutex<State<K>>,
    wake: Notify,
    jitter: RandomState,
}

struct State<K> {
    line: VecDeque<K>,
    urgent: VecDeque<K>,
    /// The last key that was taken was urgent.
    was_urgent: bool,
    in_line: HashSet<K>,
    in_work: HashSet<K>,
    /// Added while in work.
    again: HashSet<K>,
    /// Keys to add later, by time; the number tells equal times apart.
    timers: BTreeMap<(Instant, u64), K>,
    timer_of: HashMap<K, (Instant, u64)>,
    failures: HashMap<K, u32>,
    counter: u64,
}

impl<K> Default for Queue<K> {
    fn default() -> Self {
        Self {
            state: Mutex::new(State {
                line: VecDeque::new(),
                urgent: VecDeque::new(),
                was_urgent: false,
                in_line: HashSet::new(),
                in_work: HashSet::new(),
                again: HashSet::new(),
                timers: BTreeMap::new(),
                timer_of: HashMap::new(),
                failures: HashMap::new(),
                counter: 0,
            }),
            wake: Notify::new(),
            jitter: RandomState::new(),
        }
    }
}

impl<K: Clone + Eq + Hash> Queue<K> {
    /// Puts a key in line, now.
    pub fn add(&self, key: K) {
        self.lock().add(key);
        self.wake.notify_one();
    }

    /// Puts a key in line after `delay`, unless it is due earlier already.
    pub fn add_after(&self, key: K, delay: Duration) {
        self.lock().add_at(key, Instant::now() + delay);
        self.wake.notify_one();
    }

    /// Puts a key in line, now, before those that are in line without urgency; they get every other turn.
    pub fn add_urgent(&self, key: K) {
        self.lock().add_urgent(key);
        self.wake.notify_one();
    }

    /// The next key, which is in work from now on: [`Queue::done`] or [`Queue::failed`] must follow.
    pub async fn next(&self) -> K {
        loop {
            let due = {
                let mut state = self.lock();
                state.move_due(Instant::now());
                if let Some(key) = state.take() {
                    if state.len() > 0 {
                        self.wake.notify_one();
                    }
                    return key;
                }
                state.timers.first_key_value().map(|((at, _), _)| *at)
            };
            match due {
                Some(at) => {
                    tokio::select! {
                        () = self.wake.notified() => {}
                        () = tokio::time::sleep_until(at) => {}
                    }
                }
                None => self.wake.notified().await,
            }
        }
    }

    /// The work on a key ended well; `again` is when to look at it without being told to.
    pub fn done(&self, key: K, again: Option<Duration>) {
        let mut state = self.lock();
        state.failures.remove(&key);
        state.finish(&key);
        if let Some(delay) = again {
            state.add_at(key, Instant::now() + delay);
        }
        drop(state);
        self.wake.notify_one();
    }

    /// The work on a key failed: it comes again, later each time. Returns the delay.
    pub fn failed(&self, key: K) -> Duration {
        let mut state = self.lock();
        let count = state.failures.entry(key.clone()).or_insert(0);
        let delay = backoff(*count, self.jitter.hash_one(Instant::now()));
        *count = count.saturating_add(1);
        // An event that came meanwhile must not shorten the delay.
        state.again.remove(&key);
        state.finish(&key);
        state.add_at(key, Instant::now() + delay);
        drop(state);
        self.wake.notify_one();
        delay
    }

    /// How many keys wait for their turn.
    #[must_use]
    pub fn len(&self) -> usize {
        self.lock().len()
    }

    /// Whether no key waits for its turn.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn lock(&self) -> MutexGuard<'_, State<K>> {
        // No code that can panic runs under the lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K: Clone + Eq + Hash> State<K> {
    fn add(&mut self, key: K) {
        if self.in_work.contains(&key) {
            self.again.insert(key);
        } else if self.in_line.insert(key.clone()) {
            self.line.push_back(key);
        }
    }

    fn add_urgent(&mut self, key: K) {
        if self.in_work.contains(&key) {
            self.again.insert(key);
        } else if self.in_line.insert(key.clone()) {
            self.urgent.push_back(key);
        }
    }

    fn len(&self) -> usize {
        self.line.len() + self.urgent.len()
    }

    fn add_at(&mut self, key: K, at: Instant) {
        if let Some(present) = self.timer_of.get(&key) {
            if present.0 <= at {
                return;
            }
            self.timers.remove(present);
        }
        self.counter += 1;
        self.timers.insert((at, self.counter), key.clone());
        self.timer_of.insert(key, (at, self.counter));
    }

    fn move_due(&mut self, now: Instant) {
        while let Some(entry) = self.timers.first_entry() {
            if entry.key().0 > now {
                break;
            }
            let key = entry.remove();
            self.timer_of.remove(&key);
            self.add(key);
        }
    }

    fn take(&mut self) -> Option<K> {
        let others_turn = self.was_urgent && !self.line.is_empty();
        self.was_urgent = !others_turn && !self.urgent.is_empty();
        let from = if self.was_urgent {
            &mut self.urgent
        } else {
            &mut self.line
        };
        let key = from.pop_front()?;
        self.in_line.remove(&key);
        self.in_work.insert(key.clone());
        Some(key)
    }

    fn finish(&mut self, key: &K) {
        self.in_work.remove(key);
        if self.again.remove(key) {
            self.add(key.clone());
        }
    }
}

/// The delay after `failures` earlier failures, 75 % to 125 % of its nominal value by `random`.
fn backoff(failures: u32, random: u64) -> Duration {
    let nominal = FIRST_DELAY
        .saturating_mul(1 << failures.min(16))
        .min(LONGEST_DELAY);
    nominal.mul_f64(0.75 + (random % 1000) as f64 / 2000.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_key_runs_once_and_again_when_added_during_its_work() {
        let queue = Queue::default();
        queue.add("a");
        queue.add("b");
        queue.add("a");
        assert_eq!((queue.next().await, queue.next().await), ("a", "b"));
        assert!(queue.is_empty());
        queue.add("a");
        assert!(queue.is_empty(), "in work: not in line");
        queue.done("a", None);
        assert_eq!(queue.next().await, "a");
        queue.done("a", None);
        queue.done("b", None);
        assert!(queue.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn failures_wait_longer_and_do_not_block_others() {
        let queue = Queue::default();
        let started = Instant::now();
        queue.add("bad");
        for _ in 0..4 {
            let key = queue.next().await;
            queue.failed(key);
        }
        // 0.1 + 0.2 + 0.4 s, each three quarters at least.
        assert!(
            started.elapsed() >= Duration::from_millis(525),
            "{:?}",
            started.elapsed()
        );
        queue.add("good");
        assert_eq!(queue.next().await, "good");
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_urgent_goes_first_and_every_other_turn_is_the_others() {
        let queue = Queue::default();
        for key in ["a", "b", "c"] {
            queue.add(key);
        }
        for key in ["x", "y", "x", "a"] {
            queue.add_urgent(key);
        }
        let mut order = Vec::new();
        while !queue.is_empty() {
            order.push(queue.next().await);
        }
        assert_eq!(order, ["x", "a", "y", "b", "c"]);
        queue.add_urgent("a");
        queue.done("a", None);
        assert_eq!(queue.next().await, "a", "added during its work");
    }

    #[tokio::test(start_paused = true)]
    async fn the_earliest_timer_counts() {
        let queue = Queue::default();
        let started = Instant::now();
        queue.add_after("a", Duration::from_secs(61));
        queue.add_after("a", Duration::from_secs(5));
        queue.add_after("a", Duration::from_secs(30));
        queue.next().await;
        assert_eq!(started.elapsed().as_secs(), 5);
        queue.done("a", None);
        assert!(
            tokio::time::timeout(Duration::from_secs(100), queue.next())
                .await
                .is_err()
        );
    }

    #[test]
    fn delays_are_bounded() {
        for (failures, least, most) in [(0, 75, 125), (3, 600, 1000), (40, 45_000, 75_000)] {
            for random in [0, 1, 499, 999, u64::MAX] {
                let delay = backoff(failures, random).as_millis();
                assert!((least..=most).contains(&delay), "{failures} {random}: {delay}");
            }
        }
    }
}
