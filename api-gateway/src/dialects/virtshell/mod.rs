//! VirtShell's own REST API, version 1.
//!
//! [`routes`] lists what is served; [`edge`] is the way of every request; one module per collection translates bodies
//! into intents of [`crate::service`] and outcomes into views, and says what its routes are [`about`]; [`values`] and
//! [`selector`] read what is on the wire; [`error`] renders refusals; [`openapi`] is the document of all of it.

#![expect(
    clippy::unused_async,
    reason = "handlers have one shape; those that only read the caches wait for nothing"
)]

mod about;
mod answer;
mod calls;
mod edge;
mod enviroments;
mod error;
mod files;
mod groups;
mod hosts;
mod images;
mod instances;
mod missing;
mod openapi;
mod packages;
mod power;
mod properties;
mod provisioners;
mod routes;
mod sections;
mod selector;
mod shape;
mod sizes;
mod tasks;
mod upload;
mod users;
mod values;
mod view;

use std::sync::Arc;

pub use edge::{Limits, Mounted, VirtShell};
pub use openapi::{document, document_text};

#[cfg(test)]
mod properties_of_parsers;

impl VirtShell {
    /// As the router mounts it.
    #[must_use]
    pub fn mounted(self) -> Mounted {
        Mounted(Arc::new(self))
    }
}
