//! Multipart bodies: a file and the fields beside it, read as they arrive.
//!
//! A file of a gigabyte passes through in steps: small ones are held, large ones go to the blobs. Nothing is kept before all
//! of the body was read and had the sum that the request announced.

use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Poll, ready};
use std::time::Duration;

use axum::body::{Body, BodyDataStream, Bytes};
use axum::http::{HeaderMap, header};
use futures::{Stream, StreamExt, TryStreamExt};
use md5::{Digest, Md5};
use multer::{Field, Multipart};
use serde_json::{Map, Value};

use super::error::Rejection;
use crate::auth::signature;
use crate::blobs::{Content, Intake};
use crate::service::files::unusable;

/// How long a client may be silent in the midst of a body.
const PATIENCE: Duration = Duration::from_secs(30);
/// Most bytes of a field that is no file.
const MAX_TEXT: usize = 8 * 1024;
/// Most fields of a form.
const MAX_FIELDS: usize = 64;
/// Most bytes until a part begins: what precedes it, its boundary and its headers. The parser holds them all.
const MAX_HEAD: usize = 16 * 1024;
/// Names of the field that is the file.
const FILE: [&str; 2] = ["file_data", "file"];

/// A multipart body that nobody has read yet.
pub struct Upload {
    body: Body,
    boundary: String,
    md5: Option<String>,
    limit: u64,
}

/// What a multipart body had in it.
#[derive(Default)]
pub struct Form {
    /// Fields that are no file, as strings.
    pub fields: Map<String, Value>,
    /// The file.
    pub file: Option<FormFile>,
}

/// The file of a form.
pub struct FormFile {
    /// The name that the client gave it.
    pub name: Option<String>,
    /// What is in it.
    pub content: Content,
}

/// The boundary of a multipart body, when the headers announce one.
pub fn boundary(headers: &HeaderMap) -> Option<String> {
    let kind = headers.get(header::CONTENT_TYPE)?.to_str().ok()?;
    multer::parse_boundary(kind).ok()
}

impl Upload {
    /// A body with this boundary; `md5` is the `Content-MD5` of the request, `limit` the most bytes it may have.
    pub const fn new(body: Body, boundary: String, md5: Option<String>, limit: u64) -> Self {
        Self {
            body,
            boundary,
            md5,
            limit,
        }
    }

    /// Reads all of it; `intake` begins to take in a file.
    pub async fn read<'a>(self, intake: impl Fn() -> Intake<'a>) -> Result<Form, Rejection> {
        let raw = Arc::new(Mutex::new(Raw {
            body: self.body.into_data_stream(),
            sum: Md5::new(),
            left: self.limit,
            head: None,
        }));
        let look_for_a_head = |head| raw.lock().unwrap_or_else(PoisonError::into_inner).head = head;
        let mut parts = Multipart::new(steps(raw.clone()), self.boundary);
        let mut form = Form::default();
        let mut count = 0;
        loop {
            look_for_a_head(Some(MAX_HEAD));
            let next = in_time(parts.next_field()).await?;
            look_for_a_head(None);
            let Some(field) = next else { break };
            count += 1;
            if count > MAX_FIELDS {
                return Err(Rejection::BadBody("it has too many parts"));
            }
            let name = field.name().unwrap_or_default().to_owned();
            if FILE.contains(&name.as_str()) {
                if form.file.is_some() {
                    return Err(Rejection::BadBody("it has more than one file"));
                }
                form.file = Some(file(field, intake()).await?);
            } else {
                form.fields.insert(name, Value::String(text(field).await?));
            }
        }
        drop(parts);
        // What follows the last boundary belongs to the sum.
        let mut rest = std::pin::pin!(steps(raw.clone()).map_err(multer_error));
        while in_time(rest.try_next()).await?.is_some() {}
        let sum = std::mem::take(&mut raw.lock().unwrap_or_else(PoisonError::into_inner).sum);
        match self.md5 {
            Some(announced) if !signature::is_md5(&announced, sum.finalize().as_slice()) => Err(
                Rejection::BadBody("it does not have the Content-MD5 of the request"),
            ),
            Some(_) | None => Ok(form),
        }
    }
}

/// The bytes as they arrive, counted and summed.
struct Raw {
    body: BodyDataStream,
    sum: Md5,
    left: u64,
    /// While the head of a part is looked for: how many more bytes it may take.
    head: Option<usize>,
}

/// Why a body ends early.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
enum BodyError {
    #[error("it is too large")]
    TooLarge,
    #[error("it broke off")]
    BrokeOff,
    #[error("a part of it does not begin")]
    NoHead,
}

/// The body in the pieces in which it arrives.
fn steps(raw: Arc<Mutex<Raw>>) -> impl Stream<Item = Result<Bytes, BodyError>> {
    let mut is_fresh = false;
    futures::stream::poll_fn(move |context| {
        // The parser takes in all that is ready before it looks at any of it: one piece at a time is ready.
        if std::mem::take(&mut is_fresh) {
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        let mut raw = raw.lock().unwrap_or_else(PoisonError::into_inner);
        if raw.head == Some(0) {
            return Poll::Ready(Some(Err(BodyError::NoHead)));
        }
        let step = ready!(raw.body.poll_next_unpin(context));
        is_fresh = step.is_some();
        Poll::Ready(step.map(|step| {
            let bytes = step.map_err(|_| BodyError::BrokeOff)?;
            let left = raw.left.checked_sub(bytes.len() as u64);
            raw.left = left.ok_or(BodyError::TooLarge)?;
            raw.head = raw.head.map(|head| head.saturating_sub(bytes.len()));
            raw.sum.update(&bytes);
            Ok(bytes)
        }))
    })
}

/// As multer passes it on.
fn multer_error(error: BodyError) -> multer::Error {
    multer::Error::StreamReadFailed(Box::new(error))
}

async fn file(mut field: Field<'_>, mut intake: Intake<'_>) -> Result<FormFile, Rejection> {
    let name = field.file_name().map(str::to_owned);
    while let Some(bytes) = in_time(field.chunk()).await? {
        intake
            .write(&bytes)
            .await
            .map_err(|error| Rejection::Service(unusable(&error)))?;
    }
    Ok(FormFile {
        name,
        content: intake.finish(),
    })
}

async fn text(mut field: Field<'_>) -> Result<String, Rejection> {
    let mut text = Vec::new();
    while let Some(bytes) = in_time(field.chunk()).await? {
        text.extend_from_slice(&bytes);
        if text.len() > MAX_TEXT {
            return Err(Rejection::BadBody("a part that is no file has more than 8 KiB"));
        }
    }
    String::from_utf8(text).map_err(|_| Rejection::BadBody("a part that is no file is not UTF-8"))
}

async fn in_time<T>(step: impl Future<Output = multer::Result<Option<T>>>) -> Result<Option<T>, Rejection> {
    match tokio::time::timeout(PATIENCE, step).await {
        Ok(Ok(step)) => Ok(step),
        Ok(Err(multer::Error::StreamReadFailed(error))) => Err(match error.downcast_ref() {
            Some(BodyError::TooLarge) => Rejection::BadBody("it is too large"),
            Some(BodyError::NoHead) => Rejection::BadBody("a part of it does not begin within 16 KiB"),
            Some(BodyError::BrokeOff) | None => Rejection::BadBody("it broke off"),
        }),
        Ok(Err(_)) => Err(Rejection::BadBody("it is no multipart form")),
        Err(_) => Err(Rejection::BadBody("it did not arrive in time")),
    }
}
