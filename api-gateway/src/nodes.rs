//! Questions to node agents: what is not state, and is asked of the node that has it.
//!
//! An agent publishes where it is and the certificate it made for itself in its own Host, so the API server vouches for
//! both. It is shown a token of the gateway's own account that was made for this host alone. One connection pool per
//! agent; a node that does not answer costs the caller that node's values and nothing else.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use http::StatusCode;
use k8s_openapi::api::authentication::v1::{TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::ServiceAccount;
use kube::api::PostParams;
use kube::{Api, Client};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use virtshell_crds::host::Endpoint;
use virtshell_crds::{Host, Instance, node_audience};

/// How long an agent may take for one answer.
const DEADLINE: Duration = Duration::from_secs(5);
/// How long a token is asked to last; the shortest that the API server gives out.
const TOKEN_LIFE: Duration = Duration::from_mins(10);

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// Its agent has not said where it is.
    #[error("host {0} has no agent")]
    NoAgent(String),
    /// What it said cannot be used.
    #[error("the endpoint of host {0} cannot be used")]
    BadEndpoint(String, #[source] reqwest::Error),
    /// The API server gave no token for it.
    #[error("there is no token for host {0}")]
    NoToken(String, #[source] Box<kube::Error>),
    /// The agent did not answer, or not in its words.
    #[error("host {0} does not answer")]
    Silent(String, #[source] reqwest::Error),
    /// The agent answered with an error, such as 409 for an Instance that does not run.
    #[error("host {host} answered {status}")]
    Refused {
        /// The host.
        host: String,
        /// The status.
        status: StatusCode,
    },
}

/// What a guest uses now: `stats` of the Node API.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Stats {
    /// Virtual CPUs that are online.
    pub vcpus: u32,
    /// CPU time used since the start, nanoseconds.
    pub cpu_time_ns: u64,
    /// Memory.
    pub memory: Memory,
}

/// Memory of a guest, KiB.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
pub struct Memory {
    /// What it has now.
    #[serde(rename = "currentKiB")]
    pub current_kib: u64,
    /// What it may have.
    #[serde(rename = "maximumKiB")]
    pub maximum_kib: u64,
}

/// What a guest's agent tells: `agent` of the Node API.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
pub struct Guest {
    /// Its interfaces, loopback included.
    pub interfaces: Option<Vec<GuestInterface>>,
    /// Its swap space.
    pub swap: Option<GuestSwap>,
    /// Threads of all its processes.
    pub tasks: Option<GuestTasks>,
    /// Its IPv4 default gateway.
    pub gateway: Option<String>,
}

/// Swap space of a guest.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct GuestSwap {
    /// All of it, in KiB.
    pub total_kib: u64,
}

/// Threads of all processes of a guest.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
pub struct GuestTasks {
    /// All.
    pub total: u64,
    /// Running, or ready to.
    pub running: u64,
    /// Waiting for a device.
    pub blocked: u64,
}

/// An interface as the guest sees it.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
pub struct GuestInterface {
    /// Its name inside the guest.
    pub name: String,
    /// In CIDR notation.
    pub addresses: Vec<String>,
}

/// The gateway's account, with which it asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    /// Namespace of the service account.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

/// Asks node agents.
pub struct Nodes {
    accounts: Api<ServiceAccount>,
    account: String,
    callers: Mutex<HashMap<String, Arc<Caller>>>,
}

/// What is known of one agent.
struct Caller {
    endpoint: Endpoint,
    http: reqwest::Client,
    token: tokio::sync::Mutex<Option<Token>>,
}

#[derive(Clone)]
struct Token {
    text: String,
    renew_at: Instant,
}

impl Nodes {
    /// Asks as this account.
    #[must_use]
    pub fn new(client: Client, account: Account) -> Self {
        Self {
            accounts: Api::namespaced(client, &account.namespace),
            account: account.name,
            callers: Mutex::default(),
        }
    }

    /// What a running guest uses now.
    pub async fn stats(&self, host: &Host, instance: &Instance) -> Result<Stats, NodeError> {
        self.ask(host, instance, "stats").await
    }

    /// What the agent inside a guest tells.
    pub async fn guest(&self, host: &Host, instance: &Instance) -> Result<Guest, NodeError> {
        self.ask(host, instance, "agent").await
    }

    async fn ask<T: DeserializeOwned>(
        &self,
        host: &Host,
        instance: &Instance,
        what: &str,
    ) -> Result<T, NodeError> {
        let name = host.metadata.name.as_deref().unwrap_or_default();
        let caller = self.caller(host, name)?;
        let url = format!(
            "{}/v1/namespaces/{}/instances/{}/{what}",
            caller.endpoint.url,
            instance.metadata.namespace.as_deref().unwrap_or_default(),
            instance.metadata.name.as_deref().unwrap_or_default(),
        );
        let mut is_second_try = false;
        loop {
            let token = self.token(&caller, name).await?;
            let silent = |error| NodeError::Silent(name.to_owned(), error);
            let answer = caller
                .http
                .get(&url)
                .bearer_auth(&token)
                .send()
                .await
                .map_err(silent)?;
            match answer.status() {
                StatusCode::OK => return answer.json().await.map_err(silent),
                // It may have been revoked before its end.
                StatusCode::UNAUTHORIZED if !is_second_try => {
                    is_second_try = true;
                    caller.token.lock().await.take_if(|held| held.text == token);
                }
                status => {
                    return Err(NodeError::Refused {
                        host: name.to_owned(),
                        status,
                    });
                }
            }
        }
    }

    /// The one for what the Host says now: an agent may move, and renews its certificate.
    fn caller(&self, host: &Host, name: &str) -> Result<Arc<Caller>, NodeError> {
        let endpoint = host.status.as_ref().and_then(|status| status.endpoint.as_ref());
        let endpoint = endpoint.ok_or_else(|| NodeError::NoAgent(name.to_owned()))?;
        let mut callers = self.callers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(caller) = callers.get(name).filter(|caller| caller.endpoint == *endpoint) {
            return Ok(caller.clone());
        }
        let http = client(endpoint).map_err(|error| NodeError::BadEndpoint(name.to_owned(), error))?;
        let caller = Arc::new(Caller {
            endpoint: endpoint.clone(),
            http,
            token: tokio::sync::Mutex::default(),
        });
        callers.insert(name.to_owned(), caller.clone());
        Ok(caller)
    }

    /// A token for this host alone: of no use at another one, nor at the API server.
    async fn token(&self, caller: &Caller, host: &str) -> Result<String, NodeError> {
        // Held while it is asked for, so that a hundred questions ask for one token.
        let mut held = caller.token.lock().await;
        if let Some(token) = held.as_ref().filter(|token| Instant::now() < token.renew_at) {
            return Ok(token.text.clone());
        }
        let request = TokenRequest {
            spec: Some(TokenRequestSpec {
                audiences: Some(vec![node_audience(host)]),
                expiration_seconds: Some(TOKEN_LIFE.as_secs() as i64),
                bound_object_ref: None,
            }),
            ..TokenRequest::default()
        };
        let made = self
            .accounts
            .create_token_request(&self.account, &PostParams::default(), &request)
            .await
            .map_err(|error| NodeError::NoToken(host.to_owned(), Box::new(error)))?;
        let token = Token {
            text: made.status.and_then(|status| status.token).unwrap_or_default(),
            renew_at: Instant::now() + TOKEN_LIFE / 2,
        };
        *held = Some(token.clone());
        Ok(token.text)
    }
}

/// A client that trusts this agent's certificate and nothing else.
fn client(endpoint: &Endpoint) -> reqwest::Result<reqwest::Client> {
    reqwest::Client::builder()
        .tls_certs_only([reqwest::Certificate::from_pem(endpoint.certificate.as_bytes())?])
        .https_only(true)
        .redirect(reqwest::redirect::Policy::none())
        .connect_timeout(DEADLINE / 2)
        .timeout(DEADLINE)
        .build()
}
