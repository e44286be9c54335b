//! New disks that have been made before.
//!
//! What `qemu-img create` makes of one request is the same to the byte each time: nothing in it says whose disk it is, and
//! the image below is named, not read. So the last few are remembered, as the pages of the file that are not empty (some
//! 20 KiB), and written again without the program, which takes longer to start than a guest's definition and start together.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// How many requests are remembered: a host serves few images and sizes at a time.
const KEPT: usize = 16;
/// Pages are compared and written in this size, that of the file system.
const PAGE: usize = 4096;
/// Longer files are not remembered; a new disk of 1 TiB takes 200 KiB.
const LONGEST: u64 = 1 << 20;

/// All that the content of a new disk depends on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Request {
    /// The image below, and how it is written.
    pub base: Option<(PathBuf, &'static str)>,
    /// What the guest sees.
    pub bytes: u64,
}

/// The content of a new disk: its length, and what is in it where.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Pattern {
    length: u64,
    pages: Vec<(u64, Box<[u8]>)>,
}

impl Pattern {
    /// Reads a disk that nobody has written to; `None` when it is too long to remember. Blocks.
    pub(super) fn read(path: &Path) -> io::Result<Option<Self>> {
        let mut file = File::open(path)?;
        let length = file.metadata()?.len();
        if length > LONGEST {
            return Ok(None);
        }
        let mut content = Vec::with_capacity(usize::try_from(length).unwrap_or(0));
        file.read_to_end(&mut content)?;
        let pages = content.chunks(PAGE).zip((0u64..).step_by(PAGE));
        let filled = pages.filter(|(page, _)| page.iter().any(|byte| *byte != 0));
        Ok(Some(Self {
            length,
            pages: filled.map(|(page, at)| (at, page.into())).collect(),
        }))
    }

    /// Writes it into an empty file. Blocks.
    pub(super) fn write(&self, path: &Path) -> io::Result<()> {
        let file = File::options().write(true).open(path)?;
        file.set_len(self.length)?;
        self.pages
            .iter()
            .try_for_each(|(at, page)| file.write_all_at(page, *at))
    }
}

/// The last few, the latest used first.
#[derive(Default)]
pub(super) struct Patterns(Mutex<VecDeque<(Request, Arc<Pattern>)>>);

impl Patterns {
    /// What this request led to before.
    pub(super) fn get(&self, request: &Request) -> Option<Arc<Pattern>> {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let at = kept.iter().position(|(known, _)| known == request)?;
        let found = kept.remove(at)?;
        let pattern = Arc::clone(&found.1);
        kept.push_front(found);
        Some(pattern)
    }

    /// Remembers what it led to.
    pub(super) fn keep(&self, request: Request, pattern: Pattern) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.retain(|(known, _)| *known != request);
        kept.push_front((request, Arc::new(pattern)));
        kept.truncate(KEPT);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(bytes: u64) -> Request {
        Request { base: None, bytes }
    }

    #[test]
    fn a_file_is_written_again_as_it_was() {
        let directory = tempfile::tempdir().unwrap();
        let (first, second) = (directory.path().join("first"), directory.path().join("second"));
        let mut content = vec![0u8; 3 * PAGE + 100];
        content[PAGE + 7] = 1;
        *content.last_mut().unwrap() = 2;
        std::fs::write(&first, &content).unwrap();
        let pattern = Pattern::read(&first).unwrap().unwrap();
        assert_eq!(pattern.pages.len(), 2, "empty pages are not kept");
        File::create(&second).unwrap();
        pattern.write(&second).unwrap();
        assert_eq!(std::fs::read(&second).unwrap(), content);
    }

    #[test]
    fn what_is_too_long_is_not_remembered() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(LONGEST + 1).unwrap();
        assert_eq!(Pattern::read(file.path()).unwrap(), None);
    }

    #[test]
    fn the_longest_unused_is_forgotten() {
        let pattern = || Pattern {
            length: 0,
            pages: Vec::new(),
        };
        let patterns = Patterns::default();
        for bytes in 0..KEPT as u64 {
            patterns.keep(request(bytes), pattern());
        }
        assert!(patterns.get(&request(0)).is_some());
        patterns.keep(request(99), pattern());
        assert!(patterns.get(&request(0)).is_some(), "it was used");
        assert!(patterns.get(&request(1)).is_none());
    }
}
