//! Leader election by a Lease, as client-go does it: any number of controllers run, one of them writes.
//!
//! ```text
//!            +--- nobody holds it, or its holder let it run out ---+
//!            v                                                     |
//!        [leader] --- no renewal for RENEW_DEADLINE, or taken ---> [follower]
//! ```
//!
//! Only durations of this process's own clock count; the times in the Lease are for people. A leader gives up
//! [`RENEW_DEADLINE`] after the last renewal it knows to have succeeded, which is before anybody else may take over, so
//! there is never a second one. A process that was stopped meanwhile cannot give up in time; for that, whatever a leader
//! sends asks its [`Term`] first, and every write names the resource version that it rests on.
//! [`next_step`] decides; [`Elector`] does the I/O.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::Client;
use kube::api::{Api, ObjectMeta, PostParams};
use tokio::time::Instant;

use super::write::words;
use crate::probes::Readiness;

/// Name of the Lease, in the operator's namespace.
pub const LEASE: &str = "virtshell-controller";
/// How long a Lease that is not renewed keeps others away. client-go's default.
pub const LEASE_DURATION: Duration = Duration::from_secs(15);
/// How long a leader goes on without a renewal. client-go's default.
pub const RENEW_DEADLINE: Duration = Duration::from_secs(10);
/// Between two tries. client-go's default.
pub const RETRY_PERIOD: Duration = Duration::from_secs(2);

/// What to do about a Lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// There is none: create it.
    Create,
    /// It is ours: renew it.
    Renew,
    /// Its holder is gone or has let go: take it.
    Take,
    /// Somebody else holds it.
    Follow,
}

/// What `me` does about a Lease whose record has not changed for `unchanged` by our own clock.
#[must_use]
pub fn next_step(lease: Option<&LeaseSpec>, me: &str, unchanged: Duration) -> Step {
    let Some(lease) = lease else { return Step::Create };
    match lease.holder_identity.as_deref() {
        Some(holder) if holder == me => Step::Renew,
        None | Some("") => Step::Take,
        Some(_) => {
            let seconds = lease.lease_duration_seconds.unwrap_or_default().max(0);
            if unchanged >= Duration::from_secs(seconds as u64) {
                Step::Take
            } else {
                Step::Follow
            }
        }
    }
}

/// The time for which one candidate may act as leader; cloning shares it. It is over [`RENEW_DEADLINE`] after the last
/// renewal, without anybody having to say so.
#[derive(Clone, Debug)]
pub struct Term {
    /// When the last call that made or kept us leader began: the API server may have stored it any time after that.
    renewed: Arc<Mutex<Instant>>,
}

impl Term {
    fn new(began: Instant) -> Self {
        Self {
            renewed: Arc::new(Mutex::new(began)),
        }
    }

    /// Whether it goes on.
    #[must_use]
    pub fn lasts(&self) -> bool {
        Instant::now() < self.ends()
    }

    fn ends(&self) -> Instant {
        *self.renewed.lock().unwrap_or_else(PoisonError::into_inner) + RENEW_DEADLINE
    }

    fn renew(&self, began: Instant) {
        *self.renewed.lock().unwrap_or_else(PoisonError::into_inner) = began;
    }
}

/// One candidate.
pub struct Elector {
    api: Api<Lease>,
    me: String,
    /// The record as last seen, and since when it has looked like that.
    seen: Option<(LeaseSpec, Instant)>,
}

impl Elector {
    /// A candidate called `me` for the Lease in `namespace`.
    #[must_use]
    pub fn new(client: Client, namespace: &str, me: String) -> Self {
        Self {
            api: Api::namespaced(client, namespace),
            me,
            seen: None,
        }
    }

    /// Waits until this candidate leads. `readiness` is whether the Lease can be read at all: a healthy follower is ready.
    pub async fn acquire(&mut self, readiness: &Readiness) -> Term {
        let mut failing_since = None;
        loop {
            let began = Instant::now();
            match tokio::time::timeout(RENEW_DEADLINE, self.try_to_lead()).await {
                Ok(Ok(leads)) => {
                    failing_since = None;
                    readiness.set(true);
                    if leads {
                        return Term::new(began);
                    }
                }
                Ok(Err(error)) => {
                    // Once per outage; a conflict is only another candidate who was faster.
                    if failing_since.is_none() && !is_conflict(&error) {
                        tracing::warn!(error = words(&error), lease = LEASE, "cannot ask for leadership");
                    }
                    failing_since.get_or_insert_with(Instant::now);
                }
                Err(_) => {
                    failing_since.get_or_insert_with(Instant::now);
                }
            }
            if failing_since.is_some_and(|since| since.elapsed() >= RENEW_DEADLINE) {
                readiness.set(false);
            }
            tokio::time::sleep(self.until_next_try()).await;
        }
    }

    /// Renews for as long as that works; returns when this candidate does not lead any more.
    pub async fn hold(&mut self, term: &Term) {
        loop {
            tokio::time::sleep(RETRY_PERIOD).await;
            let began = Instant::now();
            match tokio::time::timeout_at(term.ends(), self.try_to_lead()).await {
                Ok(Ok(true)) => term.renew(began),
                Err(_) => {}
                Ok(Ok(false)) => {
                    tracing::warn!("another controller has taken over");
                    return;
                }
                Ok(Err(error)) => {
                    tracing::warn!(error = words(&error), lease = LEASE, "cannot renew leadership");
                }
            }
            if !term.lasts() {
                tracing::warn!("leadership could not be renewed in time");
                return;
            }
        }
    }

    /// Lets go, so that another candidate need not wait for the Lease to run out. Best effort.
    pub async fn release(&mut self) {
        if let Err(error) = self.try_release().await {
            tracing::warn!(
                error = words(&error),
                lease = LEASE,
                "the Lease was not released and runs out by itself"
            );
        }
    }

    /// A follower tries again as soon as the Lease it has seen may have run out.
    fn until_next_try(&self) -> Duration {
        let runs_out = self.seen.as_ref().and_then(|(spec, since)| {
            let seconds = spec.lease_duration_seconds.unwrap_or_default().max(0);
            (*since + Duration::from_secs(seconds as u64)).checked_duration_since(Instant::now())
        });
        runs_out.map_or(RETRY_PERIOD, |left| left.min(RETRY_PERIOD))
    }

    /// One try to become or stay leader; whether it succeeded.
    async fn try_to_lead(&mut self) -> kube::Result<bool> {
        let lease = self.api.get_opt(LEASE).await?;
        let spec = lease.as_ref().and_then(|l| l.spec.clone());
        let unchanged = self.unchanged_for(spec.as_ref());
        match next_step(spec.as_ref(), &self.me, unchanged) {
            Step::Follow => Ok(false),
            Step::Create => match lease {
                // A Lease without a spec.
                Some(lease) => self.write(lease, self.record(None)).await,
                None => self.create().await,
            },
            Step::Renew | Step::Take => match lease {
                Some(lease) => {
                    let record = self.record(spec.as_ref());
                    self.write(lease, record).await
                }
                None => Ok(false),
            },
        }
    }

    /// How long the record has not changed, by our own clock.
    fn unchanged_for(&mut self, spec: Option<&LeaseSpec>) -> Duration {
        match (&self.seen, spec) {
            (Some((seen, since)), Some(spec)) if seen == spec => since.elapsed(),
            (_, spec) => {
                self.seen = spec.map(|spec| (spec.clone(), Instant::now()));
                Duration::ZERO
            }
        }
    }

    fn record(&self, previous: Option<&LeaseSpec>) -> LeaseSpec {
        let now = MicroTime(k8s_openapi::jiff::Timestamp::now());
        let mine = previous.is_some_and(|p| p.holder_identity.as_deref() == Some(self.me.as_str()));
        let transitions = previous.and_then(|p| p.lease_transitions).unwrap_or_default();
        LeaseSpec {
            holder_identity: Some(self.me.clone()),
            lease_duration_seconds: Some(LEASE_DURATION.as_secs() as i32),
            acquire_time: if mine {
                previous.and_then(|p| p.acquire_time.clone())
            } else {
                Some(now.clone())
            },
            renew_time: Some(now),
            lease_transitions: Some(transitions + i32::from(previous.is_some() && !mine)),
            ..LeaseSpec::default()
        }
    }

    async fn create(&mut self) -> kube::Result<bool> {
        let lease = Lease {
            metadata: ObjectMeta {
                name: Some(LEASE.to_owned()),
                ..ObjectMeta::default()
            },
            spec: Some(self.record(None)),
        };
        let created = self.api.create(&PostParams::default(), &lease).await?;
        self.seen = created.spec.map(|spec| (spec, Instant::now()));
        Ok(true)
    }

    /// Replaces the record; the resource version in `lease` makes sure that nobody else did meanwhile.
    async fn write(&mut self, mut lease: Lease, record: LeaseSpec) -> kube::Result<bool> {
        lease.spec = Some(record);
        let written = self.api.replace(LEASE, &PostParams::default(), &lease).await?;
        self.seen = written.spec.map(|spec| (spec, Instant::now()));
        Ok(true)
    }

    async fn try_release(&mut self) -> kube::Result<()> {
        let Some(mut lease) = self.api.get_opt(LEASE).await? else {
            return Ok(());
        };
        let Some(spec) = lease.spec.as_mut() else {
            return Ok(());
        };
        if spec.holder_identity.as_deref() != Some(self.me.as_str()) {
            return Ok(());
        }
        // As client-go: an empty holder and the shortest duration.
        spec.holder_identity = Some(String::new());
        spec.lease_duration_seconds = Some(1);
        self.api.replace(LEASE, &PostParams::default(), &lease).await?;
        Ok(())
    }
}

fn is_conflict(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.is_conflict() || status.is_already_exists())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_term_is_over_before_a_successor_may_begin() {
        let term = Term::new(Instant::now());
        let held = term.clone();
        let nearly = RENEW_DEADLINE.mul_f64(0.9);
        tokio::time::sleep(nearly).await;
        assert!(term.lasts());
        held.renew(Instant::now());
        tokio::time::sleep(nearly).await;
        assert!(term.lasts(), "renewed");
        // Nobody tells it that time has passed.
        tokio::time::sleep(RENEW_DEADLINE).await;
        assert!(!term.lasts());
        const { assert!(RENEW_DEADLINE.as_secs() < LEASE_DURATION.as_secs()) };
    }

    #[test]
    fn a_lease_is_taken_only_when_nobody_uses_it() {
        let held_by = |holder: &str| LeaseSpec {
            holder_identity: Some(holder.to_owned()),
            lease_duration_seconds: Some(15),
            ..LeaseSpec::default()
        };
        let seconds = Duration::from_secs;
        for (rule, lease, unchanged, expected) in [
            ("none yet", None, 0, Step::Create),
            ("ours", Some(held_by("me")), 0, Step::Renew),
            ("ours, though late", Some(held_by("me")), 60, Step::Renew),
            ("another's", Some(held_by("you")), 14, Step::Follow),
            ("another's, run out", Some(held_by("you")), 15, Step::Take),
            ("released", Some(held_by("")), 0, Step::Take),
            ("without a holder", Some(LeaseSpec::default()), 0, Step::Take),
        ] {
            assert_eq!(
                next_step(lease.as_ref(), "me", seconds(unchanged)),
                expected,
                "{rule}"
            );
        }
    }
}
