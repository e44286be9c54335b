//! What all objects show.

use k8s_openapi::jiff::Timestamp;
use kube::Resource;
use serde::Serialize;
use utoipa::ToSchema;
use virtshell_crds::{
    ANNOTATION_CREATED_BY, ANNOTATION_MODIFIED_AT, ANNOTATION_MODIFIED_BY, DEFAULT_PERMISSIONS,
};

use super::about::Epoch;
use crate::store::created;

/// Who `created.by` names for objects made with kubectl.
const KUBERNETES: &str = "kubernetes";

/// When, and by whom.
#[derive(Debug, Serialize, ToSchema)]
pub struct Stamp {
    /// Since when.
    #[schema(value_type = Epoch)]
    at: String,
    /// uuid of the user; `kubernetes` for what kubectl made.
    by: String,
}

/// uuid, created and modified.
#[derive(Debug, Serialize, ToSchema)]
pub struct Common {
    /// Names the object as well as its name does.
    #[schema(format = Uuid)]
    uuid: String,
    /// When it was made, and by whom.
    created: Stamp,
    /// When it was last changed through the API, and by whom.
    modified: Stamp,
}

/// An object as a list inside another one shows it.
#[derive(Debug, Serialize, ToSchema)]
pub struct NameAndId {
    /// Its name.
    pub name: String,
    /// Its uuid; empty for what is gone.
    pub id: String,
}

/// uuid, created and modified of an object.
pub fn common<K: Resource>(object: &K) -> Common {
    Common {
        uuid: uuid(object),
        created: created_stamp(object),
        modified: modified_stamp(object),
    }
}

/// uuid of an object.
pub fn uuid<K: Resource>(object: &K) -> String {
    object.meta().uid.clone().unwrap_or_default()
}

/// When an object was made, and by whom.
pub fn created_stamp<K: Resource>(object: &K) -> Stamp {
    Stamp {
        at: created(object).to_string(),
        by: annotation(object, ANNOTATION_CREATED_BY)
            .unwrap_or(KUBERNETES)
            .to_owned(),
    }
}

fn modified_stamp<K: Resource>(object: &K) -> Stamp {
    let at = annotation(object, ANNOTATION_MODIFIED_AT);
    match (at, annotation(object, ANNOTATION_MODIFIED_BY)) {
        (Some(at), Some(by)) => Stamp {
            at: at.to_owned(),
            by: by.to_owned(),
        },
        _ => created_stamp(object),
    }
}

fn annotation<'a, K: Resource>(object: &'a K, name: &str) -> Option<&'a str> {
    object.meta().annotations.as_ref()?.get(name).map(String::as_str)
}

/// The permission string to show.
pub fn permissions(stored: Option<&virtshell_crds::instance::Permissions>) -> String {
    stored.map_or_else(
        || DEFAULT_PERMISSIONS.to_owned(),
        |permissions| permissions.0.clone(),
    )
}

/// A text, unless it is empty: optional values that were never set are left out.
pub fn non_empty(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| text.to_owned())
}

/// Seconds since the epoch.
pub fn epoch(time: Timestamp) -> String {
    time.as_second().to_string()
}
