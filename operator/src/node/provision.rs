//! Builds what runs in a guest: the builder's repository is cloned, its executor runs, once for each Instance.
//!
//! ```text
//! Waiting --guest reached, Started written--> Running --exit 0--> Done
//!    ^                                           |
//!    +---- a new restartToken ---- Failed <------+ exit code, deadline, or an agent that was killed meanwhile
//! ```
//!
//! [`decide`] says which it is, from what the condition `Provisioned` says and from what this process knows. The
//! condition says `Started` before anything is run in the guest: what was started by an agent that is gone is failed, and
//! nothing runs a second time unless somebody asks for it. [`run`] does the work.

mod run;
mod vars;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use virtshell_crds::condition::{PROVISIONED, Status, find};
use virtshell_crds::{Instance, InstanceStatus};

use super::access::{Channel, Choice};
use super::context::Context;
use super::observed::OurDomain;

/// How long a guest may take from its start until something leads into it and it has an address.
const REACH: Duration = Duration::from_mins(5);
/// How often a guest that is waited for is looked at.
pub const LOOK_AGAIN: Duration = Duration::from_secs(2);

/// How far the building of an Instance is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stage {
    /// It has no builder.
    NotNeeded,
    /// The guest cannot be reached yet; the text says what is missing.
    Waiting(&'static str),
    /// It runs, or will as soon as the cluster knows.
    Running,
    /// It ran to its end.
    Done,
    /// It did not: why, and what the guest said last.
    Failed(Cause, String),
}

/// Why building failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// Nothing led into the guest, or it had no address, in time.
    GuestUnreachable,
    /// The file with its variables could not be read.
    VarsUnreadable,
    /// The repository could not be cloned.
    CloneFailed,
    /// The executor ended with another exit code than 0.
    ExecutorFailed,
    /// It took longer than it may.
    TimedOut,
    /// The guest, or the way into it, was lost meanwhile.
    GuestLost,
    /// The agent was restarted meanwhile.
    Interrupted,
}

impl Cause {
    const ALL: [Self; 7] = [
        Self::GuestUnreachable,
        Self::VarsUnreadable,
        Self::CloneFailed,
        Self::ExecutorFailed,
        Self::TimedOut,
        Self::GuestLost,
        Self::Interrupted,
    ];

    /// The word for a condition.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::GuestUnreachable => "GuestUnreachable",
            Self::VarsUnreadable => "VarsUnreadable",
            Self::CloneFailed => "CloneFailed",
            Self::ExecutorFailed => "ExecutorFailed",
            Self::TimedOut => "TimedOut",
            Self::GuestLost => "GuestLost",
            Self::Interrupted => "Interrupted",
        }
    }
}

const STARTED: &str = "Started";
const WAITING: &str = "Waiting";

impl Stage {
    /// Status, reason and message of the condition `Provisioned`; none without a builder.
    #[must_use]
    pub fn said(&self) -> Option<(Status, &'static str, String)> {
        Some(match self {
            Self::NotNeeded => return None,
            Self::Waiting(what) => (Status::False, WAITING, (*what).to_owned()),
            Self::Running => (Status::False, STARTED, "the builder runs in the guest".to_owned()),
            Self::Done => (Status::True, "Provisioned", String::new()),
            Self::Failed(cause, message) => (Status::False, cause.as_str(), message.clone()),
        })
    }
}

/// What this process knows of the building of one Instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Job {
    /// It will be started as soon as the cluster knows that it was.
    Claimed(Channel),
    /// It runs.
    Running,
    /// It ended: well, or not.
    Ended(Result<(), (Cause, String)>),
}

/// Everything that a decision rests on.
#[derive(Clone, Debug)]
pub struct Signs<'a> {
    /// The Instance has a builder, and is no copy of another that was built already.
    pub needed: bool,
    /// It was built to the end.
    pub provisioned: bool,
    /// Reason and message of the condition.
    pub said: Option<(&'a str, &'a str)>,
    /// What this process knows.
    pub job: Option<&'a Job>,
    /// A restart was asked for and done that the status does not know of: another try.
    pub retry: bool,
    /// The guest runs.
    pub running: bool,
    /// The way into it.
    pub way: Choice,
    /// It has an address, or no interface that could have one.
    pub addressed: bool,
    /// How long it has run, as far as this process knows.
    pub waited: Duration,
}

/// How far it is, and the way in which it is to be started now.
#[must_use]
pub fn decide(signs: &Signs<'_>) -> (Stage, Option<Channel>) {
    if !signs.needed {
        return (Stage::NotNeeded, None);
    }
    match signs.job {
        _ if signs.provisioned => return (Stage::Done, None),
        Some(Job::Ended(Ok(()))) => return (Stage::Done, None),
        Some(Job::Claimed(_) | Job::Running) => return (Stage::Running, None),
        // A condition that says Waiting was written for another try.
        Some(Job::Ended(Err((cause, message))))
            if !signs.retry && signs.said.is_none_or(|(reason, _)| reason != WAITING) =>
        {
            return (Stage::Failed(*cause, message.clone()), None);
        }
        Some(Job::Ended(Err(_))) | None => {}
    }
    if let (Some(failed), false) = (signs.said.and_then(failure), signs.retry) {
        return (failed, None);
    }
    if !signs.running {
        return (Stage::Waiting("the instance does not run"), None);
    }
    match &signs.way {
        Choice::Use(channel) if signs.addressed => (Stage::Running, Some(channel.clone())),
        Choice::Use(_) | Choice::Wait | Choice::Nothing(_) if signs.waited < REACH => {
            let missing = match signs.way {
                Choice::Use(_) => "the guest has no address yet",
                Choice::Wait | Choice::Nothing(_) => "nothing leads into the guest yet",
            };
            (Stage::Waiting(missing), None)
        }
        Choice::Nothing(why) => (Stage::Failed(Cause::GuestUnreachable, why.clone()), None),
        Choice::Use(_) | Choice::Wait => {
            let message = "the guest has no agent that answers, or no address, after 5 minutes";
            (Stage::Failed(Cause::GuestUnreachable, message.to_owned()), None)
        }
    }
}

/// The failure that a condition speaks of.
fn failure((reason, message): (&str, &str)) -> Option<Stage> {
    if reason == STARTED {
        let why =
            "the agent of the host was restarted while the builder ran; set a new restartToken to try again";
        return Some(Stage::Failed(Cause::Interrupted, why.to_owned()));
    }
    let cause = Cause::ALL.into_iter().find(|cause| cause.as_str() == reason)?;
    Some(Stage::Failed(cause, message.to_owned()))
}

/// Whether an Instance has a builder to run: a copy of one that has run is not built again.
#[must_use]
pub fn is_needed(instance: &Instance) -> bool {
    let resolved = instance.status.as_ref().and_then(|s| s.resolved.as_ref());
    resolved.is_some_and(|r| !r.builder.is_empty()) && instance.spec.clone_from.is_none()
}

/// Whether other work in the guest has to wait until it is built.
#[must_use]
pub fn is_unfinished(instance: &Instance) -> bool {
    let Some(status) = &instance.status else {
        return false;
    };
    let said = said(status);
    let failed = said.is_some_and(|(reason, _)| reason != STARTED) && said.and_then(failure).is_some();
    is_needed(instance) && status.provisioned != Some(true) && !failed
}

/// Reason and message of the condition.
#[must_use]
pub fn said(status: &InstanceStatus) -> Option<(&str, &str)> {
    find(&status.conditions, PROVISIONED).map(|c| (c.reason.as_str(), c.message.as_str()))
}

/// Whether a domain has been restarted by a token that the status does not know of.
#[must_use]
pub fn is_retried(status: &InstanceStatus, domain: &OurDomain) -> bool {
    status.last_restart_token != domain.config.metadata.restart_token
}

/// What is known of every Instance's building, by uid.
#[derive(Default)]
pub struct Jobs(Mutex<HashMap<String, Job>>);

impl Jobs {
    /// What is known of one.
    #[must_use]
    pub fn get(&self, uid: &str) -> Option<Job> {
        self.lock().get(uid).cloned()
    }

    /// Takes over what is known now.
    pub fn put(&self, uid: &str, job: Job) {
        self.lock().insert(uid.to_owned(), job);
    }

    /// Forgets one.
    pub fn forget(&self, uid: &str) {
        self.lock().remove(uid);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Job>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Starts what was claimed, when the cluster knows that it was started after the restart with this token.
pub fn start_claimed(context: &Arc<Context>, uid: &str, token: &str) {
    let Some(Job::Claimed(channel)) = context.jobs.get(uid) else {
        return;
    };
    let Some(instance) = context.instances.get(uid) else {
        return;
    };
    let known = |status: &InstanceStatus| {
        said(status).is_some_and(|(reason, _)| reason == STARTED) && status.last_restart_token == token
    };
    if !instance.status.as_ref().is_some_and(known) {
        return;
    }
    context.jobs.put(uid, Job::Running);
    let (context, uid) = (Arc::clone(context), uid.to_owned());
    tokio::spawn(async move {
        let shared = Arc::clone(&context);
        let work = tokio::spawn(async move { run::build(&shared, &instance, channel).await });
        let ended = work.await.unwrap_or_else(|_| {
            Err((
                Cause::GuestLost,
                "the agent failed in the middle of it".to_owned(),
            ))
        });
        // An Instance that is gone has nobody to tell.
        if context.instances.get(&uid).is_some() {
            context.jobs.put(&uid, Job::Ended(ended));
            context.requests.now(&uid);
        }
    });
}

#[cfg(test)]
#[path = "provision/tests.rs"]
mod tests;
