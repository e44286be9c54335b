//! Ports that are free now.

use std::io;
use std::net::{Ipv4Addr, TcpListener};

/// `N` different ports of loopback that nobody listens on at the moment of asking.
///
/// They are held together while they are chosen, so that they differ; nothing holds them afterwards.
///
/// # Errors
/// When the machine has no free port.
pub fn free<const N: usize>() -> io::Result<[u16; N]> {
    let mut listeners = Vec::with_capacity(N);
    let mut ports = [0; N];
    for port in &mut ports {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        *port = listener.local_addr()?.port();
        listeners.push(listener);
    }
    Ok(ports)
}

#[cfg(test)]
mod tests {
    #[test]
    fn ports_differ() {
        let [a, b, c] = super::free().unwrap();
        assert!(a != b && b != c && a != c && a != 0);
    }
}
