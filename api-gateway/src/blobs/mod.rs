//! Content of stored files that is too large for an object of the API server, by its SHA-256.
//!
//! A blob is written once, never changed, and shared by every File with that content. It lives in a directory
//! ([`directory`]) or in a bucket ([`bucket`]). Which blobs are in use only the Files say: whatever none of them names for
//! longer than [`GRACE`] is swept. An upload commits its blob before its File is made, and every commit makes the blob young
//! again, so nothing that is about to be named is old enough to go.

mod bucket;
mod directory;
mod intake;

use std::ops::Range;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use axum::body::Bytes;
use futures::stream::BoxStream;

use bucket::Bucket;
use directory::Directory;
pub use intake::{Content, Intake};

/// How long a blob that no File names is kept.
pub const GRACE: Duration = Duration::from_hours(1);
/// How long an upload may take: what is older has lost its writer.
const LONGEST_UPLOAD: Duration = Duration::from_hours(24);

/// Where blobs are kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// A directory.
    Directory(PathBuf),
    /// An S3 bucket, and a prefix in it; endpoint, region and keys are those of the `AWS_*` environment variables.
    Bucket {
        /// Its name.
        bucket: String,
        /// In front of every key; may be empty.
        prefix: String,
    },
}

impl Place {
    /// The part of it that belongs to one namespace: which blobs are in use only the Files of that namespace say.
    #[must_use]
    pub fn of_namespace(&self, namespace: &str) -> Self {
        match self {
            Self::Directory(path) => Self::Directory(path.join(namespace)),
            Self::Bucket { bucket, prefix } => Self::Bucket {
                bucket: bucket.clone(),
                prefix: format!("{prefix}/{namespace}").trim_matches('/').to_owned(),
            },
        }
    }
}

impl FromStr for Place {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let Some(rest) = text.strip_prefix("s3://") else {
            if text.contains("://") || text.is_empty() {
                return Err(format!("{text:?} is neither a directory nor s3://bucket/prefix"));
            }
            return Ok(Self::Directory(text.into()));
        };
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        if bucket.is_empty() {
            return Err("s3:// needs the name of a bucket".to_owned());
        }
        Ok(Self::Bucket {
            bucket: bucket.to_owned(),
            prefix: prefix.trim_matches('/').to_owned(),
        })
    }
}

/// Why a blob is not read or written.
#[derive(Debug, thiserror::Error)]
pub enum BlobError {
    /// There is none with this sum.
    #[error("blob {0} is missing")]
    Missing(String),
    /// The directory cannot be used.
    #[error("the file store cannot be used")]
    Directory(#[from] std::io::Error),
    /// The bucket cannot be used.
    #[error("the bucket cannot be used")]
    Bucket(#[from] object_store::Error),
}

/// All blobs.
pub enum Blobs {
    /// In a directory.
    Directory(Directory),
    /// In a bucket.
    Bucket(Bucket),
}

/// A blob that is being written. Dropped, it leaves nothing behind but what [`Blobs::sweep`] takes away.
enum Upload {
    Directory(directory::Upload),
    Bucket(bucket::Upload),
}

impl Blobs {
    /// Those of a place; nothing is read or written yet.
    ///
    /// # Errors
    /// When the environment says nothing usable about the bucket.
    pub fn open(place: &Place) -> Result<Self, BlobError> {
        Ok(match place {
            Place::Directory(path) => Self::Directory(Directory::new(path.clone())),
            Place::Bucket { bucket, prefix } => Self::Bucket(Bucket::open(bucket, prefix)?),
        })
    }

    /// Begins to take in content of unknown size.
    #[must_use]
    pub fn intake(&self) -> Intake<'_> {
        Intake::new(self)
    }

    /// Bytes of a blob.
    pub async fn size(&self, sha256: &str) -> Result<u64, BlobError> {
        match self {
            Self::Directory(directory) => directory.size(sha256).await,
            Self::Bucket(bucket) => bucket.size(sha256).await,
        }
    }

    /// A part of the content of a blob, which is within its [`Self::size`] and not empty.
    pub async fn read(
        &self,
        sha256: &str,
        range: Range<u64>,
    ) -> Result<BoxStream<'static, Result<Bytes, BlobError>>, BlobError> {
        match self {
            Self::Directory(directory) => directory.read(sha256, range).await,
            Self::Bucket(bucket) => bucket.read(sha256, range).await,
        }
    }

    /// Removes blobs that are not in use and older than `grace`, and uploads that nobody finishes. Returns how many went.
    pub async fn sweep(&self, grace: Duration, is_used: impl Fn(&str) -> bool) -> Result<usize, BlobError> {
        match self {
            Self::Directory(directory) => directory.sweep(grace, is_used).await,
            Self::Bucket(bucket) => bucket.sweep(grace, is_used).await,
        }
    }

    async fn begin(&self) -> Result<Upload, BlobError> {
        Ok(match self {
            Self::Directory(directory) => Upload::Directory(directory.begin().await?),
            Self::Bucket(bucket) => Upload::Bucket(bucket.begin()),
        })
    }
}

impl Upload {
    async fn write(&mut self, bytes: &[u8]) -> Result<(), BlobError> {
        match self {
            Self::Directory(upload) => upload.write(bytes).await,
            Self::Bucket(upload) => upload.write(bytes).await,
        }
    }

    async fn commit(self, sha256: &str) -> Result<(), BlobError> {
        match self {
            Self::Directory(upload) => upload.commit(sha256).await,
            Self::Bucket(upload) => upload.commit(sha256).await,
        }
    }
}

/// Whether a name is that of a blob: 64 hexadecimal digits.
fn is_sum(name: &str) -> bool {
    name.len() == 64
        && name
            .bytes()
            .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

/// What holds wherever blobs are.
#[cfg(test)]
async fn tests_of_every_place(blobs: &Blobs) {
    use futures::TryStreamExt;

    let put = async |byte: u8, size: usize| {
        let mut intake = blobs.intake();
        for step in vec![byte; size].chunks(10_000) {
            intake.write(&Bytes::copy_from_slice(step)).await.unwrap();
        }
        intake.finish()
    };
    let read_part = async |sum: &str, range: Range<u64>| -> Option<Vec<u8>> {
        let stream = match blobs.read(sum, range).await {
            Err(BlobError::Missing(_)) => return None,
            stream => stream.unwrap(),
        };
        let steps: Vec<Bytes> = stream.try_collect().await.unwrap();
        Some(steps.concat())
    };
    let read = async |sum: &str| match blobs.size(sum).await {
        Err(BlobError::Missing(_)) => {
            assert_eq!(read_part(sum, 0..1).await, None);
            None
        }
        size => read_part(sum, 0..size.unwrap()).await,
    };
    let small = put(b's', intake::MAX_INLINE).await;
    assert_eq!(small.size, intake::MAX_INLINE as u64);
    let sum = small.sha256.clone();
    assert_eq!(small.keep().await.unwrap(), Some(vec![b's'; intake::MAX_INLINE]));
    assert_eq!(read(&sum).await, None, "what is small is no blob");

    let size = 20 * 1024 * 1024;
    let large = put(b'l', size).await;
    let sum = large.sha256.clone();
    assert_eq!(read(&sum).await, None, "nothing is there before it is kept");
    assert_eq!(large.keep().await.unwrap(), None);
    assert!(read(&sum).await.unwrap() == vec![b'l'; size]);
    assert_eq!(blobs.size(&sum).await.unwrap(), size as u64);
    let mut intake = blobs.intake();
    let mixed: Vec<u8> = (0..1_000_000_u32).map(|n| (n % 251) as u8).collect();
    intake.write(&Bytes::from(mixed.clone())).await.unwrap();
    let content = intake.finish();
    let other = content.sha256.clone();
    assert_eq!(content.keep().await.unwrap(), None);
    for range in [0..1, 0..1_000_000, 999_999..1_000_000, 300_000..900_001] {
        let part = &mixed[range.start as usize..range.end as usize];
        assert!(
            read_part(&other, range.clone()).await.unwrap() == part,
            "{range:?}"
        );
    }
    // Again, and another that nobody keeps.
    put(b'l', size).await.keep().await.unwrap();
    drop(put(b'd', size).await);

    let used = |name: &str| name == sum || name == other;
    assert_eq!(blobs.sweep(GRACE, |_| false).await.unwrap(), 0, "it is young");
    assert_eq!(
        blobs.sweep(Duration::ZERO, used).await.unwrap(),
        0,
        "it is in use"
    );
    assert!(read(&sum).await.is_some());
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert_eq!(blobs.sweep(Duration::ZERO, |_| false).await.unwrap(), 2);
    assert_eq!(read(&sum).await, None);
    assert_eq!(blobs.sweep(Duration::ZERO, |_| false).await.unwrap(), 0);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places() {
        let bucket = |bucket: &str, prefix: &str| Place::Bucket {
            bucket: bucket.into(),
            prefix: prefix.into(),
        };
        for (text, expected) in [
            ("/var/lib/files", Some(Place::Directory("/var/lib/files".into()))),
            ("files", Some(Place::Directory("files".into()))),
            ("s3://b", Some(bucket("b", ""))),
            ("s3://b/", Some(bucket("b", ""))),
            ("s3://b/a/c/", Some(bucket("b", "a/c"))),
            ("s3://", None),
            ("gs://b", None),
            ("", None),
        ] {
            assert_eq!(text.parse::<Place>().ok(), expected, "{text}");
        }
    }

    #[test]
    fn namespaces_share_no_blobs() {
        for (whole, part) in [
            ("/var/lib/files", "/var/lib/files/ns"),
            ("s3://b", "s3://b/ns"),
            ("s3://b/a/c", "s3://b/a/c/ns"),
        ] {
            let place: Place = whole.parse().unwrap();
            assert_eq!(place.of_namespace("ns"), part.parse().unwrap());
        }
    }
}
