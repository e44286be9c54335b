//! What answers which path, for one listener: operational endpoints, then the dialects.

use std::net::SocketAddr;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Instant;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};

use futures::FutureExt;

use crate::dialects::{Dialect, RequestId, Trace};
use crate::metrics::Metrics;
use crate::store::Store;

/// Names a request in logs; a client's own is kept.
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// How many characters of a path the access log keeps: a path may have 64 KB.
const MAX_PATH_LOGGED: usize = 256;

/// Who sends a request, as an extension of it.
#[derive(Clone, Copy, Debug)]
pub struct Peer(pub SocketAddr);

/// What one listener serves.
pub struct Gateway {
    /// The first that claims a path answers; what none claims is the last one's to refuse.
    pub dialects: Vec<Arc<dyn Dialect>>,
    /// The caches, for `/readyz`.
    pub store: Arc<Store>,
    /// The counters.
    pub metrics: Arc<Metrics>,
}

/// The service of one listener.
///
/// Everything is one fallback: axum's own routing would answer what belongs to a dialect (405, HEAD through GET).
pub fn router(gateway: Gateway) -> Router {
    Router::new().fallback(answer).with_state(Arc::new(gateway))
}

async fn answer(State(gateway): State<Arc<Gateway>>, mut request: Request) -> Response {
    if *request.method() == Method::GET {
        match request.uri().path() {
            "/healthz" => return "ok\n".into_response(),
            "/readyz" => return readyz(&gateway.store),
            "/metrics" => return metrics(&gateway.metrics),
            _ => {}
        }
    }
    let began = Instant::now();
    let id = request_id(request.headers());
    let method = request.method().clone();
    let path = request.uri().path().to_owned();
    let client = request.extensions().get::<Peer>().map(|peer| peer.0);
    let claimed = gateway
        .dialects
        .iter()
        .find(|dialect| dialect.claims(&path))
        .or(gateway.dialects.last());
    let Some(dialect) = claimed else {
        return StatusCode::NOT_IMPLEMENTED.into_response();
    };
    request.extensions_mut().insert(id.clone());
    let mut response = guarded(dialect.as_ref(), request).await;
    let trace = response.extensions_mut().remove::<Trace>().unwrap_or_default();
    let (status, took) = (response.status().as_u16(), began.elapsed());
    gateway
        .metrics
        .count(dialect.name(), method.as_str(), trace.route, status, took);
    tracing::info!(
        request.id = id.as_str(),
        dialect = dialect.name(),
        method = method.as_str(),
        client = client.map(tracing::field::display),
        path = brief(&path),
        route = trace.route,
        user = trace.user,
        status,
        elapsed_ms = took.as_secs_f64() * 1000.0,
        "request"
    );
    response.headers_mut().insert(REQUEST_ID, id.0);
    response
}

/// The dialect's answer; a panic is a bug, and one request's alone.
async fn guarded(dialect: &dyn Dialect, request: Request) -> Response {
    // What was being changed is dropped with the request; everything shared is behind locks that outlive a panic.
    let answer = AssertUnwindSafe(async { dialect.answer(request).await });
    answer.catch_unwind().await.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
        tracing::error!(
            dialect = dialect.name(),
            panic = text.unwrap_or("?"),
            "answering a request panicked"
        );
        dialect.broken()
    })
}

fn readyz(store: &Store) -> Response {
    match store.health() {
        Ok(()) => "ok\n".into_response(),
        Err(stale) => (StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {stale}\n")).into_response(),
    }
}

/// The beginning of a path.
fn brief(path: &str) -> &str {
    path.char_indices()
        .nth(MAX_PATH_LOGGED)
        .map_or(path, |(end, _)| &path[..end])
}

fn metrics(metrics: &Metrics) -> Response {
    match metrics.encode() {
        Ok(text) => {
            let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            ([(header::CONTENT_TYPE, kind)], text).into_response()
        }
        Err(error) => {
            tracing::error!(%error, "metrics cannot be encoded");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}

/// The client's id where it is short and plain, else a new one.
fn request_id(headers: &HeaderMap) -> RequestId {
    let is_plain = |value: &&HeaderValue| {
        (1..=64).contains(&value.len())
            && value
                .as_bytes()
                .iter()
                .all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(b))
    };
    let own = headers.get(REQUEST_ID).filter(is_plain).cloned();
    RequestId(own.unwrap_or_else(|| {
        let id = uuid::Uuid::new_v4().simple().to_string();
        HeaderValue::from_str(&id).unwrap_or(HeaderValue::from_static("unknown"))
    }))
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use axum::http::Request;
    use futures::future::BoxFuture;

    use super::*;

    /// Panics while it makes the answer, or while it is waited for.
    struct Buggy {
        at_once: bool,
    }

    impl Dialect for Buggy {
        fn name(&self) -> &'static str {
            "buggy"
        }

        fn claims(&self, _: &str) -> bool {
            true
        }

        fn answer(&self, _: Request<Body>) -> BoxFuture<'static, Response<Body>> {
            assert!(!self.at_once, "at once");
            Box::pin(async { panic!("later") })
        }
    }

    #[tokio::test]
    async fn a_panic_is_an_answer() {
        for at_once in [true, false] {
            let request = Request::new(Body::empty());
            let response = guarded(&Buggy { at_once }, request).await;
            assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
        }
    }

    #[test]
    fn a_path_in_the_log_has_an_end() {
        assert_eq!(brief("/hosts"), "/hosts");
        assert_eq!(brief(&"ä".repeat(300)), "ä".repeat(256));
    }
}
