//! The kinds of objects that clients manage, and what is common to them.

use std::fmt::Debug;

use serde::Serialize;
use serde::de::DeserializeOwned;
use virtshell_crds::permissions::Guarded;
use virtshell_crds::{Environment, File, Group, Host, Image, Instance, Provisioner, Section, Task, User};

use crate::store::{Cached, Collection, Store};

/// A kind of object that clients manage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A machine.
    Host,
    /// A group of machines.
    Section,
    /// Where instances are created.
    Environment,
    /// What an instance boots from.
    Image,
    /// How an instance is built.
    Provisioner,
    /// A virtual machine or container.
    Instance,
    /// Asynchronous work.
    Task,
    /// Stored content.
    File,
    /// Who may do what.
    User,
    /// Users that permissions speak of together.
    Group,
}

impl Kind {
    /// The Kubernetes kind.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Host => "Host",
            Self::Section => "Section",
            Self::Environment => "Environment",
            Self::Image => "Image",
            Self::Provisioner => "Provisioner",
            Self::Instance => "Instance",
            Self::Task => "Task",
            Self::File => "File",
            Self::User => "User",
            Self::Group => "Group",
        }
    }
}

/// An object that clients manage.
pub trait Managed: Cached + Debug + Serialize + DeserializeOwned {
    /// Its kind.
    const KIND: Kind;

    /// Where its objects are.
    fn collection(store: &Store) -> &Collection<Self>;

    /// Its permissions, for the kinds that have them.
    fn guarded(&self) -> Option<Guarded<'_>> {
        None
    }
}

macro_rules! managed {
    ($kind:ident, $collection:ident) => {
        impl Managed for $kind {
            const KIND: Kind = Kind::$kind;

            fn collection(store: &Store) -> &Collection<Self> {
                &store.$collection
            }
        }
    };
    ($kind:ident, $collection:ident, guarded) => {
        impl Managed for $kind {
            const KIND: Kind = Kind::$kind;

            fn collection(store: &Store) -> &Collection<Self> {
                &store.$collection
            }

            fn guarded(&self) -> Option<Guarded<'_>> {
                Some(Guarded {
                    permissions: self.spec.permissions.as_ref().map(|p| p.0.as_str()),
                    owner: self.spec.owner.as_deref(),
                    group: self.spec.group.as_deref(),
                })
            }
        }
    };
}

managed!(Host, hosts);
managed!(Section, sections);
managed!(Environment, environments);
managed!(Image, images, guarded);
managed!(Provisioner, provisioners, guarded);
managed!(Instance, instances, guarded);
managed!(Task, tasks);
managed!(File, files, guarded);
managed!(User, users);
managed!(Group, groups);
