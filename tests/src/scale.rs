//! What the benchmarks with many Instances share: where they are, what each asks for, and the program that is measured.

use std::path::PathBuf;

use anyhow::{Result, ensure};
use serde_json::json;
use virtshell_crds::{API_VERSION, Instance};

use crate::ControlPlane;

/// The namespace of the Instances.
pub const NAMESPACE: &str = "virtshell";

/// The operator beside the benchmark: the one that was built with it.
///
/// # Errors
/// When it has not been built.
pub fn operator() -> Result<PathBuf> {
    let path = std::env::current_exe()?.with_file_name("virtshell-operator");
    ensure!(path.exists(), "{} has not been built: make build", path.display());
    Ok(path)
}

/// Makes the section and the environment that the Instances are in.
///
/// # Errors
/// When the API server refuses.
pub fn furnish(control_plane: &ControlPlane) -> Result<()> {
    for mut object in [
        json!({"kind": "Section", "metadata": {"name": "default"}, "spec": {"description": "scale"}}),
        json!({"kind": "Environment", "metadata": {"name": "default", "namespace": NAMESPACE}, "spec": {"section": "default"}}),
    ] {
        object["apiVersion"] = API_VERSION.into();
        let kubectl = control_plane.kubectl();
        kubectl.ok_with(["apply", "-f", "-"], &object.to_string())?;
    }
    Ok(())
}

/// A small Instance without an image.
///
/// # Errors
/// When the type does not take these fields any more.
pub fn instance(name: &str) -> Result<Instance> {
    Ok(serde_json::from_value(json!({
        "apiVersion": API_VERSION, "kind": "Instance",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {"blank": true, "driver": "kvm", "cpus": 1, "memoryMiB": 32, "diskMiB": 16},
    }))?)
}
