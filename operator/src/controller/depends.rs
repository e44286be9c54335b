//! Dependencies: which Instances must run before another is placed.
//!
//! [`walk`] goes through provisioners depth-first and finds cycles, [`circle`] that of one provisioner; [`plan`] judges what an Instance waits for, in the order of
//! its list, and is pure too. [`look`] carries it out: one missing Instance is made at a time, under a name that every
//! Instance waiting for the same provisioner arrives at, so that they share it. What it depends on in its turn is its own
//! affair: it waits the same way.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use kube::ResourceExt;
use kube::api::{Api, ObjectMeta, PostParams};
use virtshell_crds::condition::{self, READY, SCHEDULED};
use virtshell_crds::instance::{InstanceSpec, MetDependency, Resolved};
use virtshell_crds::{
    ANNOTATION_CREATED_AT, ANNOTATION_CREATED_BY, Dependency, Instance, LABEL_NAME, LABEL_NAME_HASH, Phase,
    PowerState, Provisioner, launch, names,
};

use super::accept::{Acceptance, frozen};
use super::cache::{Cached, ObjectKey};
use super::context::Context;
use super::desk;
use super::events::Level;
use super::schedule::Placement;
use super::write::Error;

/// Reason of `Scheduled=False` while a dependency is on its way.
pub const WAITING: &str = "WaitingForDependencies";
/// Reason of `Scheduled=False` when a dependency failed.
pub const FAILED: &str = "DependencyFailed";
/// Names that are tried for a dependency.
const CANDIDATES: u32 = 100;

/// Why the dependencies of a provisioner make no sense.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Flaw {
    /// The way from a provisioner back to itself.
    Cycle(Vec<String>),
    /// There is no provisioner of that name.
    Missing(String),
}

/// Goes through all that `start` depends on, depth first and in the order of the lists; `find` looks a provisioner up.
pub fn walk(start: &Arc<Provisioner>, find: &dyn Fn(&str) -> Option<Arc<Provisioner>>) -> Result<(), Flaw> {
    // A chain may be as long as there are provisioners: no recursion. Each with how many of its list were seen to.
    let mut path: Vec<(Arc<Provisioner>, usize)> = vec![(start.clone(), 0)];
    let mut on_path = HashSet::from([start.uid()]);
    let mut done = HashSet::new();
    while let Some((at, seen)) = path.last_mut() {
        let Some(dependency) = at.spec.depends.get(*seen) else {
            on_path.remove(&at.uid());
            done.insert(at.uid());
            path.pop();
            continue;
        };
        *seen += 1;
        let name = &dependency.provisioner;
        let next = find(name).ok_or_else(|| Flaw::Missing(name.clone()))?;
        if !on_path.insert(next.uid()) {
            let around = path.iter().map(|(p, _)| p).skip_while(|p| p.uid() != next.uid());
            let around = around.chain([&next]).map(|p| p.wire_name().to_owned());
            return Err(Flaw::Cycle(around.collect()));
        }
        if done.contains(&next.uid()) {
            on_path.remove(&next.uid());
        } else {
            path.push((next, 0));
        }
    }
    Ok(())
}

/// The way from a provisioner back to itself, if there is one: the first in the order of the lists. What it leads past is not its
/// affair.
#[must_use]
pub fn circle(
    start: &Arc<Provisioner>,
    find: &dyn Fn(&str) -> Option<Arc<Provisioner>>,
) -> Option<Vec<String>> {
    let mut path: Vec<(Arc<Provisioner>, usize)> = vec![(start.clone(), 0)];
    let mut met = HashSet::new();
    while let Some((at, seen)) = path.last_mut() {
        let Some(dependency) = at.spec.depends.get(*seen) else {
            path.pop();
            continue;
        };
        *seen += 1;
        let Some(next) = find(&dependency.provisioner) else {
            continue;
        };
        if next.uid() == start.uid() {
            let around = path.iter().map(|(p, _)| p).chain([start]);
            return Some(around.map(|p| p.wire_name().to_owned()).collect());
        }
        if met.insert(next.uid()) {
            path.push((next, 0));
        }
    }
    None
}

/// What an Instance that waits for its dependencies needs next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing: they run.
    Met(Vec<MetDependency>),
    /// An Instance by this provisioner.
    Make(String),
    /// To wait; in words.
    Wait(String),
    /// Something that will not come; in words.
    Failed(String),
}

/// The first of `depends` that does not run decides; each comes with the Instances by that provisioner in the same environment.
#[must_use]
pub fn plan(depends: &[(&Dependency, Vec<Arc<Instance>>)]) -> Step {
    let mut met = Vec::with_capacity(depends.len());
    for (dependency, there) in depends {
        let provisioner = &dependency.provisioner;
        if let Some(instance) = there.iter().find(|i| runs(i)) {
            let addresses = instance.status.as_ref().and_then(|s| s.addresses.as_ref());
            met.push(MetDependency {
                provisioner: provisioner.clone(),
                name: instance.wire_name().to_owned(),
                ipv4: addresses
                    .and_then(|a| a.ipv4.first())
                    .cloned()
                    .unwrap_or_default(),
            });
            continue;
        }
        let Some(first) = there.first() else {
            return Step::Make(provisioner.clone());
        };
        let named = |i: &Instance| format!("instance {} (provisioner {provisioner})", i.wire_name());
        let message = |i: &Instance| {
            let said = i.status.as_ref().map(|s| s.message.clone()).unwrap_or_default();
            if said.is_empty() {
                said
            } else {
                format!(": {said}")
            }
        };
        return if there.iter().all(|i| phase(i) == Some(Phase::Failed)) {
            Step::Failed(format!("dependency failed: {}{}", named(first), message(first)))
        } else {
            let hope = there
                .iter()
                .find(|i| phase(i) != Some(Phase::Failed))
                .unwrap_or(first);
            Step::Wait(format!("waits for {}{}", named(hope), message(hope)))
        };
    }
    Step::Met(met)
}

fn phase(instance: &Instance) -> Option<Phase> {
    instance.status.as_ref()?.phase
}

/// Up and built. A launch parent has no guest; its children count.
fn runs(instance: &Instance) -> bool {
    let Some(status) = &instance.status else {
        return false;
    };
    launch::of_parent(instance).is_none()
        && instance.metadata.deletion_timestamp.is_none()
        && status.power_state == Some(PowerState::Running)
        && condition::is_true(&status.conditions, READY)
}

/// What others can see of an Instance that they may wait for.
#[must_use]
pub fn view(instance: &Instance) -> impl PartialEq + '_ {
    let status = instance.status.as_ref();
    (
        &instance.metadata.uid,
        instance.metadata.deletion_timestamp.is_some(),
        runs(instance),
        phase(instance),
        status.map(|s| (&s.message, &s.addresses)),
        status.and_then(|s| s.resolved.as_ref()).map(|r| &r.environment),
    )
}

/// Whether an Instance still looks at what it depends on.
#[must_use]
pub fn is_dependent(instance: &Instance) -> bool {
    let built = instance.status.as_ref().and_then(|s| s.provisioned) == Some(true);
    !built && frozen(instance).is_some_and(|r| !r.depends.is_empty())
}

/// Looks at what an Instance depends on, and makes what is missing. The values then say which Instances it can talk to; the answer
/// is why it is not placed yet.
pub async fn look(
    ctx: &Context,
    instance: &Instance,
    acceptance: &mut Acceptance,
) -> Result<Option<Placement>, Error> {
    let resolved = &acceptance.resolved;
    let status = instance.status.as_ref();
    let built = status.and_then(|s| s.provisioned) == Some(true);
    if resolved.depends.is_empty() || built {
        return Ok(None);
    }
    let depends: Vec<_> = resolved
        .depends
        .iter()
        .map(|dependency| {
            (
                dependency,
                made_by(ctx, instance, &resolved.environment, dependency),
            )
        })
        .collect();
    let step = plan(&depends);
    if let Step::Met(met) = step {
        acceptance.resolved.dependencies = met;
        return Ok(None);
    }
    // Placement is final; and what is gone afterwards is not made again.
    if status.is_some_and(|s| condition::is_true(&s.conditions, SCHEDULED)) {
        return Ok(None);
    }
    let (reason, message) = match step {
        Step::Met(_) => return Ok(None),
        Step::Wait(message) => (WAITING, message),
        Step::Failed(message) => (FAILED, message),
        Step::Make(provisioner) => (WAITING, make(ctx, instance, resolved, &provisioner).await?),
    };
    Ok(Some(Placement::Refused { reason, message }))
}

/// The Instances by a provisioner in an environment, oldest first; `instance` itself is not meant.
fn made_by(
    ctx: &Context,
    instance: &Instance,
    environment: &str,
    dependency: &Dependency,
) -> Vec<Arc<Instance>> {
    let namespace = instance.metadata.namespace.as_deref().unwrap_or_default();
    let keys = if let Some(found) = ctx.provisioners.find(namespace, &dependency.provisioner) {
        ctx.naming(&ctx.provisioners, &*found, |desk| &desk.made_by)
    } else {
        // It is gone; what it made may be there.
        let named = desk::beside(instance, &dependency.provisioner);
        ctx.desk().made_by.of(&named).cloned().collect()
    };
    let here = desk::beside(instance, environment);
    let mut made: Vec<_> = keys
        .iter()
        .filter_map(|key| ctx.instances.get(key))
        .filter(|other| other.metadata.uid != instance.metadata.uid && desk::environment(other) == here)
        .collect();
    made.sort_by_key(|i| (i.metadata.creation_timestamp.clone(), i.name_any()));
    made
}

/// Makes the Instance that is missing, and says so.
async fn make(
    ctx: &Context,
    instance: &Instance,
    resolved: &Resolved,
    provisioner: &str,
) -> Result<String, Error> {
    let namespace = instance.namespace().unwrap_or_default();
    let Some(found) = ctx.provisioners.find(&namespace, provisioner) else {
        return Ok(format!("provisioner {provisioner} not found"));
    };
    let api: Api<Instance> = Api::namespaced(ctx.client.clone(), &namespace);
    for n in 1..=CANDIDATES {
        let wire = candidate(found.wire_name(), n);
        if !ctx.instances.namesakes(&namespace, &wire).is_empty() {
            continue;
        }
        let name = names::object_name(&wire);
        let key = ObjectKey {
            namespace: namespace.clone(),
            name: name.clone(),
        };
        if ctx.instances.get(&key).is_some() {
            continue;
        }
        let doing = || format!("make instance {wire} that {} depends on", instance.name_any());
        match api
            .create(
                &PostParams::default(),
                &dependency(instance, resolved, provisioner, &wire),
            )
            .await
        {
            Ok(made) => {
                ctx.metrics.wrote("Instance");
                let note = format!("made instance {wire} by provisioner {provisioner}");
                ctx.events
                    .say(instance, Level::Normal, "Resolve", "DependencyCreated", &note);
                ctx.stored_instance(made);
            }
            // Somebody else made it, or took the name: the next look tells which.
            Err(kube::Error::Api(status)) if status.is_already_exists() => {
                let there = api.get(&name).await.map_err(Error::api(doing()))?;
                ctx.stored_instance(there);
                ctx.queue
                    .add(super::context::Key::Instance(ObjectKey::of(instance)));
            }
            Err(error) => return Err(Error::api(doing())(error)),
        }
        return Ok(format!("waits for instance {wire} (provisioner {provisioner})"));
    }
    Ok(format!(
        "no name is free for an instance by provisioner {provisioner}"
    ))
}

/// The names to try: the provisioner's, then with `_2`, `_3`, ...
fn candidate(provisioner: &str, n: u32) -> String {
    if n == 1 {
        provisioner.to_owned()
    } else {
        format!("{provisioner}_{n}")
    }
}

fn dependency(instance: &Instance, resolved: &Resolved, provisioner: &str, wire: &str) -> Instance {
    let mut labels = BTreeMap::from([(LABEL_NAME_HASH.to_owned(), names::name_hash(wire))]);
    if names::is_label_value(wire) {
        labels.insert(LABEL_NAME.to_owned(), wire.to_owned());
    }
    let kept = [ANNOTATION_CREATED_BY, ANNOTATION_CREATED_AT];
    let annotations = kept
        .into_iter()
        .filter_map(|key| Some((key.to_owned(), instance.annotations().get(key)?.clone())));
    Instance {
        metadata: ObjectMeta {
            name: Some(names::object_name(wire)),
            namespace: instance.namespace(),
            labels: Some(labels),
            annotations: Some(annotations.collect()),
            ..ObjectMeta::default()
        },
        spec: InstanceSpec {
            display_name: Some(wire.to_owned()),
            environment: Some(resolved.environment.clone()),
            provisioner: Some(provisioner.to_owned()),
            host_type: resolved.host_type,
            driver: resolved.driver,
            owner: instance.spec.owner.clone(),
            group: instance.spec.group.clone(),
            // The schema's defaults.
            shutdown_grace_seconds: 60,
            autostart: true,
            ..InstanceSpec::default()
        },
        status: None,
    }
}

#[cfg(test)]
#[path = "depends_tests.rs"]
mod tests;
