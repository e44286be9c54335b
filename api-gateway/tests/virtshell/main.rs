//! The conformance rows of VirtShell v1 that the gateway serves, over HTTP against a real API server.
//!
//! A test is named after its row (`v_001_...`); what has no row of its own stands beside the rows of its collection.

#![allow(
    clippy::unwrap_used,
    clippy::too_many_lines,
    reason = "a failed helper fails its test; a table is as long as it is"
)]

#[path = "../support/mod.rs"]
mod support;

mod agents;
mod calls;
mod enviroments;
mod files;
mod fuzz;
mod groups;
mod guest_work;
mod hosts;
mod images;
mod instances;
mod outage;
mod packages;
mod process;
mod properties;
mod protocol;
mod provisioners;
mod reference;
mod reference_examples;
mod refused;
mod sections;
mod tasks;
mod users;
