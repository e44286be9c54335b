//! Writes of the controller, and what can go wrong with them.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::api::{Api, Patch, PatchParams};
use kube::{Resource, ResourceExt};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use virtshell_crds::{MANAGER_CONTROLLER, condition};

/// Why a look at an object did not come to its end.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The API server did not take or give something.
    #[error("cannot {doing}")]
    Api {
        /// What we were doing, to what.
        doing: String,
        /// Its answer.
        #[source]
        source: kube::Error,
    },
    /// The kernel gave no random bytes for a key.
    #[error("cannot make keys: no random bytes ({0})")]
    Random(getrandom::Error),
}

impl Error {
    /// An answer of the API server while `doing` something.
    pub fn api(doing: impl Into<String>) -> impl FnOnce(kube::Error) -> Self {
        let doing = doing.into();
        move |source| Self::Api { doing, source }
    }

    /// The error and its causes.
    #[must_use]
    pub fn in_one_line(&self) -> String {
        match self {
            Self::Api { doing, source } => format!("cannot {doing}: {}", words(source)),
            Self::Random(_) => self.to_string(),
        }
    }

    /// Somebody else wrote first: look again.
    #[must_use]
    pub fn is_conflict(&self) -> bool {
        matches!(self, Self::Api { source: kube::Error::Api(status), .. }
            if status.is_conflict() || status.is_already_exists())
    }

    /// What the API server says against the content of a write: to try the same again would not help.
    #[must_use]
    pub fn refusal(&self) -> Option<String> {
        match self {
            Self::Api {
                source: kube::Error::Api(status),
                ..
            } if matches!(status.code, 400 | 403 | 422) => Some(in_its_words(status)),
            Self::Api { .. } | Self::Random(_) => None,
        }
    }

    /// The object is gone: nothing to do.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Api { source: kube::Error::Api(status), .. } if status.is_not_found())
    }
}

/// An error of the API client in one line: the API server's own words where it gave some.
#[must_use]
pub fn words(error: &kube::Error) -> String {
    if let kube::Error::Api(status) = error {
        return status.message.clone();
    }
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

/// The reasons alone, without the object's name and fields, where they are given.
fn in_its_words(status: &kube::core::Status) -> String {
    let causes = status.details.iter().flat_map(|details| &details.causes);
    // `Invalid value: "object": Field maxCpus: must not be below cpus`
    let words = |message: &'_ str| message.find("Field ").unwrap_or_default();
    let causes: Vec<&str> = causes
        .map(|cause| &cause.message[words(&cause.message)..])
        .collect();
    if causes.is_empty() {
        status.message.clone()
    } else {
        causes.join(", ")
    }
}

/// Now, as conditions carry it.
#[must_use]
pub fn now() -> Time {
    Time(k8s_openapi::jiff::Timestamp::now())
}

/// Applies status as [`crate::status::apply`] does, and only to the object as it was read: a controller that has lost its
/// leadership, or has seen an older state, is refused (409 Conflict).
pub async fn apply_as_read<K>(api: &Api<K>, object: &K, manager: &str, status: &Value) -> kube::Result<K>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + std::fmt::Debug,
{
    let name = object.name_any();
    let patch = json!({
        "apiVersion": K::api_version(&()),
        "kind": K::kind(&()),
        "metadata": { "name": name, "uid": object.uid(), "resourceVersion": object.resource_version() },
        "status": status,
    });
    api.patch_status(&name, &PatchParams::apply(manager).force(), &Patch::Apply(&patch))
        .await
}

/// A merge patch as this controller, and only of the object as it was read, as with [`apply_as_read`].
pub async fn patch_as_read<K>(api: &Api<K>, object: &K, mut patch: Value) -> kube::Result<K>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + std::fmt::Debug,
{
    patch["metadata"]["uid"] = json!(object.uid());
    patch["metadata"]["resourceVersion"] = json!(object.resource_version());
    let params = PatchParams {
        field_manager: Some(MANAGER_CONTROLLER.to_owned()),
        ..PatchParams::default()
    };
    api.patch(&object.name_any(), &params, &Patch::Merge(&patch))
        .await
}

/// Conditions of ours as they should be, with the transition times of those that are there.
#[must_use]
pub fn conditions(present: &[Condition], mine: impl IntoIterator<Item = Condition>) -> Vec<Condition> {
    let mine: Vec<Condition> = mine.into_iter().collect();
    let mut list: Vec<Condition> = present
        .iter()
        .filter(|old| mine.iter().any(|new| new.type_ == old.type_))
        .cloned()
        .collect();
    for new in mine {
        condition::upsert(&mut list, new);
    }
    list
}
