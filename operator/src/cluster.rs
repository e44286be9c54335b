//! The way to the API server.

use std::net::SocketAddr;
use std::path::Path;

use anyhow::Context as _;
use axum::http::Request;
use kube::client::{Body, ClientBuilder};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use tower::filter::FilterLayer;

/// A client for `kubeconfig`; without one, for the environment's or the pod's.
///
/// # Errors
/// When there is no usable configuration; whether the server answers shows at the first request.
pub async fn connect(kubeconfig: Option<&Path>) -> anyhow::Result<Client> {
    client(config(kubeconfig).await?)
}

/// A client for a configuration.
///
/// # Errors
/// When it is not usable.
pub fn client(config: Config) -> anyhow::Result<Client> {
    Client::try_from(config).context("cannot make a client of the kubeconfig")
}

/// A request that was not sent: whoever asked for it may not act any more.
#[derive(Debug, thiserror::Error)]
#[error("not sent: this process does not lead any more")]
pub struct NotSent;

/// A client that sends a request only while `allowed`; else the error is [`NotSent`].
///
/// # Errors
/// When the configuration is not usable.
pub fn client_while(
    config: Config,
    allowed: impl Fn() -> bool + Clone + Send + 'static,
) -> anyhow::Result<Client> {
    let gate = FilterLayer::new(
        move |request: Request<Body>| {
            if allowed() { Ok(request) } else { Err(NotSent) }
        },
    );
    let client = ClientBuilder::try_from(config).context("cannot make a client of the kubeconfig")?;
    Ok(client.with_layer(&gate).build())
}

/// The configuration in `kubeconfig`; without one, the environment's or the pod's.
///
/// # Errors
/// When there is none.
pub async fn config(kubeconfig: Option<&Path>) -> anyhow::Result<Config> {
    match kubeconfig {
        Some(path) => {
            let file = Kubeconfig::read_from(path)
                .with_context(|| format!("cannot read kubeconfig {}", path.display()))?;
            Config::from_custom_kubeconfig(file, &KubeConfigOptions::default())
                .await
                .with_context(|| format!("cannot use kubeconfig {}", path.display()))
        }
        None => Config::infer()
            .await
            .context("no cluster: give --kubeconfig, set KUBECONFIG, or run in a pod"),
    }
}

/// The API server's address, where its name is known.
pub async fn address(config: &Config) -> Option<SocketAddr> {
    let server = &config.cluster_url;
    let port = server
        .port_u16()
        .unwrap_or(if server.scheme_str() == Some("http") {
            80
        } else {
            443
        });
    // An IPv6 address has brackets in a URL.
    let host = server.host()?.trim_matches(['[', ']']);
    tokio::net::lookup_host((host, port)).await.ok()?.next()
}

/// An `http://` or `https://` URL of the command line.
pub fn http_url(text: &str) -> Result<reqwest::Url, String> {
    let wrong = |why: &str| format!("{text}: {why}; give one such as http://virtshell.example.org:8080");
    let url = reqwest::Url::parse(text).map_err(|error| wrong(&error.to_string()))?;
    match url.scheme() {
        "http" | "https" if url.has_host() => Ok(url),
        _ => Err(wrong("not an http:// or https:// URL")),
    }
}

#[cfg(test)]
mod tests {
    use super::http_url;

    #[test]
    fn urls_of_the_command_line() {
        for (text, expected) in [
            ("http://gw:8080", Ok("http://gw:8080/")),
            (
                "https://virtshell.example.org/base",
                Ok("https://virtshell.example.org/base"),
            ),
            ("gw:8080", Err("not an http:// or https:// URL")),
            ("ftp://gw", Err("not an http:// or https:// URL")),
            ("http://", Err("empty host")),
        ] {
            match (http_url(text), expected) {
                (Ok(url), Ok(expected)) => assert_eq!(url.as_str(), expected),
                (Err(why), Err(word)) => assert!(why.contains(word), "{why}"),
                (got, _) => panic!("{text}: {got:?}"),
            }
        }
    }
}
