//! VirtShell's two reconcilers, one binary.
//!
//! [`controller`] is cluster-wide and leader-elected: it accepts, resolves and places Instances and watches over hosts.
//! [`node`] runs beside libvirt on every machine and drives the domains of its host to what their Instances ask for.
//! They agree through the API server alone. [`status`] holds what both need to write status, [`events`] what
//! they tell people, [`probes`] their health and metrics endpoints.

pub mod cluster;
pub mod controller;
pub mod events;
pub mod file_content;
pub mod node;
pub mod probes;
pub mod status;
pub mod telemetry;
