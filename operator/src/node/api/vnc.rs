//! `vnc`: the guest's display, as a WebSocket that carries the VNC protocol.

use std::time::Duration;

use axum::body::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use virtshell_crds::instance::Driver;

use super::super::hypervisor::HypervisorError;
use super::super::libvirt::Link;
use super::devices::devices;
use super::error::ApiError;
use super::relay::{Guest, Input};
use super::target::Target;

/// How long QEMU may take to accept a connection.
const CONNECT: Duration = Duration::from_secs(5);
/// Bytes that are read at once.
const PIECE: usize = 64 * 1024;

/// What the guest paints.
pub struct Screen(OwnedReadHalf);

/// What the caller types and points at.
pub struct Keys(OwnedWriteHalf);

/// Address and port of the guest's display.
///
/// # Errors
/// When it has none: a container, or a machine that runs without one.
pub async fn display(target: &Target) -> Result<(String, u16), ApiError> {
    let name = target.name();
    if target.driver == Driver::Lxc {
        return Err(ApiError::NotImplemented(format!(
            "the Instance {name} is a container, which has no display"
        )));
    }
    let xml = target.ask("describe", Link::running_xml).await?;
    let devices = devices(&xml).map_err(|source| HypervisorError::Unreadable {
        domain: name.to_owned(),
        source,
    })?;
    devices.vnc.ok_or_else(|| {
        ApiError::Conflict(format!(
            "the Instance {name} runs without a display: set spec.consoles.vnc and restart it"
        ))
    })
}

/// Connects to the display.
pub async fn open(target: &Target) -> Result<(Screen, Keys), ApiError> {
    let name = target.name();
    let (address, port) = display(target).await?;
    let connecting = tokio::time::timeout(CONNECT, TcpStream::connect((address.as_str(), port)));
    let failed = |why: &dyn std::fmt::Display| {
        ApiError::Unavailable(format!(
            "the display of {name} at {address}:{port} cannot be reached: {why}"
        ))
    };
    let stream = match connecting.await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return Err(failed(&error)),
        Err(late) => return Err(failed(&late)),
    };
    // A key is a small packet that somebody waits for.
    let _ = stream.set_nodelay(true);
    let (read, write) = stream.into_split();
    Ok((Screen(read), Keys(write)))
}

impl Guest for Screen {
    async fn output(&mut self) -> Option<Bytes> {
        let mut piece = Vec::with_capacity(PIECE);
        match self.0.read_buf(&mut piece).await {
            Ok(0) | Err(_) => None,
            Ok(_) => Some(piece.into()),
        }
    }
}

impl Input for Keys {
    async fn input(&mut self, bytes: Bytes) -> bool {
        self.0.write_all(&bytes).await.is_ok()
    }
}
