//! Which hosts a Section and an Environment have.

use kube::ResourceExt;
use kube::api::Api;
use serde_json::{Value, json};
use virtshell_crds::{Environment, Host, MANAGER_CONTROLLER, Section};

use super::cache::{Cached, ObjectKey};
use super::context::Context;
use super::placement::Reach;
use super::write::{self, Error};
use super::{guard, wire_name};
use crate::status::{apply, differs};

const OWNED: [&str; 4] = ["observedGeneration", "hosts", "instances", "conditions"];

/// Whether an Environment may use a host: the host names its section, or it names the host.
#[must_use]
pub fn reach(ctx: &Context, environment: &Environment, host: &Host) -> Reach {
    let named = environment
        .spec
        .hosts
        .iter()
        .any(|name| name == host.wire_name() || Some(name.as_str()) == host.metadata.name.as_deref());
    let section = |name: Option<&str>| {
        name.and_then(|name| ctx.sections.find("", name))
            .and_then(|s| s.uid())
    };
    let shared = match section(environment.spec.section.as_deref()) {
        Some(theirs) => section(host.spec.section.as_deref()) == Some(theirs),
        None => false,
    };
    if named || shared {
        Reach::Inside
    } else {
        Reach::Outside
    }
}

/// Looks at one Section.
pub async fn reconcile_section(ctx: &Context, key: &ObjectKey) -> Result<(), Error> {
    let Some(section) = ctx.sections.get(key) else {
        return Ok(());
    };
    let uid = section.uid();
    let mut hosts: Vec<String> = ctx
        .hosts
        .all()
        .iter()
        .filter(|host| {
            let name = host.spec.section.as_deref();
            name.and_then(|name| ctx.sections.find("", name))
                .is_some_and(|s| s.uid() == uid)
        })
        .map(|host| host.wire_name().to_owned())
        .collect();
    hosts.sort_unstable();
    let api: Api<Section> = Api::all(ctx.client.clone());
    let environments = ctx.environments.all();
    let user = environments.iter().find(|e| {
        let name = e.spec.section.as_deref();
        name.and_then(|name| ctx.sections.find("", name))
            .is_some_and(|s| s.uid() == uid)
    });
    let holder = user.map(|e| format!("enviroment {}", e.wire_name()));
    guard::guard(ctx, &api, &*section, holder.as_deref()).await?;
    let in_use = guard::condition(&*section, "section", section.wire_name(), holder.as_deref());
    let generation = section.metadata.generation;
    let accepted = wire_name::accepted(
        generation,
        wire_name::conflict(&ctx.sections, &*section, "section"),
    );
    let present = section
        .status
        .as_ref()
        .map(|s| s.conditions.as_slice())
        .unwrap_or_default();
    let status = json!({
        "observedGeneration": generation,
        "hosts": hosts,
        "conditions": write::conditions(present, [accepted].into_iter().chain(in_use)),
    });
    if differs(&json!(section.status), &status, &OWNED) {
        apply(&api, &*section, MANAGER_CONTROLLER, &status)
            .await
            .map_err(Error::api(format!("write the status of section {key}")))?;
        ctx.metrics.wrote("Section");
    }
    Ok(())
}

/// Looks at one Environment; the answer is when to look again for the sum.
pub async fn reconcile_environment(
    ctx: &Context,
    key: &ObjectKey,
) -> Result<Option<std::time::Duration>, Error> {
    let Some(environment) = ctx.environments.get(key) else {
        return Ok(None);
    };
    let status = environment_status(ctx, &environment);
    let holder = holder(status["instances"].as_u64().unwrap_or_default());
    let api: Api<Environment> = Api::namespaced(ctx.client.clone(), &key.namespace);
    guard::guard(ctx, &api, &*environment, holder.as_deref()).await?;
    if !differs(&json!(environment.status), &status, &OWNED) {
        return Ok(None);
    }
    if let Some(wait) = ctx.sum_due(&format!("Environment {key}")) {
        return Ok(Some(wait));
    }
    apply(&api, &*environment, MANAGER_CONTROLLER, &status)
        .await
        .map_err(Error::api(format!("write the status of environment {key}")))?;
    ctx.metrics.wrote("Environment");
    Ok(None)
}

fn environment_status(ctx: &Context, environment: &Environment) -> Value {
    let mut hosts: Vec<String> = ctx
        .hosts
        .all()
        .iter()
        .filter(|host| reach(ctx, environment, host) == Reach::Inside)
        .map(|host| host.wire_name().to_owned())
        .collect();
    hosts.sort_unstable();
    let uid = environment.uid();
    let instances = ctx
        .instances
        .all()
        .iter()
        .filter(|i| i.metadata.namespace == environment.metadata.namespace)
        .filter(|i| ctx.environment_of(i).is_some_and(|e| e.uid() == uid))
        .count();
    let section = environment.spec.section.as_deref();
    let missing = section.filter(|name| ctx.sections.find("", name).is_none());
    let generation = environment.metadata.generation;
    let missing = missing.map(|name| ("SectionNotFound", format!("section {name} not found")));
    let flaw = wire_name::conflict(&ctx.environments, environment, "enviroment").or(missing);
    let accepted = wire_name::accepted(generation, flaw);
    let in_use = holder(instances as u64);
    let in_use = guard::condition(
        environment,
        "enviroment",
        environment.wire_name(),
        in_use.as_deref(),
    );
    let present = environment
        .status
        .as_ref()
        .map(|s| s.conditions.as_slice())
        .unwrap_or_default();
    json!({
        "observedGeneration": generation,
        "hosts": hosts,
        "instances": instances,
        "conditions": write::conditions(present, [accepted].into_iter().chain(in_use)),
    })
}

/// What uses an Environment that has Instances.
fn holder(instances: u64) -> Option<String> {
    (instances > 0).then(|| format!("{instances} instances"))
}
