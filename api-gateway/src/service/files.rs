//! Stored files: what they are called, who may have them, where their content is.
//!
//! Content of up to 64 KiB is in the File itself, the rest is a blob ([`crate::blobs`]) that the File names by its sum.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use futures::stream::{BoxStream, StreamExt};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use virtshell_crds::file_ref::file_of;
use virtshell_crds::{File, FileContent, FileSpec, names as derived};

use super::error::object_name;
use super::names;
use super::objects::{Ownership, checked_permissions, forbidden, may, modified, permit};
use super::{Caller, Field, Kind, Service, ServiceError, Verb, is_uuid};
use crate::blobs::{BlobError, Content, GRACE, Intake};
use crate::store::{Cached, by};

/// How often blobs are looked at that no File names.
const SWEEP: Duration = Duration::from_mins(10);

/// A file that is to be made.
pub struct NewFile {
    /// Folder; empty = none.
    pub folder: String,
    /// Name within it.
    pub name: String,
    /// Permission string.
    pub permissions: Option<String>,
    /// Owner and group.
    pub ownership: Ownership,
    /// What is in it.
    pub content: Content,
}

/// Values of a file; what is absent stays as it is. It keeps its name.
#[derive(Default)]
pub struct FileChange {
    /// Permission string.
    pub permissions: Option<String>,
    /// Owner and group.
    pub ownership: Ownership,
    /// What is in it from now on.
    pub content: Option<Content>,
}

/// The bytes of a file.
pub type Bytestream = BoxStream<'static, Result<Bytes, BlobError>>;

/// The content of a file, about to be read.
pub struct Stored {
    /// SHA-256, in hexadecimal digits.
    pub sha256: String,
    /// Bytes.
    pub size: u64,
    /// Absent when it is a blob.
    here: Option<Bytes>,
}

impl Service {
    /// The file that a URI names, by uuid, `folder/name` or a name that only one folder has, if the caller may do this with
    /// it.
    pub fn permitted_file(&self, caller: &Caller, verb: Verb, id: &str) -> Result<Arc<File>, ServiceError> {
        let found = self.look_up_file(caller, id)?;
        let file = found.ok_or_else(|| ServiceError::NotFound {
            kind: Kind::File,
            name: id.to_owned(),
        })?;
        permit(caller, verb, file.as_ref())?;
        Ok(file)
    }

    /// Refuses URLs that lead to stored files which the caller may not read: whoever boots from a file has its content.
    ///
    /// The host does not count: under which addresses clients reach the gateway is not known here.
    pub(super) fn permit_urls<'a>(
        &self,
        caller: &Caller,
        urls: impl IntoIterator<Item = &'a String>,
    ) -> Result<(), ServiceError> {
        for name in urls.into_iter().filter_map(|url| file_of(url)) {
            // Several folders may have it: then the controller asks which one is meant.
            if let Ok(Some(file)) = self.look_up_file(caller, &name) {
                permit(caller, Verb::Read, file.as_ref())?;
            }
        }
        Ok(())
    }

    /// The file that a value of the input names, in the same ways.
    pub(super) fn referenced_file(&self, caller: &Caller, id: &str) -> Result<Arc<File>, ServiceError> {
        let found = self.look_up_file(caller, id)?;
        found.ok_or_else(|| ServiceError::UnknownReference {
            kind: Kind::File,
            name: id.to_owned(),
        })
    }

    /// Of files of that name in several folders, those count that the caller may read: it learns of no others.
    fn look_up_file(&self, caller: &Caller, id: &str) -> Result<Option<Arc<File>>, ServiceError> {
        let files = &self.store().files;
        if is_uuid(id) {
            return Ok(files.by_uid(id));
        }
        if let Some(file) = files.by_wire_name(id) {
            return Ok(Some(file));
        }
        let mut named = files.by_key(by::FILE_NAME, id);
        if named.len() > 1 {
            named.retain(|file| may(caller, Verb::Read, Some(file.as_ref())));
            if named.is_empty() {
                return Err(forbidden(caller, Verb::Read, Kind::File, id));
            }
        }
        match named.as_slice() {
            [] => Ok(None),
            [file] => Ok(Some(file.clone())),
            several => {
                let mut names: Vec<String> = several.iter().map(|f| f.full_name().into_owned()).collect();
                names.sort();
                Err(ServiceError::invalid(
                    Field::Name,
                    format!("{id} is in several folders: say one of {}", names.join(", ")),
                ))
            }
        }
    }

    /// Begins to take in the content of a file.
    #[must_use]
    pub fn intake(&self) -> Intake<'_> {
        self.blobs.intake()
    }

    /// Makes a file.
    pub async fn create_file(&self, caller: &Caller, new: NewFile) -> Result<Arc<File>, ServiceError> {
        names::check_file(&new.folder, &new.name)?;
        let permissions = checked_permissions(new.permissions.as_ref())?;
        let full = derived::file_wire_name(&new.folder, &new.name);
        if self.store.files.by_wire_name(&full).is_some() {
            return Err(ServiceError::AlreadyExists {
                kind: Kind::File,
                name: full,
            });
        }
        let (owner, group) = self.ownership_of_new(caller, &new.ownership)?;
        let (size, sha256) = (new.content.size as i64, new.content.sha256.clone());
        let spec = FileSpec {
            display_name: Some(new.name),
            folder: new.folder,
            size,
            content: kept(new.content).await?,
            sha256: Some(sha256),
            permissions,
            owner,
            group,
        };
        self.create(caller, &full, |metadata| File {
            metadata,
            spec: spec.clone(),
            status: None,
        })
        .await
    }

    /// Changes a file. Its name stays.
    pub async fn update_file(
        &self,
        caller: &Caller,
        file: &File,
        change: FileChange,
    ) -> Result<(), ServiceError> {
        let permissions = checked_permissions(change.permissions.as_ref())?;
        let ownership = self.ownership_of_changed(caller, file, &change.ownership)?;
        let mut spec = Map::new();
        for (field, value) in [
            ("permissions", permissions.map(|permissions| permissions.0)),
            ("owner", ownership.owner),
            ("group", ownership.group),
        ] {
            spec.extend(value.map(|value| (field.to_owned(), json!(value))));
        }
        if let Some(content) = change.content {
            spec.insert("size".to_owned(), json!(content.size));
            spec.insert("sha256".to_owned(), json!(content.sha256));
            let FileContent { inline, blob } = kept(content).await?;
            // Both: the one that is not there clears what was.
            spec.insert("content".to_owned(), json!({"inline": inline, "blob": blob}));
        }
        if spec.is_empty() {
            return Ok(());
        }
        // The uid makes sure that a namesake is not meant.
        let patch = json!({
            "metadata": {"uid": file.metadata.uid, "annotations": modified(caller)},
            "spec": Value::Object(spec),
        });
        let changed = self.store.files.patch(object_name(file), &patch).await;
        changed
            .map(drop)
            .map_err(|error| ServiceError::of_write(error, Kind::File, &file.full_name()))
    }

    /// Removes a file. Its blob goes when no other names it.
    pub async fn delete_file(&self, file: &File) -> Result<(), ServiceError> {
        self.remove(file).await
    }

    /// What is in a file.
    pub async fn content(&self, file: &File) -> Result<Bytestream, ServiceError> {
        let stored = self.stored(file).await?;
        let all = 0..stored.size;
        self.read(stored, all).await
    }

    /// Where the content of a file is, and how much.
    pub async fn stored(&self, file: &File) -> Result<Stored, ServiceError> {
        if let Some(blob) = &file.spec.content.blob {
            let size = self.blobs.size(blob).await.map_err(|error| unusable(&error))?;
            return Ok(Stored {
                sha256: blob.clone(),
                size,
                here: None,
            });
        }
        // The cache does not keep it.
        let name = file.full_name();
        let whole = self.store.files.whole(object_name(file)).await;
        let whole = whole.map_err(|error| ServiceError::of_write(error, Kind::File, &name))?;
        let text = whole.spec.content.inline.unwrap_or_default();
        let bytes = STANDARD
            .decode(text)
            .map_err(|_| ServiceError::Internal(format!("the content of file {name} is not base64")))?;
        Ok(Stored {
            sha256: hex::encode(Sha256::digest(&bytes)),
            size: bytes.len() as u64,
            here: Some(Bytes::from(bytes)),
        })
    }

    /// A part of what is stored, within its size.
    pub async fn read(&self, stored: Stored, range: Range<u64>) -> Result<Bytestream, ServiceError> {
        match stored.here {
            None => {
                let part = self.blobs.read(&stored.sha256, range).await;
                part.map_err(|error| unusable(&error))
            }
            Some(bytes) => {
                let part = bytes.slice(range.start as usize..range.end as usize);
                Ok(futures::stream::once(async { Ok(part) }).boxed())
            }
        }
    }

    /// Removes blobs that no File names, again and again.
    pub async fn sweep_blobs(&self) {
        loop {
            tokio::time::sleep(SWEEP).await;
            match self.sweep_blobs_once(GRACE).await {
                Ok(0) => {}
                Ok(swept) => tracing::info!(swept, "removed blobs that no file names"),
                Err(error) => {
                    tracing::warn!(%error, source = ?std::error::Error::source(&error), "blobs are not swept");
                }
            }
        }
    }

    /// Removes blobs that no File names and that are older than `grace`. Returns how many went: none while it is not known
    /// what every File names.
    pub async fn sweep_blobs_once(&self, grace: Duration) -> Result<usize, BlobError> {
        let files = &self.store.files;
        if self.store.health().is_err() {
            return Ok(0);
        }
        if !files.is_complete() {
            tracing::warn!("blobs are not swept while there is a File that does not decode: it may name one");
            return Ok(0);
        }
        self.blobs
            .sweep(grace, |sum| !files.by_key(by::BLOB, sum).is_empty())
            .await
    }
}

/// Keeps content for good, and says where it is.
async fn kept(content: Content) -> Result<FileContent, ServiceError> {
    let sha256 = content.sha256.clone();
    match content.keep().await {
        Ok(Some(bytes)) => Ok(FileContent {
            inline: Some(STANDARD.encode(bytes)),
            blob: None,
        }),
        Ok(None) => Ok(FileContent {
            inline: None,
            blob: Some(sha256),
        }),
        Err(error) => Err(unusable(&error)),
    }
}

/// What a failure of the blobs means to a caller.
pub fn unusable(error: &BlobError) -> ServiceError {
    tracing::error!(%error, source = ?std::error::Error::source(error), "the file store failed");
    ServiceError::Internal(match error {
        BlobError::Missing(_) => "the content of the file is missing in the file store".to_owned(),
        BlobError::Directory(_) | BlobError::Bucket(_) => "the file store cannot be used".to_owned(),
    })
}
