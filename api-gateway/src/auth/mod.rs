//! Who sends a request: VirtShell's HMAC signature.
//!
//! Reads users and keys from the caches alone, so it never waits. Other dialects bring other proofs; all end in a
//! [`Caller`].

pub mod date;
pub mod signature;

use std::sync::Arc;

use http::HeaderMap;
use http::header::{AUTHORIZATION, CONTENT_TYPE, DATE, HOST};
use jiff::Timestamp;
use kube::ResourceExt;
use virtshell_crds::User;

use crate::service::{Caller, is_uuid};
use crate::store::{SECRET_ACCESS_KEY, Store, by};
use signature::Signed;

/// VirtShell's own header; `Authorization` is its alias.
const VIRTSHELL_AUTHORIZATION: &str = "x-virtshell-authorization";

/// Whether requests must be signed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Mode {
    /// Every request is.
    Required,
    /// For tests and demonstrations on the loopback interface: an unsigned request runs as a system identity, a user who
    /// is named is believed.
    Disabled,
}

/// Why nobody is let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AuthError {
    /// No credentials, or none that are true.
    #[error("User not authenticated")]
    NotAuthenticated,
    /// Signed too long ago, or in the future.
    #[error("RequestTimeTooSkewed: the Date of the request differs from the clock here by more than {} minutes", date::MAX_SKEW / 60)]
    TooSkewed,
}

/// The parts of a request that its signature covers.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// In upper case.
    pub method: &'a str,
    /// The request target up to `?`, as on the wire.
    pub resource: &'a str,
    /// `:authority`, when there is no Host header (HTTP/2).
    pub authority: Option<&'a str>,
    /// The headers.
    pub headers: &'a HeaderMap,
}

/// Decides who a caller is.
pub struct Authenticator {
    store: Arc<Store>,
    mode: Mode,
}

impl Authenticator {
    /// An authenticator over the users of `store`.
    #[must_use]
    pub fn new(store: Arc<Store>, mode: Mode) -> Self {
        Self { store, mode }
    }

    /// Who sends this request at `now`.
    pub fn caller(&self, request: &Request<'_>, now: Timestamp) -> Result<Caller, AuthError> {
        let header = header(request.headers, VIRTSHELL_AUTHORIZATION)
            .or_else(|| header(request.headers, AUTHORIZATION.as_str()));
        if self.mode == Mode::Disabled {
            let Some(header) = header else {
                return Ok(Caller::anonymous());
            };
            let (id, _) = signature::split(header).ok_or(AuthError::NotAuthenticated)?;
            let user = self.user(id).ok_or(AuthError::NotAuthenticated)?;
            return Ok(self.identify(&user));
        }
        let (id, signature) = header
            .and_then(signature::split)
            .ok_or(AuthError::NotAuthenticated)?;
        let date_header = self::header(request.headers, DATE.as_str()).unwrap_or_default();
        let date = date::parse(date_header).ok_or(AuthError::NotAuthenticated)?;
        let user = self.user(id);
        let secret = user.as_deref().and_then(|user| self.secret_of(user));
        let value = |name: &str| self::header(request.headers, name).unwrap_or_default();
        let signed = Signed {
            method: request.method,
            host: self::header(request.headers, HOST.as_str())
                .or(request.authority)
                .unwrap_or_default(),
            content_md5: value("content-md5"),
            content_type: value(CONTENT_TYPE.as_str()),
            date: date_header,
            resource: request.resource,
        };
        // Whoever is not known costs as much: how long it takes does not tell who is.
        let is_signed = signed.is_signed_with(secret.as_deref().unwrap_or("nobody's"), signature);
        let user = user
            .filter(|_| secret.is_some() && is_signed)
            .ok_or(AuthError::NotAuthenticated)?;
        // After the signature, so that a probe without a key learns nothing about the clock here.
        if date::is_skewed(date, now) {
            return Err(AuthError::TooSkewed);
        }
        Ok(self.identify(&user))
    }

    /// By access key id, then uuid, then user name.
    fn user(&self, id: &str) -> Option<Arc<User>> {
        let by_key = self
            .store
            .secrets
            .by_key(by::ACCESS_KEY, id)
            .iter()
            .find_map(|secret| {
                self.store
                    .users
                    .by_key(by::SECRET, &secret.name_any())
                    .into_iter()
                    .next()
            });
        by_key
            .or_else(|| is_uuid(id).then(|| self.store.users.by_uid(id)).flatten())
            .or_else(|| self.store.users.by_wire_name(id))
    }

    fn secret_of(&self, user: &User) -> Option<String> {
        let secret = self.store.secrets.by_object_name(&user.credentials_secret())?;
        let key = secret.data.as_ref()?.get(SECRET_ACCESS_KEY)?;
        // An empty key would let anybody sign.
        String::from_utf8(key.0.clone())
            .ok()
            .filter(|key| !key.is_empty())
    }

    fn identify(&self, user: &User) -> Caller {
        Caller::of(user, &self.store)
    }
}

/// A header as text, trimmed.
fn header<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers
        .get(name)
        .and_then(|value| value.to_str().ok())
        .map(str::trim)
}
