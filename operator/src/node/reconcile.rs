//! One look at one Instance: observe, plan, perform, report.

mod bring;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, Patch, PatchParams};
use kube::{Resource, ResourceExt};
use serde_json::json;
use virtshell_crds::{FINALIZER_DOMAIN, Instance, PowerState};

use super::access::{Signs as Ways, choose};
use super::applied::{DiskWord, InterfaceWord, words};
use super::backoff;
use super::connection::{Connection, Lane};
use super::context::{Context, Record};
use super::events::{Tell, told};
use super::goal::{Goal, Machine, NoGoal, goal, refuse_duplicate_macs};
use super::guest::Watch;
use super::hypervisor::HypervisorError;
use super::metadata::differing;
use super::observed::{DomainState, Files, Moment, Observed, OurDomain, PausedBy, Power};
use super::perform::{PerformError, Performer};
use super::plan::{Action, Blocked, Device, Next, Waiting, patience, plan};
use super::provision::{self, Job, Stage};
use super::report::{self, Facts, Failure, OWNED, Outcome, status};
use super::storage::ObservedFiles;
use crate::status::{apply, differs};
use bring::has_images;

/// How long libvirt may take to answer for itself.
const READ_DEADLINE: Duration = Duration::from_secs(5);
/// A slow look at everything, for what events lost.
const RESYNC: Duration = Duration::from_mins(5);
/// Rounds of one look: a stop, a definition and a start are three.
const ROUNDS: usize = 6;
/// How soon to look again at an Instance whose disks are being copied.
const HELD: Duration = Duration::from_millis(200);
/// How soon to try again what depends on nobody else.
const SOON: Duration = Duration::from_secs(1);

/// Looks at the Instance with this uid; returns after how long it wants to look again.
pub async fn reconcile(context: Arc<Context>, uid: String) -> Option<Duration> {
    let instance = context.instances.get(&uid)?;
    if context.clones.holds(&uid) {
        // Its guest stands still for a moment, on purpose.
        return Some(HELD);
    }
    let began = Instant::now();
    let mut record = context.record(&uid);
    let look = Look {
        context: &context,
        instance: &instance,
    };
    let (next, error) = match look.goal() {
        Err(NoGoal::NotOurs) => (None, None),
        Err(why) => look.refuse(&why, &mut record).await,
        Ok(goal) => look.converge(goal, &mut record).await,
    };
    context.metrics.reconciled(began.elapsed(), error);
    if context.instances.get(&uid).is_some() {
        context.remember(&uid, record);
    } else {
        context.fetches.forget(&uid);
    }
    next
}

/// When to look again, and the reason of the failure if there was one.
type Ended = (Option<Duration>, Option<&'static str>);

struct Look<'a> {
    context: &'a Arc<Context>,
    instance: &'a Arc<Instance>,
}

/// What one observation showed.
struct Seen {
    domain: DomainState,
    files: ObservedFiles,
}

impl Look<'_> {
    fn goal(&self) -> Result<Goal, NoGoal> {
        let goal = goal(self.instance, &self.context.host, &self.context.offer())?;
        if let Goal::Present(_) = goal {
            let others = self.context.instances.with_macs_of(self.instance);
            let others = others.iter().map(|(mac, other)| (mac.clone(), &**other));
            refuse_duplicate_macs(self.instance, others)?;
        }
        Ok(goal)
    }

    /// There is no goal: says why, and waits for an edit or for the host to change.
    async fn refuse(&self, why: &NoGoal, record: &mut Record) -> Ended {
        // A libvirt that does not answer may well run the domain: could not ask is not "cannot".
        let silent = matches!(why, NoGoal::Silent { .. });
        let failure = Failure {
            reason: refusal(why),
            message: why.to_string(),
            unknown: silent,
            transient: silent || matches!(why, NoGoal::Unresolved(_)),
            image: false,
        };
        self.report(None, None, &Outcome::Failed(failure), record).await;
        (Some(RESYNC), Some(refusal(why)))
    }

    async fn converge(&self, mut goal: Goal, record: &mut Record) -> Ended {
        let (id, driver) = match &goal {
            Goal::Present(machine) => (machine.id.clone(), Some(machine.driver)),
            Goal::Gone(removal) => (removal.id.clone(), removal.driver),
        };
        let Some(driver) = driver else {
            // Never resolved, so never defined: there is nothing to remove.
            return self.release(record).await;
        };
        let Some(connection) = self.context.connections.get(&driver) else {
            let why = NoGoal::DriverUnavailable {
                driver,
                why: "the agent has no connection for it".to_owned(),
            };
            return self.refuse(&why, record).await;
        };
        if goal.machine().is_none() && self.context.copies.is_under_way(&id.uid) {
            // It would bring back what is removed now. Its end asks for another look.
            return (None, None);
        }
        for _ in 0..ROUNDS {
            let seen = match self.observe(connection, &id).await {
                Ok(seen) => seen,
                Err(error) => return self.failed(&goal, None, &error, record).await,
            };
            if self.context.clones.holds(&id.uid) {
                // Its guest stands still for a moment, on purpose: what was seen may be that.
                return (Some(HELD), None);
            }
            if let (Goal::Present(machine), DomainState::Ours(domain)) = (&mut goal, &seen.domain) {
                machine.keep_choices(&domain.config.metadata.applied);
                record
                    .memory
                    .detaching
                    .retain(|device, _| is_attached(device, domain));
            }
            self.note_interference(&goal, &seen, record);
            let machine = goal.machine();
            record.memory.images_cached = machine.is_none_or(|m| has_images(m, record));
            let (room, no_space) = self.room(connection, &seen.domain).await;
            let observed = Observed {
                domain: seen.domain.clone(),
                files: files_of(Some(&seen.files)),
                room,
                no_space,
                memory: record.memory.clone(),
            };
            let plan = plan(&goal, &observed, self.context.now());
            let performer = Performer {
                context: self.context,
                connection,
                id: &id,
                machine,
                uuid: uuid(&seen.domain).unwrap_or_else(|| id.uid.clone()),
            };
            if plan.actions.contains(&Action::MakeRoot) {
                record.timings.define_ms = 0;
            }
            for action in &plan.actions {
                if let Err(error) = performer.perform(action, record).await {
                    return self.failed(&goal, Some(&seen), &error, record).await;
                }
                self.tell(action, &seen.domain, &goal);
            }
            let acted = !plan.actions.is_empty();
            match plan.then {
                // What the steps led to is seen by another look: the world may have moved on meanwhile.
                Next::Settled if acted => {}
                Next::Settled => return self.settled(&goal, &seen, connection, record).await,
                Next::Removed => return self.release(record).await,
                Next::Again => {}
                Next::Wait(_, waiting @ (Waiting::Image | Waiting::Copy)) => {
                    if let Err(ended) = self.bring(waiting, &performer, &goal, &seen, record).await {
                        return ended;
                    }
                }
                Next::Wait(until, waiting) => {
                    return self.wait(&goal, &seen, (until, waiting), record).await;
                }
                Next::Blocked(blocked) => return self.blocked(&goal, &seen, blocked, record).await,
            }
        }
        // A world that changes faster than it can be looked at.
        (Some(SOON), None)
    }

    async fn observe(
        &self,
        connection: &Arc<Connection>,
        id: &super::goal::Identity,
    ) -> Result<Seen, PerformError> {
        let whose = id.clone();
        let asked = connection.call(Lane::Read, &id.uid, "look at", READ_DEADLINE, move |link| {
            link.observe(&whose)
        });
        let (domain, files) = tokio::join!(asked, self.context.storage.observe(&id.uid));
        Ok(Seen {
            domain: domain?,
            files: files?,
        })
    }

    /// Whether a guest that its storage suspended would find room, and whether that is what it lacked; asked only for one.
    async fn room(&self, connection: &Arc<Connection>, domain: &DomainState) -> (bool, bool) {
        let DomainState::Ours(domain) = domain else {
            return (true, false);
        };
        if domain.power != Power::Paused(PausedBy::IoError) {
            return (true, false);
        }
        let uuid = domain.uuid.clone();
        let asked = connection.call(
            Lane::Probe,
            &domain.config.metadata.uid,
            "ask for the disk errors of",
            READ_DEADLINE,
            move |link| link.found_no_space(&uuid),
        );
        let (room, no_space) = tokio::join!(self.context.storage.room(), asked);
        // One that cannot be asked now most likely lacks room.
        (
            room.is_ok_and(|room| !room.is_nearly_full()),
            no_space.unwrap_or(true),
        )
    }

    // --- Endings ----------------------------------------------------------------------------------------------------

    async fn settled(
        &self,
        goal: &Goal,
        seen: &Seen,
        connection: &Arc<Connection>,
        record: &mut Record,
    ) -> Ended {
        let Goal::Present(machine) = goal else {
            return (Some(RESYNC), None);
        };
        if connection.is_stuck(&machine.id.uid) {
            let stuck = HypervisorError::Stuck {
                domain: machine.id.domain_name.clone(),
            };
            return self.failed(goal, Some(seen), &stuck.into(), record).await;
        }
        record.failures = 0;
        // A stop that was asked for and taken back is over: the next one has its own deadline.
        record.memory.asked = None;
        match &seen.domain {
            DomainState::Ours(domain) if domain.power == Power::Running => {
                // Until it runs again, its end was our own doing.
                record.expected_off = false;
                self.watch(machine, domain, connection, record);
            }
            DomainState::Ours(_) | DomainState::Absent | DomainState::Foreign { .. } => {
                self.context.guests.stop(&machine.id.uid);
            }
        }
        let stage = self.stage(machine, &seen.domain);
        match &stage {
            Stage::Failed(cause, message) => self.told(record, cause.as_str(), message.clone()),
            Stage::NotNeeded | Stage::Waiting(_) | Stage::Running | Stage::Done => record.told.clear(),
        }
        self.report_stage(Some(machine), Some(seen), &Outcome::Settled, record, Some(&stage))
            .await;
        provision::start_claimed(self.context, &machine.id.uid, &machine.restart_token);
        let now = self.context.now();
        let patience = patience(&record.memory, now).map(|until| until.saturating_sub(now));
        let again = match stage {
            Stage::Waiting(_) => provision::LOOK_AGAIN,
            Stage::Done if !machine.provisioned => SOON,
            Stage::NotNeeded | Stage::Running | Stage::Done | Stage::Failed(..) => RESYNC,
        };
        (Some(patience.unwrap_or(RESYNC).min(again)), None)
    }

    /// How far the building of the guest is; claims it when it is to be started.
    fn stage(&self, machine: &Machine, domain: &DomainState) -> Stage {
        let DomainState::Ours(domain) = domain else {
            return Stage::NotNeeded;
        };
        let (context, uid) = (self.context, &machine.id.uid);
        let instance = context
            .instances
            .get(uid)
            .unwrap_or_else(|| Arc::clone(self.instance));
        let status = instance.status.clone().unwrap_or_default();
        let ways = Ways {
            domain_type: Some(machine.domain_type),
            ..Ways::of(context, &instance)
        };
        let (now, job) = (context.now(), context.jobs.get(uid));
        let (stage, start) = provision::decide(&provision::Signs {
            needed: provision::is_needed(&instance),
            provisioned: status.provisioned == Some(true) || domain.config.metadata.provisioned,
            said: provision::said(&status),
            job: job.as_ref(),
            retry: provision::is_retried(&status, domain),
            running: domain.power == Power::Running,
            way: choose(&ways, now),
            addressed: ways.address.is_some() || machine.interfaces.is_empty(),
            waited: ways
                .running_since
                .map_or(Duration::ZERO, |since| now.saturating_sub(since)),
        });
        match (&stage, start) {
            (_, Some(channel)) => context.jobs.put(uid, Job::Claimed(channel)),
            // Another try has begun.
            (Stage::Waiting(_), None) => context.jobs.forget(uid),
            (Stage::NotNeeded | Stage::Running | Stage::Done | Stage::Failed(..), None) => {}
        }
        stage
    }

    fn watch(&self, machine: &Machine, domain: &OurDomain, connection: &Arc<Connection>, record: &Record) {
        let clock = Arc::clone(self.context);
        let watch = Watch {
            uid: machine.id.uid.clone(),
            uuid: domain.uuid.clone(),
            run: format!("{:?}", record.memory.starts.last),
            has_agent: machine.has_agent(),
        };
        self.context
            .guests
            .watch(watch, connection, &self.context.requests, move || clock.now());
    }

    async fn wait(
        &self,
        goal: &Goal,
        seen: &Seen,
        (until, waiting): (Moment, Waiting),
        record: &mut Record,
    ) -> Ended {
        let pause = until
            .saturating_sub(self.context.now())
            .max(Duration::from_millis(50));
        let text = waiting_text(waiting, pause);
        if waiting == Waiting::CrashLoop {
            self.told(record, "CrashLoopBackOff", text.clone());
        }
        let outcome = match goal {
            Goal::Gone(_) => Outcome::Deleting,
            Goal::Present(_) => Outcome::Waiting(waiting, text),
        };
        self.report(goal.machine(), Some(seen), &outcome, record).await;
        (Some(pause), None)
    }

    async fn blocked(&self, goal: &Goal, seen: &Seen, blocked: Blocked, record: &mut Record) -> Ended {
        let (pause, reason) = (blocked.look_again(), report::blocked_reason(&blocked));
        self.told(record, reason, report::explain(&blocked));
        self.report(goal.machine(), Some(seen), &Outcome::Blocked(blocked), record)
            .await;
        (Some(pause), Some(reason))
    }

    async fn failed(
        &self,
        goal: &Goal,
        seen: Option<&Seen>,
        error: &PerformError,
        record: &mut Record,
    ) -> Ended {
        self.report_failure(goal.machine(), seen, failure(error), record)
            .await
    }

    async fn report_failure(
        &self,
        machine: Option<&Machine>,
        seen: Option<&Seen>,
        failure: Failure,
        record: &mut Record,
    ) -> Ended {
        record.failures += 1;
        let pause = backoff::pause(record.failures - 1, &self.instance.uid().unwrap_or_default());
        let reason = failure.reason;
        tracing::warn!(
            instance.name = self.instance.name_any(),
            reason,
            message = failure.message,
            "cannot converge"
        );
        self.told(record, reason, failure.message.clone());
        self.report(machine, seen, &Outcome::Failed(failure), record)
            .await;
        (Some(pause), Some(reason))
    }

    async fn report(
        &self,
        machine: Option<&Machine>,
        seen: Option<&Seen>,
        outcome: &Outcome,
        record: &mut Record,
    ) {
        self.report_stage(machine, seen, outcome, record, None).await;
    }

    /// Writes the status, when it differs from what is there.
    async fn report_stage(
        &self,
        machine: Option<&Machine>,
        seen: Option<&Seen>,
        outcome: &Outcome,
        record: &mut Record,
        stage: Option<&Stage>,
    ) {
        let uid = self.instance.uid().unwrap_or_default();
        // The newest version: a write of ours may have come between.
        let instance = self
            .context
            .instances
            .get(&uid)
            .unwrap_or_else(|| Arc::clone(self.instance));
        let deleting = instance.meta().deletion_timestamp.is_some();
        let progresses = matches!(outcome, Outcome::Settled | Outcome::Waiting(..));
        let outcome = if deleting && progresses {
            &Outcome::Deleting
        } else {
            outcome
        };
        let facts = Facts {
            instance: &instance,
            host: &self.context.host,
            machine,
            domain: seen.map(|s| &s.domain),
            files: seen.map(|s| &s.files),
            guest: &self.context.guests.view(&uid),
            record,
            stage,
            moment: self.context.now(),
            now: Time(Timestamp::now()),
        };
        let mut mine = status(&facts, outcome);
        // This look speaks of the generation that it began with.
        mine.observed_generation = self.instance.metadata.generation;
        for condition in &mut mine.conditions {
            condition.observed_generation = self.instance.metadata.generation;
        }
        let present = json!(instance.status);
        if !differs(&present, &json!(mine), OWNED) {
            return;
        }
        match apply(&self.api(), &*instance, &self.context.manager, &mine).await {
            Ok(written) => {
                self.context.metrics.status_written();
                // It may have gone before the answer came.
                if self.context.instances.get(&uid).is_some() {
                    self.context.instances.put(written);
                }
            }
            // Gone, or another object of the name: the watch says so too.
            Err(kube::Error::Api(answer)) if answer.is_not_found() || answer.is_conflict() => {}
            Err(error) => {
                tracing::warn!(instance.name = instance.name_any(), %error, "the status cannot be written");
                self.context.requests.after(&uid, SOON);
            }
        }
    }

    /// The domain is gone: takes the finalizer away.
    async fn release(&self, record: &mut Record) -> Ended {
        let left: Vec<_> = self
            .instance
            .finalizers()
            .iter()
            .filter(|f| *f != FINALIZER_DOMAIN)
            .collect();
        let patch = json!({"metadata": {
            "resourceVersion": self.instance.resource_version(), "uid": self.instance.uid(), "finalizers": left,
        }});
        let name = self.instance.name_any();
        match self
            .api()
            .patch(&name, &PatchParams::default(), &Patch::Merge(&patch))
            .await
        {
            Ok(_) => {}
            Err(kube::Error::Api(answer)) if answer.is_not_found() => {}
            Err(error) => {
                record.failures += 1;
                tracing::debug!(instance.name = name, %error, "the finalizer cannot be removed now");
                // The watch brings the newer version; this look comes again in any case.
                return (
                    Some(Duration::from_millis(200) * record.failures.min(50)),
                    Some("FinalizerNotRemoved"),
                );
            }
        }
        tracing::info!(instance.name = name, "removed");
        self.context.forget(&self.instance.uid().unwrap_or_default());
        (None, None)
    }

    fn api(&self) -> Api<Instance> {
        Api::namespaced(
            self.context.client.clone(),
            &self.instance.namespace().unwrap_or_default(),
        )
    }

    // --- Events -----------------------------------------------------------------------------------------------------

    /// Tells what somebody else did to the domain before it is repaired.
    fn note_interference(&self, goal: &Goal, seen: &Seen, record: &mut Record) {
        let Goal::Present(machine) = goal else { return };
        let known = self.instance.status.as_ref().is_some_and(|s| s.domain.is_some());
        let tell = match &seen.domain {
            DomainState::Absent if known => Some(Tell::Undefined),
            DomainState::Ours(domain) => interference(machine, domain, record, self.was_running()),
            DomainState::Absent | DomainState::Foreign { .. } => None,
        };
        // What cannot be repaired at once is still there at the next look, and was told.
        if let Some(tell) = tell.as_ref().filter(|_| record.interference != tell) {
            told(self.context, self.instance, tell);
        }
        record.interference = tell;
    }

    /// Whether the status says that the domain ran as this generation asks.
    fn was_running(&self) -> bool {
        let status = self.instance.status.as_ref();
        status.is_some_and(|s| {
            s.power_state == Some(PowerState::Running)
                && s.last_restart_token == self.instance.spec.restart_token
        })
    }

    fn tell(&self, action: &Action, before: &DomainState, goal: &Goal) {
        if let Some(tell) = Tell::of(action, before, goal) {
            told(self.context, self.instance, &tell);
        }
    }

    /// Tells of a problem once, not at each try.
    fn told(&self, record: &mut Record, reason: &'static str, message: String) {
        if record.told != message {
            told(
                self.context,
                self.instance,
                &Tell::Problem(reason, message.clone()),
            );
            record.told = message;
        }
    }
}

fn refusal(why: &NoGoal) -> &'static str {
    match why {
        NoGoal::NotOurs => "NotPlaced",
        NoGoal::Unresolved(_) => "Unresolved",
        NoGoal::Silent { .. } => "HypervisorUnreachable",
        NoGoal::DriverUnavailable { .. } => "DriverUnavailable",
        NoGoal::Unsupported { .. } => "Unsupported",
    }
}

fn failure(error: &PerformError) -> Failure {
    Failure {
        reason: error.reason(),
        message: error.explain(),
        unknown: error.is_unknown(),
        transient: error.is_transient(),
        image: false,
    }
}

fn waiting_text(waiting: Waiting, pause: Duration) -> String {
    match waiting {
        Waiting::Image => "the image is being fetched".to_owned(),
        Waiting::Copy => "the disks are being copied".to_owned(),
        Waiting::Shutdown => "the guest was asked to shut down".to_owned(),
        Waiting::CrashLoop => format!(
            "the guest does not stay up; it is started again after a pause of up to {} s",
            pause.as_secs().next_power_of_two()
        ),
    }
}

/// What somebody else did to a domain of ours.
fn interference(machine: &Machine, domain: &OurDomain, record: &Record, was_running: bool) -> Option<Tell> {
    let wanted = machine.power == PowerState::Running && was_running;
    match domain.power {
        Power::Off if wanted && !record.expected_off => {
            return Some(if domain.crashed {
                Tell::Crashed
            } else {
                Tell::Stopped
            });
        }
        // libvirt shows the remains for a moment, before on_crash ends them.
        Power::Paused(PausedBy::Crash) if wanted => return Some(Tell::Crashed),
        Power::Paused(PausedBy::Request) if wanted => return Some(Tell::SuspendedOutside),
        Power::Running | Power::Paused(_) | Power::Off => {}
    }
    if !domain.persistent {
        return Some(Tell::Undefined);
    }
    let edited = differing(&domain.config.metadata.applied, &domain.config.carries);
    if !edited.is_empty() {
        return Some(Tell::Edited(edited));
    }
    let live = domain.live.as_ref()?;
    let ours = machine.applied();
    let mut changed = differing(&live.metadata.applied, &live.carries);
    // Our own changes on the way are not somebody else's; nor is a balloon that moves.
    changed.retain(|field| live.metadata.applied.get(field) == ours.get(field) && field != "memoryMiB");
    (!changed.is_empty()).then_some(Tell::Changed(changed))
}

/// Whether the running domain still has a device.
fn is_attached(device: &Device, domain: &OurDomain) -> bool {
    let Some(live) = &domain.live else { return false };
    words(&live.carries, device.field()).any(|word| match device {
        Device::Disk(name) => DiskWord::parse(word).is_some_and(|disk| disk.name == name),
        Device::Interface(mac) => InterfaceWord::parse(word).is_some_and(|interface| interface.mac == mac),
    })
}

fn uuid(domain: &DomainState) -> Option<String> {
    match domain {
        DomainState::Ours(domain) => Some(domain.uuid.clone()),
        DomainState::Absent | DomainState::Foreign { .. } => None,
    }
}

/// Finished files, as far as a plan depends on them.
#[must_use]
pub fn files_of(files: Option<&ObservedFiles>) -> Files {
    files.map_or_else(Files::default, |files| Files {
        root: files.root.as_ref().map(|d| d.virtual_mib),
        seed: files.seed.is_some(),
        disks: files
            .disks
            .iter()
            .map(|(name, d)| (name.clone(), d.virtual_mib))
            .collect::<BTreeMap<_, _>>(),
        any: files.root.is_some() || files.seed.is_some() || !files.disks.is_empty(),
    })
}
