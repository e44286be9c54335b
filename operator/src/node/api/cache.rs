//! Answers that are remembered for a while, and never more than so many.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Remembers answers by their question.
#[derive(Debug)]
pub struct Cache<K, V> {
    lifetime: Duration,
    most: usize,
    answers: Mutex<HashMap<K, (Instant, V)>>,
}

impl<K: Hash + Eq + Clone, V: Clone> Cache<K, V> {
    /// Remembers `most` answers (at least one), each for `lifetime`.
    #[must_use]
    pub fn new(lifetime: Duration, most: usize) -> Self {
        Self {
            lifetime,
            most,
            answers: Mutex::default(),
        }
    }

    /// The answer, if it is remembered still.
    #[must_use]
    pub fn get(&self, question: &K, now: Instant) -> Option<V> {
        let answers = self.lock();
        let (since, answer) = answers.get(question)?;
        (now.saturating_duration_since(*since) < self.lifetime).then(|| answer.clone())
    }

    /// Remembers an answer that was given at `now`; for it the oldest is forgotten when there are too many.
    pub fn put(&self, question: K, answer: V, now: Instant) {
        let mut answers = self.lock();
        if answers.len() >= self.most && !answers.contains_key(&question) {
            answers.retain(|_, (since, _)| now.saturating_duration_since(*since) < self.lifetime);
        }
        if answers.len() >= self.most && !answers.contains_key(&question) {
            let oldest = answers.iter().min_by_key(|(_, (since, _))| *since);
            if let Some(oldest) = oldest.map(|(question, _)| question.clone()) {
                answers.remove(&oldest);
            }
        }
        answers.insert(question, (now, answer));
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<K, (Instant, V)>> {
        self.answers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_remembered_for_its_time() {
        let cache = Cache::new(Duration::from_mins(1), 10);
        let now = Instant::now();
        cache.put("a", 1, now);
        assert_eq!(cache.get(&"a", now + Duration::from_secs(59)), Some(1));
        assert_eq!(cache.get(&"a", now + Duration::from_mins(1)), None);
        assert_eq!(cache.get(&"b", now), None);
    }

    #[test]
    fn it_never_grows_beyond_its_bound_and_forgets_the_oldest() {
        let cache = Cache::new(Duration::from_mins(1), 3);
        let now = Instant::now();
        for (at, question) in (0..).zip(["a", "b", "c", "d"]) {
            cache.put(question, at, now + Duration::from_secs(at));
        }
        let later = now + Duration::from_secs(5);
        assert_eq!(cache.get(&"a", later), None);
        assert_eq!(
            ["b", "c", "d"].map(|q| cache.get(&q, later)),
            [Some(1), Some(2), Some(3)]
        );
        // One that is there already takes nobody's place.
        cache.put("b", 9, later);
        assert_eq!(
            ["b", "c", "d"].map(|q| cache.get(&q, later)),
            [Some(9), Some(2), Some(3)]
        );
        assert_eq!(cache.lock().len(), 3);
    }
}
