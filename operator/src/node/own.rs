//! Events of the agent's own doing.
//!
//! libvirt tells everybody of a change, also the one who made it. The look that defined or started a domain sees what came
//! of it; another one, for its own echo, would find nothing. Each expected event is taken once and not for long, so that
//! whatever somebody else does at that time still leads to a look.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use libvirt_ffi::Lifecycle;

use super::observed::Moment;

/// How long after the call an event may come that it caused.
const ECHO: Duration = Duration::from_secs(2);

/// What is expected to be told, by UUID of the domain.
#[derive(Default)]
pub struct Echoes(Mutex<HashMap<String, Vec<(Lifecycle, Moment)>>>);

impl Echoes {
    /// These events will come of a call that is made now.
    pub fn expect(&self, uuid: &str, events: &[Lifecycle], now: Moment) {
        let mut all = self.lock();
        let expected = all.entry(uuid.to_owned()).or_default();
        expected.retain(|(_, since)| now < *since + ECHO);
        expected.extend(events.iter().map(|event| (*event, now)));
    }

    /// Whether an event was expected; it is not any more.
    pub fn take(&self, uuid: &str, event: Lifecycle, now: Moment) -> bool {
        let mut all = self.lock();
        let Some(expected) = all.get_mut(uuid) else {
            return false;
        };
        expected.retain(|(_, since)| now < *since + ECHO);
        let found = expected.iter().position(|(of, _)| *of == event);
        if let Some(found) = found {
            expected.swap_remove(found);
        }
        if expected.is_empty() {
            all.remove(uuid);
        }
        found.is_some()
    }

    /// The call failed, or the domain has gone: whatever is told of it is news.
    pub fn forget(&self, uuid: &str) {
        self.lock().remove(uuid);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Vec<(Lifecycle, Moment)>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_echo_is_taken_once_and_not_for_long() {
        let (echoes, now) = (Echoes::default(), Duration::from_secs(100));
        echoes.expect("a", &[Lifecycle::Started, Lifecycle::Resumed], now);
        for (what, uuid, event, at, expected) in [
            ("another domain", "b", Lifecycle::Started, now, false),
            ("another event", "a", Lifecycle::Stopped, now, false),
            ("its own", "a", Lifecycle::Started, now, true),
            (
                "a second one is somebody else's",
                "a",
                Lifecycle::Started,
                now,
                false,
            ),
            ("too late", "a", Lifecycle::Resumed, now + ECHO, false),
        ] {
            assert_eq!(echoes.take(uuid, event, at), expected, "{what}");
        }
        echoes.expect("a", &[Lifecycle::Defined], now);
        echoes.forget("a");
        assert!(!echoes.take("a", Lifecycle::Defined, now), "the call failed");
        assert!(echoes.lock().is_empty());
    }
}
