//! VirtShell's own REST API, version 1.
//!
//! [`routes`] lists what is served; [`edge`] is the way of every request; one module per collection translates bodies
//! into intents of [`crate::service`] and outcomes into views; [`values`] and [`selector`] read what is on the wire;
//! [`error`] renders refusals.

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
mod packages;
mod power;
mod properties;
mod provisioners;
mod routes;
mod sections;
mod selector;
mod sizes;
mod tasks;
mod upload;
mod users;
mod values;
mod view;

use std::sync::Arc;

pub use edge::{Limits, Mounted, VirtShell};

use answer::Answer;
use edge::Call;
use error::Rejection;

#[cfg(test)]
mod properties_of_parsers;

impl VirtShell {
    /// As the router mounts it.
    #[must_use]
    pub fn mounted(self) -> Mounted {
        Mounted(Arc::new(self))
    }
}

/// A change of a whole collection is none: the name is missing in the path.
async fn missing_name(_: Call) -> Result<Answer, Rejection> {
    Err(Rejection::MissingParameter("name parameter"))
}

/// The same for tasks, which have no names.
async fn missing_uuid(_: Call) -> Result<Answer, Rejection> {
    Err(Rejection::MissingParameter("uuid parameter"))
}
