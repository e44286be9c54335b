//! What VirtShell does, whatever the dialect: typed intents in, typed outcomes out.
//!
//! A dialect translates a request into an intent of one of these modules and the outcome back. Whatever two dialects
//! would both need is decided here: names ([`names`]), permissions (by [`virtshell_crds::permissions`]), references and
//! writes ([`objects`]), where an instance gets its values ([`effective`]), who can run it ([`placement`]), which instances
//! a selector means ([`selection`]).

mod caller;
mod clones;
mod dependencies;
pub mod effective;
pub mod environments;
mod error;
pub mod files;
pub mod groups;
pub mod guest_work;
pub mod hosts;
pub mod images;
pub mod instances;
mod kind;
pub mod live;
pub mod names;
pub mod objects;
pub mod outcomes;
pub mod placement;
pub mod power;
pub mod provisioners;
pub mod sections;
pub mod selection;
pub mod tasks;
pub mod users;

use std::sync::Arc;

pub use caller::Caller;
pub use error::{Field, Holder, Lacking, ServiceError, Verb};
pub use kind::{Kind, Managed};
pub use virtshell_crds::names::is_uuid;

use crate::blobs::Blobs;
use crate::nodes::Nodes;
use crate::store::Store;
use live::Samples;

/// Decides and writes.
#[derive(Clone)]
pub struct Service {
    store: Arc<Store>,
    blobs: Arc<Blobs>,
    nodes: Arc<Nodes>,
    samples: Arc<Samples>,
}

impl Service {
    /// A service over these caches and blobs, which asks these nodes.
    #[must_use]
    pub fn new(store: Arc<Store>, blobs: Blobs, nodes: Nodes) -> Self {
        Self {
            store,
            blobs: Arc::new(blobs),
            nodes: Arc::new(nodes),
            samples: Arc::default(),
        }
    }

    /// The caches.
    #[must_use]
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// The node agents.
    fn nodes(&self) -> &Nodes {
        &self.nodes
    }

    fn samples(&self) -> &Samples {
        &self.samples
    }
}
