//! Brings content into a file beside the cache: over HTTP with resume, from a file of the host, or from a stored file.

use std::io::Read;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use reqwest::header::{CONTENT_RANGE, ETAG, HeaderMap, IF_RANGE, LAST_MODIFIED, RANGE};
use reqwest::{RequestBuilder, Response, StatusCode};
use tempfile::NamedTempFile;

use super::error::StorageError;
use super::flight::Meter;
use super::room::RoomGuard;
use super::sink::Sink;
use super::source::{Location, Source};
use super::web::{Forbidden, Web, forbidden};
use crate::file_content::Content;
use crate::node::files::Files;

/// Bytes that are hashed and written at a time.
const BLOCK: usize = 1 << 20;

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
#[derive(Clone)]
pub(super) struct Fetcher {
    pub web: Web,
    pub files: Arc<Files>,
    /// Where downloads are until they are complete.
    pub dir: PathBuf,
    pub room: RoomGuard,
    pub max_bytes: u64,
    pub retry: Retry,
}

impl Fetcher {
    /// Fetches into a file beside the cache. What a failed download leaves is there for the next try alone.
    pub(super) async fn fetch(&self, source: &Source, meter: &Arc<Meter>) -> Result<Fetched, StorageError> {
        let (fetched, resumed) = self.bring(source, meter).await?;
        match &source.sha256 {
            Some(expected) if *expected != fetched.sha256 && resumed => {
                // The older part of it may have been damaged, or be of other content.
                tracing::info!(url = %source.url, "a resumed download has another checksum; it is fetched anew");
                drop(fetched);
                let (fetched, _) = self.bring(source, meter).await?;
                checked(source, fetched)
            }
            _ => checked(source, fetched),
        }
    }

    /// The content, and whether a part of it was here before.
    async fn bring(&self, source: &Source, meter: &Arc<Meter>) -> Result<(Fetched, bool), StorageError> {
        let sink = match &source.location {
            Location::File(path) => {
                let sink = self.temporary(source).await?;
                copy_file(path.clone(), source.clone(), sink, Arc::clone(meter)).await?
            }
            Location::Http(_) => self.download(source, meter).await?,
            Location::Stored(at) => {
                let found = self.files.find(at).await;
                let (_, content) = found.map_err(|error| StorageError::of_file(&source.url, error))?;
                match content {
                    Content::Inline(bytes) => {
                        let mut sink = self.temporary(source).await?;
                        blocking(move || sink.write(&bytes).map(|()| sink)).await?
                    }
                    Content::Blob => self.download(source, meter).await?,
                }
            }
        };
        let resumed = sink.resumed();
        let fetched = blocking(move || sink.finish()).await?;
        Ok((fetched, resumed))
    }

    async fn temporary(&self, source: &Source) -> Result<Sink, StorageError> {
        let (fetcher, of) = (self.clone(), source.clone());
        blocking(move || Sink::temporary(&fetcher, &of)).await
    }

    async fn download(&self, source: &Source, meter: &Arc<Meter>) -> Result<Sink, StorageError> {
        let (fetcher, of) = (self.clone(), source.clone());
        let sink = if source.aside {
            self.temporary(source).await?
        } else {
            blocking(move || Sink::resume(&fetcher, &of)).await?
        };
        let download = Download {
            fetcher: self,
            source,
            meter,
            sink: Some(sink),
        };
        download.run().await
    }
}

fn checked(source: &Source, fetched: Fetched) -> Result<Fetched, StorageError> {
    match &source.sha256 {
        Some(expected) if *expected != fetched.sha256 => Err(StorageError::ChecksumMismatch {
            url: source.url.clone(),
            expected: expected.clone(),
            found: fetched.sha256,
        }),
        _ => Ok(fetched),
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
            meter.set_bytes(sink.written());
        }
    })
    .await
}

/// One download over HTTP, through as many connections as it takes.
struct Download<'a> {
    fetcher: &'a Fetcher,
    source: &'a Source,
    meter: &'a Meter,
    /// Absent only while it is being worked on.
    sink: Option<Sink>,
}

impl Download<'_> {
    async fn run(mut self) -> Result<Sink, StorageError> {
        let mut failures = 0;
        self.meter.set_start(self.written());
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
                self.give_up(network).await;
                return Err(error);
            }
            tracing::debug!(url = %self.source.url, failures, error = %error, "download interrupted");
            tokio::time::sleep(self.fetcher.retry.delay * 2_u32.saturating_pow(failures - 1)).await;
        }
    }

    /// What a broken network left may be gone on with; what was refused may not.
    async fn give_up(&mut self, network: bool) {
        let worth = |sink: &Sink| network && sink.written() > 0 && sink.is_resumable();
        if self.sink.as_ref().is_some_and(worth) {
            if let Err(error) = self.on_sink(Sink::keep).await {
                tracing::debug!(url = %self.source.url, %error, "the next try begins earlier");
            }
        } else if let Some(sink) = self.sink.take() {
            sink.discard();
        }
    }

    fn written(&self) -> u64 {
        self.sink.as_ref().map_or(0, Sink::written)
    }

    fn failed(&self, why: String) -> StorageError {
        StorageError::DownloadFailed {
            url: self.source.url.clone(),
            why,
        }
    }

    fn forbidden(&self, Forbidden(address): Forbidden) -> StorageError {
        StorageError::SourceForbidden {
            url: self.source.url.clone(),
            address,
        }
    }

    /// A request for all of it.
    async fn request(&self) -> Result<RequestBuilder, StorageError> {
        match &self.source.location {
            Location::Stored(at) => {
                let request = self.fetcher.files.blob(at).await;
                request.map_err(|error| StorageError::of_file(&self.source.url, error))
            }
            Location::Http(url) => {
                let request = self.fetcher.web.get(url);
                request.map_err(|why| self.forbidden(why))
            }
            Location::File(_) => Err(self.failed("it is a file of this host".to_owned())),
        }
    }

    /// One request, from where the last one ended when that is safe.
    async fn attempt(&mut self) -> Result<(), StorageError> {
        let from = self.written();
        let resume = from > 0 && self.sink.as_ref().is_some_and(Sink::is_resumable);
        let mut request = self.request().await?;
        if resume {
            request = request.header(RANGE, format!("bytes={from}-"));
            if let Some(validator) = self.sink.as_ref().and_then(Sink::validator) {
                request = request.header(IF_RANGE, validator);
            }
        }
        let response = request.send().await.map_err(|error| match forbidden(&error) {
            Some(why) => self.forbidden(why),
            None => self.failed(describe(&error)),
        })?;
        if let (Location::Stored(_), StatusCode::UNAUTHORIZED) = (&self.source.location, response.status()) {
            self.fetcher.files.forget_token().await;
            return Err(self.failed("the gateway does not know the agent's token".to_owned()));
        }
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
        if let Some(sink) = &mut self.sink {
            sink.set_validator(validator(response.headers()));
        }
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
        let block = self
            .on_sink(move |sink| {
                sink.write(&block)?;
                block.clear();
                Ok(block)
            })
            .await?;
        self.meter.set_bytes(self.written());
        Ok(block)
    }

    async fn restart(&mut self) -> Result<(), StorageError> {
        self.meter.set_start(0);
        if self.written() == 0 {
            return Ok(());
        }
        self.on_sink(Sink::restart).await
    }

    /// Works on the file where it may block. One that failed is gone.
    async fn on_sink<T: Send + 'static>(
        &mut self,
        work: impl FnOnce(&mut Sink) -> Result<T, StorageError> + Send + 'static,
    ) -> Result<T, StorageError> {
        let Some(mut sink) = self.sink.take() else {
            return Err(self.failed("the file was lost".to_owned()));
        };
        let (sink, answer) = blocking(move || match work(&mut sink) {
            Ok(answer) => Ok((sink, answer)),
            Err(error) => {
                sink.discard();
                Err(error)
            }
        })
        .await?;
        self.sink = Some(sink);
        Ok(answer)
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
fn validator(headers: &HeaderMap) -> Option<String> {
    let strong = headers.get(ETAG).filter(|tag| !tag.as_bytes().starts_with(b"W/"));
    let chosen = strong.or_else(|| headers.get(LAST_MODIFIED))?;
    chosen.to_str().ok().map(str::to_owned)
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
                .map(|(name, value)| (name.clone(), reqwest::header::HeaderValue::from_static(value)))
                .collect()
        };
        let strong = headers(&[(ETAG, "\"a\""), (LAST_MODIFIED, "d")]);
        assert_eq!(validator(&strong).unwrap(), "\"a\"");
        let weak = headers(&[(ETAG, "W/\"a\""), (LAST_MODIFIED, "d")]);
        assert_eq!(validator(&weak).unwrap(), "d");
        assert_eq!(validator(&headers(&[])), None);
    }
}
