//! Takes in content of unknown size: what is small stays in memory, the rest goes to the blobs as it comes.

use axum::body::Bytes;
use sha2::{Digest, Sha256};

use super::{BlobError, Blobs, Upload};

/// Most bytes of content that an object of the API server holds.
pub const MAX_INLINE: usize = 64 * 1024;

/// Content that is being taken in.
pub struct Intake<'a> {
    blobs: &'a Blobs,
    sum: Sha256,
    size: u64,
    /// Everything, until it is too large.
    held: Vec<u8>,
    upload: Option<Upload>,
}

/// Content that was taken in, and is kept only once somebody names it.
pub struct Content {
    /// SHA-256, in hexadecimal digits.
    pub sha256: String,
    /// Bytes.
    pub size: u64,
    kept: Kept,
}

enum Kept {
    Here(Vec<u8>),
    Aside(Box<Upload>),
}

impl<'a> Intake<'a> {
    pub(super) fn new(blobs: &'a Blobs) -> Self {
        Self {
            blobs,
            sum: Sha256::new(),
            size: 0,
            held: Vec::new(),
            upload: None,
        }
    }

    /// Adds to it.
    pub async fn write(&mut self, bytes: &Bytes) -> Result<(), BlobError> {
        self.sum.update(bytes);
        self.size += bytes.len() as u64;
        if let Some(upload) = &mut self.upload {
            return upload.write(bytes).await;
        }
        if self.held.len() + bytes.len() <= MAX_INLINE {
            self.held.extend_from_slice(bytes);
            return Ok(());
        }
        let mut upload = self.blobs.begin().await?;
        upload.write(&std::mem::take(&mut self.held)).await?;
        upload.write(bytes).await?;
        self.upload = Some(upload);
        Ok(())
    }

    /// That was all.
    #[must_use]
    pub fn finish(self) -> Content {
        Content {
            sha256: hex::encode(self.sum.finalize()),
            size: self.size,
            kept: self
                .upload
                .map_or(Kept::Here(self.held), |upload| Kept::Aside(Box::new(upload))),
        }
    }
}

impl Content {
    /// Keeps it for good: as a blob, or by the caller, who then gets the bytes.
    pub async fn keep(self) -> Result<Option<Vec<u8>>, BlobError> {
        match self.kept {
            Kept::Here(bytes) => Ok(Some(bytes)),
            Kept::Aside(upload) => upload.commit(&self.sha256).await.map(|()| None),
        }
    }
}
