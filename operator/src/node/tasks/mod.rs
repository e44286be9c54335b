//! Runs what was assigned to this host: commands, copies and package work in guests.
//!
//! ```text
//! TaskAssignments --watch--> Board --decide--> claimed --status written--> running --ended--> status written
//! ```
//!
//! [`decide`](mod@decide) says what is next; [`Board`] is the one writer of the results, so that what ends at one time is
//! one write; [`work`] does one target's part. A command starts only when the cluster knows that it was started: whatever
//! happens to this process, none is run twice.

pub mod copy;
pub mod decide;
pub mod packages;
pub mod result;
pub mod work;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::jiff::Timestamp;
use kube::api::Api;
use kube::core::DeserializeGuard;
use kube::runtime::watcher::Event;
use kube::{Resource, ResourceExt};
use serde_json::json;
use tokio::sync::mpsc;
use virtshell_crds::task::{AssignedTarget, TargetResult, TargetState};
use virtshell_crds::{TaskAssignment, TaskAssignmentStatus};

use super::access::{Channel, Signs};
use super::context::{Context, version};
use super::observed::Moment;
use super::stream::Stream;
use crate::status::{apply, differs};
use decide::{Decision, Key, Progress, Seen, decide, standing};
use packages::Change;
use work::{Files, Part};

/// The fields of an assignment's status that the node owns.
const OWNED: &[&str] = &["observedGeneration", "results"];
/// Assignments whose status is written at the same time.
const WRITES: usize = 8;
/// When a status that could not be written is written again.
const WRITE_AGAIN: Duration = Duration::from_secs(1);
/// A slow look at everything.
const RESYNC: Duration = Duration::from_mins(1);

/// Work that hosts do, by the type of its task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A shell command.
    Command,
    /// A file, or every file of a folder.
    Copy,
    /// Packages.
    Packages(Change),
}

impl Kind {
    /// By the REST API's word.
    #[must_use]
    pub fn of(type_: &str) -> Option<Self> {
        Some(match type_ {
            "execute_command" => Self::Command,
            "copy_files" => Self::Copy,
            "install_packages" => Self::Packages(Change::Install),
            "upgrade_packages" => Self::Packages(Change::Upgrade),
            "remove_packages" => Self::Packages(Change::Remove),
            _ => return None,
        })
    }
}

/// Runs what is assigned, until the process ends.
pub async fn run(context: Arc<Context>) {
    let (said, events) = mpsc::unbounded_channel();
    let stream = Stream {
        client: &context.client,
        host: &context.host,
        metrics: &context.metrics,
        name: "taskassignments",
    };
    // The board lives as long as the process.
    let following = stream.follow(|event| drop(said.send(event)));
    tokio::join!(following, play(Arc::clone(&context), events));
}

async fn play(
    context: Arc<Context>,
    mut events: mpsc::UnboundedReceiver<Event<DeserializeGuard<TaskAssignment>>>,
) {
    let (ends, mut ended) = mpsc::unbounded_channel();
    let mut board = Board::new(context, ends);
    let mut again = RESYNC;
    loop {
        tokio::select! {
            event = events.recv() => {
                let Some(event) = event else { return };
                board.follow(event);
            }
            end = ended.recv() => {
                let Some(end) = end else { return };
                board.end(end);
                while let Ok(end) = ended.try_recv() {
                    board.end(end);
                }
            }
            () = tokio::time::sleep(again) => {}
        }
        again = board.round().await;
    }
}

/// All that is assigned to this host, and what this process knows of it.
struct Board {
    context: Arc<Context>,
    /// By uid, those that are not done.
    assignments: HashMap<String, Arc<TaskAssignment>>,
    /// uids of those that are.
    done: HashSet<String>,
    mine: BTreeMap<Key, Progress>,
    /// Since when a target has been waited for.
    waits: HashMap<Key, Moment>,
    /// What copies copy, by the uid of the assignment.
    files: HashMap<String, Files>,
    /// uids seen in a list that is not complete yet.
    listing: HashSet<String>,
    /// Whether the first list was complete.
    listed: bool,
    ends: mpsc::UnboundedSender<(Key, TargetResult)>,
}

impl Board {
    fn new(context: Arc<Context>, ends: mpsc::UnboundedSender<(Key, TargetResult)>) -> Self {
        Self {
            context,
            assignments: HashMap::new(),
            done: HashSet::new(),
            mine: BTreeMap::new(),
            waits: HashMap::new(),
            files: HashMap::new(),
            listing: HashSet::new(),
            listed: false,
            ends,
        }
    }

    // --- What is heard ------------------------------------------------------------------------------------------------

    fn follow(&mut self, event: Event<DeserializeGuard<TaskAssignment>>) {
        match event {
            Event::Init => self.listing.clear(),
            Event::InitApply(guarded) => {
                self.listing.extend(guarded.meta().uid.clone());
                self.decoded(guarded);
            }
            Event::InitDone => {
                self.listed = true;
                self.assignments.retain(|uid, _| self.listing.contains(uid));
                self.done.retain(|uid| self.listing.contains(uid));
            }
            Event::Apply(guarded) => self.decoded(guarded),
            Event::Delete(guarded) => {
                if let Some(uid) = &guarded.meta().uid {
                    self.assignments.remove(uid);
                    self.done.remove(uid);
                }
            }
        }
    }

    fn decoded(&mut self, guarded: DeserializeGuard<TaskAssignment>) {
        match guarded.0 {
            Ok(assignment) => self.put(assignment),
            Err(error) => {
                // One object that does not decode must not stall the others.
                let (name, error) = (error.metadata.name, error.error);
                tracing::error!(assignment.name = name, error, "a TaskAssignment does not decode");
            }
        }
    }

    /// Takes over a version, unless a newer one is there: our own writes answer before the watch shows them.
    fn put(&mut self, mut assignment: TaskAssignment) {
        let uid = assignment.uid().unwrap_or_default();
        let newer = |old: &Arc<TaskAssignment>| version(&old.metadata) > version(&assignment.metadata);
        if self.done.contains(&uid) || self.assignments.get(&uid).is_some_and(newer) {
            return;
        }
        if is_done(&assignment) && !self.mine.keys().any(|key| key.assignment == uid) {
            self.assignments.remove(&uid);
            self.done.insert(uid);
            return;
        }
        assignment.metadata.managed_fields = None;
        self.assignments.insert(uid, Arc::new(assignment));
    }

    fn end(&mut self, (key, result): (Key, TargetResult)) {
        self.mine.insert(key, Progress::Ended(result));
    }

    // --- What is done -------------------------------------------------------------------------------------------------

    /// Decides, writes down, starts; the answer is when to look again at the latest.
    async fn round(&mut self) -> Duration {
        if !self.listed || !self.context.instances.listed() {
            return Duration::from_millis(50);
        }
        let decision = self.decide();
        self.mine.extend(decision.news);
        self.wait_for(decision.waits);
        let mut again = decision.again.unwrap_or(RESYNC).min(RESYNC);
        // A part whose assignment is gone has nobody to tell.
        self.mine.retain(|key, progress| {
            *progress == Progress::Running || self.assignments.contains_key(&key.assignment)
        });
        self.files.retain(|uid, _| self.assignments.contains_key(uid));
        if !self.write().await {
            again = again.min(WRITE_AGAIN);
        }
        let running = self.mine.values().filter(|p| **p == Progress::Running).count();
        self.context.metrics.commands_running(running);
        again.max(Duration::from_millis(1))
    }

    fn decide(&self) -> Decision {
        let context = &self.context;
        let assignments: Vec<_> = self.assignments.values().cloned().collect();
        let now = context.now();
        decide(
            &assignments,
            &self.mine,
            Timestamp::now(),
            |key, namespace, target| {
                let instance = context.instances.get(&target.uid);
                let driver = instance
                    .as_ref()
                    .and_then(|i| i.status.as_ref()?.resolved.as_ref()?.driver);
                let connection = driver.and_then(|driver| context.connections.get(&driver));
                let signs = instance
                    .as_ref()
                    .map_or_else(Signs::default, |instance| Signs::of(context, instance));
                let seen = Seen {
                    instance: instance.as_deref(),
                    connected: connection.is_some_and(|c| c.facts().is_some()),
                    signs: &signs,
                    waited: self
                        .waits
                        .get(key)
                        .map_or(Duration::ZERO, |since| now.saturating_sub(*since)),
                };
                standing(target, namespace, &seen, now)
            },
        )
    }

    fn wait_for(&mut self, waits: Vec<Key>) {
        let now = self.context.now();
        let old = std::mem::take(&mut self.waits);
        self.waits = waits
            .into_iter()
            .map(|key| {
                let since = old.get(&key).copied().unwrap_or(now);
                (key, since)
            })
            .collect();
    }

    /// Writes every status that changed, and starts what was claimed in it. False when one could not be written.
    async fn write(&mut self) -> bool {
        let dirty: HashSet<&String> = self.mine.keys().map(|key| &key.assignment).collect();
        let changed: Vec<(Arc<TaskAssignment>, TaskAssignmentStatus)> = dirty
            .into_iter()
            .filter_map(|uid| {
                let assignment = self.assignments.get(uid)?;
                let status = status(assignment, &self.mine);
                let present = json!(assignment.status);
                differs(&present, &json!(status), OWNED).then(|| (Arc::clone(assignment), status))
            })
            .collect();
        let context = &self.context;
        let written: Vec<_> = futures::stream::iter(changed)
            .map(|(assignment, status)| async move {
                let api: Api<TaskAssignment> = Api::namespaced(
                    context.client.clone(),
                    &assignment.namespace().unwrap_or_default(),
                );
                let answer = apply(&api, &*assignment, &context.manager, &status).await;
                (assignment, answer)
            })
            .buffer_unordered(WRITES)
            .collect()
            .await;
        let mut all = true;
        for (assignment, answer) in written {
            match answer {
                Ok(now) => self.put(now),
                // Gone, or another object of the name.
                Err(kube::Error::Api(answer)) if answer.is_not_found() || answer.is_conflict() => {
                    self.assignments.remove(&assignment.uid().unwrap_or_default());
                }
                Err(error) => {
                    tracing::warn!(assignment.name = assignment.name_any(), %error, "results cannot be written");
                    all = false;
                }
            }
        }
        self.settle();
        all
    }

    /// What the cluster knows now need not be remembered; what it knows to have started, starts.
    fn settle(&mut self) {
        let known: Vec<(Key, Progress)> = self
            .mine
            .iter()
            .filter(|(key, progress)| {
                let Some(assignment) = self.assignments.get(&key.assignment) else {
                    return false;
                };
                let results = assignment.status.iter().flat_map(|s| &s.results);
                let present = results.into_iter().find(|r| r.uid == key.target).map(|r| r.state);
                match progress {
                    Progress::Claimed { .. } => present == Some(TargetState::Started),
                    Progress::Running => false,
                    Progress::Ended(result) => present == Some(result.state),
                }
            })
            .map(|(key, progress)| (key.clone(), progress.clone()))
            .collect();
        for (key, progress) in known {
            match progress {
                Progress::Claimed { channel, until } => self.start(key, channel, until),
                Progress::Ended(result) => {
                    self.context.metrics.task_ended(&result.reason);
                    self.mine.remove(&key);
                    if let Some(assignment) = self.assignments.get(&key.assignment) {
                        self.put(TaskAssignment::clone(assignment));
                    }
                }
                Progress::Running => {}
            }
        }
    }

    fn start(&mut self, key: Key, channel: Channel, until: Timestamp) {
        let Some(assignment) = self.assignments.get(&key.assignment).cloned() else {
            return;
        };
        let Some(target) = target(&assignment, &key.target).cloned() else {
            return;
        };
        let left = until.duration_since(Timestamp::now());
        let part = Part {
            target: target.clone(),
            channel,
            deadline: Duration::try_from(left).unwrap_or_default(),
            files: Arc::clone(self.files.entry(key.assignment.clone()).or_default()),
            assignment,
        };
        tracing::info!(
            assignment.name = part.assignment.name_any(),
            instance.name = target.name,
            kind = part.assignment.spec.type_,
            "starting assigned work"
        );
        self.mine.insert(key.clone(), Progress::Running);
        let (context, ends) = (Arc::clone(&self.context), self.ends.clone());
        tokio::spawn(async move {
            let worker = tokio::spawn(async move { part.perform(&context).await });
            let result = worker
                .await
                .unwrap_or_else(|_| result::failed(&target, "Lost", "the agent failed in the middle of it"));
            // The board lives as long as the process.
            let _ = ends.send((key, result));
        });
    }
}

/// The status of an assignment: what is there, overlaid by what this process knows.
fn status(assignment: &TaskAssignment, mine: &BTreeMap<Key, Progress>) -> TaskAssignmentStatus {
    let uid = assignment.uid().unwrap_or_default();
    let present = assignment.status.as_ref().map_or(&[][..], |s| &s.results);
    let mut seen = HashSet::new();
    let targets = assignment.spec.targets.iter();
    let results = targets
        .filter(|target| seen.insert(&target.uid))
        .filter_map(|target| {
            let key = Key {
                assignment: uid.clone(),
                target: target.uid.clone(),
            };
            match mine.get(&key) {
                Some(Progress::Claimed { .. } | Progress::Running) => Some(result::started(target)),
                Some(Progress::Ended(result)) => Some(result.clone()),
                None => present.iter().find(|r| r.uid == target.uid).cloned(),
            }
        });
    TaskAssignmentStatus {
        observed_generation: assignment.metadata.generation,
        results: results.collect(),
        conditions: vec![],
    }
}

fn target<'a>(assignment: &'a TaskAssignment, uid: &str) -> Option<&'a AssignedTarget> {
    assignment.spec.targets.iter().find(|target| target.uid == uid)
}

fn is_done(assignment: &TaskAssignment) -> bool {
    let results = assignment.status.as_ref().map_or(&[][..], |s| &s.results);
    let done = |r: &&TargetResult| matches!(r.state, TargetState::Succeeded | TargetState::Failed);
    let uids: HashSet<&str> = results.iter().filter(done).map(|r| r.uid.as_str()).collect();
    assignment
        .spec
        .targets
        .iter()
        .all(|t| uids.contains(t.uid.as_str()))
}
