//! Everything the gateway knows: watch caches of the resources, and writes that the caches see at once.
//!
//! Reads never leave the process. A write goes to the API server, and its answer goes into the cache before the caller
//! continues, so the next request sees it. When it is not known of every cache that it was current less than [`PATIENCE`] ago,
//! [`Store::health`] says so and requests are refused rather than answered with stale data.

mod cache;
mod collection;
mod feed;
mod index;
mod kinds;

use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

pub use cache::Cache;
pub use collection::{Collection, StoreError};
pub use index::{Cached, Key, created};
use k8s_openapi::api::core::v1::Secret;
use kube::core::DeserializeGuard;
use kube::{Api, Client};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::task::JoinSet;
use virtshell_crds::{
    Environment, File, Group, Host, Image, Instance, LABEL_CREDENTIALS, Provisioner, Section, Task,
    TaskAssignment, User,
};

/// Names of the caches' further indexes.
pub mod by {
    /// Instances by `metadata.name` of their host.
    pub const HOST: &str = "host";
    /// Instances and hosts by what they name as their environment or section.
    pub const CONTAINER: &str = "container";
    /// Instances by `metadata.name` of their launch parent.
    pub const LAUNCH_PARENT: &str = "launch-parent";
    /// `TaskAssignments` by uid of their Task.
    pub const TASK: &str = "task";
    /// Groups by the users they name, users by the groups they name.
    pub const MEMBER: &str = "member";
    /// Files by name, whatever their folder.
    pub const FILE_NAME: &str = "file-name";
    /// Files by their folder.
    pub const FOLDER: &str = "folder";
    /// Files by the blob that is their content.
    pub const BLOB: &str = "blob";
    /// Secrets by access key id.
    pub const ACCESS_KEY: &str = "access-key";
    /// Users by the name of their Secret.
    pub const SECRET: &str = "secret";
}

/// Key of a credentials Secret.
pub const ACCESS_KEY_ID: &str = "accessKeyId";
/// Key of a credentials Secret.
pub const SECRET_ACCESS_KEY: &str = "secretAccessKey";

/// How long ago a cache may have been current for sure before requests are refused.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// Why the caches cannot be trusted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Stale {
    /// They have not been filled since the start.
    #[error("the caches are not filled yet")]
    NotFilled,
    /// The API server has not been heard of.
    #[error("no contact with the Kubernetes API for {} s", .0.as_secs())]
    Silent(Duration),
}

/// All collections of one namespace, and the cluster-wide ones.
pub struct Store {
    /// Machines.
    pub hosts: Collection<Host>,
    /// Groups of machines.
    pub sections: Collection<Section>,
    /// Where instances are created.
    pub environments: Collection<Environment>,
    /// What instances boot from.
    pub images: Collection<Image>,
    /// How instances are built.
    pub provisioners: Collection<Provisioner>,
    /// Virtual machines and containers.
    pub instances: Collection<Instance>,
    /// Asynchronous work.
    pub tasks: Collection<Task>,
    /// Parts of it, with results.
    pub assignments: Collection<TaskAssignment>,
    /// Who may do what.
    pub users: Collection<User>,
    /// Stored files, without their content.
    pub files: Collection<File>,
    /// Users that permissions speak of together.
    pub groups: Collection<Group>,
    /// Keys of users: Secrets with our label and no others.
    pub secrets: Collection<Secret>,
    namespace: String,
}

/// The tasks that keep a [`Store`] fresh; they end when this is dropped.
#[derive(Default)]
pub struct Feeds(JoinSet<()>);

impl Store {
    /// Begins to fill caches of `namespace`; [`Store::health`] says when they are full.
    #[must_use]
    pub fn open(client: &Client, namespace: &str) -> (Arc<Self>, Feeds) {
        let mut feeds = Feeds::default();
        let store = Arc::new(Self {
            hosts: feeds.cluster(client),
            sections: feeds.cluster(client),
            environments: feeds.namespaced(client, namespace),
            images: feeds.namespaced(client, namespace),
            provisioners: feeds.namespaced(client, namespace),
            instances: feeds.namespaced(client, namespace),
            tasks: feeds.namespaced(client, namespace),
            assignments: feeds.namespaced(client, namespace),
            files: feeds.namespaced(client, namespace),
            users: feeds.namespaced(client, namespace),
            groups: feeds.namespaced(client, namespace),
            secrets: feeds.feed(
                Api::namespaced(client.clone(), namespace),
                Api::namespaced(client.clone(), namespace),
                Some(format!("{LABEL_CREDENTIALS}=true")),
            ),
            namespace: namespace.to_owned(),
        });
        (store, feeds)
    }

    /// The namespace it serves.
    #[must_use]
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// Whether the caches can be trusted.
    pub fn health(&self) -> Result<(), Stale> {
        let silences = [
            self.hosts.silence(),
            self.sections.silence(),
            self.environments.silence(),
            self.images.silence(),
            self.provisioners.silence(),
            self.instances.silence(),
            self.tasks.silence(),
            self.assignments.silence(),
            self.files.silence(),
            self.users.silence(),
            self.groups.silence(),
            self.secrets.silence(),
        ];
        let mut longest = Duration::ZERO;
        for silence in silences {
            longest = longest.max(silence.ok_or(Stale::NotFilled)?);
        }
        if longest > PATIENCE {
            Err(Stale::Silent(longest))
        } else {
            Ok(())
        }
    }
}

impl Feeds {
    fn cluster<K>(&mut self, client: &Client) -> Collection<K>
    where
        K: Cached
            + kube::Resource<Scope = kube::core::ClusterResourceScope>
            + Debug
            + DeserializeOwned
            + Serialize,
    {
        self.feed(Api::all(client.clone()), Api::all(client.clone()), None)
    }

    fn namespaced<K>(&mut self, client: &Client, namespace: &str) -> Collection<K>
    where
        K: Cached
            + kube::Resource<Scope = kube::core::NamespaceResourceScope>
            + Debug
            + DeserializeOwned
            + Serialize,
    {
        self.feed(
            Api::namespaced(client.clone(), namespace),
            Api::namespaced(client.clone(), namespace),
            None,
        )
    }

    fn feed<K>(
        &mut self,
        guarded: Api<DeserializeGuard<K>>,
        plain: Api<K>,
        labels: Option<String>,
    ) -> Collection<K>
    where
        K: Cached + Debug + DeserializeOwned + Serialize,
    {
        let cache = Arc::new(Cache::default());
        let feed = feed::Feed {
            guarded,
            plain: plain.clone(),
            labels,
            cache: cache.clone(),
        };
        self.0.spawn(feed.run());
        Collection::new(plain, cache)
    }
}
