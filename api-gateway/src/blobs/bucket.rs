//! Blobs in an S3 bucket: `uploads/<uuid>` while they are written, then `blobs/<sum>`.
//!
//! A bucket has no rename: a commit copies on the server's side, which also makes the blob young. The sweep asks for the age
//! right before it deletes; a commit within that moment is what it cannot see, so its grace is an hour.
//!
//! A bucket keeps the parts of an upload until somebody ends or aborts it, shows them in no list of objects, and has them paid
//! for. So an upload that breaks off is aborted, wherever its caller stopped to wait: what asks the bucket runs in tasks of its
//! own. What a crash of the gateway leaves behind is for a lifecycle rule of the bucket (`AbortIncompleteMultipartUpload`).

use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use axum::body::Bytes;
use futures::stream::{BoxStream, StreamExt, TryStreamExt};
use object_store::aws::AmazonS3Builder;
use object_store::path::Path;
use object_store::prefix::PrefixStore;
use object_store::{GetOptions, GetRange, ObjectMeta, ObjectStore, ObjectStoreExt, WriteMultipart};
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

/// A blob that is being written: aside in one piece, or in parts when it is larger than one.
pub struct Upload {
    store: Arc<dyn ObjectStore>,
    aside: Path,
    /// What is not yet in a part; at most [`PART`] bytes.
    held: Vec<u8>,
    parts: Option<WriteMultipart>,
}

impl Drop for Upload {
    fn drop(&mut self) {
        if let (Some(parts), Ok(runtime)) = (self.parts.take(), Handle::try_current()) {
            runtime.spawn(abort(parts));
        }
    }
}

async fn abort(parts: WriteMultipart) {
    if let Err(error) = parts.abort().await {
        tracing::warn!(%error, "parts of an upload that broke off stay in the bucket");
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
        Upload {
            store: self.store.clone(),
            aside: Path::from_iter([UPLOADS, &uuid::Uuid::new_v4().simple().to_string()]),
            held: Vec::new(),
            parts: None,
        }
    }

    /// Bytes of a blob.
    pub async fn size(&self, sha256: &str) -> Result<u64, BlobError> {
        let found = self.store.head(&Path::from_iter([BLOBS, sha256])).await;
        found
            .map(|blob| blob.size)
            .map_err(|error| missing(error, sha256))
    }

    /// A part of the content of a blob, which is not empty.
    pub async fn read(
        &self,
        sha256: &str,
        range: Range<u64>,
    ) -> Result<BoxStream<'static, Result<Bytes, BlobError>>, BlobError> {
        let options = GetOptions {
            range: Some(GetRange::Bounded(range)),
            ..GetOptions::default()
        };
        let found = self
            .store
            .get_opts(&Path::from_iter([BLOBS, sha256]), options)
            .await;
        let found = found.map_err(|error| missing(error, sha256))?;
        Ok(found.into_stream().map_err(BlobError::from).boxed())
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
        if self.parts.is_none() && self.held.len() + bytes.len() <= PART {
            self.held.extend_from_slice(bytes);
            return Ok(());
        }
        if self.parts.is_none() {
            self.parts = Some(begin_parts(self.store.clone(), self.aside.clone()).await?);
        }
        if let Some(parts) = &mut self.parts {
            parts.wait_for_capacity(1).await?;
            parts.write(&std::mem::take(&mut self.held));
            parts.write(bytes);
        }
        Ok(())
    }

    /// Makes it the blob with this sum.
    pub async fn commit(mut self, sha256: &str) -> Result<(), BlobError> {
        let (store, aside) = (self.store.clone(), self.aside.clone());
        let (held, parts) = (std::mem::take(&mut self.held), self.parts.take());
        let place = Path::from_iter([BLOBS, sha256]);
        // To the end, whether or not somebody waits for it: half of it would leave parts behind.
        let work = tokio::spawn(async move {
            match parts {
                // Aborts when it fails.
                Some(parts) => parts.finish().await?,
                None => store.put(&aside, held.into()).await?,
            };
            store.copy(&aside, &place).await?;
            // What stays behind is swept.
            if let Err(error) = store.delete(&aside).await {
                tracing::debug!(%error, "an upload stays behind its blob");
            }
            Ok(())
        });
        work.await.map_err(std::io::Error::other)?
    }
}

/// Asks the bucket to take parts, and aborts at once when nobody waits for the answer any more.
async fn begin_parts(store: Arc<dyn ObjectStore>, aside: Path) -> Result<WriteMultipart, BlobError> {
    let (give, take) = tokio::sync::oneshot::channel();
    tokio::spawn(async move {
        let begun = store.put_multipart(&aside).await;
        let begun = begun.map(|upload| WriteMultipart::new_with_chunk_size(upload, PART));
        if let Err(Ok(unwanted)) = give.send(begun) {
            abort(unwanted).await;
        }
    });
    Ok(take.await.map_err(std::io::Error::other)??)
}

fn missing(error: object_store::Error, sha256: &str) -> BlobError {
    if matches!(error, object_store::Error::NotFound { .. }) {
        return BlobError::Missing(sha256.to_owned());
    }
    error.into()
}

fn is_older(object: &ObjectMeta, age: Duration) -> bool {
    let modified = SystemTime::from(object.last_modified);
    SystemTime::now()
        .duration_since(modified)
        .is_ok_and(|passed| passed > age)
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::process::{Child, Command, Stdio};

    use object_store::memory::InMemory;

    use super::super::Blobs;
    use super::super::tests_of_every_place;
    use super::*;

    /// The same store interface as S3's, within the process.
    #[tokio::test]
    async fn a_bucket_keeps_blobs() {
        let store = PrefixStore::new(InMemory::new(), "a/b");
        tests_of_every_place(&Blobs::Bucket(Bucket::of(Arc::new(store)))).await;
    }

    /// An S3 server (moto's) with an empty bucket.
    struct S3 {
        process: Child,
        url: String,
    }

    impl Drop for S3 {
        fn drop(&mut self) {
            let _ = self.process.kill();
            let _ = self.process.wait();
        }
    }

    impl S3 {
        async fn start(program: &std::ffi::OsStr) -> Self {
            let port = TcpListener::bind("127.0.0.1:0")
                .unwrap()
                .local_addr()
                .unwrap()
                .port();
            let mut command = Command::new(program);
            command.args(["--host", "127.0.0.1", "--port", &port.to_string()]);
            let process = command
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .unwrap();
            let url = format!("http://127.0.0.1:{port}");
            let made = async || reqwest::Client::new().put(format!("{url}/files")).send().await;
            let mut tries = 0;
            while made().await.is_err() {
                tries += 1;
                assert!(tries < 300, "the S3 server does not answer");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            Self { process, url }
        }

        fn bucket(&self) -> Bucket {
            let store = AmazonS3Builder::new()
                .with_endpoint(&self.url)
                .with_allow_http(true)
                .with_region("us-east-1")
                .with_access_key_id("key")
                .with_secret_access_key("secret")
                .with_bucket_name("files");
            Bucket::of(Arc::new(PrefixStore::new(store.build().unwrap(), "a/b")))
        }

        /// How many uploads hold parts.
        async fn unfinished(&self) -> usize {
            let answer = reqwest::get(format!("{}/files?uploads", self.url)).await.unwrap();
            answer.text().await.unwrap().matches("<UploadId>").count()
        }

        async fn comes_to(&self, unfinished: usize) {
            let mut seen = self.unfinished().await;
            for _ in 0..100 {
                if seen == unfinished {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
                seen = self.unfinished().await;
            }
            panic!("{seen} uploads hold parts, not {unfinished}");
        }
    }

    /// `VIRTSHELL_S3_SERVER` is the program of the server; `make test-s3` knows it.
    #[tokio::test]
    async fn s3_keeps_blobs_and_no_parts_of_what_broke_off() {
        let Some(program) = std::env::var_os("VIRTSHELL_S3_SERVER") else {
            eprintln!("NOT RUN: VIRTSHELL_S3_SERVER names no program (make test-s3 does)");
            return;
        };
        let _ = rustls::crypto::ring::default_provider().install_default();
        let s3 = S3::start(&program).await;
        tests_of_every_place(&Blobs::Bucket(s3.bucket())).await;
        s3.comes_to(0).await;

        // A client that goes away between two parts, and one that does while the bucket is asked to take parts.
        let bucket = s3.bucket();
        let mut upload = bucket.begin();
        upload.write(&vec![1; 3 * PART]).await.unwrap();
        s3.comes_to(1).await;
        drop(upload);
        s3.comes_to(0).await;
        let (mut upload, two) = (bucket.begin(), vec![1; 2 * PART]);
        let hasty = tokio::time::timeout(Duration::from_micros(10), upload.write(&two));
        assert!(hasty.await.is_err(), "it takes longer than that to begin");
        drop(upload);
        s3.comes_to(0).await;

        // A commit goes on without its caller.
        let mut upload = bucket.begin();
        upload.write(&vec![2; PART + 1]).await.unwrap();
        let sum = "2".repeat(64);
        let hasty = tokio::time::timeout(Duration::from_micros(10), upload.commit(&sum));
        assert!(hasty.await.is_err(), "it takes longer than that to commit");
        s3.comes_to(0).await;
        let mut tries = 0;
        while bucket.size(&sum).await.is_err() {
            tries += 1;
            assert!(tries < 100, "the blob never comes");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        assert_eq!(bucket.size(&sum).await.unwrap(), PART as u64 + 1);
    }
}
