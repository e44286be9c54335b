//! Brings content into a temporary file: over HTTP with resume, or from a file of the host. Hashes while it writes.

use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use reqwest::header::{CONTENT_RANGE, ETAG, HeaderMap, HeaderValue, IF_RANGE, LAST_MODIFIED, RANGE};
use reqwest::{Response, StatusCode, Url};
use sha2::{Digest, Sha256};
use tempfile::NamedTempFile;

use super::error::StorageError;
use super::flight::Meter;
use super::layout::TEMP_PREFIX;
use super::room::RoomGuard;
use super::source::{Location, Source};

/// Bytes that are hashed and written at a time.
const BLOCK: usize = 1 << 20;
/// How many bytes may come between two looks at the room that is left.
const ROOM_EVERY: u64 = 64 << 20;
/// A run of zeros at least this long becomes a hole.
const HOLE: usize = 4096;

/// How persistent a download is.
#[derive(Clone, Copy, Debug)]
pub struct Retry {
    /// Failures in a row, without one new byte between them, after which it gives up.
    pub failures: u32,
    /// Wait after the first failure; doubled after each further one.
    pub delay: Duration,
}

/// Content that has arrived, complete and with the declared checksum.
pub(super) struct Fetched {
    pub file: NamedTempFile,
    pub sha256: String,
    pub size: u64,
}

/// What a fetch needs beside its source.
pub(super) struct Fetcher {
    pub client: reqwest::Client,
    pub dir: PathBuf,
    pub room: RoomGuard,
    pub max_bytes: u64,
    pub retry: Retry,
}

impl Fetcher {
    /// Fetches into a temporary file beside the cache. Nothing is left behind on failure.
    pub(super) async fn fetch(&self, source: &Source, meter: &Arc<Meter>) -> Result<Fetched, StorageError> {
        let sink = Sink::new(&self.dir, self.room.clone(), source, self.max_bytes)?;
        let sink = match &source.location {
            Location::File(path) => copy_file(path.clone(), source.clone(), sink, Arc::clone(meter)).await?,
            Location::Http(url) => {
                Download {
                    fetcher: self,
                    source,
                    url: url.clone(),
                    meter,
                    sink: Some(sink),
                    validator: None,
                }
                .run()
                .await?
            }
        };
        let fetched = blocking(move || sink.finish()).await?;
        match &source.sha256 {
            Some(expected) if *expected != fetched.sha256 => Err(StorageError::ChecksumMismatch {
                url: source.url.clone(),
                expected: expected.clone(),
                found: fetched.sha256,
            }),
            _ => Ok(fetched),
        }
    }
}

/// Runs file work where it may block.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StorageError> + Send + 'static,
) -> Result<T, StorageError> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| {
        Err(StorageError::ToolFailed {
            action: "file work".to_owned(),
            tool: "agent",
            why: error.to_string(),
        })
    })
}

/// The temporary file, and what is known of its content so far.
struct Sink {
    file: NamedTempFile,
    hasher: Sha256,
    written: u64,
    room_checked_at: u64,
    room: RoomGuard,
    what: String,
    max_bytes: u64,
}

impl Sink {
    fn new(dir: &Path, room: RoomGuard, source: &Source, max_bytes: u64) -> Result<Self, StorageError> {
        let file = tempfile::Builder::new()
            .prefix(TEMP_PREFIX)
            .tempfile_in(dir)
            .map_err(StorageError::disk("making a file in", dir))?;
        Ok(Self {
            file,
            hasher: Sha256::new(),
            written: 0,
            room_checked_at: 0,
            room,
            what: format!("image {}", source.name),
            max_bytes,
        })
    }

    /// Whether `total` bytes are allowed and, with what is written already, will fit.
    fn announce(&self, total: u64, stored: u64) -> Result<(), StorageError> {
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

    fn write(&mut self, bytes: &[u8]) -> Result<(), StorageError> {
        self.check_size(self.written + bytes.len() as u64)?;
        if self.written - self.room_checked_at >= ROOM_EVERY {
            self.room.check(&self.what, bytes.len() as u64)?;
            self.room_checked_at = self.written;
        }
        self.hasher.update(bytes);
        let file = self.file.as_file_mut();
        let outcome = if bytes.len() >= HOLE && bytes.iter().all(|byte| *byte == 0) {
            file.seek(SeekFrom::Current(bytes.len() as i64)).map(drop)
        } else {
            file.write_all(bytes)
        };
        outcome.map_err(|error| self.room.write_error(&self.what, self.file.path(), error))?;
        self.written += bytes.len() as u64;
        Ok(())
    }

    /// Forgets what came.
    fn restart(&mut self) -> Result<(), StorageError> {
        let path = self.file.path().to_owned();
        let file = self.file.as_file_mut();
        file.set_len(0)
            .and_then(|()| file.seek(SeekFrom::Start(0)))
            .map_err(StorageError::disk("emptying", &path))?;
        self.hasher = Sha256::new();
        self.written = 0;
        self.room_checked_at = 0;
        Ok(())
    }

    fn finish(self) -> Result<Fetched, StorageError> {
        let file = self.file.as_file();
        // A hole at the end is not there until the length says so.
        file.set_len(self.written)
            .and_then(|()| file.sync_all())
            .map_err(|error| self.room.write_error(&self.what, self.file.path(), error))?;
        Ok(Fetched {
            sha256: hex::encode(self.hasher.finalize()),
            size: self.written,
            file: self.file,
        })
    }
}

async fn copy_file(
    path: PathBuf,
    source: Source,
    mut sink: Sink,
    meter: Arc<Meter>,
) -> Result<Sink, StorageError> {
    blocking(move || {
        use std::os::unix::fs::MetadataExt;
        let not_found = |answer: String| StorageError::ImageNotFound {
            url: source.url.clone(),
            answer,
        };
        let mut file = std::fs::File::open(&path).map_err(|error| not_found(error.to_string()))?;
        let metadata = file.metadata().map_err(StorageError::disk("reading", &path))?;
        if !metadata.is_file() {
            return Err(not_found("it is not a regular file".to_owned()));
        }
        meter.set_total(Some(metadata.len()));
        sink.announce(metadata.len(), metadata.blocks() * 512)?;
        let mut block = vec![0; BLOCK];
        loop {
            let got = file
                .read(&mut block)
                .map_err(StorageError::disk("reading", &path))?;
            if got == 0 {
                return Ok(sink);
            }
            // In pieces, so that holes of the original stay holes.
            for piece in block[..got].chunks(64 << 10) {
                sink.write(piece)?;
            }
            meter.set_bytes(sink.written);
        }
    })
    .await
}

/// One download over HTTP, through as many connections as it takes.
struct Download<'a> {
    fetcher: &'a Fetcher,
    source: &'a Source,
    url: Url,
    meter: &'a Meter,
    /// Absent only while a block is being written.
    sink: Option<Sink>,
    /// Says on resume that the content is still the same.
    validator: Option<HeaderValue>,
}

impl Download<'_> {
    async fn run(mut self) -> Result<Sink, StorageError> {
        let mut failures = 0;
        loop {
            let before = self.written();
            let error = match self.attempt().await {
                Ok(()) => match self.sink.take() {
                    Some(sink) => return Ok(sink),
                    None => self.failed("the file was lost".to_owned()),
                },
                Err(error) => error,
            };
            if self.written() > before {
                failures = 0;
            }
            failures += 1;
            let network = matches!(
                error,
                StorageError::DownloadFailed { .. } | StorageError::ImageTruncated { .. }
            );
            if !network || failures >= self.fetcher.retry.failures || self.sink.is_none() {
                return Err(error);
            }
            tracing::debug!(url = %self.source.url, failures, error = %error, "download interrupted");
            tokio::time::sleep(self.fetcher.retry.delay * 2_u32.saturating_pow(failures - 1)).await;
        }
    }

    fn written(&self) -> u64 {
        self.sink.as_ref().map_or(0, |sink| sink.written)
    }

    fn failed(&self, why: String) -> StorageError {
        StorageError::DownloadFailed {
            url: self.source.url.clone(),
            why,
        }
    }

    /// One request, from where the last one ended when that is safe.
    async fn attempt(&mut self) -> Result<(), StorageError> {
        let from = self.written();
        // Without a validator a changed file could be glued to the old one; the declared checksum would tell.
        let resume = from > 0 && (self.validator.is_some() || self.source.sha256.is_some());
        let mut request = self.fetcher.client.get(self.url.clone());
        if resume {
            request = request.header(RANGE, format!("bytes={from}-"));
            if let Some(validator) = &self.validator {
                request = request.header(IF_RANGE, validator.clone());
            }
        }
        let response = request
            .send()
            .await
            .map_err(|error| self.failed(describe(&error)))?;
        let total = match accept(&self.source.url, &response, resume.then_some(from))? {
            Body::Rest { total } => total,
            Body::Whole { total } => {
                self.restart().await?;
                total
            }
            Body::Useless => {
                self.restart().await?;
                return Err(
                    self.failed("the server answers a resumed request with something else".to_owned())
                );
            }
        };
        self.validator = validator(response.headers());
        self.meter.set_total(total);
        if let (Some(total), Some(sink)) = (total, &self.sink) {
            sink.announce(total, total)?;
        }
        self.receive(response, total).await
    }

    async fn receive(&mut self, response: Response, total: Option<u64>) -> Result<(), StorageError> {
        let mut stream = response.bytes_stream();
        let mut block = Vec::with_capacity(BLOCK);
        let mut interrupted = None;
        while interrupted.is_none() {
            match stream.next().await {
                Some(Ok(bytes)) => {
                    block.extend_from_slice(&bytes);
                    self.meter.set_bytes(self.written() + block.len() as u64);
                }
                Some(Err(error)) => interrupted = Some(describe(&error)),
                None => break,
            }
            if block.len() >= BLOCK || interrupted.is_some() {
                block = self.write(block).await?;
            }
        }
        self.write(block).await?;
        let got = self.written();
        match (total, interrupted) {
            (Some(expected), _) if got != expected => Err(StorageError::ImageTruncated {
                url: self.source.url.clone(),
                got,
                expected,
            }),
            (None, Some(why)) => Err(self.failed(why)),
            (Some(_), _) | (None, None) => Ok(()),
        }
    }

    /// Writes a block and gives its memory back, empty.
    async fn write(&mut self, mut block: Vec<u8>) -> Result<Vec<u8>, StorageError> {
        let Some(mut sink) = self.sink.take() else {
            return Err(self.failed("the file was lost".to_owned()));
        };
        let (sink, block) = blocking(move || {
            sink.write(&block)?;
            block.clear();
            Ok((sink, block))
        })
        .await?;
        self.meter.set_bytes(sink.written);
        self.sink = Some(sink);
        Ok(block)
    }

    async fn restart(&mut self) -> Result<(), StorageError> {
        if self.written() == 0 {
            return Ok(());
        }
        let Some(mut sink) = self.sink.take() else {
            return Ok(());
        };
        self.sink = Some(
            blocking(move || {
                sink.restart()?;
                Ok(sink)
            })
            .await?,
        );
        Ok(())
    }
}

/// What the body of an answer is.
#[derive(Debug, PartialEq, Eq)]
enum Body {
    /// All of the content.
    Whole { total: Option<u64> },
    /// What was missing.
    Rest { total: Option<u64> },
    /// Neither; begin again.
    Useless,
}

fn accept(url: &str, response: &Response, resumed_from: Option<u64>) -> Result<Body, StorageError> {
    let range = response
        .headers()
        .get(CONTENT_RANGE)
        .and_then(|value| value.to_str().ok());
    let body = body(response.status(), response.content_length(), range, resumed_from);
    body.ok_or_else(|| refusal(url, response.status()))
}

/// What an answer means; `None` for an answer that is an error.
fn body(
    status: StatusCode,
    length: Option<u64>,
    range: Option<&str>,
    resumed_from: Option<u64>,
) -> Option<Body> {
    match (status, resumed_from) {
        (StatusCode::OK, _) => Some(Body::Whole { total: length }),
        (StatusCode::PARTIAL_CONTENT, Some(from)) => Some(match range.and_then(content_range) {
            Some((first, total)) if first == from => Body::Rest { total },
            _ => Body::Useless,
        }),
        (StatusCode::RANGE_NOT_SATISFIABLE, Some(_)) => Some(Body::Useless),
        _ => None,
    }
}

/// `bytes FIRST-LAST/TOTAL`, where TOTAL may be `*`.
fn content_range(value: &str) -> Option<(u64, Option<u64>)> {
    let (range, total) = value.strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let (first, _): (u64, u64) = (first.parse().ok()?, last.parse().ok()?);
    Some((first, total.parse().ok()))
}

fn refusal(url: &str, status: StatusCode) -> StorageError {
    let url = url.to_owned();
    let answer = format!("the server answers {status}");
    match status {
        StatusCode::NOT_FOUND | StatusCode::GONE => StorageError::ImageNotFound { url, answer },
        StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_EARLY | StatusCode::TOO_MANY_REQUESTS => {
            StorageError::DownloadFailed { url, why: answer }
        }
        _ if status.is_server_error() => StorageError::DownloadFailed { url, why: answer },
        _ => StorageError::FetchRefused { url, answer },
    }
}

/// What a later request can name to get the rest of the same content; weak tags promise too little.
fn validator(headers: &HeaderMap) -> Option<HeaderValue> {
    let strong = headers.get(ETAG).filter(|tag| !tag.as_bytes().starts_with(b"W/"));
    strong.or_else(|| headers.get(LAST_MODIFIED)).cloned()
}

/// reqwest keeps what matters in the causes.
fn describe(error: &reqwest::Error) -> String {
    let mut text = String::new();
    let mut cause: Option<&dyn std::error::Error> = Some(error);
    while let Some(error) = cause {
        text = if text.is_empty() {
            error.to_string()
        } else {
            format!("{text}: {error}")
        };
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers() {
        let ok = StatusCode::OK;
        let partial = StatusCode::PARTIAL_CONTENT;
        for (rule, status, length, range, from, expected) in [
            (
                "all",
                ok,
                Some(9),
                None,
                None,
                Some(Body::Whole { total: Some(9) }),
            ),
            (
                "all again",
                ok,
                None,
                None,
                Some(4),
                Some(Body::Whole { total: None }),
            ),
            (
                "the rest",
                partial,
                Some(5),
                Some("bytes 4-8/9"),
                Some(4),
                Some(Body::Rest { total: Some(9) }),
            ),
            (
                "unknown total",
                partial,
                Some(5),
                Some("bytes 4-8/*"),
                Some(4),
                Some(Body::Rest { total: None }),
            ),
            (
                "another part",
                partial,
                Some(5),
                Some("bytes 3-8/9"),
                Some(4),
                Some(Body::Useless),
            ),
            ("no range", partial, Some(5), None, Some(4), Some(Body::Useless)),
            (
                "a part that nobody asked for",
                partial,
                Some(5),
                Some("bytes 0-8/9"),
                None,
                None,
            ),
            (
                "it shrank",
                StatusCode::RANGE_NOT_SATISFIABLE,
                None,
                None,
                Some(4),
                Some(Body::Useless),
            ),
            ("error", StatusCode::NOT_FOUND, Some(9), None, None, None),
        ] {
            assert_eq!(body(status, length, range, from), expected, "{rule}");
        }
    }

    #[test]
    fn statuses() {
        for (status, reason, transient) in [
            (404, "ImageNotFound", false),
            (410, "ImageNotFound", false),
            (401, "DownloadRefused", false),
            (403, "DownloadRefused", false),
            (204, "DownloadRefused", false),
            (408, "DownloadFailed", true),
            (429, "DownloadFailed", true),
            (500, "DownloadFailed", true),
            (503, "DownloadFailed", true),
        ] {
            let error = refusal("http://x/", StatusCode::from_u16(status).unwrap());
            assert_eq!(
                (error.reason(), error.is_transient()),
                (reason, transient),
                "{status}"
            );
            assert!(error.to_string().contains(&status.to_string()), "{error}");
        }
    }

    #[test]
    fn validators() {
        let headers = |pairs: &[(reqwest::header::HeaderName, &'static str)]| -> HeaderMap {
            pairs
                .iter()
                .map(|(name, value)| (name.clone(), HeaderValue::from_static(value)))
                .collect()
        };
        let strong = headers(&[(ETAG, "\"a\""), (LAST_MODIFIED, "d")]);
        assert_eq!(validator(&strong).unwrap(), "\"a\"");
        let weak = headers(&[(ETAG, "W/\"a\""), (LAST_MODIFIED, "d")]);
        assert_eq!(validator(&weak).unwrap(), "d");
        assert_eq!(validator(&headers(&[])), None);
    }
}
