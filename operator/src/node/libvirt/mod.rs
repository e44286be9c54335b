//! One libvirt connection in our words: the only place that knows the `virt` crate.
//!
//! Every call here blocks, some for as long as a guest likes; [`super::connection`] runs them with deadlines.

mod agent;
mod change;
mod copy;
mod files;
mod guest;
mod live;
mod read;

use libvirt_ffi::{Notice, Subscription};
use virt::connect::Connect;
use virt::domain::Domain;
use virt::error::Error;
use virt::sys;

pub use copy::{CopyProgress, Copyable};
pub use guest::{AddressSource, GuestInterface};
pub use live::{Console, Counters, DiskCounters, InterfaceCounters, MemoryFigures};
pub use read::{Details, Facts, Listed};

use super::hypervisor::{HypervisorError, LibvirtError, LibvirtErrorKind};

/// Seconds between two keepalive messages, and how many may stay unanswered.
const KEEPALIVE: (i32, u32) = (5, 5);

/// One connection. Cheap to clone: clones share it.
#[derive(Clone)]
pub struct Link {
    connect: Connect,
    uri: String,
}

type Answer<T> = Result<T, HypervisorError>;

impl Link {
    /// Opens a connection; the event loop must run already.
    pub fn open(uri: &str) -> Answer<Self> {
        let disconnected = |error: &Error| HypervisorError::Disconnected {
            uri: uri.to_owned(),
            source: Some(libvirt_error(error)),
        };
        // Errors are returned; libvirt would print each to standard error as well.
        virt::error::clear_error_callback();
        let connect = Connect::open(Some(uri)).map_err(|e| disconnected(&e))?;
        if !uri.starts_with("test:") {
            connect
                .set_keep_alive(KEEPALIVE.0, KEEPALIVE.1)
                .map_err(|e| disconnected(&e))?;
        }
        Ok(Self {
            connect,
            uri: uri.to_owned(),
        })
    }

    /// Calls `sink` on the event loop's thread for each event.
    pub fn subscribe(&self, sink: impl Fn(Notice) + Send + Sync + 'static) -> Answer<Subscription> {
        libvirt_ffi::subscribe(&self.connect, sink)
            .map_err(|e| self.failed("subscribe to events of", "all domains", &e))
    }

    /// Whether the connection answers.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        self.connect.is_alive().unwrap_or(false) && self.connect.lib_version().is_ok()
    }

    fn failed(&self, what: &'static str, domain: &str, error: &Error) -> HypervisorError {
        let source = libvirt_error(error);
        if source.kind == LibvirtErrorKind::Connection {
            return HypervisorError::Disconnected {
                uri: self.uri.clone(),
                source: Some(source),
            };
        }
        HypervisorError::Refused {
            what,
            domain: domain.to_owned(),
            source,
        }
    }

    fn domain(&self, uuid: &str) -> Answer<Domain> {
        self.connect
            .lookup_domain_by_uuid_string(uuid)
            .map_err(|e| self.failed("look up", uuid, &e))
    }

    fn done<T>(&self, what: &'static str, uuid: &str, result: Result<T, Error>) -> Answer<()> {
        result.map(drop).map_err(|e| self.failed(what, uuid, &e))
    }

    fn is(&self, driver: &str) -> bool {
        self.connect.driver_type().is_ok_and(|found| found == driver)
    }
}

fn libvirt_error(error: &Error) -> LibvirtError {
    let from_rpc = error.domain().to_raw() == sys::VIR_FROM_RPC;
    let kind = match error.code().to_raw() {
        sys::VIR_ERR_NO_DOMAIN => LibvirtErrorKind::NoDomain,
        sys::VIR_ERR_NO_DOMAIN_METADATA => LibvirtErrorKind::NoMetadata,
        sys::VIR_ERR_NO_NETWORK => LibvirtErrorKind::NoNetwork,
        sys::VIR_ERR_OPERATION_INVALID => LibvirtErrorKind::WrongState,
        sys::VIR_ERR_AGENT_UNRESPONSIVE
        | sys::VIR_ERR_AGENT_UNSYNCED
        | sys::VIR_ERR_AGENT_COMMAND_TIMEOUT
        | sys::VIR_ERR_OPERATION_TIMEOUT => LibvirtErrorKind::AgentSilent,
        sys::VIR_ERR_XML_ERROR
        | sys::VIR_ERR_XML_DETAIL
        | sys::VIR_ERR_XML_INVALID_SCHEMA
        | sys::VIR_ERR_CONFIG_UNSUPPORTED
        | sys::VIR_ERR_INVALID_ARG => LibvirtErrorKind::BadDefinition,
        sys::VIR_ERR_NO_SUPPORT | sys::VIR_ERR_OPERATION_UNSUPPORTED | sys::VIR_ERR_ARGUMENT_UNSUPPORTED => {
            LibvirtErrorKind::Unsupported
        }
        sys::VIR_ERR_RPC | sys::VIR_ERR_NO_CONNECT | sys::VIR_ERR_INVALID_CONN => {
            LibvirtErrorKind::Connection
        }
        // "client socket is closed" and its kin are internal errors of the RPC layer.
        _ if from_rpc => LibvirtErrorKind::Connection,
        _ => LibvirtErrorKind::Other,
    };
    LibvirtError {
        kind,
        message: error.message().to_owned(),
    }
}
