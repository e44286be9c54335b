//! Downloads under way, on disk: what an agent that is started again goes on with.
//!
//! A part `parts/<key>` has a note `parts/<key>.json` beside it, which says where it came from and how many of its bytes
//! are certain: synced before they were noted, so that a power failure leaves nothing that looks like content. A part
//! without a note is worth nothing, and goes at the next start. Whoever works on a part holds a lock on it.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use serde::{Deserialize, Serialize};
use tempfile::{NamedTempFile, TempPath};

use super::error::StorageError;
use super::layout::{TEMP_PREFIX, is_sha256};
use super::source::{Source, url_key};

/// How often what came is made certain.
const CERTAIN_EVERY: Duration = Duration::from_secs(1);
/// How long a part stays that nobody goes on with.
const PATIENCE: Duration = Duration::from_hours(24);

/// What `parts/<key>.json` holds.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
struct Note {
    url: String,
    /// Declared SHA-256.
    sha256: Option<String>,
    /// `ETag` or `Last-Modified` of the content.
    validator: Option<String>,
    /// Bytes of the part that are certain.
    bytes: u64,
}

/// The notes of one part.
pub(super) struct Notes {
    path: PathBuf,
    note: Note,
    noted_at: Option<Instant>,
}

impl Notes {
    /// What the server said that its content is.
    pub(super) fn validator(&self) -> Option<&str> {
        self.note.validator.as_deref()
    }

    /// Remembers how to ask whether the content is still the same.
    pub(super) fn set_validator(&mut self, validator: Option<String>) {
        if self.note.validator != validator {
            self.note.validator = validator;
            self.noted_at = None;
        }
    }

    /// Makes the first `bytes` certain, now and then. Nothing is noted that could not be gone on with.
    pub(super) fn progress(&mut self, file: &File, bytes: u64) -> std::io::Result<()> {
        if self.noted_at.is_some_and(|at| at.elapsed() < CERTAIN_EVERY) {
            return Ok(());
        }
        self.all(file, bytes)
    }

    /// Makes the first `bytes` certain.
    pub(super) fn all(&mut self, file: &File, bytes: u64) -> std::io::Result<()> {
        if self.note.validator.is_none() && self.note.sha256.is_none() {
            return Ok(());
        }
        // A hole at the end is not there until the length says so.
        file.set_len(bytes)?;
        file.sync_data()?;
        self.note.bytes = bytes;
        let dir = self.path.parent().unwrap_or(&self.path);
        let written = tempfile::Builder::new().prefix(TEMP_PREFIX).tempfile_in(dir)?;
        serde_json::to_writer(written.as_file(), &self.note)?;
        written.as_file().sync_all()?;
        written.persist(&self.path).map_err(|error| error.error)?;
        self.noted_at = Some(Instant::now());
        Ok(())
    }

    /// Nothing is certain any more.
    pub(super) fn forget(&mut self) -> std::io::Result<()> {
        (self.note.validator, self.note.bytes, self.noted_at) = (None, 0, None);
        gone(std::fs::remove_file(&self.path))
    }
}

/// The part of a source, made if there is none, its notes, and how many of its bytes are certain. Blocks.
pub(super) fn open(dir: &Path, source: &Source) -> Result<(NamedTempFile, Notes, u64), StorageError> {
    let path = dir.join(url_key(&source.key()));
    let failed = |error| StorageError::disk("opening", &path)(error);
    let file = locked(&path).map_err(failed)?;
    let mut notes = Notes {
        path: note_path(&path),
        note: Note {
            url: source.url.clone(),
            sha256: source.sha256.clone(),
            validator: None,
            bytes: 0,
        },
        noted_at: None,
    };
    let length = file.metadata().map_err(failed)?.len();
    match read(&notes.path) {
        Some(found) if found.url == source.url && found.sha256 == source.sha256 && found.bytes <= length => {
            notes.note = found;
        }
        // Of another URL, or not what its note says.
        _ => notes.forget().map_err(failed)?,
    }
    let certain = notes.note.bytes;
    file.set_len(certain).map_err(failed)?;
    let name = TempPath::try_from_path(&path).map_err(failed)?;
    let mut part = NamedTempFile::from_parts(file, name);
    // An agent that is stopped leaves it for the next one.
    part.disable_cleanup(true);
    Ok((part, notes, certain))
}

/// The file at `path`, locked, made if need be.
fn locked(path: &Path) -> std::io::Result<File> {
    loop {
        let file = File::options()
            .create(true)
            .read(true)
            .write(true)
            .truncate(false)
            .open(path)?;
        file.lock()?;
        // Whoever held the lock before may have removed it.
        if std::fs::metadata(path)
            .is_ok_and(|there| file.metadata().is_ok_and(|own| own.ino() == there.ino()))
        {
            return Ok(file);
        }
    }
}

/// Removes parts that nobody went on with for long; at a start, also those without a use, and notes without a part. Files
/// with other names are not ours. Blocks.
pub(super) fn tidy(dir: &Path, now: SystemTime, at_start: bool) -> Result<(), StorageError> {
    for entry in std::fs::read_dir(dir).map_err(StorageError::disk("reading", dir))? {
        let path = entry.map_err(StorageError::disk("reading", dir))?.path();
        let name = path
            .file_name()
            .and_then(|name| name.to_str())
            .unwrap_or_default();
        let stays = match name.strip_suffix(".json") {
            Some(key) if is_sha256(key) => !at_start || path.with_extension("").exists(),
            None if is_sha256(name) => is_wanted(&path, now, at_start),
            _ => true,
        };
        if !stays {
            tracing::info!(path = %path.display(), "removing what is left of a download");
            gone(std::fs::remove_file(note_path(&path)))
                .and_then(|()| gone(std::fs::remove_file(&path)))
                .map_err(StorageError::disk("removing", &path))?;
        }
    }
    Ok(())
}

fn is_wanted(part: &Path, now: SystemTime, at_start: bool) -> bool {
    let Ok(file) = File::open(part) else { return true };
    if file.try_lock().is_err() {
        return true;
    }
    let age = file.metadata().and_then(|metadata| metadata.modified());
    let old = age.is_ok_and(|at| now.duration_since(at).is_ok_and(|age| age > PATIENCE));
    !old && (!at_start || read(&note_path(part)).is_some())
}

/// Removes a part and its note.
pub(super) fn discard(mut part: NamedTempFile, mut notes: Notes) {
    if let Err(error) = notes.forget() {
        tracing::debug!(path = %notes.path.display(), %error, "a note stays until the next start");
    }
    part.disable_cleanup(false);
}

fn note_path(part: &Path) -> PathBuf {
    part.with_extension("json")
}

fn read(note: &Path) -> Option<Note> {
    serde_json::from_slice(&std::fs::read(note).ok()?).ok()
}

fn gone(outcome: std::io::Result<()>) -> std::io::Result<()> {
    match outcome {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}
