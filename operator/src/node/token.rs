//! Keeps the agent's own token fresh, where it was handed one in a file.
//!
//! The kubeconfig names the file, and the client reads it anew every minute. The first token comes from whoever set the
//! machine up; from then on the agent asks for the next one itself, as its service account may.

use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use k8s_openapi::api::authentication::v1::{TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::ServiceAccount;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, PostParams};
use serde::Deserialize;

/// How long a new token is asked to last, in seconds.
const LIFETIME: i64 = 24 * 3600;
/// Between two looks; a token is renewed when half of its life is over, so many looks may fail.
const PERIOD: Duration = Duration::from_mins(5);

/// Why a token was not renewed.
#[derive(Debug, thiserror::Error)]
enum TokenError {
    #[error("the token file {0} cannot be read or written")]
    File(PathBuf, #[source] std::io::Error),
    #[error("the API server gave no token for {0}")]
    Refused(String, #[source] kube::Error),
    #[error("the API server answered without a token")]
    Empty,
}

/// Renews the token in `file` for service account `account` until the process ends.
pub async fn run(api: Api<ServiceAccount>, account: String, file: PathBuf) {
    loop {
        match renew_if_due(&api, &account, &file).await {
            Ok(true) => tracing::info!(account, "renewed the token"),
            Ok(false) => {}
            Err(error) => tracing::warn!(
                account,
                error = super::hypervisor::chain(&error),
                "the token is not renewed"
            ),
        }
        tokio::time::sleep(PERIOD).await;
    }
}

async fn renew_if_due(api: &Api<ServiceAccount>, account: &str, file: &Path) -> Result<bool, TokenError> {
    let failed = |error| TokenError::File(file.to_owned(), error);
    let present = tokio::fs::read_to_string(file).await.map_err(failed)?;
    if !is_due(present.trim(), Timestamp::now().as_second()) {
        return Ok(false);
    }
    let spec = TokenRequestSpec {
        expiration_seconds: Some(LIFETIME),
        ..TokenRequestSpec::default()
    };
    let request = TokenRequest {
        spec: Some(spec),
        ..TokenRequest::default()
    };
    let answer = api
        .create_token_request(account, &PostParams::default(), &request)
        .await;
    let answer = answer.map_err(|error| TokenError::Refused(account.to_owned(), error))?;
    let token = answer
        .status
        .and_then(|s| s.token)
        .filter(|t| !t.is_empty())
        .ok_or(TokenError::Empty)?;
    let target = file.to_owned();
    let written = tokio::task::spawn_blocking(move || replace(&target, &token)).await;
    written
        .map_err(std::io::Error::other)
        .and_then(|done| done)
        .map_err(failed)?;
    Ok(true)
}

/// Whether half of a token's life is over; one that cannot be read is due.
fn is_due(token: &str, now: i64) -> bool {
    #[derive(Deserialize)]
    struct Claims {
        iat: i64,
        exp: i64,
    }
    let claims = token
        .split('.')
        .nth(1)
        .and_then(|part| URL_SAFE_NO_PAD.decode(part).ok())
        .and_then(|bytes| serde_json::from_slice::<Claims>(&bytes).ok());
    claims.is_none_or(|claims| now >= claims.iat.midpoint(claims.exp))
}

/// Replaces the file in one step, readable by its owner alone.
fn replace(file: &Path, token: &str) -> std::io::Result<()> {
    let temp = file.with_extension("new");
    let mut options = std::fs::OpenOptions::new();
    let mut open = options
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&temp)?;
    open.write_all(token.as_bytes())?;
    open.sync_all()?;
    std::fs::rename(&temp, file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_due_when_half_of_its_life_is_over() {
        let token = format!(
            "h.{}.s",
            URL_SAFE_NO_PAD.encode(r#"{"iat":1000,"exp":2000,"sub":"x"}"#)
        );
        for (now, due) in [(1000, false), (1499, false), (1500, true), (9000, true)] {
            assert_eq!(is_due(&token, now), due, "{now}");
        }
        assert!(is_due("no token", 0));
    }

    #[test]
    fn the_file_is_replaced_and_private() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("node.token");
        std::fs::write(&file, "old").unwrap();
        replace(&file, "new").unwrap();
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "new");
        assert_eq!(
            std::fs::metadata(&file).unwrap().permissions().mode() & 0o777,
            0o600
        );
    }
}
