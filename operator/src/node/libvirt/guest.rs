//! What the guest itself must answer, or libvirt's networks for it.

use std::time::Duration;

use virt::sys;

use super::{Answer, Link};

/// What a guest said about one of its interfaces.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuestInterface {
    /// MAC address, lower case.
    pub mac: String,
    /// IPv4 addresses.
    pub ipv4: Vec<String>,
    /// IPv6 addresses, link-local ones left out.
    pub ipv6: Vec<String>,
}

/// Where addresses are asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AddressSource {
    /// The guest agent.
    Agent,
    /// The leases of libvirt's networks.
    Lease,
}

impl Link {
    /// Whether the guest agent answers within `deadline` (whole seconds, at least one).
    pub fn ping_agent(&self, uuid: &str, deadline: Duration) -> Answer<()> {
        let seconds = i32::try_from(deadline.as_secs().max(1)).unwrap_or(i32::MAX);
        let answer = self
            .domain(uuid)?
            .qemu_agent_command(r#"{"execute":"guest-ping"}"#, seconds, 0);
        self.done("ping the agent of", uuid, answer)
    }

    /// The addresses of the guest's interfaces.
    pub fn addresses(&self, uuid: &str, source: AddressSource) -> Answer<Vec<GuestInterface>> {
        let raw = match source {
            AddressSource::Agent => sys::VIR_DOMAIN_INTERFACE_ADDRESSES_SRC_AGENT,
            AddressSource::Lease => sys::VIR_DOMAIN_INTERFACE_ADDRESSES_SRC_LEASE,
        };
        let found = self
            .domain(uuid)?
            .interface_addresses(raw, 0)
            .map_err(|e| self.failed("read the addresses of", uuid, &e))?;
        Ok(found.into_iter().filter_map(guest_interface).collect())
    }
}

fn guest_interface(found: virt::domain::Interface) -> Option<GuestInterface> {
    let mac = found.hwaddr.filter(|_| found.name != "lo")?.to_lowercase();
    let (ipv4, ipv6): (Vec<_>, Vec<_>) = found.addrs.into_iter().partition(|a| a.typed == 0);
    let texts = |list: Vec<virt::domain::IPAddress>| list.into_iter().map(|a| a.addr);
    Some(GuestInterface {
        mac,
        ipv4: texts(ipv4).filter(|a| !a.starts_with("169.254.")).collect(),
        ipv6: texts(ipv6)
            .filter(|a| !a.to_lowercase().starts_with("fe80:"))
            .collect(),
    })
}
