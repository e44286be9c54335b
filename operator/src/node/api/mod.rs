//! The Node API: what is not state, asked of the node that has it.
//!
//! State goes through the API server only. Live statistics, the running definition, consoles and screens do not: they are
//! read here, over TLS with a certificate of the agent's own ([`certificate`]), by callers whom the API server vouches for
//! ([`auth`]).
//!
//! ```text
//! GET /v1/namespaces/{namespace}/instances/{name}/...      who may: get on
//!     stats         JSON                                   instances/stats
//!     xml           the running definition                 instances/xml
//!     agent         JSON, what the guest agent tells       instances/agentinfo
//!     console       WebSocket, ?force=true takes it over   instances/console
//!     vnc           WebSocket, the VNC protocol            instances/console
//!     screenshot    PNG                                    instances/screenshot
//! GET /metrics                                             the path /metrics
//! GET /healthz, /readyz                                    everybody
//! ```
//!
//! Errors are Kubernetes Status objects ([`error`]). Every question to libvirt has a deadline, on a line of its own: a guest
//! that does not answer costs its own callers an error, and nobody else anything.

pub mod agent;
pub mod auth;
pub mod cache;
pub mod certificate;
pub mod console;
pub mod devices;
pub mod error;
pub mod relay;
pub mod screenshot;
pub mod serve;
pub mod stats;
pub mod target;
pub mod vnc;

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::path::Path as FilePath;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::{Path, Query, Request, State, WebSocketUpgrade};
use axum::http::{HeaderMap, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use jiff::Timestamp;
use serde::Deserialize;
use tokio::net::TcpListener;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use virtshell_crds::host::Endpoint;

use super::context::Context;
use super::libvirt::Link;
use crate::probes::Probes;
use auth::{Auth, Wanted};
use certificate::Certificate;
use console::Sessions;
use error::ApiError;
use target::Target;

/// Consoles and displays that are open at once.
const SOCKETS: usize = 128;
/// How often it is seen whether the certificate still serves: addresses come, its end comes nearer.
const RENEWAL: Duration = Duration::from_hours(6);

/// What is needed before the agent begins its work: the address is taken, the certificate made.
pub struct Listening {
    listener: TcpListener,
    certificate: Arc<Certificate>,
    names: Names,
    url: String,
}

/// What this machine is called by those who call it.
#[derive(Clone, Debug)]
pub struct Names {
    /// Host.metadata.name.
    pub host: String,
    /// The machine's host name.
    pub hostname: String,
    /// The address from which it reaches the API server: where others reach it, most likely.
    pub address: IpAddr,
}

impl Names {
    /// All of them, for the certificate.
    fn all(&self) -> BTreeSet<String> {
        let mut names: BTreeSet<String> = ["localhost", "127.0.0.1", "::1"].map(str::to_owned).into();
        names.extend([self.host.clone(), self.hostname.clone(), self.address.to_string()]);
        let addresses = super::host::addresses();
        names.extend(addresses.ipv4.into_iter().chain(addresses.ipv6));
        names
    }
}

impl Listening {
    /// Takes the address, and makes the certificate if there is none that serves.
    ///
    /// # Errors
    /// When the address is taken, or the certificate cannot be made.
    pub async fn open(address: SocketAddr, data_dir: &FilePath, names: Names) -> anyhow::Result<Self> {
        let listener = TcpListener::bind(address).await?;
        let reached = SocketAddr::new(
            if address.ip().is_unspecified() {
                names.address
            } else {
                address.ip()
            },
            listener.local_addr()?.port(),
        );
        let (folder, all) = (data_dir.to_owned(), names.all());
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let opened =
            tokio::task::spawn_blocking(move || Certificate::open(&folder, provider, &all, Timestamp::now()));
        Ok(Self {
            listener,
            certificate: Arc::new(opened.await??),
            names,
            url: format!("https://{reached}"),
        })
    }

    /// Where it is and how it is known, for the Host.
    #[must_use]
    pub fn endpoint(&self) -> Endpoint {
        Endpoint {
            url: self.url.clone(),
            certificate: self.certificate.pem(),
        }
    }

    /// Serves until the process ends. `news` is told a new endpoint.
    ///
    /// # Errors
    /// When TLS cannot be set up.
    pub async fn serve(
        self,
        context: Arc<Context>,
        probes: Probes,
        news: impl Fn(Endpoint),
    ) -> anyhow::Result<()> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut tls = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_cert_resolver(Arc::clone(&self.certificate) as Arc<_>);
        // WebSockets are HTTP/1.1's.
        tls.alpn_protocols = vec![b"http/1.1".to_vec()];
        let router = router(context, &probes);
        let url = self.url;
        tracing::info!(url, "serving the Node API");
        let renewals = renew(self.certificate, self.names, |certificate| {
            news(Endpoint {
                url: url.clone(),
                certificate,
            });
        });
        tokio::select! {
            () = serve::serve(self.listener, Arc::new(tls), router) => {}
            () = renewals => {}
        }
        Ok(())
    }
}

async fn renew(certificate: Arc<Certificate>, names: Names, news: impl Fn(String)) {
    loop {
        tokio::time::sleep(RENEWAL).await;
        let (renewing, all) = (Arc::clone(&certificate), names.all());
        let renewed = tokio::task::spawn_blocking(move || renewing.renew(&all, Timestamp::now())).await;
        match renewed {
            Ok(Ok(false)) => {}
            Ok(Ok(true)) => {
                tracing::info!("made a new certificate for the Node API");
                news(certificate.pem());
            }
            Ok(Err(error)) => tracing::error!(
                error = super::hypervisor::chain(&error),
                "the certificate of the Node API is not renewed"
            ),
            Err(panicked) => tracing::error!(%panicked, "the certificate of the Node API is not renewed"),
        }
    }
}

/// The address from which this machine reaches that one; loopback when it reaches none. Nothing is sent.
#[must_use]
pub fn address_towards(other: SocketAddr) -> IpAddr {
    let any: SocketAddr = if other.is_ipv4() {
        ([0, 0, 0, 0], 0).into()
    } else {
        ([0u16; 8], 0).into()
    };
    let found = UdpSocket::bind(any).and_then(|socket| {
        socket.connect(other)?;
        socket.local_addr()
    });
    found.map_or(IpAddr::from([127, 0, 0, 1]), |address| address.ip())
}

// --- Routes ---------------------------------------------------------------------------------------------------------

#[derive(Clone)]
struct Api(Arc<Shared>);

struct Shared {
    context: Arc<Context>,
    auth: Auth,
    consoles: Arc<Sessions>,
    sockets: Arc<Semaphore>,
}

fn router(context: Arc<Context>, probes: &Probes) -> Router {
    let api = Api(Arc::new(Shared {
        auth: Auth::new(context.client.clone(), &context.host),
        context,
        consoles: Arc::default(),
        sockets: Arc::new(Semaphore::new(SOCKETS)),
    }));
    let instance = Router::new()
        .route("/stats", get(stats))
        .route("/xml", get(xml))
        .route("/agent", get(agent))
        .route("/console", get(console))
        .route("/vnc", get(vnc))
        .route("/screenshot", get(screenshot))
        .with_state(api.clone());
    let metrics = probes.metrics().layer(from_fn_with_state(api, may_read_metrics));
    Router::new()
        .nest("/v1/namespaces/{namespace}/instances/{name}", instance)
        .merge(probes.health())
        .merge(metrics)
        .fallback(|| async { ApiError::NotFound("there is no such path".to_owned()) })
        .method_not_allowed_fallback(|| async {
            ApiError::MethodNotAllowed("only GET is served here".to_owned())
        })
}

/// Which Instance.
#[derive(Clone, Debug, Deserialize)]
struct Which {
    namespace: String,
    name: String,
}

type Answer<T> = Result<T, ApiError>;

impl Api {
    /// The running domain, for somebody who may get this of it: who may not does not learn whether it is there.
    async fn target(&self, headers: &HeaderMap, which: Which, subresource: &'static str) -> Answer<Target> {
        let wanted = Wanted::Instance {
            namespace: which.namespace.clone(),
            name: which.name.clone(),
            subresource,
        };
        self.0.auth.admit(headers, wanted).await?;
        Target::find(&self.0.context, &which.namespace, &which.name).await
    }

    fn socket(&self) -> Answer<OwnedSemaphorePermit> {
        Arc::clone(&self.0.sockets).try_acquire_owned().map_err(|_| {
            ApiError::TooManyRequests(format!("{SOCKETS} consoles and displays are open; close one"))
        })
    }
}

async fn stats(
    State(api): State<Api>,
    headers: HeaderMap,
    Path(which): Path<Which>,
) -> Answer<Json<stats::Stats>> {
    let target = api.target(&headers, which, "stats").await?;
    Ok(Json(stats::read(&target).await?))
}

async fn xml(State(api): State<Api>, headers: HeaderMap, Path(which): Path<Which>) -> Answer<Response> {
    let target = api.target(&headers, which, "xml").await?;
    let xml = target.ask("describe", Link::running_xml).await?;
    Ok(([(header::CONTENT_TYPE, "application/xml")], xml).into_response())
}

async fn agent(
    State(api): State<Api>,
    headers: HeaderMap,
    Path(which): Path<Which>,
) -> Answer<Json<agent::Guest>> {
    let target = api.target(&headers, which, "agentinfo").await?;
    Ok(Json(agent::read(&target).await?))
}

async fn screenshot(
    State(api): State<Api>,
    headers: HeaderMap,
    Path(which): Path<Which>,
) -> Answer<Response> {
    let target = api.target(&headers, which, "screenshot").await?;
    let png = screenshot::take(&target).await?;
    Ok(([(header::CONTENT_TYPE, "image/png")], png).into_response())
}

/// A WebSocket, or what is wrong with the request for one: looked at only after the caller is known.
type Upgrade = Result<WebSocketUpgrade, WebSocketUpgradeRejection>;

fn upgrade(upgrade: Upgrade) -> Answer<WebSocketUpgrade> {
    let upgrade = upgrade.map_err(|why| ApiError::BadRequest(format!("this is a WebSocket: {why}")))?;
    Ok(upgrade
        .protocols(["binary"])
        .max_frame_size(relay::MOST_BYTES)
        .max_message_size(relay::MOST_BYTES))
}

#[derive(Debug, Default, Deserialize)]
struct ConsoleOptions {
    /// End the session of whoever has it.
    #[serde(default)]
    force: bool,
}

async fn console(
    State(api): State<Api>,
    headers: HeaderMap,
    Path(which): Path<Which>,
    options: Result<Query<ConsoleOptions>, axum::extract::rejection::QueryRejection>,
    socket: Upgrade,
) -> Answer<Response> {
    let target = api.target(&headers, which, "console").await?;
    let Query(ConsoleOptions { force }) = options.map_err(|why| ApiError::BadRequest(why.to_string()))?;
    let socket = upgrade(socket)?;
    let place = api.socket()?;
    let seat = api.0.consoles.take(&target.uid, force).await;
    let seat = seat.ok_or_else(|| console::busy(target.name()))?;
    let cancelled = seat.cancelled();
    let (output, typed) = console::open(&target, seat, force).await?;
    Ok(socket.on_upgrade(async move |socket| {
        let _place = place;
        relay::relay(socket, output, typed, &cancelled).await;
    }))
}

async fn vnc(
    State(api): State<Api>,
    headers: HeaderMap,
    Path(which): Path<Which>,
    socket: Upgrade,
) -> Answer<Response> {
    let target = api.target(&headers, which, "console").await?;
    let socket = upgrade(socket)?;
    let place = api.socket()?;
    let (screen, keys) = vnc::open(&target).await?;
    Ok(socket.on_upgrade(async move |socket| {
        let _place = place;
        // Nobody takes a display over: VNC is shared.
        let never = tokio_util::sync::CancellationToken::new();
        relay::relay(socket, screen, keys, &never).await;
    }))
}

async fn may_read_metrics(State(api): State<Api>, request: Request, next: Next) -> Answer<Response> {
    api.0
        .auth
        .admit(request.headers(), Wanted::Path("/metrics"))
        .await?;
    Ok(next.run(request).await)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_address_towards_oneself_is_loopback() {
        let towards = |address: &str| address_towards(address.parse().unwrap());
        assert_eq!(towards("127.0.0.1:6443"), IpAddr::from([127, 0, 0, 1]));
    }
}
