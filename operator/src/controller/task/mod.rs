//! Performs Tasks and says how far they are.
//!
//! [`outcome`] decides; here its answer is carried out: the power of Instances is written to their spec, a half-done REST
//! delete is finished, the Task's status follows. What is done inside guests, [`guest`] decides and [`assign`] hands to
//! hosts; [`progress`] is what a Task remembers of its states. Records that clients keep (`manual: true`) are left alone.
//! Finished work is removed after a while. [`announced`] makes Tasks that REST left out.

pub mod announced;
pub mod assign;
pub mod guest;
pub mod index;
pub mod outcome;
mod progress;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, Preconditions};
use serde_json::json;
use virtshell_crds::task::{TargetGeneration, TaskTarget};
use virtshell_crds::{
    ANNOTATION_CREATED_AT, ANNOTATION_CREATED_BY, ANNOTATION_REQUEST_ID, Instance, MANAGER_CONTROLLER,
    PowerState, Task, TaskState, TaskStatus, launch,
};

use super::cache::ObjectKey;
use super::context::Context;
use super::instance::patch_instance;
use super::write::{self, Error};
use index::is_finished;
use outcome::{Outcome, Standing, Target, Work};
use progress::{age, begun, cut, ended_at, moved};

/// How long a change of power may take.
const POWER_LIMIT: Duration = Duration::from_mins(15);
/// How long the gateway has for the second half of a request before the controller does it.
const SECOND_HALF: Duration = Duration::from_secs(5);

/// Looks at one Task; the answer is when to look again.
pub async fn reconcile(ctx: &Context, key: &ObjectKey) -> Result<Option<Duration>, Error> {
    let Some(task) = ctx.tasks.get(key) else {
        return Ok(None);
    };
    if task.metadata.deletion_timestamp.is_some() {
        return Ok(None);
    }
    let now = Timestamp::now();
    if task.spec.manual {
        // A record is its maker's; that it goes when it is old is all that it has in common with work.
        return expire(ctx, &task, now).await;
    }
    if is_finished(&task) {
        assign::withdraw(ctx, &task).await?;
        return expire(ctx, &task, now).await;
    }
    let status = begun(&task, now);
    if guest::is_guest_work(&task.spec.type_) {
        return guests(ctx, &task, status, now).await;
    }
    let Some(work) = Work::of(&task.spec.type_) else {
        let log = format!("{} is not available yet", task.spec.type_);
        let outcome = Outcome {
            state: TaskState::Failed,
            ..outcome::outcome(&[(String::new(), Standing::Failed(log))], false, 0)
        };
        return report(ctx, &task, status, outcome, now).await.map(|()| None);
    };
    let (status, targets) = perform(ctx, &task, work, status).await?;
    let limit = limit(&task, work);
    let age = time_taken(&task, &status, now);
    let mut outcome = outcome::outcome(&targets, age >= limit, limit.as_secs() as i64);
    if outcome.state == TaskState::Succeeded {
        work.last_stage().clone_into(&mut outcome.stage);
    }
    let unfinished = matches!(outcome.state, TaskState::Pending | TaskState::InProgress);
    let acts = targets.iter().any(|(_, s)| *s == Standing::Act);
    report(ctx, &task, status, outcome, now).await?;
    let next = if acts {
        SECOND_HALF
    } else {
        limit.saturating_sub(age)
    };
    Ok(unfinished.then(|| next.max(Duration::from_secs(1))))
}

/// Looks at a Task that is done inside guests.
async fn guests(
    ctx: &Context,
    task: &Task,
    status: TaskStatus,
    now: Timestamp,
) -> Result<Option<Duration>, Error> {
    let (status, targets) = assign::perform(ctx, task, status, now).await?;
    let limit = time_limit(task);
    let left = limit.saturating_sub(time_taken(task, &status, now));
    let outcome = guest::outcome(&targets, left.is_zero(), limit.as_secs() as i64);
    report(ctx, task, status, outcome, now).await?;
    // When it has ended, the change of its status brings it here once more.
    Ok(Some(left.max(Duration::from_secs(1))))
}

/// Judges every target, and makes the writes that are due. Generations that this gave are in the status.
async fn perform(
    ctx: &Context,
    task: &Task,
    work: Work,
    mut status: TaskStatus,
) -> Result<(TaskStatus, Vec<(String, Standing)>), Error> {
    let mut standings = Vec::with_capacity(task.spec.targets.len());
    let token = token(task);
    for target in &targets(ctx, task, work.is_power()) {
        let instance = find_target(ctx, task, target).await?;
        let name = instance
            .as_ref()
            .map_or(target.name.as_str(), |i| i.wire_name())
            .to_owned();
        let judge = |instance: Option<&Instance>, status: &TaskStatus| {
            outcome::standing(
                work,
                &token,
                task.spec.retry > 0,
                &Target {
                    name: &name,
                    instance,
                    written: status
                        .generations
                        .iter()
                        .find(|g| g.name == target.name)
                        .map(|g| g.generation),
                    must_wait: work.is_power() && must_wait(ctx, task, target),
                },
            )
        };
        let mut standing = judge(instance.as_deref(), &status);
        if let (Standing::Act, Some(instance)) = (&standing, &instance)
            && !(work == Work::Create && launch::of_parent(instance).is_some())
            && let Some(written) = act(ctx, task, work, instance, &token).await?
        {
            status.generations.push(TargetGeneration {
                name: target.name.clone(),
                generation: written.metadata.generation.unwrap_or_default(),
            });
            standing = judge(Some(&written), &status);
        }
        if let (Work::Create, Some(parent)) = (work, &instance)
            && let Some(group) = launched(ctx, task, parent, &mut status, &token).await?
        {
            standing = group;
        }
        standings.push((name, standing));
    }
    Ok((status, standings))
}

/// What the Task is done to. A launch parent has no guest: where `expand` says so, its children stand for it.
fn targets(ctx: &Context, task: &Task, expand: bool) -> Vec<TaskTarget> {
    let namespace = task.namespace().unwrap_or_default();
    let mut targets = Vec::with_capacity(task.spec.targets.len());
    for target in &task.spec.targets {
        let key = ObjectKey {
            namespace: namespace.clone(),
            name: target.name.clone(),
        };
        let parent = ctx.instances.get(&key).filter(|i| {
            expand
                && target.kind == "Instance"
                && launch::of_parent(i).is_some()
                && target
                    .uid
                    .as_ref()
                    .is_none_or(|uid| i.metadata.uid.as_ref() == Some(uid))
        });
        let children = parent
            .map(|p| super::launch::children(ctx, &p))
            .unwrap_or_default();
        if children.is_empty() {
            targets.push(target.clone());
        }
        targets.extend(children.iter().map(|child| TaskTarget {
            kind: target.kind.clone(),
            name: child.name_any(),
            uid: child.uid(),
        }));
    }
    targets
}

/// How far a launch is, `None` where there is none yet. Another try asks the children that failed for one.
async fn launched(
    ctx: &Context,
    task: &Task,
    parent: &Instance,
    status: &mut TaskStatus,
    token: &str,
) -> Result<Option<Standing>, Error> {
    let launched = parent.status.as_ref().is_some_and(|s| !s.children.is_empty());
    let Some(launch) = launch::of_parent(parent).filter(|_| launched) else {
        return Ok(None);
    };
    let name = parent.name_any();
    if task.spec.retry > 0 && !status.generations.iter().any(|g| g.name == name) {
        for child in super::launch::children(ctx, parent) {
            if failed(&child) {
                let patch = json!({"spec": {"restartToken": token}});
                patch_instance(ctx, &child, patch).await?;
            }
        }
        status.generations.push(TargetGeneration {
            name,
            generation: parent.metadata.generation.unwrap_or_default(),
        });
    }
    let children: Vec<_> = super::launch::children(ctx, parent)
        .iter()
        .map(|child| {
            let generation = child.metadata.generation.unwrap_or_default();
            (child.wire_name().to_owned(), outcome::created(child, generation))
        })
        .collect();
    Ok(Some(outcome::launched(launch, &children)))
}

/// The Instance that a target means. What the cache does not show is asked for: the Task may have come first.
async fn find_target(
    ctx: &Context,
    task: &Task,
    target: &TaskTarget,
) -> Result<Option<Arc<Instance>>, Error> {
    let namespace = task.namespace().unwrap_or_default();
    let key = ObjectKey {
        namespace: namespace.clone(),
        name: target.name.clone(),
    };
    let is_meant = |i: &Instance| target.uid.is_none() || i.metadata.uid == target.uid;
    if let Some(instance) = ctx.instances.get(&key)
        && is_meant(&instance)
    {
        return Ok(Some(instance));
    }
    read_target(ctx, task, target).await
}

/// The Instance that a target means, as the API server has it.
async fn read_target(
    ctx: &Context,
    task: &Task,
    target: &TaskTarget,
) -> Result<Option<Arc<Instance>>, Error> {
    let namespace = task.namespace().unwrap_or_default();
    let api: Api<Instance> = Api::namespaced(ctx.client.clone(), &namespace);
    let found = api
        .get_opt(&target.name)
        .await
        .map_err(Error::api(format!("read instance {}", target.name)))?;
    let is_meant = |i: &Instance| target.uid.is_none() || i.metadata.uid == target.uid;
    Ok(found.filter(is_meant).map(Arc::new))
}

/// Whether earlier work on the same Instance is still going on: power work, or work inside the guest.
fn must_wait(ctx: &Context, task: &Task, target: &TaskTarget) -> bool {
    let instance = ObjectKey {
        namespace: task.namespace().unwrap_or_default(),
        name: target.name.clone(),
    };
    let parent = ctx.instances.get(&instance).and_then(|i| ctx.launch_parent(&i));
    let parent = parent.map(|parent| ObjectKey::of(&*parent));
    let index = ctx.task_index();
    let others: Vec<ObjectKey> = [Some(instance), parent]
        .iter()
        .flatten()
        .flat_map(|key| index.of(key))
        .collect();
    drop(index);
    others.iter().filter_map(|key| ctx.tasks.get(key)).any(|other| {
        other.metadata.uid != task.metadata.uid
            && order(&other) < order(task)
            && (Work::of(&other.spec.type_).is_some_and(Work::is_power)
                || assign::is_at_work(ctx, &other, &target.name))
    })
}

/// Creation time, then microseconds where REST wrote them, then name.
fn order(task: &Task) -> (Option<Time>, String, String) {
    let exact = task
        .annotations()
        .get(ANNOTATION_CREATED_AT)
        .cloned()
        .unwrap_or_default();
    (task.metadata.creation_timestamp.clone(), exact, task.name_any())
}

/// Makes the write that a target needs. `None` = it is not time for it yet.
async fn act(
    ctx: &Context,
    task: &Task,
    work: Work,
    instance: &Instance,
    token: &str,
) -> Result<Option<Instance>, Error> {
    let spec = match work {
        // The gateway's edit was there before the Task: its generation is what counts.
        Work::Update => return Ok(Some(instance.clone())),
        Work::Delete => {
            if age(task.metadata.creation_timestamp.as_ref(), Timestamp::now()) < SECOND_HALF {
                return Ok(None);
            }
            return delete(ctx, instance).await.map(|()| None);
        }
        // Another try of what failed begins at the failed step.
        Work::Create => json!({"restartToken": token}),
        Work::Start if failed(instance) => json!({"powerState": PowerState::Running, "restartToken": token}),
        Work::Start => json!({"powerState": PowerState::Running}),
        Work::Stop => json!({"powerState": PowerState::Stopped, "stopMode": "Graceful"}),
        Work::Restart => {
            json!({"powerState": PowerState::Running, "restartToken": token, "restartMode": "Graceful"})
        }
    };
    let mut patch = json!({ "spec": spec });
    // What becomes of it is told under the request that asked for it.
    if let Some(request) = task.annotations().get(ANNOTATION_REQUEST_ID) {
        patch["metadata"]["annotations"][ANNOTATION_REQUEST_ID] = json!(request);
    }
    patch_instance(ctx, instance, patch).await.map(Some)
}

/// Who asked for work, when and by which request: what all that is made for it carries.
fn origin(of: &impl ResourceExt) -> BTreeMap<String, String> {
    let kept = [
        ANNOTATION_CREATED_BY,
        ANNOTATION_CREATED_AT,
        ANNOTATION_REQUEST_ID,
    ];
    kept.into_iter()
        .filter_map(|key| Some((key.to_owned(), of.annotations().get(key)?.clone())))
        .collect()
}

fn failed(instance: &Instance) -> bool {
    instance.status.as_ref().and_then(|s| s.phase) == Some(virtshell_crds::Phase::Failed)
}

async fn delete(ctx: &Context, instance: &Instance) -> Result<(), Error> {
    let api: Api<Instance> = Api::namespaced(ctx.client.clone(), &instance.namespace().unwrap_or_default());
    let name = instance.name_any();
    let params = DeleteParams {
        preconditions: Some(Preconditions {
            uid: instance.uid(),
            resource_version: None,
        }),
        ..DeleteParams::default()
    };
    api.delete(&name, &params)
        .await
        .map_err(Error::api(format!("delete instance {name}")))?;
    ctx.metrics.wrote("Instance");
    Ok(())
}

/// One token per Task and try, so that doing it again does nothing.
fn token(task: &Task) -> String {
    let uid = task.uid().unwrap_or_default();
    match task.spec.retry {
        0 => uid,
        retry => format!("{uid}-{retry}"),
    }
}

fn time_limit(task: &Task) -> Duration {
    Duration::from_secs(task.spec.timeout_seconds.max(1) as u64)
}

/// Since the try began, or was asked for.
fn time_taken(task: &Task, status: &TaskStatus, now: Timestamp) -> Duration {
    let created = task.metadata.creation_timestamp.as_ref();
    age(status.started_at.as_ref().or(created), now)
}

fn limit(task: &Task, work: Work) -> Duration {
    let own = time_limit(task);
    if work.is_power() {
        own.min(POWER_LIMIT)
    } else {
        own
    }
}

/// Writes what has become of the Task, if that is news.
async fn report(
    ctx: &Context,
    task: &Task,
    begun: TaskStatus,
    outcome: Outcome,
    now: Timestamp,
) -> Result<(), Error> {
    let status = TaskStatus {
        observed_generation: task.metadata.generation,
        stage: outcome.stage,
        log: cut(outcome.log),
        counts: Some(outcome.counts),
        observed_retry: Some(task.spec.retry),
        ..moved(begun, outcome.state, now)
    };
    if task.status.as_ref() == Some(&status) {
        return Ok(());
    }
    let api: Api<Task> = Api::namespaced(ctx.client.clone(), &task.namespace().unwrap_or_default());
    let written = write::apply_as_read(&api, task, MANAGER_CONTROLLER, &json!(status))
        .await
        .map_err(Error::api(format!(
            "write the status of task {}",
            task.name_any()
        )))?;
    ctx.metrics.wrote("Task");
    ctx.stored_task(written);
    Ok(())
}

/// Removes what ended long ago.
async fn expire(ctx: &Context, task: &Task, now: Timestamp) -> Result<Option<Duration>, Error> {
    let Some(ended) = ended_at(task) else {
        return Ok(None);
    };
    let left = ctx.task_retention.saturating_sub(age(Some(&ended), now));
    if !left.is_zero() {
        return Ok(Some(left));
    }
    let api: Api<Task> = Api::namespaced(ctx.client.clone(), &task.namespace().unwrap_or_default());
    let params = DeleteParams {
        preconditions: Some(Preconditions {
            uid: task.uid(),
            resource_version: None,
        }),
        ..DeleteParams::default()
    };
    let name = task.name_any();
    api.delete(&name, &params)
        .await
        .map_err(Error::api(format!("remove task {name}")))?;
    ctx.metrics.wrote("Task");
    Ok(None)
}
