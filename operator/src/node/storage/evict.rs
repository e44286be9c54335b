//! Which images leave the cache, and how.
//!
//! What refers to an image keeps it: a disk on top of it, a domain that boots it or has it in its drive, work that was
//! just handed it. References are read from libvirt and from the disks each time, never remembered: whoever made them,
//! and whatever this agent has forgotten, they count.

use std::collections::{BTreeSet, HashSet};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use super::cache::{Cache, CachedImage, Entry, Index};
use super::error::StorageError;
use super::format::{QCOW2_HEADER_BYTES, backing_file};
use super::layout::TEMP_PREFIX;

const MIB: u64 = 1 << 20;
/// qcow2's limit for the name of a backing file.
const LONGEST_BACKING: usize = 1023;

/// How much the cache keeps that nothing uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheLimits {
    /// MiB that all images may take together; 0 = no limit. What is in use counts, and stays.
    pub max_mib: u64,
    /// How long an image stays after its last use; zero = as long as there is room.
    pub max_idle: Duration,
}

impl Default for CacheLimits {
    /// By age alone: what a fetch costs is known, what room is worth only its owner knows. Where room runs short,
    /// unused images go in any case.
    fn default() -> Self {
        Self {
            max_mib: 0,
            max_idle: Duration::from_hours(14 * 24),
        }
    }
}

/// An image as the decision sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Usage {
    pub sha256: String,
    /// What it takes on disk, with what was made of it.
    pub bytes: u64,
    /// Since its last use.
    pub idle: Duration,
    pub in_use: bool,
}

/// The images that go: those idle for too long, then the longest idle until all fit and `short` bytes are freed.
pub(super) fn condemned(images: &[Usage], limits: CacheLimits, short: u64) -> Vec<String> {
    let mut unused: Vec<&Usage> = images.iter().filter(|image| !image.in_use).collect();
    unused.sort_by(|a, b| b.idle.cmp(&a.idle).then_with(|| a.sha256.cmp(&b.sha256)));
    let mut total: u64 = images.iter().map(|image| image.bytes).sum();
    let max = if limits.max_mib == 0 {
        u64::MAX
    } else {
        limits.max_mib.saturating_mul(MIB)
    };
    let mut freed = 0;
    let mut going = Vec::new();
    for image in unused {
        let old = !limits.max_idle.is_zero() && image.idle > limits.max_idle;
        if old || total > max || freed < short {
            total -= image.bytes;
            freed += image.bytes;
            going.push(image.sha256.clone());
        }
    }
    going
}

/// The checksums in a text that names a file of the cache: every run of exactly 64 hexadecimal digits.
///
/// So a name is found however it is written: a path, a path by another way, a URL, JSON.
fn checksums(text: &str) -> impl Iterator<Item = String> {
    text.split(|c: char| !c.is_ascii_hexdigit())
        .filter(|piece| piece.len() == 64)
        .map(str::to_ascii_lowercase)
}

/// The checksums that files refer to, each with the chain of files beneath it. Blocks.
///
/// # Errors
/// When a file is there and cannot be read: what it refers to is not known then.
pub(super) fn referenced(files: impl IntoIterator<Item = PathBuf>) -> Result<HashSet<String>, StorageError> {
    let mut found = HashSet::new();
    let mut seen = BTreeSet::new();
    let mut open: Vec<PathBuf> = files.into_iter().collect();
    while let Some(path) = open.pop() {
        found.extend(checksums(&path.to_string_lossy()));
        // The same file by another name.
        if let Ok(real) = path.canonicalize() {
            found.extend(checksums(&real.to_string_lossy()));
        }
        if !seen.insert(path.clone()) {
            continue;
        }
        if let Some(below) = below(&path)? {
            found.extend(checksums(&below));
            // Relative names are relative to the file that has them.
            let dir = path.parent().unwrap_or(Path::new("/"));
            open.push(dir.join(below.strip_prefix("file:").unwrap_or(&below)));
        }
    }
    Ok(found)
}

/// What a disk file rests on, as its header has it.
pub(super) fn below(path: &Path) -> Result<Option<String>, StorageError> {
    use std::os::unix::fs::FileExt;
    let failed = StorageError::disk("reading", path);
    let read = || -> std::io::Result<Option<String>> {
        let metadata = std::fs::metadata(path)?;
        if !metadata.is_file() {
            return Ok(None);
        }
        let file = std::fs::File::open(path)?;
        let mut head = [0; QCOW2_HEADER_BYTES];
        if metadata.len() < head.len() as u64 {
            return Ok(None);
        }
        file.read_exact_at(&mut head, 0)?;
        let Some((at, length)) = backing_file(&head) else {
            return Ok(None);
        };
        let mut name = vec![0; length.min(LONGEST_BACKING)];
        file.read_exact_at(&mut name, at)?;
        Ok(Some(String::from_utf8_lossy(&name).into_owned()))
    };
    match read() {
        // A domain may name a disk that is not there (any more).
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        other => other.map_err(failed),
    }
}

impl Cache {
    /// Removes what nothing refers to and the limits do not keep. Blocks.
    ///
    /// `referenced` was read after `asked`: what was handed out since may have got a reference that is not among them,
    /// and stays.
    pub(super) fn evict(
        &self,
        referenced: &HashSet<String>,
        asked: Instant,
        limits: CacheLimits,
        short: u64,
    ) -> Result<Vec<CachedImage>, StorageError> {
        let now = SystemTime::now();
        let (mut gone, mut contents, mut notes) = (Vec::new(), Vec::new(), Vec::new());
        {
            // While this is held nobody is handed an image.
            let mut index = self.index();
            let usages: Vec<Usage> = index
                .by_sha256
                .values()
                .map(|entry| self.usage(entry, referenced, asked, now))
                .collect();
            for used in usages.iter().filter(|usage| usage.in_use) {
                self.touch(&used.sha256);
            }
            for sha256 in condemned(&usages, limits, short) {
                let Some(entry) = index.by_sha256.remove(&sha256) else {
                    continue;
                };
                // A name that the next start removes: whatever interrupts this, no half of an image stays.
                for path in [self.content_path(&sha256), self.template_path(&sha256)] {
                    let doomed = path.with_file_name(format!("{TEMP_PREFIX}gone-{sha256}"));
                    match std::fs::rename(&path, &doomed) {
                        Ok(()) => contents.push(doomed),
                        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                        Err(error) => return Err(StorageError::disk("removing", &path)(error)),
                    }
                }
                // After the content, which would stay for ever without a description.
                notes.push(self.description_path(&sha256));
                let Index { by_sha256, by_url } = &mut *index;
                let urls =
                    by_url.extract_if(|_, known| !known.all().any(|gave| by_sha256.contains_key(gave)));
                notes.extend(urls.map(|(url, _)| self.url_path(&url)));
                gone.push(self.image(&entry, &entry.name, entry.type_, None));
            }
            for path in &notes {
                remove(path)?;
            }
        }
        // Freeing the blocks of a large file takes its time.
        for path in &contents {
            remove(path)?;
        }
        Ok(gone)
    }

    fn usage(&self, entry: &Entry, referenced: &HashSet<String>, asked: Instant, now: SystemTime) -> Usage {
        let blocks = |path: PathBuf| std::fs::metadata(path).map_or(0, |found| found.blocks() * 512);
        let last_use = std::fs::metadata(self.description_path(&entry.sha256))
            .and_then(|metadata| metadata.modified())
            .unwrap_or(now);
        Usage {
            sha256: entry.sha256.clone(),
            bytes: blocks(self.content_path(&entry.sha256)) + blocks(self.template_path(&entry.sha256)),
            // A clock that was set back makes nothing old.
            idle: now.duration_since(last_use).unwrap_or_default(),
            in_use: referenced.contains(&entry.sha256) || self.leases.held_since(&entry.sha256, asked),
        }
    }
}

fn remove(path: &Path) -> Result<(), StorageError> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        other => other.map_err(StorageError::disk("removing", path)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Duration = Duration::from_hours(24);

    fn image(name: &str, mib: u64, idle_days: u32, in_use: bool) -> Usage {
        Usage {
            sha256: name.to_owned(),
            bytes: mib * MIB,
            idle: DAY * idle_days,
            in_use,
        }
    }

    #[test]
    fn who_goes() {
        let images = [
            image("base", 400, 90, true),
            image("old", 100, 20, false),
            image("older", 100, 30, false),
            image("new", 100, 1, false),
        ];
        let limits = |max_mib, days| CacheLimits {
            max_mib,
            max_idle: DAY * days,
        };
        for (rule, limits, short_mib, expected) in [
            ("no limits", limits(0, 0), 0, vec![]),
            (
                "too long idle, but not what is in use",
                limits(0, 14),
                0,
                vec!["older", "old"],
            ),
            ("exactly at the limit stays", limits(0, 30), 0, vec![]),
            ("all fit", limits(700, 0), 0, vec![]),
            (
                "one too many: the longest idle goes",
                limits(699, 0),
                0,
                vec!["older"],
            ),
            ("two too many", limits(500, 0), 0, vec!["older", "old"]),
            (
                "what is in use stays, even alone too big",
                limits(1, 0),
                0,
                vec!["older", "old", "new"],
            ),
            ("size and age", limits(500, 25), 0, vec!["older", "old"]),
            (
                "no room: the longest idle first",
                limits(0, 0),
                150,
                vec!["older", "old"],
            ),
            (
                "no room, and not enough to free",
                limits(0, 0),
                9_999,
                vec!["older", "old", "new"],
            ),
        ] {
            assert_eq!(condemned(&images, limits, short_mib * MIB), expected, "{rule}");
        }
    }

    #[test]
    fn names_are_found_however_they_are_written() {
        let name = "0123456789abcdef".repeat(4);
        for (text, found) in [
            (format!("/var/lib/virtshell/images/{name}"), true),
            (format!("../roots/{name}.img"), true),
            (
                format!(
                    "json:{{\"file\":{{\"filename\":\"/x/{}\"}}}}",
                    name.to_uppercase()
                ),
                true,
            ),
            (format!("/images/{name}0"), false),
            ("/images/other.qcow2".to_owned(), false),
        ] {
            let expected: Vec<String> = found.then(|| name.clone()).into_iter().collect();
            assert_eq!(checksums(&text).collect::<Vec<_>>(), expected, "{text}");
        }
    }
}
