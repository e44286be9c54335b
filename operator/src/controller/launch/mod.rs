//! Launch groups: the parent's children are made once, follow its edits, and go before it does.
//!
//! [`group`] and [`follow`] decide; here that is carried out. The parent never has a host. In this order: the finalizer; the frozen values,
//! which children take over ([`super::accept`]); the children, all of them; the status with their names. From then on a child
//! that is missing was deleted by somebody, and is not made again.

pub mod follow;
pub mod group;

use std::sync::Arc;
use std::time::Duration;

use kube::ResourceExt;
use kube::api::{Api, DeleteParams, PostParams, Preconditions};
use serde_json::{Value, json};
use virtshell_crds::condition::{self, ACCEPTED, READY, SCHEDULED, Status};
use virtshell_crds::instance::{InstanceStatus, Resolved};
use virtshell_crds::{FINALIZER_LAUNCH, Instance, Launch, MANAGER_CONTROLLER, Phase, launch};

use super::accept::{Acceptance, Refusal};
use super::cache::ObjectKey;
use super::context::Context;
use super::events::Level;
use super::instance::patch_instance;
use super::write::{self, Error};
use crate::status::differs;
use group::{Found, Group};

/// Names that are tried for a child; more than one is taken only where objects were renamed.
const CANDIDATES: u32 = 4;
/// How long until a name that is taken is tried again at the latest: that the name of an object is free, and not its wire name,
/// nobody tells.
const TAKEN: Duration = Duration::from_mins(1);

/// Reason of `Accepted=False` of a parent whose edit a child cannot take.
const NOT_PASSED_ON: &str = "NotPassedOn";

const OWNED: [&str; 9] = [
    "observedGeneration",
    "phase",
    "message",
    "powerState",
    "lastRestartToken",
    "resolved",
    "children",
    "tags",
    "conditions",
];

/// The launch that an Instance is the parent of: as it was accepted with, else as it would be now.
#[must_use]
pub fn of(instance: &Instance, accepted: &Result<Acceptance, Refusal>) -> Option<Launch> {
    launch::of_parent(instance).or_else(|| {
        let acceptance = accepted.as_ref().ok()?;
        acceptance.resolved.launch.filter(|launch| launch.max > 1)
    })
}

/// The children of a launch parent that are there.
pub fn children(ctx: &Context, parent: &Instance) -> Vec<Arc<Instance>> {
    let uid = parent.uid().unwrap_or_default();
    let keys: Vec<ObjectKey> = ctx.desk().children.of(&uid).cloned().collect();
    keys.iter().filter_map(|key| ctx.instances.get(key)).collect()
}

/// Looks at a launch parent; the answer is when to look again.
pub async fn reconcile(
    ctx: &Context,
    parent: Arc<Instance>,
    launch: Launch,
    accepted: Result<Acceptance, Refusal>,
) -> Result<Option<Duration>, Error> {
    let acceptance = match accepted {
        Ok(acceptance) => acceptance,
        Err(refusal) => {
            let kept = Passed::before(&parent);
            return report(ctx, &parent, launch, Err(&refusal), kept)
                .await
                .map(|_| None);
        }
    };
    let parent = hold(ctx, parent).await?;
    let mut passed = Passed::before(&parent);
    if passed.resolved.is_none() {
        // Before the first child: it takes these values over.
        passed.now(&parent, &acceptance);
        let parent = report(ctx, &parent, launch, Ok(()), passed).await?;
        ctx.queue
            .add(super::context::Key::Instance(ObjectKey::of(&*parent)));
        return Ok(None);
    }
    if passed.children.is_empty() {
        match create(ctx, &parent, launch).await? {
            Ok(names) => passed.children = names,
            Err(refusal) => {
                report(ctx, &parent, launch, Err(&refusal), passed).await?;
                return Ok(Some(TAKEN));
            }
        }
    }
    if let Some(refusal) = pass_on(ctx, &parent, &passed.children).await? {
        report(ctx, &parent, launch, Err(&refusal), passed).await?;
        return Ok(Some(TAKEN));
    }
    passed.now(&parent, &acceptance);
    report(ctx, &parent, launch, Ok(()), passed).await.map(|_| None)
}

/// Makes children follow an edit of their parent. What the API server does not take is for people to know.
async fn pass_on(ctx: &Context, parent: &Instance, names: &[String]) -> Result<Option<Refusal>, Error> {
    let mut behind = children(ctx, parent);
    behind.retain(|child| child.metadata.deletion_timestamp.is_none() && !follow::is_current(child, parent));
    if behind.is_empty() {
        return Ok(None);
    }
    let parent = read(ctx, parent).await?;
    let mut refused = Vec::new();
    for child in behind {
        let child = read(ctx, &child).await?;
        let patch = follow::patch(&child, &parent, number(names, &child));
        match patch_instance(ctx, &child, patch).await {
            Ok(_) => {}
            Err(error) if error.is_not_found() => {}
            Err(error) => match error.refusal() {
                Some(words) => refused.push(format!("{}: {words}", child.wire_name())),
                None => return Err(error),
            },
        }
    }
    Ok((!refused.is_empty()).then(|| Refusal {
        reason: NOT_PASSED_ON,
        message: refused.join("; "),
    }))
}

/// Which one of its launch a child is.
fn number(names: &[String], child: &Instance) -> i32 {
    let name = child.name_any();
    let at = names.iter().position(|other| *other == name);
    at.map_or(0, |at| at as i32 + 1)
}

/// An Instance as the API server has it: the cache leaves things out.
async fn read(ctx: &Context, instance: &Instance) -> Result<Instance, Error> {
    let name = instance.name_any();
    api(ctx, instance)
        .get(&name)
        .await
        .map_err(Error::api(format!("read instance {name}")))
}

/// What the parent's status remembers of what was done for it.
struct Passed {
    resolved: Option<Resolved>,
    tags: Vec<String>,
    children: Vec<String>,
    power: Value,
    restart_token: String,
}

impl Passed {
    fn before(parent: &Instance) -> Self {
        let InstanceStatus {
            resolved,
            tags,
            children,
            power_state,
            last_restart_token,
            ..
        } = parent.status.clone().unwrap_or_default();
        Self {
            resolved,
            tags,
            children,
            power: power_state.map_or(Value::Null, |power| json!(power)),
            restart_token: last_restart_token,
        }
    }

    fn now(&mut self, parent: &Instance, acceptance: &Acceptance) {
        self.resolved = Some(acceptance.resolved.clone());
        self.tags.clone_from(&acceptance.tags);
        self.power = json!(parent.spec.power_state);
        self.restart_token.clone_from(&parent.spec.restart_token);
    }
}

/// The parent with the finalizer that keeps it until its children are gone.
async fn hold(ctx: &Context, parent: Arc<Instance>) -> Result<Arc<Instance>, Error> {
    let mut finalizers = parent.finalizers().to_vec();
    if finalizers.iter().any(|f| f == FINALIZER_LAUNCH) {
        return Ok(parent);
    }
    finalizers.push(FINALIZER_LAUNCH.to_owned());
    let patch = json!({"metadata": {"finalizers": finalizers}});
    patch_instance(ctx, &parent, patch).await.map(Arc::new)
}

/// Makes every child that is not there, and returns the names of all; or says which name is taken.
async fn create(
    ctx: &Context,
    parent: &Instance,
    Launch { max, .. }: Launch,
) -> Result<Result<Vec<String>, Refusal>, Error> {
    let parent = read(ctx, parent).await?;
    let wire_names = (1..=max).map(|n| launch::child_name(parent.wire_name(), n));
    // All or nothing, as far as is known.
    for wire in wire_names {
        let namesakes = ctx
            .instances
            .namesakes(&parent.namespace().unwrap_or_default(), &wire);
        if namesakes.iter().any(|other| !group::is_child(other, &parent)) {
            return Ok(Err(taken(&wire)));
        }
    }
    let mut names = Vec::new();
    for n in 1..=max {
        match create_child(ctx, &parent, n).await? {
            Some(name) => names.push(name),
            None => return Ok(Err(taken(&launch::child_name(parent.wire_name(), n)))),
        }
    }
    ctx.events.say(
        &parent,
        Level::Normal,
        "Launch",
        "Launched",
        &format!("launched {} instances", names.len()),
    );
    Ok(Ok(names))
}

fn taken(wire: &str) -> Refusal {
    Refusal {
        reason: "NameConflict",
        message: format!("instance {wire} already exists"),
    }
}

/// Makes one child and returns its name; `None` when an Instance of that name is another's.
async fn create_child(ctx: &Context, parent: &Instance, n: i32) -> Result<Option<String>, Error> {
    let api = api(ctx, parent);
    for candidate in 1..=CANDIDATES {
        let child = group::child(parent, n, candidate);
        let name = child.name_any();
        let doing = || format!("launch instance {name}");
        match api.create(&PostParams::default(), &child).await {
            Ok(made) => {
                ctx.metrics.wrote("Instance");
                ctx.stored_instance(made);
                return Ok(Some(name));
            }
            Err(kube::Error::Api(status)) if status.is_already_exists() => {
                let there = api.get(&name).await.map_err(Error::api(doing()))?;
                match group::found(&there, &child, parent) {
                    Found::Child => return Ok(Some(name)),
                    Found::Renamed => {}
                    Found::Taken => return Ok(None),
                }
            }
            Err(error) => return Err(Error::api(doing())(error)),
        }
    }
    Ok(None)
}

/// A parent that is being deleted: its children first.
pub async fn release(ctx: &Context, parent: &Instance) -> Result<(), Error> {
    let mut finalizers = parent.finalizers().to_vec();
    if !finalizers.iter().any(|f| f == FINALIZER_LAUNCH) {
        return Ok(());
    }
    let children = children(ctx, parent);
    let names = Passed::before(parent).children;
    for child in &children {
        if follow::may_go_otherwise(child, parent) {
            tell_how_to_go(ctx, parent, child, &names).await?;
        }
        if child.metadata.deletion_timestamp.is_some() {
            continue;
        }
        let name = child.name_any();
        let params = DeleteParams {
            preconditions: Some(Preconditions {
                uid: child.uid(),
                resource_version: None,
            }),
            ..DeleteParams::default()
        };
        match api(ctx, parent).delete(&name, &params).await {
            Ok(_) => ctx.metrics.wrote("Instance"),
            Err(kube::Error::Api(status)) if status.is_not_found() => {}
            Err(error) => return Err(Error::api(format!("delete launched instance {name}"))(error)),
        }
    }
    if !children.is_empty() {
        return Ok(());
    }
    finalizers.retain(|f| f != FINALIZER_LAUNCH);
    let patch = json!({"metadata": {"finalizers": finalizers}});
    patch_instance(ctx, parent, patch).await.map(drop)
}

/// What was asked of the parent just before it was deleted holds for its children, too: above all that their disks are to stay.
async fn tell_how_to_go(
    ctx: &Context,
    parent: &Instance,
    child: &Instance,
    names: &[String],
) -> Result<(), Error> {
    let told = async {
        let child = read(ctx, child).await?;
        match follow::last_patch(&child, parent, number(names, &child)) {
            Some(patch) => patch_instance(ctx, &child, patch).await.map(drop),
            None => Ok(()),
        }
    };
    match told.await {
        Err(error) if error.is_not_found() => Ok(()),
        told => told,
    }
}

/// Writes the status when it differs; returns the parent as it is then.
async fn report(
    ctx: &Context,
    parent: &Arc<Instance>,
    launch: Launch,
    accepted: Result<(), &Refusal>,
    passed: Passed,
) -> Result<Arc<Instance>, Error> {
    let there = children(ctx, parent);
    let group = group::group(launch, there.iter().map(|child| &**child));
    let status = desired_status(parent, accepted, passed, group);
    if !differs(&json!(parent.status), &status, &OWNED) {
        return Ok(parent.clone());
    }
    let name = parent.name_any();
    let written = write::apply_as_read(&api(ctx, parent), &**parent, MANAGER_CONTROLLER, &status)
        .await
        .map_err(Error::api(format!("write the status of instance {name}")))?;
    ctx.metrics.wrote("Instance");
    if let Err(refusal) = accepted {
        super::instance::tell_refusal(ctx, parent, refusal);
    }
    ctx.stored_instance(written.clone());
    Ok(Arc::new(written))
}

fn desired_status(parent: &Instance, accepted: Result<(), &Refusal>, passed: Passed, group: Group) -> Value {
    let generation = parent.metadata.generation;
    let condition = |type_, status, reason: &str, message: &str| {
        condition::condition(type_, status, reason, message, generation, write::now())
    };
    let launched = !passed.children.is_empty();
    let (accepted_condition, phase, message) = match accepted {
        Ok(()) => (
            condition(ACCEPTED, Status::True, "Valid", ""),
            group.phase,
            group.message,
        ),
        Err(refusal) => (
            condition(ACCEPTED, Status::False, refusal.reason, &refusal.message),
            if launched { group.phase } else { Phase::Pending },
            refusal.message.clone(),
        ),
    };
    let of_children = |type_, (status, message): (Status, String)| {
        if launched {
            condition(type_, status, "Launched", &message)
        } else {
            condition(type_, Status::False, "NotLaunched", "")
        }
    };
    let conditions = [
        accepted_condition,
        of_children(SCHEDULED, group.scheduled),
        of_children(READY, group.ready),
    ];
    let present = parent
        .status
        .as_ref()
        .map(|s| s.conditions.as_slice())
        .unwrap_or_default();
    let mut status = json!({
        "observedGeneration": generation,
        "phase": phase,
        "message": message,
        "lastRestartToken": passed.restart_token,
        "children": passed.children,
        "tags": passed.tags,
        "conditions": write::conditions(present, conditions),
    });
    if let Some(resolved) = passed.resolved {
        status["resolved"] = json!(resolved);
    }
    if !passed.power.is_null() {
        status["powerState"] = passed.power;
    }
    status
}

fn api(ctx: &Context, parent: &Instance) -> Api<Instance> {
    Api::namespaced(ctx.client.clone(), &parent.namespace().unwrap_or_default())
}
