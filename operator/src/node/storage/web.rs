//! Where on the web images may come from.
//!
//! A tenant names the URL, and the host fetches it: so it must not lead to what only the host reaches. That are its own
//! services (loopback) and those of its link, among them the metadata services of clouds, which hand out credentials. An
//! address counts, not a name: it is looked at after the name was resolved, for every redirect, and it is the address that
//! is then connected to. Addresses of other machines are for the network's own rules.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use ipnet::IpNet;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::redirect::{Attempt, Policy};
use reqwest::{RequestBuilder, Url};

use crate::node::files::client_builder;

/// Redirects that are followed, as reqwest does by itself.
const MOST_REDIRECTS: usize = 10;
/// Metadata services that clouds put outside of the link-local networks: Alibaba's, Oracle's, Amazon's, Google's.
const METADATA: [IpAddr; 4] = [
    IpAddr::V4(Ipv4Addr::new(100, 100, 100, 200)),
    IpAddr::V4(Ipv4Addr::new(192, 0, 0, 192)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254)),
    IpAddr::V6(Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254)),
];

/// An address that images do not come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0} is an address of the host itself or of services for it alone")]
pub(super) struct Forbidden(pub IpAddr);

/// The way to images on the web.
#[derive(Clone)]
pub struct Web {
    client: reqwest::Client,
    reach: Reach,
}

impl Web {
    /// `allowed` are networks that images may come from though they are the host's own.
    ///
    /// # Errors
    /// When TLS cannot be set up.
    pub fn new(allowed: Vec<IpNet>) -> reqwest::Result<Self> {
        let reach = Reach(allowed.into());
        let (by_redirect, by_name) = (reach.clone(), reach.clone());
        let client = client_builder()
            .dns_resolver(Arc::new(by_name))
            .redirect(Policy::custom(move |attempt| by_redirect.follow(attempt)))
            .build()?;
        Ok(Self { client, reach })
    }

    /// A request for all of it. A name is looked at when it is sent: see [`forbidden`].
    pub(super) fn get(&self, url: &Url) -> Result<RequestBuilder, Forbidden> {
        self.reach.check(url)?;
        Ok(self.client.get(url.clone()))
    }
}

/// The address that a request was not sent to, if that is why it failed.
pub(super) fn forbidden(error: &reqwest::Error) -> Option<Forbidden> {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = cause {
        if let Some(found) = error.downcast_ref() {
            return Some(*found);
        }
        cause = error.source();
    }
    None
}

/// Which addresses may be reached.
#[derive(Clone)]
struct Reach(Arc<[IpNet]>);

impl Reach {
    fn permits(&self, address: IpAddr) -> bool {
        // ::ffff:127.0.0.1 leads to 127.0.0.1.
        let address = address.to_canonical();
        let own = match address {
            // 0.0.0.0 leads to the host itself, too.
            IpAddr::V4(v4) => v4.is_loopback() || v4.is_link_local() || v4.octets()[0] == 0,
            IpAddr::V6(v6) => v6.is_loopback() || v6.is_unicast_link_local() || v6.is_unspecified(),
        };
        let own = own || METADATA.contains(&address);
        !own || self.0.iter().any(|network| network.contains(&address))
    }

    /// An address that is written in the URL is not resolved.
    fn check(&self, url: &Url) -> Result<(), Forbidden> {
        let host = url.host_str().unwrap_or_default();
        let written = host.trim_start_matches('[').trim_end_matches(']').parse().ok();
        match written.filter(|address| !self.permits(*address)) {
            Some(address) => Err(Forbidden(address)),
            None => Ok(()),
        }
    }

    fn follow(&self, attempt: Attempt<'_>) -> reqwest::redirect::Action {
        match self.check(attempt.url()) {
            Err(forbidden) => attempt.error(forbidden),
            Ok(()) if attempt.previous().len() > MOST_REDIRECTS => attempt.error("too many redirects"),
            Ok(()) => attempt.follow(),
        }
    }
}

impl Resolve for Reach {
    fn resolve(&self, name: Name) -> Resolving {
        let reach = self.clone();
        Box::pin(async move {
            let found = tokio::net::lookup_host((name.as_str(), 0)).await?;
            let (permitted, other): (Vec<SocketAddr>, Vec<SocketAddr>) =
                found.partition(|address| reach.permits(address.ip()));
            match other.first() {
                Some(address) if permitted.is_empty() => Err(Forbidden(address.ip()).into()),
                _ => Ok(Box::new(permitted.into_iter()) as Addrs),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        let reach = |allowed: &[&str]| Reach(allowed.iter().map(|net| net.parse().unwrap()).collect());
        for (address, expected) in [
            ("192.0.2.1", true),
            ("10.0.0.1", true),
            ("2001:db8::1", true),
            ("127.0.0.1", false),
            ("127.8.8.8", false),
            ("0.0.0.0", false),
            ("169.254.169.254", false),
            ("::1", false),
            ("::", false),
            ("fe80::1", false),
            ("::ffff:127.0.0.1", false),
            ("::ffff:169.254.169.254", false),
            ("100.100.100.200", false),
            ("fd00:ec2::254", false),
            ("fd00::1", true),
        ] {
            assert_eq!(
                reach(&[]).permits(address.parse().unwrap()),
                expected,
                "{address}"
            );
        }
        let some = reach(&["127.0.0.1/32", "fe80::/10"]);
        for (address, expected) in [
            ("127.0.0.1", true),
            ("::ffff:127.0.0.1", true),
            ("127.0.0.2", false),
            ("fe80::1", true),
            ("::1", false),
        ] {
            assert_eq!(some.permits(address.parse().unwrap()), expected, "{address}");
        }
    }

    #[test]
    fn addresses_in_urls() {
        let reach = Reach(Arc::default());
        for (url, expected) in [
            ("http://example.org/", true),
            ("http://127.0.0.1/", false),
            // Other ways to write the same.
            ("http://2130706433/", false),
            ("http://0x7f.1/", false),
            ("http://[::1]:80/", false),
            ("http://[::ffff:7f00:1]/", false),
            ("http://user@169.254.169.254/latest/meta-data/", false),
        ] {
            assert_eq!(reach.check(&url.parse().unwrap()).is_ok(), expected, "{url}");
        }
    }
}
