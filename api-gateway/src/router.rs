//! What answers which path, for one listener: operational endpoints, then the dialects.

use std::sync::Arc;
use std::time::Instant;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};

use crate::dialects::{Dialect, RequestId, Trace};
use crate::metrics::Metrics;
use crate::store::Store;

/// Names a request in logs; a client's own is kept.
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

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
    let claimed = gateway
        .dialects
        .iter()
        .find(|dialect| dialect.claims(&path))
        .or(gateway.dialects.last());
    let Some(dialect) = claimed else {
        return StatusCode::NOT_IMPLEMENTED.into_response();
    };
    request.extensions_mut().insert(id.clone());
    let mut response: Response<Body> = dialect.answer(request).await;
    let trace = response.extensions_mut().remove::<Trace>().unwrap_or_default();
    let (status, took) = (response.status().as_u16(), began.elapsed());
    gateway
        .metrics
        .count(dialect.name(), method.as_str(), trace.route, status, took);
    tracing::info!(
        request.id = id.as_str(),
        dialect = dialect.name(),
        method = method.as_str(),
        path,
        route = trace.route,
        user = trace.user,
        status,
        elapsed_ms = took.as_secs_f64() * 1000.0,
        "request"
    );
    response.headers_mut().insert(REQUEST_ID, id.0);
    response
}

fn readyz(store: &Store) -> Response {
    match store.health() {
        Ok(()) => "ok\n".into_response(),
        Err(stale) => (StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {stale}\n")).into_response(),
    }
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
