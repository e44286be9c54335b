//! Objects of one kind: read from the cache, written through the API server, and seen by the next reader at once.

use std::fmt::Debug;
use std::future::Future;
use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams, Preconditions};
use kube::{Api, Error};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use virtshell_crds::MANAGER_GATEWAY;

use super::cache::Cache;
use super::index::{Cached, Source};

/// How long the API server may take for one write.
const DEADLINE: Duration = Duration::from_secs(15);

/// Why a write did not happen.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Something of that name is there.
    #[error("the object exists")]
    AlreadyExists,
    /// The object is not there, or is another one by now.
    #[error("the object is gone")]
    NotFound,
    /// The object has changed since it was read.
    #[error("the object changed at the same time")]
    Conflict,
    /// The schema or an admission policy said no, in words for the user.
    #[error("{0}")]
    Refused(String),
    /// The API server did not answer.
    #[error("the Kubernetes API cannot be reached")]
    Unreachable(#[source] Option<Box<Error>>),
    /// It answered what it never should.
    #[error("the Kubernetes API failed")]
    Unexpected(#[source] Box<Error>),
}

/// Objects of one kind; reads are those of its [`Cache`].
pub struct Collection<K> {
    api: Api<K>,
    cache: Arc<Cache<K>>,
}

impl<K> Deref for Collection<K> {
    type Target = Cache<K>;

    fn deref(&self) -> &Cache<K> {
        &self.cache
    }
}

impl<K> Collection<K>
where
    K: Cached + Debug + DeserializeOwned + Serialize,
{
    pub(super) fn new(api: Api<K>, cache: Arc<Cache<K>>) -> Self {
        Self { api, cache }
    }

    /// Makes an object.
    pub async fn create(&self, object: &K) -> Result<Arc<K>, StoreError> {
        let params = PostParams {
            field_manager: Some(MANAGER_GATEWAY.to_owned()),
            ..PostParams::default()
        };
        let made = bounded(self.api.create(&params, object)).await?;
        self.keep(made)
    }

    /// Merges `patch` into the object.
    pub async fn patch(&self, name: &str, patch: &Value) -> Result<Arc<K>, StoreError> {
        let changed = bounded(self.api.patch(name, &manager(), &Patch::Merge(patch))).await?;
        self.keep(changed)
    }

    /// Merges `patch` into the status of the object.
    pub async fn patch_status(&self, name: &str, patch: &Value) -> Result<Arc<K>, StoreError> {
        let changed = bounded(self.api.patch_status(name, &manager(), &Patch::Merge(patch))).await?;
        self.keep(changed)
    }

    /// Reads the object past the cache, and lets the cache know.
    pub async fn refresh(&self, name: &str) -> Result<Arc<K>, StoreError> {
        let object = bounded(self.api.get(name)).await?;
        self.keep(object)
    }

    /// Reads all of the object past the cache, which keeps less of it and is not told.
    pub async fn whole(&self, name: &str) -> Result<K, StoreError> {
        bounded(self.api.get(name)).await
    }

    /// Reads all objects past the cache.
    pub async fn list_whole(&self) -> Result<Vec<K>, StoreError> {
        bounded(self.api.list(&ListParams::default()))
            .await
            .map(|list| list.items)
    }

    /// Deletes exactly this object. It may stay for a while when finalizers hold it; [`Cache::is_gone`] waits for the
    /// end.
    pub async fn delete(&self, object: &K) -> Result<(), StoreError> {
        let meta = object.meta();
        let (name, uid) = (
            meta.name.clone().unwrap_or_default(),
            meta.uid.clone().unwrap_or_default(),
        );
        let params = DeleteParams {
            preconditions: Some(Preconditions {
                uid: Some(uid.clone()),
                resource_version: None,
            }),
            ..DeleteParams::default()
        };
        match bounded(self.api.delete(&name, &params)).await {
            Ok(outcome) => {
                // An object in the answer is still there, and has a deletion timestamp when finalizers hold it.
                match outcome
                    .left()
                    .filter(|held| held.meta().deletion_timestamp.is_some())
                {
                    Some(held) => drop(self.cache.put(held, Source::Write)),
                    None => self.cache.remove(&uid),
                }
                Ok(())
            }
            // The name belongs to another object, or to none: this one is gone.
            Err(StoreError::NotFound | StoreError::Conflict) => {
                self.cache.remove(&uid);
                Err(StoreError::NotFound)
            }
            Err(error) => Err(error),
        }
    }

    fn keep(&self, object: K) -> Result<Arc<K>, StoreError> {
        self.cache.put(object, Source::Write).ok_or(StoreError::NotFound)
    }
}

fn manager() -> PatchParams {
    PatchParams {
        field_manager: Some(MANAGER_GATEWAY.to_owned()),
        ..PatchParams::default()
    }
}

async fn bounded<T>(call: impl Future<Output = kube::Result<T>>) -> Result<T, StoreError> {
    match tokio::time::timeout(DEADLINE, call).await {
        Ok(result) => result.map_err(classify),
        Err(_) => Err(StoreError::Unreachable(None)),
    }
}

fn classify(error: Error) -> StoreError {
    let Error::Api(status) = &error else {
        if matches!(error, Error::SerdeError(_) | Error::BuildRequest(_)) {
            return StoreError::Unexpected(Box::new(error));
        }
        // What is left is the way to the API server.
        return StoreError::Unreachable(Some(Box::new(error)));
    };
    match (status.code, status.reason.as_str()) {
        (404, _) => StoreError::NotFound,
        (409, "AlreadyExists") => StoreError::AlreadyExists,
        (409, _) => StoreError::Conflict,
        (422, _) => StoreError::Refused(refusal(status)),
        (429 | 503 | 504, _) => StoreError::Unreachable(Some(Box::new(error))),
        _ => StoreError::Unexpected(Box::new(error)),
    }
}

/// What the schema said, without the envelope around it: the rules speak in words for the user.
fn refusal(status: &kube::core::Status) -> String {
    let causes = status
        .details
        .as_ref()
        .map(|details| details.causes.as_slice())
        .unwrap_or_default();
    let Some(cause) = causes.first() else {
        return status.message.clone();
    };
    // `Invalid value: "object": Field launch: min must not be greater than max`
    if let Some(at) = cause.message.find("Field ") {
        return cause.message[at..].to_owned();
    }
    format!("Field {}: {}", cause.field, cause.message)
}
