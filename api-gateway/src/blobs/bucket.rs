//! Blobs in an S3 bucket: `uploads/<uuid>` while they are written, then `blobs/<sum>`.
//!
//! A bucket has no rename: a commit copies on the server's side, which also makes the blob young. The sweep asks for the age
//! right before it deletes; a commit within that moment is what it cannot see, so its grace is an hour. Parts of uploads that
//! a crash left behind are for a lifecycle rule of the bucket (`AbortIncompleteMultipartUpload`).

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use axum::body::Bytes;
use futures::stream::{BoxStream, StreamExt, TryStreamExt};
use object_store::aws::AmazonS3Builder;
use object_store::buffered::BufWriter;
use object_store::path::Path;
use object_store::prefix::PrefixStore;
use object_store::{ObjectMeta, ObjectStore, ObjectStoreExt};
use tokio::io::AsyncWriteExt;
use tokio::runtime::Handle;

use super::{BlobError, LONGEST_UPLOAD, is_sum};

/// Size of the parts of an upload, of which two are held in memory; S3 wants at least 5 MiB.
const PART: usize = 8 * 1024 * 1024;
const UPLOADS: &str = "uploads";
const BLOBS: &str = "blobs";

/// Blobs in a bucket.
pub struct Bucket {
    store: Arc<dyn ObjectStore>,
}

/// A blob that is being written.
pub struct Upload {
    store: Arc<dyn ObjectStore>,
    aside: Path,
    /// Until it is committed.
    writer: Option<BufWriter>,
}

impl Drop for Upload {
    fn drop(&mut self) {
        // A bucket keeps the parts of an upload that nobody ends, and lists them nowhere.
        if let (Some(mut writer), Ok(runtime)) = (self.writer.take(), Handle::try_current()) {
            runtime.spawn(async move {
                if let Err(error) = writer.abort().await {
                    tracing::debug!(%error, "an upload is not aborted");
                }
            });
        }
    }
}

impl Bucket {
    /// Those below `prefix`; the environment says the rest.
    pub fn open(bucket: &str, prefix: &str) -> Result<Self, BlobError> {
        let store = AmazonS3Builder::from_env().with_bucket_name(bucket).build()?;
        Ok(Self::of(Arc::new(PrefixStore::new(store, prefix))))
    }

    fn of(store: Arc<dyn ObjectStore>) -> Self {
        Self { store }
    }

    /// Begins a blob.
    pub fn begin(&self) -> Upload {
        let aside = Path::from_iter([UPLOADS, &uuid::Uuid::new_v4().simple().to_string()]);
        Upload {
            writer: Some(
                BufWriter::with_capacity(self.store.clone(), aside.clone(), PART).with_max_concurrency(1),
            ),
            store: self.store.clone(),
            aside,
        }
    }

    /// The content of a blob.
    pub async fn read(
        &self,
        sha256: &str,
    ) -> Result<BoxStream<'static, Result<Bytes, BlobError>>, BlobError> {
        match self.store.get(&Path::from_iter([BLOBS, sha256])).await {
            Ok(found) => Ok(found.into_stream().map_err(BlobError::from).boxed()),
            Err(object_store::Error::NotFound { .. }) => Err(BlobError::Missing(sha256.to_owned())),
            Err(error) => Err(error.into()),
        }
    }

    /// See [`super::Blobs::sweep`].
    pub async fn sweep(&self, grace: Duration, is_used: impl Fn(&str) -> bool) -> Result<usize, BlobError> {
        for upload in self.list(UPLOADS).await? {
            if is_older(&upload, LONGEST_UPLOAD) {
                self.remove(&upload.location).await?;
            }
        }
        let mut swept = 0;
        for blob in self.list(BLOBS).await? {
            let sum = blob.location.filename().unwrap_or_default();
            if !is_sum(sum) || is_used(sum) || !is_older(&blob, grace) {
                continue;
            }
            // The list may be minutes old by now.
            match self.store.head(&blob.location).await {
                Ok(now) if is_older(&now, grace) && !is_used(sum) => {
                    self.remove(&blob.location).await?;
                    swept += 1;
                }
                Ok(_) | Err(object_store::Error::NotFound { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(swept)
    }

    async fn list(&self, folder: &str) -> Result<Vec<ObjectMeta>, BlobError> {
        Ok(self.store.list(Some(&Path::from(folder))).try_collect().await?)
    }

    async fn remove(&self, location: &Path) -> Result<(), BlobError> {
        match self.store.delete(location).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

impl Upload {
    /// Adds to it.
    pub async fn write(&mut self, bytes: &[u8]) -> Result<(), BlobError> {
        let writer = self.writer.as_mut().ok_or_else(ended)?;
        Ok(writer.write_all(bytes).await?)
    }

    /// Makes it the blob with this sum.
    pub async fn commit(mut self, sha256: &str) -> Result<(), BlobError> {
        let mut writer = self.writer.take().ok_or_else(ended)?;
        writer.shutdown().await?;
        let place = Path::from_iter([BLOBS, sha256]);
        self.store.copy(&self.aside, &place).await?;
        // What stays behind is swept.
        if let Err(error) = self.store.delete(&self.aside).await {
            tracing::debug!(%error, "an upload stays behind its blob");
        }
        Ok(())
    }
}

/// What a commit, which ends an upload, leaves no way to see.
fn ended() -> std::io::Error {
    std::io::Error::other("the upload has ended")
}

fn is_older(object: &ObjectMeta, age: Duration) -> bool {
    let modified = SystemTime::from(object.last_modified);
    SystemTime::now()
        .duration_since(modified)
        .is_ok_and(|passed| passed > age)
}

#[cfg(test)]
mod tests {
    use object_store::memory::InMemory;

    use super::super::Blobs;
    use super::super::tests_of_every_place;
    use super::*;

    /// The same store interface as S3's, within the process: no S3 runs in the tests.
    #[tokio::test]
    async fn a_bucket_keeps_blobs() {
        let store = PrefixStore::new(InMemory::new(), "a/b");
        tests_of_every_place(&Blobs::Bucket(Bucket::of(Arc::new(store)))).await;
    }
}
