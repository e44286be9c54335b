//! Which hosts are alive, by this controller's own clock.
//!
//! Pure. A host lives when its Lease changes; how late its clock or ours is does not matter. A controller that has just
//! begun to lead gives every host a full period before it calls one silent. A silent host is gone only when an administrator
//! has said so, and its first sign of life after that makes his word worthless: the next silence is a new one.

use std::collections::HashMap;
use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use tokio::time::Instant;

/// How long a host may be silent. Four renewals: agents renew every 10 s.
pub const SILENCE: Duration = Duration::from_secs(40);

/// How a host is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostState {
    /// Its agent has been heard of lately.
    Alive,
    /// Its agent has not been heard of for a while.
    Silent,
    /// It is silent, and has been since an administrator said that it is gone for good; or there is no such Host.
    Gone,
}

#[derive(Debug)]
struct Beat {
    renewed: Option<MicroTime>,
    at: Instant,
    /// How often the host has come back: tells one silence from the next.
    returns: u64,
    /// How often its Lease has changed before our eyes.
    renewals: u64,
    /// `renewals` when an administrator said that it is gone, for as long as he says so.
    given_up: Option<u64>,
}

/// The last sign of life of every host.
#[derive(Debug, Default)]
pub struct Pulse {
    beats: HashMap<String, Beat>,
    /// Objects (uid) that were marked because the host is silent, and in which silence, by host.
    marked: HashMap<String, HashMap<String, u64>>,
}

impl Pulse {
    /// A host was seen for the first time; its period begins now.
    pub fn meet(&mut self, host: &str, now: Instant) {
        self.beats.entry(host.to_owned()).or_insert(Beat {
            renewed: None,
            at: now,
            returns: 0,
            renewals: 0,
            given_up: None,
        });
    }

    /// Whether an administrator says now that the host is gone.
    pub fn confirm(&mut self, host: &str, is_gone: bool) {
        if let Some(beat) = self.beats.get_mut(host) {
            beat.given_up = is_gone.then(|| beat.given_up.unwrap_or(beat.renewals));
        }
    }

    /// Whether a host that is said to be gone has shown since then that it is not.
    #[must_use]
    pub fn contradicts(&self, host: &str) -> bool {
        let beat = self.beats.get(host);
        beat.is_some_and(|beat| beat.given_up.is_some_and(|then| then < beat.renewals))
    }

    /// How a host is, for all who wait for it.
    #[must_use]
    pub fn state(&self, host: &str, now: Instant) -> HostState {
        let is_given_up = |beat: &Beat| beat.given_up == Some(beat.renewals);
        if !self.is_silent(host, now) {
            HostState::Alive
        } else if self.beats.get(host).is_some_and(is_given_up) {
            HostState::Gone
        } else {
            HostState::Silent
        }
    }

    /// The host's Lease as it is now. Returns whether the host was silent until then.
    pub fn beat(&mut self, host: &str, renewed: Option<&MicroTime>, now: Instant) -> bool {
        let was_silent = self.is_silent(host, now);
        self.meet(host, now);
        let Some(beat) = self
            .beats
            .get_mut(host)
            .filter(|beat| renewed.is_some() && beat.renewed.as_ref() != renewed)
        else {
            return false;
        };
        // What was there when we came is no sign of life.
        beat.renewals += u64::from(beat.renewed.is_some());
        beat.renewed = renewed.cloned();
        beat.at = now;
        beat.returns += u64::from(was_silent);
        was_silent
    }

    /// The host is no more.
    pub fn forget(&mut self, host: &str) {
        self.beats.remove(host);
        self.marked.remove(host);
    }

    /// Whether nothing has been heard of the host for too long. A host that was never met is.
    #[must_use]
    pub fn is_silent(&self, host: &str, now: Instant) -> bool {
        self.until_silent(host, now).is_none()
    }

    /// When the host will count as silent if it stays so; `None` when it does already.
    #[must_use]
    pub fn until_silent(&self, host: &str, now: Instant) -> Option<Duration> {
        let beat = self.beats.get(host)?;
        let left = (beat.at + SILENCE).checked_duration_since(now)?;
        (!left.is_zero()).then_some(left)
    }

    /// Whether to mark this object now: once per silence. If its node writes all the same, the node knows better.
    pub fn mark(&mut self, host: &str, uid: &str) -> bool {
        let silence = self.beats.get(host).map(|beat| beat.returns).unwrap_or_default();
        let marks = self.marked.entry(host.to_owned()).or_default();
        marks.insert(uid.to_owned(), silence) != Some(silence)
    }

    /// Whether this object was marked.
    #[must_use]
    pub fn is_marked(&self, host: &str, uid: &str) -> bool {
        self.marked.get(host).is_some_and(|marks| marks.contains_key(uid))
    }

    /// The mark was taken back, or could not be made.
    pub fn unmark(&mut self, host: &str, uid: &str) {
        if let Some(marks) = self.marked.get_mut(host) {
            marks.remove(uid);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::controller::testing::Random;

    fn renewed(second: i64) -> MicroTime {
        MicroTime(k8s_openapi::jiff::Timestamp::from_second(second).unwrap())
    }

    #[test]
    fn only_a_changed_lease_is_a_sign_of_life() {
        let start = Instant::now();
        let at = |second: u64| start + Duration::from_secs(second);
        let mut pulse = Pulse::default();
        assert!(pulse.is_silent("h", start), "never met");
        pulse.meet("h", start);
        // A clock far in the past or future is as good as any.
        assert!(!pulse.beat("h", Some(&renewed(5)), at(1)));
        assert!(!pulse.beat("h", Some(&renewed(5)), at(30)));
        assert_eq!(pulse.until_silent("h", at(31)), Some(Duration::from_secs(10)));
        assert!(pulse.is_silent("h", at(41)));
        assert!(
            !pulse.beat("h", Some(&renewed(5)), at(42)),
            "the same Lease again"
        );
        pulse.meet("h", at(43));
        assert!(pulse.is_silent("h", at(43)), "meeting again is no sign of life");
        assert!(pulse.beat("h", Some(&renewed(4)), at(50)), "back");
        assert!(!pulse.is_silent("h", at(89)));
    }

    #[test]
    fn gone_is_who_is_silent_and_said_to_be_gone_until_it_shows_that_it_is_not() {
        let start = Instant::now();
        let later = start + 2 * SILENCE;
        let mut pulse = Pulse::default();
        pulse.confirm("h", true);
        assert_eq!(pulse.state("h", start), HostState::Silent, "never met");
        pulse.meet("h", start);
        pulse.confirm("h", true);
        assert_eq!(pulse.state("h", start), HostState::Alive, "not silent yet");
        pulse.beat("h", Some(&renewed(1)), start);
        assert!(!pulse.contradicts("h"), "the Lease was there before us");
        assert_eq!(pulse.state("h", later), HostState::Gone);
        pulse.confirm("h", false);
        assert_eq!(pulse.state("h", later), HostState::Silent, "taken back");
        pulse.confirm("h", true);
        pulse.beat("h", Some(&renewed(2)), later);
        pulse.confirm("h", true);
        assert!(pulse.contradicts("h"));
        assert_eq!(pulse.state("h", later), HostState::Alive);
        assert_eq!(
            pulse.state("h", later + SILENCE),
            HostState::Silent,
            "what was said of an earlier silence"
        );
        pulse.confirm("h", false);
        assert!(!pulse.contradicts("h"));
        pulse.confirm("h", true);
        assert_eq!(pulse.state("h", later + SILENCE), HostState::Gone, "said anew");
    }

    /// Silent is who has not changed the Lease for too long since the last change, or since it was first met.
    #[test]
    fn whatever_is_seen_when_the_last_change_counts() {
        let start = Instant::now();
        for seed in 0..1000 {
            let random = &mut Random::new(seed);
            let (mut pulse, mut now) = (Pulse::default(), start);
            let mut shown: Option<i64> = None;
            let mut alive_at: Option<Instant> = None;
            for _ in 0..40 {
                now += Duration::from_secs(random.below(30));
                let was_silent = alive_at.is_none_or(|at| now >= at + SILENCE);
                match random.below(4) {
                    0 => {
                        pulse.meet("h", now);
                        alive_at.get_or_insert(now);
                    }
                    1 => {
                        let lease = random.below(3) as i64;
                        let returned = pulse.beat("h", Some(&renewed(lease)), now);
                        let changed = shown.replace(lease) != Some(lease);
                        assert_eq!(returned, changed && was_silent, "seed {seed}");
                        alive_at = if changed { Some(now) } else { alive_at };
                    }
                    2 => {
                        pulse.beat("other", Some(&renewed(random.below(9) as i64)), now);
                    }
                    _ => {}
                }
                let left = alive_at.and_then(|at| (at + SILENCE).checked_duration_since(now));
                let left = left.filter(|left| !left.is_zero());
                assert_eq!(pulse.until_silent("h", now), left, "seed {seed}");
                assert_eq!(pulse.is_silent("h", now), left.is_none(), "seed {seed}");
            }
        }
    }

    /// However fast, slow or wrong a host's own clock is, and whether it goes backwards: who beats in time is never silent, who
    /// stops is silent exactly [`SILENCE`] later, and every sign of life brings it back.
    #[test]
    fn a_hosts_own_clock_does_not_matter() {
        let start = Instant::now();
        let limit = SILENCE.as_secs();
        for seed in 0..1000 {
            let random = &mut Random::new(seed);
            let (mut pulse, mut now) = (Pulse::default(), start);
            let (mut clock, step) = (random.below(1 << 31) as i64, random.below(200) as i64 - 100);
            pulse.meet("h", now);
            for _ in 0..20 {
                let pause = random.below(2 * limit) + 1;
                let silent = |second| pulse.is_silent("h", now + Duration::from_secs(second));
                assert!((0..limit).all(|second| !silent(second)), "seed {seed}");
                assert!(silent(limit) && silent(2 * limit), "seed {seed}");
                // Never twice the same.
                clock += if step == 0 { 1 } else { step };
                now += Duration::from_secs(pause);
                let was_silent = pulse.beat("h", Some(&renewed(clock)), now);
                assert_eq!(was_silent, pause >= limit, "seed {seed}");
            }
        }
    }

    #[test]
    fn an_object_is_marked_once_per_silence() {
        let start = Instant::now();
        let mut pulse = Pulse::default();
        pulse.meet("h", start);
        assert!(pulse.mark("h", "u"));
        assert!(!pulse.mark("h", "u") && pulse.is_marked("h", "u"));
        assert!(pulse.beat("h", Some(&renewed(1)), start + 2 * SILENCE));
        assert!(pulse.is_marked("h", "u"), "until it is taken back");
        assert!(pulse.mark("h", "u"), "a new silence");
        pulse.unmark("h", "u");
        assert!(!pulse.is_marked("h", "u"));
    }
}
