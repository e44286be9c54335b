//! Stored files, as the agent of a host reads them: small ones are in the API server, large ones with the gateway.
//!
//! The gateway is shown a token of this agent's own service account that was made for it: whether the agent may read a File
//! is the API server's word in both cases.

use std::time::{Duration, Instant};

use futures::StreamExt;
use k8s_openapi::api::authentication::v1::{TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::ServiceAccount;
use kube::Client;
use kube::api::{Api, PostParams};
use reqwest::Url;
use sha2::{Digest, Sha256};
use tokio::sync::Mutex;
use virtshell_crds::file_ref::FileUrl;
use virtshell_crds::{File, GATEWAY_AUDIENCE, host_account};

use super::hypervisor::chain;
use crate::file_content::{self, Content};

/// How long a token for the gateway is asked to last; the shortest that the API server gives is 10 minutes.
const LIFETIME: Duration = Duration::from_hours(1);

/// Why there is no content.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FileError {
    /// There is no such File.
    #[error("file {0} not found")]
    NotFound(String),
    /// The API server or the gateway does not answer, or not with the content.
    #[error("file {0} cannot be read: {1}")]
    Unreadable(String, String),
    /// The File is not what it was any more.
    #[error("file {0} has changed since it was named here; create the Instance anew to use what it is now")]
    Changed(String),
    /// It is with the gateway, and that is not known.
    #[error(
        "file {0} is kept by the gateway, and the agent of this host was not told where that is: start it with --gateway-url"
    )]
    NoGateway(String),
    /// It is larger than what it is read for may be.
    #[error("file {0} has {1} bytes; at most {2} are read")]
    TooLarge(String, u64, u64),
}

impl FileError {
    /// One word for a condition or a result.
    #[must_use]
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::NotFound(_) => "FileNotFound",
            Self::Unreadable(..) => "FileUnreadable",
            Self::Changed(_) => "FileChanged",
            Self::NoGateway(_) => "GatewayUnknown",
            Self::TooLarge(..) => "FileTooLarge",
        }
    }
}

/// The way to stored files.
pub struct Files {
    client: Client,
    http: reqwest::Client,
    gateway: Option<Url>,
    accounts: Api<ServiceAccount>,
    account: String,
    token: Mutex<Option<(String, Instant)>>,
}

impl Files {
    /// For the agent of `host`, whose service account is in the operator's `namespace`; `gateway` is where agents reach the
    /// gateway.
    #[must_use]
    pub fn new(
        client: Client,
        http: reqwest::Client,
        host: &str,
        namespace: &str,
        gateway: Option<Url>,
    ) -> Self {
        Self {
            accounts: Api::namespaced(client.clone(), namespace),
            account: host_account(host),
            client,
            http,
            gateway,
            token: Mutex::default(),
        }
    }

    /// Where the content of a File is, which is what it was when it was named.
    pub async fn find(&self, at: &FileUrl) -> Result<(File, Content), FileError> {
        let api: Api<File> = Api::namespaced(self.client.clone(), &at.namespace);
        let unreadable = |why: String| FileError::Unreadable(at.name.clone(), why);
        let found = api.get_opt(&at.name).await;
        let file = found
            .map_err(|error| unreadable(chain(&error)))?
            .ok_or_else(|| FileError::NotFound(at.name.clone()))?;
        let content = file_content::content(&file).map_err(unreadable)?;
        if file_content::sha256(&file).as_ref() != Some(&at.sha256) {
            return Err(FileError::Changed(file_content::shown(&file)));
        }
        Ok((file, content))
    }

    /// A request for the content that the gateway keeps of a File.
    pub async fn blob(&self, at: &FileUrl) -> Result<reqwest::RequestBuilder, FileError> {
        let unreadable = |why: String| FileError::Unreadable(at.name.clone(), why);
        let Some(gateway) = &self.gateway else {
            return Err(FileError::NoGateway(at.name.clone()));
        };
        let path = format!("agents/v1/namespaces/{}/files/{}/content", at.namespace, at.name);
        let url = gateway
            .join(&path)
            .map_err(|error| unreadable(error.to_string()))?;
        let token = self.token().await.map_err(unreadable)?;
        Ok(self.http.get(url).bearer_auth(token))
    }

    /// The whole content of a small File.
    pub async fn read(&self, at: &FileUrl, most: u64) -> Result<Vec<u8>, FileError> {
        let (file, content) = self.find(at).await?;
        let name = file_content::shown(&file);
        let too_large = |size| Err(FileError::TooLarge(name.clone(), size, most));
        let unreadable = |why: String| FileError::Unreadable(name.clone(), why);
        // The gateway's address is not for everybody who reads conditions.
        let broken = |error: reqwest::Error| unreadable(chain(&error.without_url()));
        match content {
            Content::Inline(bytes) if bytes.len() as u64 > most => too_large(bytes.len() as u64),
            Content::Inline(bytes) => Ok(bytes),
            Content::Blob if file.spec.size as u64 > most => too_large(file.spec.size as u64),
            Content::Blob => {
                let answer = self.blob(at).await?.send().await;
                let answer = answer.and_then(reqwest::Response::error_for_status);
                let mut stream = answer.map_err(broken)?.bytes_stream();
                let mut bytes = Vec::new();
                while let Some(piece) = stream.next().await {
                    bytes.extend_from_slice(&piece.map_err(broken)?);
                    if bytes.len() as u64 > most {
                        return too_large(bytes.len() as u64);
                    }
                }
                if hex::encode(Sha256::digest(&bytes)) == at.sha256 {
                    Ok(bytes)
                } else {
                    Err(unreadable("what the gateway sent is something else".to_owned()))
                }
            }
        }
    }

    /// The gateway does not accept the token: the next request comes with a new one.
    pub async fn forget_token(&self) {
        *self.token.lock().await = None;
    }

    /// A token for the gateway, with half of its life before it.
    async fn token(&self) -> Result<String, String> {
        let mut kept = self.token.lock().await;
        if let Some((token, until)) = &*kept
            && Instant::now() < *until
        {
            return Ok(token.clone());
        }
        let request = TokenRequest {
            spec: Some(TokenRequestSpec {
                audiences: Some(vec![GATEWAY_AUDIENCE.to_owned()]),
                expiration_seconds: Some(LIFETIME.as_secs() as i64),
                ..TokenRequestSpec::default()
            }),
            ..TokenRequest::default()
        };
        let answer = self
            .accounts
            .create_token_request(&self.account, &PostParams::default(), &request)
            .await
            .map_err(|error| format!("no token for the gateway: {}", chain(&error)))?;
        let token = answer
            .status
            .and_then(|status| status.token)
            .filter(|token| !token.is_empty());
        let token = token.ok_or("the API server answered without a token")?;
        *kept = Some((token.clone(), Instant::now() + LIFETIME / 2));
        Ok(token)
    }
}

#[cfg(test)]
impl Files {
    /// Those of an agent whose API server does not answer.
    pub(super) fn nowhere() -> Self {
        let config = kube::Config::new("http://127.0.0.1:9".parse().unwrap());
        let client = Client::try_from(config).unwrap();
        Self::new(client, http_client().unwrap(), "h", "n", None)
    }
}

/// A client for downloads from addresses that the administrator chose.
///
/// # Errors
/// When TLS cannot be set up.
pub fn http_client() -> reqwest::Result<reqwest::Client> {
    client_builder().build()
}

/// What all clients for downloads have in common.
pub(super) fn client_builder() -> reqwest::ClientBuilder {
    reqwest::Client::builder()
        .user_agent(concat!("virtshell-operator/", env!("CARGO_PKG_VERSION")))
        .connect_timeout(Duration::from_secs(10))
        // A server that says nothing for so long is not coming back.
        .read_timeout(Duration::from_mins(1))
}
