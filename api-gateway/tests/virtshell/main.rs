//! The conformance rows of VirtShell v1 that the gateway serves, over HTTP against a real API server.
//!
//! A test is named after its row (`v_001_...`); what has no row of its own stands beside the rows of its collection.

#[path = "../support/mod.rs"]
mod support;

mod calls;
mod enviroments;
mod groups;
mod hosts;
mod images;
mod instances;
mod outage;
mod protocol;
mod provisioners;
mod sections;
mod tasks;
mod users;
