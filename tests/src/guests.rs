//! Instances of the end-to-end suites: specs of small guests, and what is said of them.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use kube::ResourceExt;
use serde_json::{Value, json};
use virtshell_crds::Instance;

use crate::farm::IMAGE;

/// A small real guest.
#[must_use]
pub fn guest() -> Value {
    json!({"image": IMAGE, "driver": "qemu", "cpus": 1, "maxCpus": 1, "memoryMiB": 128, "diskMiB": 256, "shutdownGraceSeconds": 0})
}

/// A machine with an empty disk: its firmware finds nothing to boot and stands still, so it costs next to nothing.
#[must_use]
pub fn blank() -> Value {
    json!({"blank": true, "driver": "qemu", "cpus": 1, "maxCpus": 1, "memoryMiB": 32, "diskMiB": 16, "shutdownGraceSeconds": 0})
}

/// A spec with other values.
#[must_use]
pub fn with(mut spec: Value, more: Value) -> Value {
    if let (Value::Object(spec), Value::Object(more)) = (&mut spec, more) {
        spec.extend(more);
    }
    spec
}

/// "True Running: message" of a condition; empty when it is not said.
#[must_use]
pub fn said(instance: &Instance, type_: &str) -> String {
    conditions(instance).remove(type_).unwrap_or_default()
}

fn conditions(instance: &Instance) -> BTreeMap<String, String> {
    let conditions = instance.status.iter().flat_map(|status| &status.conditions);
    conditions
        .map(|c| {
            (
                c.type_.clone(),
                format!("{} {}: {}", c.status, c.reason, c.message),
            )
        })
        .collect()
}

/// Whether Ready is True at the newest generation.
#[must_use]
pub fn is_ready(instance: &Instance) -> bool {
    let status = instance.status.as_ref();
    status.is_some_and(|s| {
        s.observed_generation == instance.metadata.generation
            && s.conditions.iter().any(|c| {
                c.type_ == "Ready"
                    && c.status == "True"
                    && c.observed_generation == instance.metadata.generation
            })
    })
}

/// libvirt's name of an Instance's domain.
///
/// # Errors
/// When the status has none.
pub fn domain(instance: &Instance) -> Result<String> {
    let domain = instance.status.as_ref().and_then(|s| s.domain.as_ref());
    let domain = domain.with_context(|| format!("{} has no domain", instance.name_any()))?;
    ensure!(!domain.name.is_empty(), "a domain has a name");
    Ok(domain.name.clone())
}

/// An Instance as the message of a failed wait shows it.
pub struct Seen(pub Instance);

impl std::fmt::Debug for Seen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let status = self.0.status.as_ref();
        f.debug_struct("Instance")
            .field("generation", &self.0.metadata.generation)
            .field("phase", &status.and_then(|s| s.phase))
            .field("powerState", &status.and_then(|s| s.power_state))
            .field("restartRequired", &status.map(|s| &s.restart_required))
            .field("conditions", &conditions(&self.0))
            .finish_non_exhaustive()
    }
}
