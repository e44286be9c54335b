//! Gives hosts their parts of a Task, and takes back what none has begun.
//!
//! [`super::guest`] decides; here its plan is carried out. Assignments are made before the Task's status names their hosts:
//! whoever stops between the two finds them by their names, which are the same every time.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt, TryStreamExt};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, DeleteParams, ObjectMeta, PostParams, Preconditions};
use kube::{Resource, ResourceExt};
use tokio::time::Instant;
use virtshell_crds::task::{AssignedTarget, TargetResult, TargetState, TaskRef, TaskTarget};
use virtshell_crds::{Instance, Task, TaskAssignment, TaskAssignmentSpec, TaskStatus, names};

use super::guest::{self, Given, Plan, Seen};
use super::origin;
use super::outcome::Standing;
use crate::controller::cache::{Cached, Change, ObjectKey};
use crate::controller::context::{Context, cluster_key};
use crate::controller::index;
use crate::controller::pulse::HostState;
use crate::controller::write::Error;

/// Instances that are read at the same time, of a Task that may have a thousand.
const READS: usize = 8;
/// Beyond its time limit, how long a host may take to say that a command has ended.
const LAST_WORDS: Duration = Duration::from_mins(1);

/// Assignments by the uid of their Task; follows the cache change by change.
#[derive(Debug, Default)]
pub struct Index(index::Index<String>);

impl Index {
    /// Follows the cache.
    pub fn observe(&mut self, change: &Change<TaskAssignment>) {
        let Some(any) = change.new.as_ref().or(change.old.as_ref()) else {
            return;
        };
        let task = |part: &Option<Arc<TaskAssignment>>| part.as_ref().map(|part| part.spec.task.uid.clone());
        self.0
            .observe(&ObjectKey::of(&**any), task(&change.old), task(&change.new));
    }

    fn of(&self, task: &Task) -> Vec<ObjectKey> {
        self.0.of(&task.uid().unwrap_or_default()).cloned().collect()
    }
}

/// The assignments of a Task, of all its attempts.
fn parts_of(ctx: &Context, task: &Task) -> Vec<Arc<TaskAssignment>> {
    let keys = ctx.parts().of(task);
    keys.iter().filter_map(|key| ctx.assignments.get(key)).collect()
}

/// Where a target stands in an assignment.
fn result<'a>(part: &'a TaskAssignment, name: &str) -> Option<&'a TargetResult> {
    part.status.as_ref()?.results.iter().find(|r| r.name == name)
}

fn is_settled(result: &TargetResult) -> bool {
    matches!(result.state, TargetState::Succeeded | TargetState::Failed)
}

/// Whether a Task has work inside the guest `name` that is not finished.
pub fn is_at_work(ctx: &Context, task: &Task, name: &str) -> bool {
    guest::is_guest_work(&task.spec.type_) && !settled_names(task, &parts_of(ctx, task)).contains(name)
}

/// The targets (metadata.name) on which the present attempt will do nothing more.
fn settled_names(task: &Task, parts: &[Arc<TaskAssignment>]) -> BTreeSet<String> {
    let attempt = task.spec.retry;
    let status = task.status.as_ref();
    let refused = status
        .filter(|s| s.observed_retry.unwrap_or_default() >= attempt)
        .into_iter()
        .flat_map(|s| s.refused.iter().map(|r| r.name.clone()));
    let done = parts
        .iter()
        .filter(|p| p.spec.attempt == attempt)
        .flat_map(|p| p.status.iter().flat_map(|s| &s.results))
        .filter(|r| is_settled(r))
        .map(|r| r.name.clone());
    refused.chain(done).collect()
}

/// Judges every target and gives hosts their parts. The status says then who was given one, and what was refused.
pub async fn perform(
    ctx: &Context,
    task: &Task,
    mut status: TaskStatus,
    now: Timestamp,
) -> Result<(TaskStatus, Vec<(String, Standing)>), Error> {
    withdraw(ctx, task).await?;
    let targets = super::targets(ctx, task, true);
    let mut instances: Vec<Option<Arc<Instance>>> = Vec::with_capacity(targets.len());
    for target in &targets {
        instances.push(super::find_target(ctx, task, target).await?);
    }
    let mut plan = judge(ctx, task, &status, &targets, &instances, now);
    let decided = |plan: &Plan| !plan.parts.is_empty() || plan.refused.len() > status.refused.len();
    if decided(&plan) {
        // What is decided now is decided for good: it must not rest on what the cache has not seen yet.
        instances = read(ctx, task, &targets).await?;
        plan = judge(ctx, task, &status, &targets, &instances, now);
    }
    for (host, targets) in plan.parts {
        give(ctx, task, &host, targets).await?;
        status.hosts.push(host);
    }
    status.refused = plan.refused;
    Ok((status, plan.standings))
}

/// The Instances that targets mean, as the API server has them.
async fn read(
    ctx: &Context,
    task: &Task,
    targets: &[TaskTarget],
) -> Result<Vec<Option<Arc<Instance>>>, Error> {
    let reads = targets
        .iter()
        .cloned()
        .map(|target| async move { super::read_target(ctx, task, &target).await });
    futures::stream::iter(reads).buffered(READS).try_collect().await
}

fn judge(
    ctx: &Context,
    task: &Task,
    status: &TaskStatus,
    targets: &[TaskTarget],
    instances: &[Option<Arc<Instance>>],
    now: Timestamp,
) -> Plan {
    let parts = parts_of(ctx, task);
    let given: HashMap<&str, (&AssignedTarget, Given<'_>)> = parts
        .iter()
        .filter(|part| part.spec.attempt == task.spec.retry)
        .flat_map(|part| {
            part.spec.targets.iter().map(|assigned| {
                let given = Given {
                    host: &part.spec.host,
                    result: result(part, &assigned.name),
                };
                (assigned.name.as_str(), (assigned, given))
            })
        })
        .collect();
    let seen: Vec<Seen<'_>> = targets
        .iter()
        .zip(instances)
        .map(|(target, instance)| {
            let instance = instance.as_deref();
            let given = given
                .get(target.name.as_str())
                .filter(|(assigned, _)| target.uid.as_ref().is_none_or(|uid| *uid == assigned.uid));
            // A namesake that was made later is not what the host was given.
            let meant = instance
                .filter(|i| given.is_none_or(|(assigned, _)| i.metadata.uid.as_ref() == Some(&assigned.uid)));
            let host = given
                .map(|(_, g)| g.host)
                .or_else(|| meant.and_then(|i| i.spec.host.as_deref()));
            Seen {
                target,
                name: instance.map_or(target.name.as_str(), Cached::wire_name),
                instance: meant,
                given: given.map(|(_, g)| *g),
                host: host.map_or(HostState::Alive, |host| host_state(ctx, host)),
                is_busy: given.is_none()
                    && (runs_from_before(task, &parts, &target.name, now)
                        || super::must_wait(ctx, task, target)),
            }
        })
        .collect();
    guest::plan(task, status, &seen)
}

/// Whether an earlier attempt has begun something in this guest and has not said how it ended, while it still may.
fn runs_from_before(task: &Task, parts: &[Arc<TaskAssignment>], name: &str, now: Timestamp) -> bool {
    parts
        .iter()
        .filter(|part| part.spec.attempt < task.spec.retry)
        .filter(|part| {
            let limit = Duration::from_secs(part.spec.timeout_seconds.max(1) as u64) + LAST_WORDS;
            super::age(part.metadata.creation_timestamp.as_ref(), now) < limit
        })
        .any(|part| result(part, name).is_some_and(|r| r.state == TargetState::Started))
}

fn host_state(ctx: &Context, name: &str) -> HostState {
    match ctx.hosts.get(&cluster_key(name)) {
        None => HostState::Gone,
        Some(_) => ctx.pulse().state(name, Instant::now()),
    }
}

async fn give(ctx: &Context, task: &Task, host: &str, targets: Vec<AssignedTarget>) -> Result<(), Error> {
    let part = assignment(task, host, targets);
    let name = part.name_any();
    let api = api(ctx, task);
    let made = match api.create(&PostParams::default(), &part).await {
        // An earlier look made it and could not say so.
        Err(kube::Error::Api(status)) if status.is_already_exists() => api.get(&name).await,
        other => other,
    };
    let made = made.map_err(Error::api(format!(
        "give host {host} its part of task {}",
        task.name_any()
    )))?;
    ctx.metrics.wrote("TaskAssignment");
    ctx.stored_assignment(made);
    Ok(())
}

fn assignment(task: &Task, host: &str, targets: Vec<AssignedTarget>) -> TaskAssignment {
    let (name, uid) = (task.name_any(), task.uid().unwrap_or_default());
    TaskAssignment {
        metadata: ObjectMeta {
            name: Some(names::assignment_name(&name, &uid, host, task.spec.retry)),
            namespace: task.namespace(),
            annotations: Some(origin(task)),
            // It goes with its Task.
            owner_references: Some(vec![OwnerReference {
                api_version: Task::api_version(&()).into_owned(),
                kind: Task::kind(&()).into_owned(),
                name: name.clone(),
                uid: uid.clone(),
                controller: Some(true),
                block_owner_deletion: None,
            }]),
            ..ObjectMeta::default()
        },
        spec: TaskAssignmentSpec {
            task: TaskRef { name, uid },
            host: host.to_owned(),
            attempt: task.spec.retry,
            type_: task.spec.type_.clone(),
            params: task.spec.params.clone(),
            timeout_seconds: task.spec.timeout_seconds,
            targets,
        },
        status: None,
    }
}

/// Takes back the parts that nobody waits for any more and no host has begun: a host that was silent must not do
/// tomorrow what was given up today. One that begins right now wins: it has written that first.
pub async fn withdraw(ctx: &Context, task: &Task) -> Result<(), Error> {
    let ended = super::is_finished(task);
    for part in parts_of(ctx, task) {
        let given_up = ended || part.spec.attempt < task.spec.retry;
        let begun = part.status.as_ref().is_some_and(|s| !s.results.is_empty());
        if !given_up || begun {
            continue;
        }
        let name = part.name_any();
        let params = DeleteParams {
            preconditions: Some(Preconditions {
                uid: part.uid(),
                resource_version: part.resource_version(),
            }),
            ..DeleteParams::default()
        };
        match api(ctx, task).delete(&name, &params).await {
            Ok(_) => ctx.metrics.wrote("TaskAssignment"),
            Err(kube::Error::Api(status)) if status.is_not_found() => {}
            Err(error) => return Err(Error::api(format!("withdraw task assignment {name}"))(error)),
        }
    }
    Ok(())
}

fn api(ctx: &Context, task: &Task) -> Api<TaskAssignment> {
    Api::namespaced(ctx.client.clone(), &task.namespace().unwrap_or_default())
}
