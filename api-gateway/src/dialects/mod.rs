//! The REST dialects: each translates its requests into intents of [`crate::service`] and the outcomes back. [`agents`] is
//! for our own node agents.
//!
//! A dialect is one folder here and one line in [`crate::server`].

pub mod agents;
pub mod virtshell;

use axum::body::Body;
use axum::http::{HeaderValue, Request, Response, StatusCode};
use axum::response::IntoResponse;
use futures::future::BoxFuture;

/// One REST API.
pub trait Dialect: Send + Sync {
    /// Its name in logs and metrics.
    fn name(&self) -> &'static str;

    /// Whether a path, as on the wire, is one of its own.
    fn claims(&self, path: &str) -> bool;

    /// Answers a request; never fails.
    fn answer(&self, request: Request<Body>) -> BoxFuture<'static, Response<Body>>;

    /// What a client gets when answering panicked, in the dialect's own envelope.
    fn broken(&self) -> Response<Body> {
        StatusCode::INTERNAL_SERVER_ERROR.into_response()
    }
}

/// The id of a request, as an extension of it: in the access log, in the answer, and on what the request writes.
#[derive(Clone, Debug)]
pub struct RequestId(pub HeaderValue);

impl RequestId {
    /// As text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        // It was made of plain characters, or checked to be.
        self.0.to_str().unwrap_or_default()
    }
}

/// What a dialect tells the access log and the metrics about a request, as an extension of the response.
#[derive(Clone, Debug, Default)]
pub struct Trace {
    /// The route's template; empty for unknown ones.
    pub route: &'static str,
    /// Name of the user, when there is one.
    pub user: String,
}
