//! Which hosts a Section and an Environment have.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use kube::ResourceExt;
use kube::api::Api;
use serde_json::{Value, json};
use virtshell_crds::{Environment, MANAGER_CONTROLLER, Section};

use super::cache::{Cache, Cached, ObjectKey};
use super::context::Context;
use super::placement::Reach;
use super::roster::Offer;
use super::write::{self, Error};
use super::{guard, wire_name};
use crate::status::differs;

const OWNED: [&str; 4] = ["observedGeneration", "hosts", "instances", "conditions"];

/// Which hosts an Environment may use: those of its section, and those that it names.
pub struct Territory<'a> {
    sections: &'a Cache<Section>,
    named: HashSet<&'a str>,
    section: Option<String>,
    /// Whether a section's name means that section: hosts share a few.
    means: HashMap<String, bool>,
}

impl<'a> Territory<'a> {
    /// That of an Environment; without one, no host.
    #[must_use]
    pub fn of(sections: &'a Cache<Section>, environment: Option<&'a Environment>) -> Self {
        let spec = environment.map(|e| &e.spec);
        let section = spec.and_then(|s| s.section.as_deref());
        Self {
            sections,
            named: spec
                .into_iter()
                .flat_map(|s| &s.hosts)
                .map(String::as_str)
                .collect(),
            section: section.and_then(|name| sections.find("", name)?.uid()),
            means: HashMap::new(),
        }
    }

    /// Whether it has this host.
    pub fn reach(&mut self, host: &Offer) -> Reach {
        let named = self.named.contains(host.wire_name.as_str()) || self.named.contains(host.name.as_str());
        if named || host.section.as_deref().is_some_and(|name| self.is_ours(name)) {
            Reach::Inside
        } else {
            Reach::Outside
        }
    }

    fn is_ours(&mut self, section: &str) -> bool {
        let Some(ours) = &self.section else { return false };
        if let Some(known) = self.means.get(section) {
            return *known;
        }
        let found = self.sections.find("", section);
        let means = found.is_some_and(|s| s.metadata.uid.as_ref() == Some(ours));
        self.means.insert(section.to_owned(), means);
        means
    }
}

/// Looks at one Section.
pub async fn reconcile_section(ctx: &Context, key: &ObjectKey) -> Result<(), Error> {
    let Some(section) = ctx.sections.get(key) else {
        return Ok(());
    };
    let hosts = members(&ctx.sections, &section, &ctx.hosts.all(), |host| {
        &host.spec.section
    });
    let environments = ctx.environments.all();
    let users = members(&ctx.sections, &section, &environments, |e| &e.spec.section);
    let user = users.first().map(|name| format!("enviroment {name}"));
    let api: Api<Section> = Api::all(ctx.client.clone());
    let guarded = guard::guard(ctx, &api, &*section, user.as_deref()).await?;
    let section = guarded.map_or(section, Arc::new);
    let in_use = guard::condition(&*section, "section", section.wire_name(), user.as_deref());
    let generation = section.metadata.generation;
    let flaw = wire_name::conflict(&ctx.sections, &*section, "section");
    let accepted = wire_name::accepted(generation, flaw);
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
        write::apply_as_read(&api, &*section, MANAGER_CONTROLLER, &status)
            .await
            .map_err(Error::api(format!("write the status of section {key}")))?;
        ctx.metrics.wrote("Section");
    }
    Ok(())
}

/// Those that name a Section, by either of its names, in order. A name may mean another one, which has it as its wire name.
fn members<K: Cached>(
    sections: &Cache<Section>,
    section: &Section,
    objects: &[Arc<K>],
    names: impl Fn(&K) -> &Option<String>,
) -> Vec<String> {
    let is_meant = |name: &str| {
        sections
            .find("", name)
            .is_some_and(|found| found.uid() == section.uid())
    };
    let members = objects
        .iter()
        .filter(|object| names(object).as_deref().is_some_and(is_meant));
    sorted(members.map(|object| object.wire_name()))
}

/// The hosts that an Environment may use, by the names people know.
fn hosts_of<'a>(
    sections: &Cache<Section>,
    environment: &Environment,
    offers: impl Iterator<Item = &'a Offer>,
) -> Vec<String> {
    let mut territory = Territory::of(sections, Some(environment));
    let hosts = offers.filter(|host| territory.reach(host) == Reach::Inside);
    sorted(hosts.map(|host| host.wire_name.as_str()))
}

fn sorted<'a>(names: impl Iterator<Item = &'a str>) -> Vec<String> {
    let mut names: Vec<String> = names.map(str::to_owned).collect();
    names.sort_unstable();
    names
}

/// Looks at one Environment; the answer is when to look again for the sum.
pub async fn reconcile_environment(ctx: &Context, key: &ObjectKey) -> Result<Option<Duration>, Error> {
    let Some(environment) = ctx.environments.get(key) else {
        return Ok(None);
    };
    let instances = ctx.naming(&ctx.environments, &*environment, |desk| &desk.in_environment);
    let first = instances.first().and_then(|key| ctx.instances.get(key));
    let first = first.as_ref().map(|instance| instance.wire_name());
    let user = guard::instances(instances.len(), first);
    let api: Api<Environment> = Api::namespaced(ctx.client.clone(), &key.namespace);
    let guarded = guard::guard(ctx, &api, &*environment, user.as_deref()).await?;
    let environment = guarded.map_or(environment, Arc::new);
    let status = environment_status(ctx, &environment, instances.len(), user.as_deref());
    let present = json!(environment.status);
    if !differs(&present, &status, &OWNED) {
        return Ok(None);
    }
    // A sum alone can wait.
    let wait = ctx.sum_due(&format!("Environment {key}"));
    if wait.is_some() && !differs(&present, &status, &["observedGeneration", "hosts", "conditions"]) {
        return Ok(wait);
    }
    write::apply_as_read(&api, &*environment, MANAGER_CONTROLLER, &status)
        .await
        .map_err(Error::api(format!("write the status of environment {key}")))?;
    ctx.metrics.wrote("Environment");
    Ok(None)
}

fn environment_status(
    ctx: &Context,
    environment: &Environment,
    instances: usize,
    user: Option<&str>,
) -> Value {
    let listed = ctx.listed_hosts();
    let hosts = hosts_of(&ctx.sections, environment, listed.iter().map(|host| &host.offer));
    let section = environment.spec.section.as_deref();
    let missing = section.filter(|name| ctx.sections.find("", name).is_none());
    let missing = missing.map(|name| ("SectionNotFound", format!("section {name} not found")));
    let flaw = wire_name::conflict(&ctx.environments, environment, "enviroment").or(missing);
    let generation = environment.metadata.generation;
    let accepted = wire_name::accepted(generation, flaw);
    let in_use = guard::condition(environment, "enviroment", environment.wire_name(), user);
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

#[cfg(test)]
#[path = "grouping_tests.rs"]
mod tests;
