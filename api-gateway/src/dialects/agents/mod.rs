//! What node agents fetch from the gateway: the content of stored files.
//!
//! ```text
//! GET /agents/v1/namespaces/{namespace}/files/{metadata.name}/content
//! ```
//!
//! The caller shows a token of its own service account that was made for the gateway (audience
//! [`GATEWAY_AUDIENCE`]): the API server says whose it is, and whether that account may `get` the File. Whoever may read a
//! small file in the File object itself may read a large one here, and nobody else.
//!
//! A download that broke off goes on where it ended ([`ranges`]): the entity tag is the SHA-256 of the content.

mod ranges;

use axum::body::Body;
use axum::http::{HeaderMap, Method, Request, Response, StatusCode, header};
use futures::future::BoxFuture;
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, UserInfo};
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec};
use kube::api::PostParams;
use kube::{Api, Client};
use virtshell_crds::{GATEWAY_AUDIENCE, GROUP};

use self::ranges::Part;
use super::{Dialect, Trace};
use crate::service::{Service, ServiceError};

const BASE: &str = "/agents/v1/";
const ROUTE: &str = "/agents/v1/namespaces/:namespace/files/:name/content";

/// Serves node agents.
#[derive(Clone)]
pub struct Agents {
    service: Service,
    client: Client,
}

/// Why there is no content.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
enum Refusal {
    #[error("only GET {ROUTE} is served here")]
    NoRoute,
    #[error("send a bearer token that was made for the audience {GATEWAY_AUDIENCE}")]
    Unauthorized,
    #[error("{0} may not get this file")]
    Forbidden(String),
    #[error("there is no such file")]
    NotFound,
    #[error("the API server does not say whether you may")]
    Unknown,
    #[error("{0}")]
    Failed(String),
}

impl Refusal {
    const fn status(&self) -> StatusCode {
        match self {
            Self::NoRoute | Self::NotFound => StatusCode::NOT_FOUND,
            Self::Unauthorized => StatusCode::UNAUTHORIZED,
            Self::Forbidden(_) => StatusCode::FORBIDDEN,
            Self::Unknown => StatusCode::SERVICE_UNAVAILABLE,
            Self::Failed(_) => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }
}

impl Agents {
    /// Serves the files of `service`; `client` asks who callers are.
    #[must_use]
    pub const fn new(service: Service, client: Client) -> Self {
        Self { service, client }
    }

    async fn content(
        &self,
        method: &Method,
        path: &str,
        headers: &HeaderMap,
        trace: &mut Trace,
    ) -> Result<Response<Body>, Refusal> {
        let name = self.file_of(path).filter(|_| *method == Method::GET);
        let name = name.ok_or(Refusal::NoRoute)?;
        trace.route = ROUTE;
        let user = self.who(headers).await?;
        trace.user = user.username.clone().unwrap_or_default();
        self.permit(user, name).await?;
        let store = self.service.store();
        let stale = |stale: crate::store::Stale| Refusal::Failed(stale.to_string());
        store.health().map_err(stale)?;
        let file = store.files.by_object_name(name).ok_or(Refusal::NotFound)?;
        let stored = self.service.stored(&file).await.map_err(failed)?;
        let (size, tag) = (stored.size, format!("\"{}\"", stored.sha256));
        let (status, range, within) = match ranges::part(headers, size, &tag) {
            Part::Whole => (StatusCode::OK, 0..size, None),
            Part::Bytes(range) => {
                let within = format!("bytes {}-{}/{size}", range.start, range.end - 1);
                (StatusCode::PARTIAL_CONTENT, range, Some(within))
            }
            Part::Beyond => (
                StatusCode::RANGE_NOT_SATISFIABLE,
                0..0,
                Some(format!("bytes */{size}")),
            ),
        };
        let length = range.end - range.start;
        let body = if range.is_empty() {
            Body::empty()
        } else {
            Body::from_stream(self.service.read(stored, range).await.map_err(failed)?)
        };
        let mut response = Response::builder()
            .status(status)
            .header(header::CONTENT_TYPE, "application/octet-stream")
            .header(header::CONTENT_LENGTH, length)
            .header(header::ACCEPT_RANGES, "bytes")
            .header(header::ETAG, tag);
        if let Some(within) = within {
            response = response.header(header::CONTENT_RANGE, within);
        }
        response
            .body(body)
            .map_err(|error| Refusal::Failed(error.to_string()))
    }

    /// `metadata.name` of the file that a path names, if it is one of our namespace.
    fn file_of<'a>(&self, path: &'a str) -> Option<&'a str> {
        let rest = path.strip_prefix(BASE)?.strip_prefix("namespaces/")?;
        let (namespace, rest) = rest.split_once('/')?;
        let name = rest.strip_prefix("files/")?.strip_suffix("/content")?;
        (namespace == self.service.store().namespace() && !name.contains('/')).then_some(name)
    }

    async fn who(&self, headers: &HeaderMap) -> Result<UserInfo, Refusal> {
        let token = headers
            .get(header::AUTHORIZATION)
            .and_then(|value| value.to_str().ok()?.strip_prefix("Bearer "))
            .ok_or(Refusal::Unauthorized)?;
        let review = TokenReview {
            spec: TokenReviewSpec {
                token: token.to_owned(),
                audiences: Some(vec![GATEWAY_AUDIENCE.to_owned()]),
            },
            ..TokenReview::default()
        };
        let api: Api<TokenReview> = Api::all(self.client.clone());
        let answer = api
            .create(&PostParams::default(), &review)
            .await
            .map_err(|error| unknown(&error))?;
        let status = answer.status.unwrap_or_default();
        // An API server that knows no audiences would answer for any token.
        let is_ours = status
            .audiences
            .iter()
            .flatten()
            .any(|audience| audience == GATEWAY_AUDIENCE);
        status
            .user
            .filter(|_| status.authenticated == Some(true) && is_ours)
            .ok_or(Refusal::Unauthorized)
    }

    async fn permit(&self, user: UserInfo, name: &str) -> Result<(), Refusal> {
        let shown = user.username.clone().unwrap_or_default();
        let review = SubjectAccessReview {
            spec: SubjectAccessReviewSpec {
                user: user.username,
                groups: user.groups,
                uid: user.uid,
                extra: user.extra,
                resource_attributes: Some(ResourceAttributes {
                    group: Some(GROUP.to_owned()),
                    resource: Some("files".to_owned()),
                    verb: Some("get".to_owned()),
                    namespace: Some(self.service.store().namespace().to_owned()),
                    name: Some(name.to_owned()),
                    ..ResourceAttributes::default()
                }),
                ..SubjectAccessReviewSpec::default()
            },
            ..SubjectAccessReview::default()
        };
        let api: Api<SubjectAccessReview> = Api::all(self.client.clone());
        let answer = api
            .create(&PostParams::default(), &review)
            .await
            .map_err(|error| unknown(&error))?;
        match answer.status {
            Some(status) if status.allowed => Ok(()),
            Some(_) | None => Err(Refusal::Forbidden(shown)),
        }
    }
}

impl Dialect for Agents {
    fn name(&self) -> &'static str {
        "agents"
    }

    fn claims(&self, path: &str) -> bool {
        path.starts_with(BASE)
    }

    fn answer(&self, request: Request<Body>) -> BoxFuture<'static, Response<Body>> {
        let agents = self.clone();
        Box::pin(async move {
            let mut trace = Trace::default();
            let (parts, _) = request.into_parts();
            let answer = agents
                .content(&parts.method, parts.uri.path(), &parts.headers, &mut trace)
                .await;
            let mut response = answer.unwrap_or_else(|refusal| {
                let mut response = Response::new(Body::from(format!("{refusal}\n")));
                *response.status_mut() = refusal.status();
                response
            });
            response.extensions_mut().insert(trace);
            response
        })
    }
}

fn failed(error: ServiceError) -> Refusal {
    if let ServiceError::Internal(cause) = error {
        return Refusal::Failed(cause);
    }
    // It was there a moment ago.
    Refusal::NotFound
}

fn unknown(error: &kube::Error) -> Refusal {
    tracing::warn!(%error, "the API server does not say who an agent is");
    Refusal::Unknown
}
