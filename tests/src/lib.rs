//! The harness of VirtShell's suites: a real control plane, libvirt, and the programs under test.
//!
//! - [`control_plane`]: etcd, kube-apiserver and controller manager with VirtShell's manifests, shared by the tests of a binary.
//! - [`identity`]: clients that are a service account, so that RBAC and the admission policies apply, and a node agent
//!   played by the test.
//! - [`program`]: the programs under test, with their logs.
//! - [`controller`]: a cluster controller under test.
//! - [`requests`]: what the API server counted.
//! - [`scale`]: what the benchmarks with many Instances share.
//! - [`limits`]: what benchmarks promise.
//! - [`process`]: what a process takes.
//! - [`system`]: everything, as `hack/up.sh` brings it up.
//! - [`wrk`]: load on one URL.
//! - [`fleet`]: many node agents without libvirt, in this process.
//! - [`farm`]: hosts of their own, each with a libvirt that may be killed.
//! - [`console`]: the commands that the documents show.
//! - [`wait`]: waiting for a state, never for a time.
//!
//! What a test starts is gone when the test process is, however it ends: see [`watchdog`].

pub mod console;
pub mod control_plane;
pub mod controller;
pub mod farm;
pub mod fleet;
pub mod guests;
pub mod identity;
pub mod kubectl;
pub mod leftovers;
pub mod level;
pub mod limits;
pub mod ports;
pub mod process;
pub mod program;
pub mod requests;
pub mod scale;
pub mod schema;
pub mod system;
pub mod wait;
pub mod watchdog;
pub mod wrk;

pub use control_plane::ControlPlane;
pub use controller::Controller;
pub use farm::Farm;
pub use fleet::Fleet;
pub use kubectl::Kubectl;
pub use limits::Limits;
pub use requests::Requests;
pub use wait::wait_for;

use std::path::{Path, PathBuf};
use std::time::Duration;

/// The sample at a percentile (1 to 100) of a sorted list.
///
/// # Panics
/// When the list is empty.
#[must_use]
pub fn percentile(sorted: &[Duration], percentile: usize) -> Duration {
    sorted[(sorted.len() * percentile).div_ceil(100).clamp(1, sorted.len()) - 1]
}

/// The root of the source tree.
#[must_use]
pub fn repository() -> PathBuf {
    let below = Path::new(env!("CARGO_MANIFEST_DIR"));
    below.parent().unwrap_or(below).to_owned()
}
