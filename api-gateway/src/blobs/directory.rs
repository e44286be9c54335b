//! Blobs in a directory: one file each, below the first two digits of its sum.
//!
//! ```text
//! uploads/<uuid>        being written
//! ab/abcdef...          a blob
//! leaving/abcdef...     one that is being swept
//! ```
//!
//! An upload is written aside, forced to the disk, and renamed: a blob is there whole or not at all, also after a crash. A
//! commit always renames, even over the same content: that makes the blob young. The sweep first renames a blob aside and
//! then looks at its age again, so a commit in between is never lost; several gateways may share the directory.

use std::io::{ErrorKind, SeekFrom};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use axum::body::Bytes;
use futures::stream::{BoxStream, StreamExt};
use tokio::fs::{self, File};
use tokio::io::{AsyncReadExt, AsyncSeekExt, AsyncWriteExt, BufWriter};

use super::{BlobError, LONGEST_UPLOAD, is_sum};

/// How much is read or written in one step.
const STEP: usize = 256 * 1024;
const UPLOADS: &str = "uploads";
const LEAVING: &str = "leaving";

/// Blobs in a directory.
pub struct Directory {
    root: PathBuf,
}

/// A blob that is being written.
pub struct Upload {
    root: PathBuf,
    file: BufWriter<File>,
    path: Unfinished,
}

/// A file that goes with its upload, unless that is committed.
struct Unfinished(PathBuf);

impl Drop for Unfinished {
    fn drop(&mut self) {
        // Renamed by then, if it was committed.
        let _ = std::fs::remove_file(&self.0);
    }
}

impl Directory {
    /// Those below `root`, which is made when it is needed.
    pub const fn new(root: PathBuf) -> Self {
        Self { root }
    }

    /// Begins a blob.
    pub async fn begin(&self) -> Result<Upload, BlobError> {
        let folder = self.root.join(UPLOADS);
        fs::create_dir_all(&folder).await?;
        let path = Unfinished(folder.join(uuid::Uuid::new_v4().simple().to_string()));
        let file = File::create_new(&path.0).await?;
        Ok(Upload {
            root: self.root.clone(),
            file: BufWriter::with_capacity(STEP, file),
            path,
        })
    }

    /// Bytes of a blob.
    pub async fn size(&self, sha256: &str) -> Result<u64, BlobError> {
        let found = fs::metadata(place(&self.root, sha256)).await;
        found
            .map(|blob| blob.len())
            .map_err(|error| missing(error, sha256))
    }

    /// A part of the content of a blob.
    pub async fn read(
        &self,
        sha256: &str,
        range: Range<u64>,
    ) -> Result<BoxStream<'static, Result<Bytes, BlobError>>, BlobError> {
        let file = File::open(place(&self.root, sha256)).await;
        let mut file = file.map_err(|error| missing(error, sha256))?;
        file.seek(SeekFrom::Start(range.start)).await?;
        let part = file.take(range.end.saturating_sub(range.start));
        let steps = futures::stream::try_unfold(part, |mut part| async move {
            let mut bytes = Vec::with_capacity(STEP);
            (&mut part).take(STEP as u64).read_to_end(&mut bytes).await?;
            Ok((!bytes.is_empty()).then(|| (Bytes::from(bytes), part)))
        });
        Ok(steps.boxed())
    }

    /// See [`super::Blobs::sweep`].
    pub async fn sweep(&self, grace: Duration, is_used: impl Fn(&str) -> bool) -> Result<usize, BlobError> {
        let now = SystemTime::now();
        for (_, path) in entries(&self.root.join(UPLOADS)).await? {
            if is_older(&path, LONGEST_UPLOAD, now).await {
                gone(fs::remove_file(&path).await)?;
            }
        }
        let leaving = self.root.join(LEAVING);
        let mut swept = self.settle(&leaving, grace, &is_used).await?;
        for (_, shelf) in entries(&self.root)
            .await?
            .into_iter()
            .filter(|(name, _)| name.len() == 2)
        {
            for (sum, path) in entries(&shelf).await? {
                if !is_sum(&sum) || is_used(&sum) || !is_older(&path, grace, now).await {
                    continue;
                }
                fs::create_dir_all(&leaving).await?;
                gone(fs::rename(&path, leaving.join(&sum)).await)?;
            }
        }
        swept += self.settle(&leaving, grace, &is_used).await?;
        Ok(swept)
    }

    /// Removes what was set aside; what a commit made young at that moment, or a File names, goes back.
    async fn settle(
        &self,
        leaving: &Path,
        grace: Duration,
        is_used: impl Fn(&str) -> bool,
    ) -> Result<usize, BlobError> {
        let mut removed = 0;
        for (sum, path) in entries(leaving).await? {
            if is_sum(&sum) && (is_used(&sum) || !is_older(&path, grace, SystemTime::now()).await) {
                let back = place(&self.root, &sum);
                fs::create_dir_all(back.parent().unwrap_or(&self.root)).await?;
                gone(fs::rename(&path, back).await)?;
            } else {
                gone(fs::remove_file(&path).await)?;
                removed += 1;
            }
        }
        Ok(removed)
    }
}

impl Upload {
    /// Adds to it.
    pub async fn write(&mut self, bytes: &[u8]) -> Result<(), BlobError> {
        Ok(self.file.write_all(bytes).await?)
    }

    /// Makes it the blob with this sum.
    pub async fn commit(mut self, sha256: &str) -> Result<(), BlobError> {
        self.file.flush().await?;
        self.file.get_ref().sync_all().await?;
        let place = place(&self.root, sha256);
        let shelf = place.parent().unwrap_or(&self.root);
        fs::create_dir_all(shelf).await?;
        fs::rename(&self.path.0, &place).await?;
        // Names are on the disk when their directories are.
        sync(shelf).await?;
        sync(&self.root).await
    }
}

fn missing(error: std::io::Error, sha256: &str) -> BlobError {
    if error.kind() == ErrorKind::NotFound {
        return BlobError::Missing(sha256.to_owned());
    }
    error.into()
}

fn place(root: &Path, sha256: &str) -> PathBuf {
    root.join(sha256.get(..2).unwrap_or_default()).join(sha256)
}

async fn sync(directory: &Path) -> Result<(), BlobError> {
    Ok(File::open(directory).await?.sync_all().await?)
}

/// Names and paths in a directory; none when it is not there.
async fn entries(directory: &Path) -> Result<Vec<(String, PathBuf)>, BlobError> {
    let mut found = Vec::new();
    let mut entries = match fs::read_dir(directory).await {
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            return Ok(found);
        }
        entries => entries?,
    };
    while let Some(entry) = entries.next_entry().await? {
        found.push((entry.file_name().to_string_lossy().into_owned(), entry.path()));
    }
    Ok(found)
}

/// Whether a file was written longer ago than that; what cannot be told is young.
async fn is_older(path: &Path, age: Duration, now: SystemTime) -> bool {
    let modified = fs::metadata(path).await.and_then(|data| data.modified());
    modified.is_ok_and(|modified| now.duration_since(modified).is_ok_and(|passed| passed > age))
}

/// What another gateway has done already is done.
fn gone(done: std::io::Result<()>) -> Result<(), BlobError> {
    match done {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        done => Ok(done?),
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Blobs, GRACE, tests_of_every_place};
    use super::*;

    fn files(root: &Path) -> Vec<String> {
        let mut found = Vec::new();
        for entry in std::fs::read_dir(root).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if entry.path().is_dir() {
                found.extend(files(&entry.path()).iter().map(|below| format!("{name}/{below}")));
            } else {
                found.push(name);
            }
        }
        found
    }

    #[tokio::test]
    async fn a_directory_keeps_blobs_and_nothing_else() {
        let root = tempfile::tempdir().unwrap();
        let directory = Directory::new(root.path().join("files"));
        tests_of_every_place(&Blobs::Directory(directory)).await;
        assert_eq!(files(root.path()), Vec::<String>::new());
    }

    #[tokio::test]
    async fn what_a_crash_leaves_behind() {
        let root = tempfile::tempdir().unwrap();
        let directory = Directory::new(root.path().to_owned());
        let (used, young, old) = ("a".repeat(64), "b".repeat(64), "c".repeat(64));
        let make = |path: &str, hours: u64| {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            let file = std::fs::File::create(path).unwrap();
            file.set_modified(SystemTime::now() - Duration::from_hours(hours))
                .unwrap();
        };
        // In the midst of a sweep, and of two uploads.
        make(&format!("leaving/{used}"), 9);
        make(&format!("leaving/{young}"), 0);
        make(&format!("leaving/{old}"), 9);
        make("uploads/lost", 25);
        make("uploads/going-on", 23);
        make(&format!("aa/{used}"), 9);
        make("lost+found", 99);
        assert_eq!(directory.sweep(GRACE, |sum| sum == used).await.unwrap(), 1);
        let mut left = files(root.path());
        left.sort();
        assert_eq!(
            left,
            [
                format!("aa/{used}"),
                format!("bb/{young}"),
                "lost+found".into(),
                "uploads/going-on".into()
            ]
        );
    }
}
