//! Why a request is refused: one enum, which each dialect renders in its own envelope and words.

use std::sync::Arc;

use kube::ResourceExt;
use virtshell_crds::Instance;
use virtshell_crds::resolve::ResolveError;

use super::Kind;
use crate::store::StoreError;

/// A value of a request that the service judges; each dialect has its own word for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Field {
    /// Name of the object.
    Name,
    /// Environment of an instance.
    Environment,
    /// Provisioner of an instance.
    Provisioner,
    /// Image of an instance or provisioner.
    Image,
    /// Kind of host.
    HostType,
    /// How the guest runs.
    Driver,
    /// How many to launch.
    Launch,
    /// Root disk.
    Disk,
    /// Permission string.
    Permissions,
    /// Owner.
    Owner,
    /// Group that permissions speak of.
    Group,
    /// Section of a host or environment.
    Section,
    /// Hosts of a section or environment.
    Hosts,
    /// Type of a user or task.
    Type,
    /// State of a task.
    Status,
    /// Summary of a task.
    Log,
    /// Description of a task.
    Description,
    /// Executor of a provisioner.
    Executor,
    /// Dependencies of a provisioner.
    Depends,
    /// Instances that are acted on.
    Targets,
    /// Name of a clone.
    NewName,
    /// Packages.
    Packages,
    /// Mode of a copied file.
    Mode,
    /// Folder of a file.
    Folder,
}

/// What a caller wanted to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    /// See it.
    Read,
    /// Make it.
    Create,
    /// Change it.
    Update,
    /// Remove it.
    Delete,
    /// Make another object with it.
    Use,
    /// Act on a guest: start, stop, restart and their like.
    Execute,
}

impl Verb {
    /// The word in messages.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Create => "create",
            Self::Update => "update",
            Self::Delete => "delete",
            Self::Use => "use",
            Self::Execute => "execute actions on",
        }
    }
}

/// What no host of an environment has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lacking {
    /// The kind of host asked for.
    HostType,
    /// The driver asked for.
    Driver,
}

/// What needs an object that is to go, or to change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Holder {
    /// Instances.
    Instances {
        /// How many.
        count: usize,
        /// The first by name.
        first: String,
    },
    /// Instances on a host, of an environment that uses the host's section.
    InstancesOf {
        /// Name of the environment.
        environment: String,
    },
    /// One object.
    Object {
        /// Its kind.
        kind: Kind,
        /// Its name.
        name: String,
    },
    /// Everybody: it is the last system user.
    System,
}

impl Holder {
    /// These Instances, sorted by name; `None` when there are none.
    #[must_use]
    pub fn instances(all: &[Arc<Instance>]) -> Option<Self> {
        all.first().map(|first| Self::Instances {
            count: all.len(),
            first: first.wire_name().to_owned(),
        })
    }
}

/// Why a request is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServiceError {
    /// A value that must be given is not.
    Missing(Field),
    /// A value makes no sense, or cannot change.
    Invalid {
        /// The value.
        field: Field,
        /// Why.
        reason: String,
    },
    /// The name is taken.
    AlreadyExists {
        /// Kind of the object that has it.
        kind: Kind,
        /// The name.
        name: String,
    },
    /// A name in the request's input refers to nothing.
    UnknownReference {
        /// Kind of the object referred to.
        kind: Kind,
        /// Its name.
        name: String,
    },
    /// Other objects need this one.
    InUse {
        /// Its kind.
        kind: Kind,
        /// Its name.
        name: String,
        /// What needs it.
        by: Holder,
    },
    /// The caller may not.
    Forbidden {
        /// Name of the caller.
        caller: String,
        /// What it wanted.
        verb: Verb,
        /// Kind of the object.
        kind: Kind,
        /// Its name; empty for the kind as a whole.
        name: String,
    },
    /// The object that the request addresses is not there.
    NotFound {
        /// Its kind.
        kind: Kind,
        /// The name or uuid in the request.
        name: String,
    },
    /// No host that the environment may use has what the instance needs.
    NoHost(Lacking),
    /// A driver that is known and that no host here runs.
    UnsupportedDriver(String),
    /// The schema or an admission policy of the cluster said no.
    Refused(String),
    /// It failed and it is not the caller's fault; a short cause.
    Internal(String),
}

impl ServiceError {
    /// A value that makes no sense.
    pub fn invalid(field: Field, reason: impl Into<String>) -> Self {
        Self::Invalid {
            field,
            reason: reason.into(),
        }
    }

    /// What a failed write means for an object.
    pub fn of_write(error: StoreError, kind: Kind, name: &str) -> Self {
        let name = name.to_owned();
        match error {
            StoreError::AlreadyExists => Self::AlreadyExists { kind, name },
            StoreError::NotFound => Self::NotFound { kind, name },
            StoreError::Conflict => {
                Self::Internal("the object keeps changing at the same time; try again".to_owned())
            }
            StoreError::Refused(reason) => Self::Refused(reason),
            StoreError::Unreachable(source) => {
                tracing::warn!(kind = kind.as_str(), object = name, source = ?source, "write not sent");
                Self::Internal("the Kubernetes API cannot be reached".to_owned())
            }
            StoreError::Unexpected(source) => {
                tracing::error!(kind = kind.as_str(), object = name, %source, "write failed");
                Self::Internal("the Kubernetes API refused the write".to_owned())
            }
        }
    }
}

impl From<ResolveError> for ServiceError {
    fn from(error: ResolveError) -> Self {
        let text = error.to_string();
        match error {
            ResolveError::NoImage => Self::Missing(Field::Image),
            ResolveError::UnsupportedDriver(word) => Self::UnsupportedDriver(word),
            ResolveError::ImageDoesNotFit { .. } | ResolveError::ImageWithoutSource { .. } => {
                let reason = text.strip_prefix("Field image: ").unwrap_or(&text);
                Self::invalid(Field::Image, reason)
            }
        }
    }
}

/// `metadata.name` of an object from the API server.
pub(super) fn object_name(object: &impl ResourceExt) -> &str {
    object.meta().name.as_deref().unwrap_or_default()
}

/// `metadata.uid` of an object from the API server.
pub(super) fn uid(object: &impl ResourceExt) -> &str {
    object.meta().uid.as_deref().unwrap_or_default()
}
