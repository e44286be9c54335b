//! Wire names are unique per kind and namespace: of several objects with one, the oldest has it.
//!
//! REST keeps them apart by itself; objects that kubectl made or renamed can meet. The caches look up by the same rule, so the
//! one that is told `NameConflict` is the one that nobody finds.

use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::ResourceExt;
use kube::api::Api;
use serde_json::json;
use virtshell_crds::MANAGER_CONTROLLER;
use virtshell_crds::condition::{self, ACCEPTED, Status};

use super::accept::Refusal;
use super::cache::{Cache, Cached, ObjectKey};
use super::context::Context;
use super::depends::{self, Flaw};
use super::write::{self, Error};
use crate::status::differs;

/// Reason of `Accepted=False` of an object whose name is another's.
pub const NAME_CONFLICT: &str = "NameConflict";

/// The object that has the wire name of `object`, when that is another one.
pub fn holder<K: Cached>(cache: &Cache<K>, object: &K) -> Option<Arc<K>> {
    let namespace = object.meta().namespace.as_deref().unwrap_or_default();
    let first = cache
        .namesakes(namespace, &object.full_name())
        .into_iter()
        .min_by_key(|other| (other.meta().creation_timestamp.clone(), other.name_any()))?;
    (first.uid() != object.uid()).then_some(first)
}

/// Why an object is not accepted for its name: a reason and a message that begins with `word`, the REST API's for its kind.
pub fn conflict<K: Cached>(cache: &Cache<K>, object: &K, word: &str) -> Option<(&'static str, String)> {
    let holder = holder(cache, object)?;
    let (name, other) = (object.full_name(), holder.name_any());
    Some((
        NAME_CONFLICT,
        format!("{word} {name} already exists (object {other})"),
    ))
}

/// The condition `Accepted`, of an object with this `flaw`.
#[must_use]
pub fn accepted(generation: Option<i64>, flaw: Option<(&str, String)>) -> Condition {
    let (status, reason, message) = match flaw {
        None => (Status::True, "Valid", String::new()),
        Some((reason, message)) => (Status::False, reason, message),
    };
    condition::condition(ACCEPTED, status, reason, message, generation, write::now())
}

/// Looks at one Image. What an Instance needs of it is checked when one uses it.
pub async fn reconcile_image(ctx: &Context, key: &ObjectKey) -> Result<(), Error> {
    let Some(image) = ctx.images.get(key) else {
        return Ok(());
    };
    let present = image.status.as_ref().map(|s| s.conditions.as_slice());
    let flaw = conflict(&ctx.images, &*image, "image");
    report(
        ctx,
        "Image",
        &*image,
        &json!(image.status),
        present.unwrap_or_default(),
        flaw,
    )
    .await
}

/// Looks at one File.
pub async fn reconcile_file(ctx: &Context, key: &ObjectKey) -> Result<(), Error> {
    let Some(file) = ctx.files.get(key) else {
        return Ok(());
    };
    let present = file.status.as_ref().map(|s| s.conditions.as_slice());
    let flaw = conflict(&ctx.files, &*file, "file");
    report(
        ctx,
        "File",
        &*file,
        &json!(file.status),
        present.unwrap_or_default(),
        flaw,
    )
    .await
}

/// Looks at one Provisioner. What it refers to is checked when an Instance uses it; that it does not wait for itself, here.
pub async fn reconcile_provisioner(ctx: &Context, key: &ObjectKey) -> Result<(), Error> {
    let Some(provisioner) = ctx.provisioners.get(key) else {
        return Ok(());
    };
    let present = provisioner.status.as_ref().map(|s| s.conditions.as_slice());
    let find = |name: &str| ctx.provisioners.find(&key.namespace, name);
    let flaw = conflict(&ctx.provisioners, &*provisioner, "provisioner").or_else(|| {
        let refusal = Refusal::from(Flaw::Cycle(depends::circle(&provisioner, &find)?));
        Some((refusal.reason, refusal.message))
    });
    let status = json!(provisioner.status);
    report(
        ctx,
        "Provisioner",
        &*provisioner,
        &status,
        present.unwrap_or_default(),
        flaw,
    )
    .await
}

async fn report<K>(
    ctx: &Context,
    kind: &'static str,
    object: &K,
    status: &serde_json::Value,
    present: &[Condition],
    flaw: Option<(&'static str, String)>,
) -> Result<(), Error>
where
    K: Cached + kube::Resource<Scope = kube::core::NamespaceResourceScope>,
{
    let generation = object.meta().generation;
    let conditions = write::conditions(present, [accepted(generation, flaw)]);
    let desired = json!({"observedGeneration": generation, "conditions": conditions});
    if !differs(status, &desired, &["observedGeneration", "conditions"]) {
        return Ok(());
    }
    let api: Api<K> = Api::namespaced(ctx.client.clone(), &object.namespace().unwrap_or_default());
    let name = object.name_any();
    write::apply_as_read(&api, object, MANAGER_CONTROLLER, &desired)
        .await
        .map_err(Error::api(format!(
            "write the status of {} {name}",
            kind.to_lowercase()
        )))?;
    ctx.metrics.wrote(kind);
    Ok(())
}
