//! The file that content goes into on its way to the cache. Hashes while it writes.

use std::io::{Read, Seek, SeekFrom, Write};

use sha2::{Digest, Sha256};
use tempfile::NamedTempFile;

use super::error::StorageError;
use super::fetch::{Fetched, Fetcher};
use super::layout::TEMP_PREFIX;
use super::part::{self, Notes};
use super::room::RoomGuard;
use super::source::Source;

/// How many bytes may come between two looks at the room that is left.
const ROOM_EVERY: u64 = 64 << 20;
/// A run of zeros at least this long becomes a hole.
const HOLE: usize = 4096;
/// Bytes of a part that are read at a time.
const BLOCK: usize = 1 << 20;

/// The file, and what is known of its content so far.
pub(super) struct Sink {
    file: NamedTempFile,
    hasher: Sha256,
    written: u64,
    /// How much of it an earlier try left, as long as that counts.
    from_before: u64,
    room_checked_at: u64,
    room: RoomGuard,
    what: String,
    max_bytes: u64,
    declared: bool,
    /// Of a download, which another agent may go on with.
    notes: Option<Notes>,
}

impl Sink {
    fn new(fetcher: &Fetcher, source: &Source, file: NamedTempFile, notes: Option<Notes>) -> Self {
        Self {
            file,
            hasher: Sha256::new(),
            written: 0,
            from_before: 0,
            room_checked_at: 0,
            room: fetcher.room.clone(),
            what: format!("{} {}", if source.aside { "file" } else { "image" }, source.name),
            max_bytes: fetcher.max_bytes,
            declared: source.sha256.is_some(),
            notes,
        }
    }

    /// A file that goes when it is dropped.
    pub(super) fn temporary(fetcher: &Fetcher, source: &Source) -> Result<Self, StorageError> {
        let file = tempfile::Builder::new()
            .prefix(TEMP_PREFIX)
            .tempfile_in(&fetcher.dir)
            .map_err(StorageError::disk("making a file in", &fetcher.dir))?;
        Ok(Self::new(fetcher, source, file, None))
    }

    /// The part of a download that is here already, or a new one. It stays when it is dropped. Blocks.
    pub(super) fn resume(fetcher: &Fetcher, source: &Source) -> Result<Self, StorageError> {
        let (file, notes, certain) = part::open(&fetcher.dir, source)?;
        let mut sink = Self::new(fetcher, source, file, Some(notes));
        sink.read_again(certain)?;
        Ok(sink)
    }

    /// Hashes the first `certain` bytes, and goes on behind them.
    fn read_again(&mut self, certain: u64) -> Result<(), StorageError> {
        let path = self.file.path().to_owned();
        let mut block = vec![0; BLOCK];
        while self.written < certain {
            let want = (certain - self.written).min(BLOCK as u64) as usize;
            let file = self.file.as_file_mut();
            file.read_exact(&mut block[..want])
                .map_err(StorageError::disk("reading", &path))?;
            self.hasher.update(&block[..want]);
            self.written += want as u64;
        }
        (self.from_before, self.room_checked_at) = (certain, certain);
        Ok(())
    }

    pub(super) const fn written(&self) -> u64 {
        self.written
    }

    /// Whether its first bytes are an earlier try's.
    pub(super) const fn resumed(&self) -> bool {
        self.from_before > 0
    }

    /// Whether its bytes may be added to: without a validator a changed file could be glued to the old one, which a
    /// declared checksum would tell.
    pub(super) fn is_resumable(&self) -> bool {
        self.declared || self.validator().is_some()
    }

    /// Says on resume that the content is still the same.
    pub(super) fn validator(&self) -> Option<&str> {
        self.notes.as_ref()?.validator()
    }

    pub(super) fn set_validator(&mut self, validator: Option<String>) {
        if let Some(notes) = &mut self.notes {
            notes.set_validator(validator);
        }
    }

    /// Whether `total` bytes are allowed and, with what is written already, will fit.
    pub(super) fn announce(&self, total: u64, stored: u64) -> Result<(), StorageError> {
        self.check_size(total)?;
        self.room.check(&self.what, stored.saturating_sub(self.written))
    }

    fn check_size(&self, bytes: u64) -> Result<(), StorageError> {
        if bytes <= self.max_bytes {
            return Ok(());
        }
        Err(StorageError::ImageFormatRefused {
            image: self.what.clone(),
            why: format!(
                "it has more than the {} MiB that this agent fetches",
                self.max_bytes >> 20
            ),
        })
    }

    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<(), StorageError> {
        self.check_size(self.written + bytes.len() as u64)?;
        if self.written - self.room_checked_at >= ROOM_EVERY {
            self.room.check(&self.what, bytes.len() as u64)?;
            self.room_checked_at = self.written;
        }
        self.hasher.update(bytes);
        let written = self.written + bytes.len() as u64;
        let file = self.file.as_file_mut();
        let mut outcome = if bytes.len() >= HOLE && bytes.iter().all(|byte| *byte == 0) {
            file.seek(SeekFrom::Current(bytes.len() as i64)).map(drop)
        } else {
            file.write_all(bytes)
        };
        if let Some(notes) = &mut self.notes {
            outcome = outcome.and_then(|()| notes.progress(file, written));
        }
        outcome.map_err(|error| self.room.write_error(&self.what, self.file.path(), error))?;
        self.written = written;
        Ok(())
    }

    /// Makes all that came certain, for a later try.
    pub(super) fn keep(&mut self) -> Result<(), StorageError> {
        let path = self.file.path().to_owned();
        let noted = self
            .notes
            .as_mut()
            .map(|notes| notes.all(self.file.as_file(), self.written));
        noted
            .unwrap_or(Ok(()))
            .map_err(StorageError::disk("writing", &path))
    }

    /// Forgets what came.
    pub(super) fn restart(&mut self) -> Result<(), StorageError> {
        let path = self.file.path().to_owned();
        // First the note: it must not speak of what comes next.
        let forgotten = self.notes.as_mut().map_or(Ok(()), Notes::forget);
        let file = self.file.as_file_mut();
        forgotten
            .and_then(|()| file.set_len(0))
            .and_then(|()| file.seek(SeekFrom::Start(0)))
            .map_err(StorageError::disk("emptying", &path))?;
        self.hasher = Sha256::new();
        (self.written, self.from_before, self.room_checked_at) = (0, 0, 0);
        Ok(())
    }

    pub(super) fn finish(mut self) -> Result<Fetched, StorageError> {
        let file = self.file.as_file();
        // A hole at the end is not there until the length says so.
        let mut outcome = file.set_len(self.written).and_then(|()| file.sync_all());
        if let Some(notes) = &mut self.notes {
            // From here on it goes when it is dropped, as a temporary file does.
            self.file.disable_cleanup(false);
            outcome = outcome.and_then(|()| notes.forget());
        }
        outcome.map_err(|error| self.room.write_error(&self.what, self.file.path(), error))?;
        Ok(Fetched {
            sha256: hex::encode(self.hasher.finalize()),
            size: self.written,
            file: self.file,
        })
    }

    /// Leaves nothing for a later try.
    pub(super) fn discard(self) {
        if let Some(notes) = self.notes {
            part::discard(self.file, notes);
        }
    }
}
