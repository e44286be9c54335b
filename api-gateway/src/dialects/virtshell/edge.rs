//! The way of every request, in the one order of checks.
//!
//! Accept, route and method, contact with the API server, authentication, body. What the handlers check follows the
//! same order: the object that the URI names, permission, members of the body, and only then do they act. Nothing here
//! comes from a framework, so nothing of a framework shows.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::request::Parts;
use axum::http::uri::Authority;
use axum::http::{HeaderMap, Request, Response, header};
use futures::future::BoxFuture;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use jiff::Timestamp;
use percent_encoding::percent_decode_str;
use serde_json::{Map, Value};

use super::error::{Rejection, word};
use super::routes::{self, Input, Match};
use super::upload::{self, Upload};
use super::values::Fields;
use crate::auth::{self, Authenticator, signature};
use crate::dialects::{Dialect, RequestId, Trace};
use crate::service::{Caller, Kind, Service, ServiceError, Verb};

/// Most bytes of a JSON body.
const MAX_BODY: usize = 1024 * 1024;
/// How long a client may take to send it.
const BODY_PATIENCE: Duration = Duration::from_secs(30);
/// How much of a path an error message repeats.
const MAX_PATH_SHOWN: usize = 256;

/// What a handler gets: a request that passed all checks of the edge.
pub struct Call {
    /// Decides and writes.
    pub service: Service,
    /// On whose behalf.
    pub caller: Caller,
    /// What the path's captures caught.
    pub captures: Vec<String>,
    /// The collection as the client spelled it.
    pub spelling: String,
    /// What follows `?`, as on the wire.
    pub query: String,
    /// The body; empty where there is none.
    pub body: Map<String, Value>,
    /// The body where it is a form with files: not read yet.
    pub upload: Option<Upload>,
    /// Where the API is, as this client sees it: scheme, host and base path.
    pub base_uri: String,
    /// Whether the client asks for JSON by name rather than for anything.
    pub names_json: bool,
}

impl Call {
    /// The name or uuid in the path.
    pub fn id(&self) -> &str {
        self.captures.first().map_or("", String::as_str)
    }

    /// The members of the body.
    pub fn fields(&self) -> Fields<'_> {
        Fields::of(&self.body)
    }

    /// The name of what is to be made: from the body, or from the path. Both must say the same.
    pub fn new_name(&self, members: &[&'static str]) -> Result<String, Rejection> {
        new_name(self.fields(), self.captures.first(), members)
    }
}

/// The name of what is to be made, where the path may have one too.
pub fn new_name(
    fields: Fields<'_>,
    in_path: Option<&String>,
    members: &[&'static str],
) -> Result<String, Rejection> {
    match (fields.name(members)?, in_path) {
        (Some(name), Some(path)) if name != *path => Err(Rejection::invalid(
            members[0],
            "differs from the name in the path",
        )),
        (Some(name), _) => Ok(name),
        (None, Some(path)) => Ok(path.clone()),
        (None, None) => Err(Rejection::MissingField(members[0])),
    }
}

/// VirtShell's own REST API.
pub struct VirtShell {
    bases: Vec<&'static str>,
    service: Service,
    authenticator: Arc<Authenticator>,
    limits: Limits,
}

/// What bodies must be.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Whether each needs a `Content-MD5`.
    pub require_content_md5: bool,
    /// Most bytes of a form with a file.
    pub max_upload: u64,
}

impl VirtShell {
    /// The dialect on the main listener.
    #[must_use]
    pub fn new(service: Service, authenticator: Arc<Authenticator>, limits: Limits) -> Self {
        Self {
            bases: routes::BASES.to_vec(),
            service,
            authenticator,
            limits,
        }
    }

    /// The same at the root too, for a listener that has it to itself.
    #[must_use]
    pub fn at_the_root(mut self) -> Self {
        self.bases.push("");
        self
    }

    async fn handle(
        self: Arc<Self>,
        parts: Parts,
        body: Body,
        trace: &mut Trace,
    ) -> Result<super::answer::Answer, Rejection> {
        if !accepts(&parts.headers).json {
            return Err(Rejection::NotAcceptable);
        }
        let path = parts.uri.path();
        let (base, below) = self.below_base(path).unzip();
        let base = base.unwrap_or_default();
        let request = Target::read(below, parts.uri.query());
        if let Some((path, answer)) = routes::find_public(&parts.method, &request.segments) {
            trace.route = path;
            return Ok(answer());
        }
        let found = routes::find(&parts.method, &request.segments, request.id_in_query).ok_or_else(|| {
            Rejection::NotImplemented {
                method: parts.method.to_string(),
                path: path.chars().take(MAX_PATH_SHOWN).collect(),
            }
        })?;
        trace.route = found.route.path;
        self.service.store().health()?;
        let mut caller = self.authenticator.caller(
            &auth::Request {
                method: parts.method.as_str(),
                resource: path,
                authority: parts.uri.authority().map(Authority::as_str),
                headers: &parts.headers,
            },
            Timestamp::now(),
        )?;
        trace.user.clone_from(&caller.name);
        if let Some(id) = parts.extensions.get::<RequestId>() {
            id.as_str().clone_into(&mut caller.request_id);
        }
        if !request.is_valid {
            return Err(Rejection::BadPath);
        }
        let Match {
            route,
            captures,
            spelling,
        } = found;
        let boundary = upload::boundary(&parts.headers).filter(|_| route.input.may_be_a_form());
        let (body, upload) = if route.input == Input::Unread {
            (Map::new(), None)
        } else if let Some(boundary) = boundary {
            if announced_length(&parts.headers).is_some_and(|length| length > self.limits.max_upload) {
                return Err(Rejection::BadBody("it is too large"));
            }
            let md5 = self.announced_sum(&parts.headers, true)?;
            (
                Map::new(),
                Some(Upload::new(body, boundary, md5, self.limits.max_upload)),
            )
        } else {
            let bytes = read(&parts.headers, body).await?;
            self.check_sum(&parts.headers, &bytes)?;
            (object(&bytes, route.input)?, None)
        };
        (route.handler)(Call {
            service: self.service.clone(),
            caller,
            captures,
            spelling,
            query: parts.uri.query().unwrap_or_default().to_owned(),
            body,
            upload,
            base_uri: base_uri(&parts.headers, parts.uri.authority().map(Authority::as_str), base),
            names_json: accepts(&parts.headers).names_json,
        })
        .await
    }

    /// The base of a path and the rest of it; `None` when it is under none.
    fn below_base<'a>(&self, path: &'a str) -> Option<(&'static str, &'a str)> {
        self.bases.iter().find_map(|base| {
            path.strip_prefix(base)
                .filter(|rest| rest.is_empty() || rest.starts_with('/'))
                .map(|rest| (*base, rest))
        })
    }

    fn check_sum(&self, headers: &HeaderMap, body: &[u8]) -> Result<(), Rejection> {
        match self.announced_sum(headers, !body.is_empty())? {
            Some(sum) if !signature::is_md5_of(&sum, body) => Err(Rejection::BadBody(
                "it does not have the Content-MD5 of the request",
            )),
            Some(_) | None => Ok(()),
        }
    }

    /// The `Content-MD5` of the request; an empty value signs like an absent one and says as much.
    fn announced_sum(&self, headers: &HeaderMap, has_body: bool) -> Result<Option<String>, Rejection> {
        let sum = headers
            .get("content-md5")
            .map(|sum| sum.to_str().unwrap_or("?").trim());
        let sum = sum.filter(|sum| !sum.is_empty()).map(str::to_owned);
        if self.limits.require_content_md5 && sum.is_none() && has_body {
            return Err(Rejection::BadBody(
                "a request with a body needs a Content-MD5 here",
            ));
        }
        Ok(sum)
    }
}

/// The dialect as the router mounts it.
pub struct Mounted(pub Arc<VirtShell>);

impl Dialect for Mounted {
    fn name(&self) -> &'static str {
        "virtshell"
    }

    fn claims(&self, path: &str) -> bool {
        self.0.below_base(path).is_some()
    }

    fn broken(&self) -> Response<Body> {
        Rejection::Service(ServiceError::Internal(
            "a bug in the gateway; its log says more".to_owned(),
        ))
        .into_response()
    }

    fn answer(&self, request: Request<Body>) -> BoxFuture<'static, Response<Body>> {
        let dialect = self.0.clone();
        Box::pin(async move {
            let mut trace = Trace::default();
            let (parts, body) = request.into_parts();
            let mut response = match dialect.handle(parts, body, &mut trace).await {
                Ok(answer) => answer.into_response(),
                Err(rejection) => {
                    if rejection.is_internal() {
                        tracing::warn!(route = trace.route, error = rejection.message(), "request failed");
                    }
                    rejection.into_response()
                }
            };
            response.extensions_mut().insert(trace);
            response
        })
    }
}

/// What the request target names.
struct Target {
    segments: Vec<String>,
    /// Whether the last of them is the `id` of the query.
    id_in_query: bool,
    /// Whether all of it was well encoded.
    is_valid: bool,
}

impl Target {
    fn read(path: Option<&str>, query: Option<&str>) -> Self {
        let mut target = Self {
            segments: Vec::new(),
            id_in_query: false,
            is_valid: true,
        };
        let Some(path) = path.and_then(|path| path.strip_prefix('/')) else {
            return target;
        };
        // One slash at the end counts for nothing.
        let path = path.strip_suffix('/').unwrap_or(path);
        target.segments = path
            .split('/')
            .map(|segment| target.decode(segment))
            .collect::<Vec<_>>();
        let names_a_collection = target.segments.len() == 1 || target.segments == ["static", "files"];
        if names_a_collection
            && let Some(id) =
                query.and_then(|query| query.split('&').find_map(|pair| pair.strip_prefix("id=")))
            && !id.is_empty()
        {
            let id = target.decode(id);
            target.segments.push(id);
            target.id_in_query = true;
        }
        target
    }

    fn decode(&mut self, segment: &str) -> String {
        let bytes = segment.as_bytes();
        let is_encoded = |at: usize| {
            bytes
                .get(at + 1..at + 3)
                .is_some_and(|hex| hex.iter().all(u8::is_ascii_hexdigit))
        };
        let well_formed = (0..bytes.len()).all(|at| bytes[at] != b'%' || is_encoded(at));
        match percent_decode_str(segment).decode_utf8() {
            Ok(text) if well_formed => text.into_owned(),
            _ => {
                self.is_valid = false;
                segment.to_owned()
            }
        }
    }
}

/// How long the body will be, where the client says so.
fn announced_length(headers: &HeaderMap) -> Option<u64> {
    headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

async fn read(headers: &HeaderMap, body: Body) -> Result<Vec<u8>, Rejection> {
    const TOO_LARGE: Rejection = Rejection::BadBody("it must have at most 1 MiB");
    if announced_length(headers).is_some_and(|length| length > MAX_BODY as u64) {
        return Err(TOO_LARGE);
    }
    match tokio::time::timeout(BODY_PATIENCE, Limited::new(body, MAX_BODY).collect()).await {
        Ok(Ok(collected)) => Ok(collected.to_bytes().into()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(TOO_LARGE),
        Ok(Err(_)) => Err(Rejection::BadBody("it broke off")),
        Err(_) => Err(Rejection::BadBody("it did not arrive in time")),
    }
}

/// The body as an object, whatever its Content-Type says.
fn object(bytes: &[u8], input: Input) -> Result<Map<String, Value>, Rejection> {
    let missing = match input {
        Input::Unread | Input::None => return Ok(Map::new()),
        Input::Optional => None,
        Input::CreateFile => Some(Rejection::MissingInput(Verb::Create, word(Kind::File))),
        Input::UpdateFile => Some(Rejection::MissingInput(Verb::Update, word(Kind::File))),
        Input::Create(kind) => Some(Rejection::MissingInput(Verb::Create, word(kind))),
        Input::Update(kind) => Some(Rejection::MissingInput(Verb::Update, word(kind))),
        Input::Needed(verb, what) => Some(Rejection::MissingInput(verb, what)),
    };
    let map = if bytes.trim_ascii().is_empty() {
        Map::new()
    } else {
        match serde_json::from_slice(bytes) {
            Ok(Value::Object(map)) => map,
            Ok(Value::Null) => Map::new(),
            Ok(_) | Err(_) => return Err(Rejection::NotJson),
        }
    };
    match missing {
        Some(missing) if map.is_empty() => Err(missing),
        Some(_) | None => Ok(map),
    }
}

/// Scheme, host and base path of a request; the bare root has no base of its own to show.
fn base_uri(headers: &HeaderMap, authority: Option<&str>, base: &str) -> String {
    let text = |name: &str| {
        headers
            .get(name)
            .and_then(|value| value.to_str().ok())
            .map(str::trim)
    };
    let scheme = text("x-forwarded-proto").filter(|scheme| matches!(*scheme, "http" | "https"));
    let host = text(header::HOST.as_str()).or(authority).unwrap_or_default();
    let base = if base.is_empty() { routes::BASES[1] } else { base };
    format!("{}://{host}{base}", scheme.unwrap_or("http"))
}

/// What a client takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Accepts {
    /// JSON: the most specific media range that fits decides.
    json: bool,
    /// JSON by name, not as anything.
    names_json: bool,
}

fn accepts(headers: &HeaderMap) -> Accepts {
    let mut best: Option<(u8, f32)> = None;
    let mut is_given = false;
    for value in headers.get_all(header::ACCEPT) {
        // What is not text names no media range.
        let value = value.to_str().unwrap_or("?");
        for range in value.split(',').map(str::trim).filter(|range| !range.is_empty()) {
            is_given = true;
            let mut parts = range.split(';').map(str::trim);
            let specificity = match parts.next().unwrap_or_default().to_ascii_lowercase().as_str() {
                "application/json" => 3,
                "application/*" => 2,
                "*/*" => 1,
                _ => continue,
            };
            let quality = parts
                .filter_map(|part| part.split_once('='))
                .find(|(name, _)| name.trim().eq_ignore_ascii_case("q"))
                .map_or(1.0, |(_, q)| q.trim().parse().unwrap_or(0.0));
            best = Some(match best {
                Some((known, q)) if known > specificity => (known, q),
                Some((known, q)) if known == specificity => (known, q.max(quality)),
                Some(_) | None => (specificity, quality),
            });
        }
    }
    Accepts {
        json: !is_given || best.is_some_and(|(_, quality)| quality > 0.0),
        names_json: best.is_some_and(|(specificity, _)| specificity == 3),
    }
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;
    use serde_json::json;

    use super::*;

    #[test]
    fn who_takes_json() {
        for (accept, expected) in [
            (vec![], true),
            (vec![""], true),
            (vec!["application/json"], true),
            (vec!["application/*"], true),
            (vec!["*/*"], true),
            (vec!["Application/JSON;charset=utf-8"], true),
            (vec!["text/html, application/json;q=0.5"], true),
            (vec!["text/html", "application/json"], true),
            (vec!["application/xml"], false),
            (vec!["text/html"], false),
            (vec!["application/json;q=0"], false),
            (vec!["application/json; q=0.0"], false),
            (vec!["application/json;q=0, */*"], false),
            (vec!["*/*, application/json;q=0"], false),
            (vec!["*/*;q=0"], false),
            (vec!["*/*;q=0, application/json"], true),
            (vec!["application/*;q=0, */*"], false),
            (vec!["application/json;q=nonsense"], false),
            (vec!["json"], false),
        ] {
            let mut headers = HeaderMap::new();
            for value in &accept {
                headers.append(header::ACCEPT, HeaderValue::from_str(value).unwrap());
            }
            assert_eq!(accepts(&headers).json, expected, "{accept:?}");
        }
    }

    #[test]
    fn targets() {
        for (path, query, segments, is_valid) in [
            (Some("/hosts"), None, vec!["hosts"], true),
            (Some("/hosts/"), None, vec!["hosts"], true),
            (Some("/hosts//"), None, vec!["hosts", ""], true),
            (Some("/hosts//a"), None, vec!["hosts", "", "a"], true),
            (
                Some("/images/centos%3Acentos6"),
                None,
                vec!["images", "centos:centos6"],
                true,
            ),
            (
                Some("/images/centos:centos6/"),
                None,
                vec!["images", "centos:centos6"],
                true,
            ),
            (
                Some("/tasks/status/in%20progress"),
                None,
                vec!["tasks", "status", "in progress"],
                true,
            ),
            (Some("/hosts/a%2Fb"), None, vec!["hosts", "a/b"], true),
            (Some("/hosts/%zz"), None, vec!["hosts", "%zz"], false),
            (Some("/hosts/%4"), None, vec!["hosts", "%4"], false),
            (Some("/hosts/%ff"), None, vec!["hosts", "%ff"], false),
            (Some("/hosts/%2541"), None, vec!["hosts", "%41"], true),
            (Some("/hosts"), Some("id=x"), vec!["hosts", "x"], true),
            (Some("/hosts/"), Some("a=b&id=x%20y"), vec!["hosts", "x y"], true),
            (Some("/hosts"), Some("id="), vec!["hosts"], true),
            (
                Some("/static/files"),
                Some("id=x"),
                vec!["static", "files", "x"],
                true,
            ),
            (Some("/static/a"), Some("id=x"), vec!["static", "a"], true),
            (Some("/hosts/a"), Some("id=x"), vec!["hosts", "a"], true),
            (None, None, vec![], true),
            (Some("/"), None, vec![""], true),
        ] {
            let target = Target::read(path, query);
            assert_eq!(
                (target.segments, target.is_valid),
                (segments.into_iter().map(str::to_owned).collect(), is_valid),
                "{path:?} {query:?}"
            );
        }
    }

    #[test]
    fn bodies() {
        let create = Input::Create(Kind::Host);
        let missing = || Err(Rejection::MissingInput(Verb::Create, "host"));
        for (body, input, expected) in [
            ("", create, missing()),
            (" \n", create, missing()),
            ("{}", create, missing()),
            ("null", create, missing()),
            ("{", create, Err(Rejection::NotJson)),
            (r#"{"a":1,}"#, create, Err(Rejection::NotJson)),
            ("[]", create, Err(Rejection::NotJson)),
            ("1", create, Err(Rejection::NotJson)),
            ("\"x\"", create, Err(Rejection::NotJson)),
            (r#"{"a":1}"#, create, Ok(json!({"a": 1}))),
            ("", Input::Optional, Ok(json!({}))),
            ("{", Input::Optional, Err(Rejection::NotJson)),
            ("{", Input::None, Ok(json!({}))),
            (
                "",
                Input::Update(Kind::Host),
                Err(Rejection::MissingInput(Verb::Update, "host")),
            ),
        ] {
            assert_eq!(
                object(body.as_bytes(), input).map(Value::Object),
                expected,
                "{body}"
            );
        }
    }
}
