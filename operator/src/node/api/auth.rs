//! Who asks, and whether he may: the API server decides both, and its answers, yes and no, are remembered for a minute.
//!
//! A token must be made for this host: its audience is `virtshell-node:<Host name>`, so that a token that was shown to one
//! node is of no use at another one, nor at the API server. Could not ask is never a yes: the caller is told to come again.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use axum::http::{HeaderMap, header};
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, TokenReviewStatus, UserInfo};
use k8s_openapi::api::authorization::v1::{
    NonResourceAttributes, ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec,
    SubjectAccessReviewStatus,
};
use kube::Client;
use kube::api::{Api, PostParams};
use sha2::{Digest, Sha256};
use tokio::sync::Semaphore;
use virtshell_crds::{GROUP, node_audience};

use super::cache::Cache;
use super::error::ApiError;

/// How long an answer of the API server is taken for true.
const LIFETIME: Duration = Duration::from_mins(1);
/// Answers that are remembered of each sort. An entry takes less than 1 KiB.
const MOST: usize = 4096;
/// Questions to the API server at once: whoever sends nonsense must not keep it busy.
const PLACES: usize = 16;
/// How long the API server may take for one request's questions.
const DEADLINE: Duration = Duration::from_secs(5);

/// What somebody wants to read.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Wanted {
    /// A subresource of an Instance.
    Instance {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
        /// What of it: stats, xml, ...
        subresource: &'static str,
    },
    /// A path that is no resource.
    Path(&'static str),
}

/// SHA-256 of a token: the token itself is not kept.
type Fingerprint = [u8; 32];

/// Asks the API server, and remembers.
pub struct Auth {
    client: Client,
    audience: String,
    users: Cache<Fingerprint, Result<UserInfo, String>>,
    rights: Cache<(Fingerprint, Wanted), Result<(), String>>,
    places: Semaphore,
}

impl Auth {
    /// For the agent of this Host.
    #[must_use]
    pub fn new(client: Client, host: &str) -> Self {
        Self {
            client,
            audience: node_audience(host),
            users: Cache::new(LIFETIME, MOST),
            rights: Cache::new(LIFETIME, MOST),
            places: Semaphore::new(PLACES),
        }
    }

    /// Whether the sender of these headers may `get` that.
    ///
    /// # Errors
    /// [`ApiError::Unauthorized`], [`ApiError::Forbidden`], or [`ApiError::Unavailable`] when the API server cannot be
    /// asked.
    pub async fn admit(&self, headers: &HeaderMap, wanted: Wanted) -> Result<(), ApiError> {
        let token = bearer(headers)?;
        let asked = tokio::time::timeout(DEADLINE, self.decide(token, wanted));
        asked.await.unwrap_or_else(|_| {
            let after = DEADLINE.as_secs();
            Err(ApiError::Unavailable(format!(
                "the API server did not say within {after} s whether you may"
            )))
        })
    }

    async fn decide(&self, token: &str, wanted: Wanted) -> Result<(), ApiError> {
        let fingerprint: Fingerprint = Sha256::digest(token.as_bytes()).into();
        let known = self.users.get(&fingerprint, Instant::now());
        let user = match known {
            Some(known) => known,
            None => self.ask_who(token, fingerprint).await?,
        };
        let user = user.map_err(ApiError::Unauthorized)?;
        let question = (fingerprint, wanted);
        let known = self.rights.get(&question, Instant::now());
        let right = match known {
            Some(known) => known,
            None => self.ask_right(&user, question).await?,
        };
        right.map_err(ApiError::Forbidden)
    }

    async fn ask_who(
        &self,
        token: &str,
        fingerprint: Fingerprint,
    ) -> Result<Result<UserInfo, String>, ApiError> {
        let review = TokenReview {
            spec: TokenReviewSpec {
                audiences: Some(vec![self.audience.clone()]),
                token: token.to_owned(),
            },
            ..TokenReview::default()
        };
        let answer = self.review(&review).await?;
        let user = authenticated(answer.status.unwrap_or_default(), &self.audience);
        self.users.put(fingerprint, user.clone(), Instant::now());
        Ok(user)
    }

    async fn ask_right(
        &self,
        user: &UserInfo,
        question: (Fingerprint, Wanted),
    ) -> Result<Result<(), String>, ApiError> {
        let review = SubjectAccessReview {
            spec: access(user, &question.1),
            ..SubjectAccessReview::default()
        };
        let answer = self.review(&review).await?;
        let right = allowed(&answer.status.unwrap_or_default(), user, &question.1);
        self.rights.put(question, right.clone(), Instant::now());
        Ok(right)
    }

    async fn review<K>(&self, review: &K) -> Result<K, ApiError>
    where
        K: kube::Resource<DynamicType = ()> + Clone + std::fmt::Debug,
        K: serde::Serialize + serde::de::DeserializeOwned,
    {
        let unavailable = |why: &dyn std::fmt::Display| {
            ApiError::Unavailable(format!("the API server cannot be asked: {why}"))
        };
        let _place = self.places.acquire().await.map_err(|why| unavailable(&why))?;
        let api: Api<K> = Api::all(self.client.clone());
        api.create(&PostParams::default(), review)
            .await
            .map_err(|why| unavailable(&why))
    }
}

/// The token of a request.
fn bearer(headers: &HeaderMap) -> Result<&str, ApiError> {
    headers
        .get(header::AUTHORIZATION)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.split_once(' '))
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
        .map(|(_, token)| token.trim())
        .filter(|token| !token.is_empty())
        .ok_or_else(|| {
            ApiError::Unauthorized("send Authorization: Bearer with a token for this host".to_owned())
        })
}

/// Whose token it is. One that an API server accepts without a word about the audience is not for us.
fn authenticated(answer: TokenReviewStatus, audience: &str) -> Result<UserInfo, String> {
    let for_us = answer.audiences.iter().flatten().any(|one| one == audience);
    match answer.user {
        Some(user) if answer.authenticated == Some(true) && for_us => Ok(user),
        Some(_) | None => Err(format!(
            "the token is not valid here: ask for one with the audience {audience}"
        )),
    }
}

/// The question whether this user may `get` that.
fn access(user: &UserInfo, wanted: &Wanted) -> SubjectAccessReviewSpec {
    let (resource, path) = match wanted {
        Wanted::Instance {
            namespace,
            name,
            subresource,
        } => {
            let resource = ResourceAttributes {
                group: Some(GROUP.to_owned()),
                resource: Some("instances".to_owned()),
                subresource: Some((*subresource).to_owned()),
                namespace: Some(namespace.clone()),
                name: Some(name.clone()),
                verb: Some("get".to_owned()),
                ..ResourceAttributes::default()
            };
            (Some(resource), None)
        }
        Wanted::Path(path) => {
            let path = NonResourceAttributes {
                path: Some((*path).to_owned()),
                verb: Some("get".to_owned()),
            };
            (None, Some(path))
        }
    };
    SubjectAccessReviewSpec {
        user: user.username.clone(),
        uid: user.uid.clone(),
        groups: user.groups.clone(),
        extra: user.extra.clone().map(BTreeMap::from_iter),
        resource_attributes: resource,
        non_resource_attributes: path,
    }
}

/// The answer to it. What no authorizer allows is not allowed.
fn allowed(answer: &SubjectAccessReviewStatus, user: &UserInfo, wanted: &Wanted) -> Result<(), String> {
    if answer.allowed && answer.denied != Some(true) {
        return Ok(());
    }
    let who = user.username.as_deref().unwrap_or("this user");
    Err(match wanted {
        Wanted::Instance {
            namespace,
            name,
            subresource,
        } => format!("{who} may not get instances/{subresource} of {name} in the namespace {namespace}"),
        Wanted::Path(path) => format!("{who} may not get {path}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const AUDIENCE: &str = "virtshell-node:h";

    fn stats() -> Wanted {
        Wanted::Instance {
            namespace: "team".into(),
            name: "web".into(),
            subresource: "stats",
        }
    }

    fn with(value: &'static str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(header::AUTHORIZATION, header::HeaderValue::from_static(value));
        headers
    }

    #[test]
    fn a_token_is_a_bearers() {
        assert_eq!(bearer(&with("Bearer abc")), Ok("abc"));
        assert_eq!(bearer(&with("bearer  abc ")), Ok("abc"));
        for wrong in ["", "abc", "Bearer", "Bearer ", "Basic abc"] {
            assert!(bearer(&with(wrong)).is_err(), "{wrong}");
        }
        assert!(bearer(&HeaderMap::new()).is_err());
    }

    #[test]
    fn only_a_token_for_this_host_is_taken() {
        let user = Some(UserInfo {
            username: Some("u".into()),
            ..UserInfo::default()
        });
        let answer = |authenticated, audiences: Option<&[&str]>| TokenReviewStatus {
            audiences: audiences.map(|list| list.iter().map(|a| (*a).to_owned()).collect()),
            authenticated: Some(authenticated),
            error: None,
            user: user.clone(),
        };
        for (rule, status, taken) in [
            ("for this host", answer(true, Some(&[AUDIENCE])), true),
            (
                "for another host",
                answer(true, Some(&["virtshell-node:x"])),
                false,
            ),
            ("a server that knows no audiences", answer(true, None), false),
            ("refused", answer(false, Some(&[AUDIENCE])), false),
            ("silent", TokenReviewStatus::default(), false),
        ] {
            assert_eq!(authenticated(status, AUDIENCE).is_ok(), taken, "{rule}");
        }
    }

    #[test]
    fn what_is_asked_names_the_user_and_the_subresource() {
        let user = UserInfo {
            username: Some("u".into()),
            uid: Some("1".into()),
            groups: Some(vec!["g".into()]),
            extra: Some([("k".to_owned(), vec!["v".to_owned()])].into()),
        };
        let asked = access(&user, &stats());
        let of = asked.resource_attributes.unwrap();
        let word = |field: &Option<String>| field.clone().unwrap_or_default();
        assert_eq!(
            [
                &of.group,
                &of.resource,
                &of.subresource,
                &of.namespace,
                &of.name,
                &of.verb
            ]
            .map(word),
            ["virtshell.io", "instances", "stats", "team", "web", "get"]
        );
        assert_eq!((asked.user, asked.uid), (user.username.clone(), user.uid.clone()));
        assert_eq!(
            (asked.groups, asked.extra),
            (user.groups.clone(), user.extra.clone())
        );
        let path = access(&user, &Wanted::Path("/metrics"))
            .non_resource_attributes
            .unwrap();
        assert_eq!(
            (word(&path.path), word(&path.verb)),
            ("/metrics".into(), "get".into())
        );
    }

    #[test]
    fn what_nobody_allows_is_not_allowed() {
        let user = UserInfo::default();
        let answer = |allowed, denied| SubjectAccessReviewStatus {
            allowed,
            denied,
            ..SubjectAccessReviewStatus::default()
        };
        assert!(allowed(&answer(true, None), &user, &stats()).is_ok());
        assert!(allowed(&answer(true, Some(true)), &user, &stats()).is_err());
        assert!(allowed(&answer(false, None), &user, &stats()).is_err());
        assert!(allowed(&SubjectAccessReviewStatus::default(), &user, &stats()).is_err());
    }

    #[tokio::test]
    async fn an_api_server_that_cannot_be_asked_lets_nobody_in() {
        let _ = rustls::crypto::ring::default_provider().install_default();
        // Nobody listens on port 1.
        let config = kube::Config::new("http://127.0.0.1:1".parse().unwrap());
        let auth = Auth::new(Client::try_from(config).unwrap(), "h");
        let answer = auth.admit(&with("Bearer abc"), stats()).await;
        assert!(matches!(answer, Err(ApiError::Unavailable(_))), "{answer:?}");
        // And is not remembered as an answer.
        let fingerprint: Fingerprint = Sha256::digest(b"abc").into();
        assert_eq!(auth.users.get(&fingerprint, Instant::now()), None);
    }

    #[tokio::test]
    async fn answers_are_remembered_by_token_and_by_what_is_wanted() {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let config = kube::Config::new("http://127.0.0.1:1".parse().unwrap());
        let auth = Auth::new(Client::try_from(config).unwrap(), "h");
        let now = Instant::now();
        let token = |text: &str| -> Fingerprint { Sha256::digest(text.as_bytes()).into() };
        auth.users.put(token("good"), Ok(UserInfo::default()), now);
        auth.users.put(token("bad"), Err("no".into()), now);
        auth.rights.put((token("good"), stats()), Ok(()), now);
        auth.rights
            .put((token("good"), Wanted::Path("/metrics")), Err("no".into()), now);
        // None of these asks: nobody would answer.
        assert_eq!(auth.admit(&with("Bearer good"), stats()).await, Ok(()));
        assert_eq!(
            auth.admit(&with("Bearer good"), Wanted::Path("/metrics")).await,
            Err(ApiError::Forbidden("no".into()))
        );
        assert_eq!(
            auth.admit(&with("Bearer bad"), stats()).await,
            Err(ApiError::Unauthorized("no".into()))
        );
        let other = Wanted::Path("/other");
        assert!(matches!(
            auth.admit(&with("Bearer good"), other).await,
            Err(ApiError::Unavailable(_))
        ));
    }
}
