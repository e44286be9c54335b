//! One libvirt connection in our words: the only file that knows the `virt` crate.
//!
//! Every call here blocks, some for as long as a guest likes; [`super::connection`] runs them with deadlines.

use std::time::Duration;

use libvirt_ffi::{Notice, Subscription};
use virt::connect::Connect;
use virt::domain::{Domain, DomainPausedReason, DomainState as VirtState, DomainStateReason};
use virt::enumutil::Enum;
use virt::error::Error;
use virt::sys;
use virtshell_crds::DOMAIN_METADATA_NAMESPACE;

use super::goal::Identity;
use super::hypervisor::{HypervisorError, LibvirtError, LibvirtErrorKind};
use super::metadata::{Metadata, PREFIX};
use super::observed::{DomainState, OurDomain, PausedBy, Power};
use super::xml;

/// Seconds between two keepalive messages, and how many may stay unanswered.
const KEEPALIVE: (i32, u32) = (5, 5);

/// One connection. Cheap to clone: clones share it.
#[derive(Clone)]
pub struct Link {
    connect: Connect,
    uri: String,
}

/// What a host's libvirt says of itself and of the machine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// libvirt's word for the driver: QEMU, LXC, TEST.
    pub driver: String,
    /// Version of the hypervisor and CPU model; [`Link::details`] fills them in.
    pub details: Details,
    /// Version of libvirt.
    pub libvirt_version: String,
    /// Clock.
    pub mhz: u32,
    /// Logical CPUs.
    pub cpus: u32,
    /// Memory.
    pub memory_mib: u64,
    /// NUMA nodes, sockets, cores, threads.
    pub topology: (u32, u32, u32, u32),
    /// Whether the network `default` is defined.
    pub default_network: bool,
}

/// What libvirt finds out by starting each of its emulators once, which can take a minute.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Details {
    /// Version of the hypervisor.
    pub hypervisor_version: String,
    /// CPU model.
    pub cpu_model: String,
}

/// A domain in the list of all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// libvirt's name of it.
    pub name: String,
    /// Its UUID.
    pub uuid: String,
    /// libvirt's id while it is active.
    pub id: Option<i32>,
    /// libvirt's word for its state.
    pub state: &'static str,
    /// Whose it is, when it is ours.
    pub owner: Option<Metadata>,
    /// libvirt's autostart flag.
    pub autostart: bool,
}

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

    // --- Reading ----------------------------------------------------------------------------------------------------

    /// The domain of an Instance: found by UUID, else by name; ours only by its metadata.
    pub fn observe(&self, id: &Identity) -> Answer<DomainState> {
        let by_uuid = self.present(
            self.connect.lookup_domain_by_uuid_string(&id.uid),
            &id.domain_name,
        )?;
        let found = match by_uuid {
            Some(domain) => Some(domain),
            None => self.present(
                self.connect.lookup_domain_by_name(&id.domain_name),
                &id.domain_name,
            )?,
        };
        let Some(domain) = found else {
            return Ok(DomainState::Absent);
        };
        let seen = self.read(&domain, &id.uid);
        match seen {
            // It went away between two questions: then it is not there.
            Err(HypervisorError::Refused { source, .. }) if source.kind == LibvirtErrorKind::NoDomain => {
                Ok(DomainState::Absent)
            }
            other => other,
        }
    }

    fn present(&self, found: Result<Domain, Error>, name: &str) -> Answer<Option<Domain>> {
        match found {
            Ok(domain) => Ok(Some(domain)),
            Err(error) if libvirt_error(&error).kind == LibvirtErrorKind::NoDomain => Ok(None),
            Err(error) => Err(self.failed("look up", name, &error)),
        }
    }

    fn read(&self, domain: &Domain, uid: &str) -> Answer<DomainState> {
        let name = domain.name().map_err(|e| self.failed("read", uid, &e))?;
        let failed = |e: Error| self.failed("read", &name, &e);
        let uuid = domain.uuid_string().map_err(failed)?;
        let config = self.metadata(domain, &name, sys::VIR_DOMAIN_AFFECT_CONFIG)?;
        let power = power(domain).map_err(failed)?;
        let live = match power {
            Power::Off => None,
            Power::Running | Power::Paused(_) => self.metadata(domain, &name, sys::VIR_DOMAIN_AFFECT_LIVE)?,
        };
        let persistent = domain.is_persistent().map_err(failed)?;
        let Some(owner) = config.or_else(|| live.clone()).filter(|m| m.uid == uid) else {
            return Ok(DomainState::Foreign { name, uuid });
        };
        let autostart = persistent && domain.autostart().map_err(failed)?;
        let agent_open = power == Power::Running && self.agent_open(domain, &name)?;
        Ok(DomainState::Ours(Box::new(OurDomain {
            name,
            uuid,
            power,
            config: owner,
            live,
            persistent,
            autostart,
            agent_open,
        })))
    }

    fn metadata(&self, domain: &Domain, name: &str, copy: u32) -> Answer<Option<Metadata>> {
        let kind = sys::VIR_DOMAIN_METADATA_ELEMENT as i32;
        match domain.metadata(kind, Some(DOMAIN_METADATA_NAMESPACE), copy) {
            Ok(text) => Metadata::parse(&text)
                .map(Some)
                .map_err(|source| HypervisorError::Unreadable {
                    domain: name.to_owned(),
                    source,
                }),
            Err(error) => match libvirt_error(&error).kind {
                // A domain undefined while it runs has no configuration to ask; one that just ended no live copy.
                LibvirtErrorKind::NoMetadata
                | LibvirtErrorKind::WrongState
                | LibvirtErrorKind::BadDefinition => Ok(None),
                LibvirtErrorKind::Connection
                | LibvirtErrorKind::NoDomain
                | LibvirtErrorKind::NoNetwork
                | LibvirtErrorKind::AgentSilent
                | LibvirtErrorKind::Unsupported
                | LibvirtErrorKind::Other => Err(self.failed("read the metadata of", name, &error)),
            },
        }
    }

    fn agent_open(&self, domain: &Domain, name: &str) -> Answer<bool> {
        let text = domain.xml_desc(0).map_err(|e| self.failed("read", name, &e))?;
        let read = xml::parse(&text).map_err(|source| HypervisorError::Unreadable {
            domain: name.to_owned(),
            source,
        })?;
        let open = |channel: &xml::Element| {
            channel.find(&["target"]).is_some_and(|target| {
                target.attribute("name") == Some("org.qemu.guest_agent.0")
                    && target.attribute("state") == Some("connected")
            })
        };
        Ok(read
            .find(&["devices"])
            .is_some_and(|devices| devices.named("channel").any(open)))
    }

    /// Whether the guest agent has its channel open.
    pub fn agent_is_open(&self, uuid: &str) -> Answer<bool> {
        self.agent_open(&self.domain(uuid)?, uuid)
    }

    /// All domains.
    pub fn list(&self) -> Answer<Vec<Listed>> {
        let domains = self
            .connect
            .list_all_domains(0)
            .map_err(|e| self.failed("list", "all domains", &e))?;
        let mut listed = Vec::with_capacity(domains.len());
        for domain in domains {
            let Ok(name) = domain.name() else { continue };
            let failed = |e: Error| self.failed("read", &name, &e);
            let Ok((state, _)) = domain.state() else { continue };
            let owner = self.metadata(&domain, &name, sys::VIR_DOMAIN_AFFECT_CURRENT)?;
            listed.push(Listed {
                uuid: domain.uuid_string().map_err(failed)?,
                id: domain.id().and_then(|id| i32::try_from(id).ok()),
                state: state_word(state),
                owner,
                autostart: domain.autostart().unwrap_or(false),
                name,
            });
        }
        Ok(listed)
    }

    /// What libvirt says of itself and of the machine, as far as it knows at once.
    pub fn facts(&self) -> Answer<Facts> {
        let failed = |e: Error| self.failed("describe", "the host", &e);
        let node = self.connect.node_info().map_err(failed)?;
        Ok(Facts {
            driver: self.connect.driver_type().map_err(failed)?,
            libvirt_version: version(self.connect.lib_version().map_err(failed)?),
            mhz: node.mhz,
            cpus: node.cpus,
            memory_mib: node.memory / 1024,
            topology: (node.nodes, node.sockets, node.cores, node.threads),
            default_network: self.connect.lookup_network_by_name("default").is_ok(),
            details: Details {
                cpu_model: node.model,
                ..Details::default()
            },
        })
    }

    /// What takes longer.
    pub fn details(&self) -> Answer<Details> {
        let failed = |e: Error| self.failed("describe", "the host", &e);
        let node = self.connect.node_info().map_err(failed)?;
        Ok(Details {
            hypervisor_version: version(self.connect.hyp_version().unwrap_or(0)),
            cpu_model: self.cpu_model().unwrap_or(node.model),
        })
    }

    fn cpu_model(&self) -> Option<String> {
        let capabilities = xml::parse(&self.connect.capabilities().ok()?).ok()?;
        let model = capabilities.find(&["host", "cpu", "model"])?.text().to_owned();
        (!model.is_empty()).then_some(model)
    }

    // --- Changing ---------------------------------------------------------------------------------------------------

    fn domain(&self, uuid: &str) -> Answer<Domain> {
        self.connect
            .lookup_domain_by_uuid_string(uuid)
            .map_err(|e| self.failed("look up", uuid, &e))
    }

    /// Defines the domain; over a running one this changes the configuration alone.
    pub fn define(&self, name: &str, xml: &str) -> Answer<()> {
        self.connect
            .define_domain_xml(xml)
            .map(drop)
            .map_err(|e| self.failed("define", name, &e))
    }

    /// Starts it; active already is success.
    pub fn start(&self, uuid: &str, paused: bool) -> Answer<()> {
        let flags = if paused { sys::VIR_DOMAIN_START_PAUSED } else { 0 };
        let domain = self.domain(uuid)?;
        match domain.create_with_flags(flags) {
            Err(_) if domain.is_active().unwrap_or(false) => Ok(()),
            other => self.done("start", uuid, other),
        }
    }

    /// Powers off; inactive already is success.
    pub fn destroy(&self, uuid: &str) -> Answer<()> {
        let domain = self.domain(uuid)?;
        match domain.destroy() {
            Err(_) if !domain.is_active().unwrap_or(true) => Ok(()),
            other => self.done("power off", uuid, other),
        }
    }

    /// Asks the guest to shut down; a guest that is off already is success.
    pub fn ask_shutdown(&self, uuid: &str, agent: bool) -> Answer<()> {
        let domain = self.domain(uuid)?;
        let asked = if agent {
            domain.shutdown_flags(sys::VIR_DOMAIN_SHUTDOWN_GUEST_AGENT)
        } else if self.is("QEMU") {
            domain.shutdown_flags(sys::VIR_DOMAIN_SHUTDOWN_ACPI_POWER_BTN)
        } else {
            domain.shutdown()
        };
        match asked {
            Err(_) if !domain.is_active().unwrap_or(true) => Ok(()),
            other => self.done("shut down", uuid, other.map(drop)),
        }
    }

    /// Suspends its CPUs.
    pub fn suspend(&self, uuid: &str) -> Answer<()> {
        let suspended = self.domain(uuid)?.suspend();
        self.done("suspend", uuid, suspended.map(drop))
    }

    /// Resumes its CPUs.
    pub fn resume(&self, uuid: &str) -> Answer<()> {
        let resumed = self.domain(uuid)?.resume();
        self.done("resume", uuid, resumed.map(drop))
    }

    /// Removes the configuration, and what hangs on it; absent already is success.
    pub fn undefine(&self, uuid: &str) -> Answer<()> {
        let domain = match self.domain(uuid) {
            Err(HypervisorError::Refused { source, .. }) if source.kind == LibvirtErrorKind::NoDomain => {
                return Ok(());
            }
            other => other?,
        };
        let everything = sys::VIR_DOMAIN_UNDEFINE_MANAGED_SAVE
            | sys::VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA
            | sys::VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA
            | sys::VIR_DOMAIN_UNDEFINE_NVRAM;
        // Containers have nothing that hangs on them, and their driver takes no flags.
        let flags = if self.is("QEMU") { everything } else { 0 };
        self.done("undefine", uuid, domain.undefine_flags(flags))
    }

    /// Sets libvirt's autostart flag.
    pub fn set_autostart(&self, uuid: &str, autostart: bool) -> Answer<()> {
        let set = self.domain(uuid)?.set_autostart(autostart);
        self.done("set autostart of", uuid, set.map(drop))
    }

    /// Changes the number of CPUs of the running domain.
    pub fn set_vcpus(&self, uuid: &str, cpus: i32) -> Answer<()> {
        let cpus = u32::try_from(cpus).unwrap_or(1);
        let set = self
            .domain(uuid)?
            .set_vcpus_flags(cpus, sys::VIR_DOMAIN_VCPU_LIVE);
        self.done("change the CPUs of", uuid, set.map(drop))
    }

    /// Changes the balloon of the running domain.
    pub fn set_memory(&self, uuid: &str, memory_mib: i64) -> Answer<()> {
        let kib = u64::try_from(memory_mib).unwrap_or(0) * 1024;
        let set = self.domain(uuid)?.set_memory_flags(kib, sys::VIR_DOMAIN_MEM_LIVE);
        self.done("change the memory of", uuid, set.map(drop))
    }

    /// Writes our metadata of the running domain.
    pub fn set_live_metadata(&self, uuid: &str, metadata: &Metadata) -> Answer<()> {
        let kind = sys::VIR_DOMAIN_METADATA_ELEMENT as i32;
        let (text, uri) = (metadata.to_text(), Some(DOMAIN_METADATA_NAMESPACE));
        let copy = sys::VIR_DOMAIN_AFFECT_LIVE;
        let set = self
            .domain(uuid)?
            .set_metadata(kind, Some(&text), Some(PREFIX), uri, copy);
        self.done("write the metadata of", uuid, set)
    }

    fn done<T>(&self, what: &'static str, uuid: &str, result: Result<T, Error>) -> Answer<()> {
        result.map(drop).map_err(|e| self.failed(what, uuid, &e))
    }

    fn is(&self, driver: &str) -> bool {
        self.connect.driver_type().is_ok_and(|found| found == driver)
    }

    // --- The guest --------------------------------------------------------------------------------------------------

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

fn power(domain: &Domain) -> Result<Power, Error> {
    let (state, reason) = domain.state()?;
    Ok(match state {
        Enum::Known(VirtState::Paused) => Power::Paused(match reason {
            Enum::Known(DomainStateReason::Paused(Enum::Known(DomainPausedReason::IOError))) => {
                PausedBy::IoError
            }
            Enum::Known(_) | Enum::Unknown(_) => PausedBy::Request,
        }),
        Enum::Known(VirtState::Shutoff) => Power::Off,
        Enum::Known(
            VirtState::Running
            | VirtState::Blocked
            | VirtState::Shutdown
            | VirtState::Crashed
            | VirtState::PMSuspended
            | VirtState::NoState,
        )
        | Enum::Unknown(_) => Power::Running,
    })
}

fn state_word(state: virt::domain::DomainStateEnum) -> &'static str {
    match state {
        Enum::Known(VirtState::Running) => "running",
        Enum::Known(VirtState::Blocked) => "blocked",
        Enum::Known(VirtState::Paused) => "paused",
        Enum::Known(VirtState::Shutdown) => "shutdown",
        Enum::Known(VirtState::Shutoff) => "shutoff",
        Enum::Known(VirtState::Crashed) => "crashed",
        Enum::Known(VirtState::PMSuspended) => "pmsuspended",
        Enum::Known(VirtState::NoState) | Enum::Unknown(_) => "nostate",
    }
}

fn version(number: u32) -> String {
    format!(
        "{}.{}.{}",
        number / 1_000_000,
        number / 1000 % 1000,
        number % 1000
    )
}

fn libvirt_error(error: &Error) -> LibvirtError {
    let from_rpc = error.domain().to_raw() == sys::VIR_FROM_RPC;
    let kind = match error.code().to_raw() {
        sys::VIR_ERR_NO_DOMAIN => LibvirtErrorKind::NoDomain,
        sys::VIR_ERR_NO_DOMAIN_METADATA => LibvirtErrorKind::NoMetadata,
        sys::VIR_ERR_NO_NETWORK => LibvirtErrorKind::NoNetwork,
        sys::VIR_ERR_OPERATION_INVALID => LibvirtErrorKind::WrongState,
        sys::VIR_ERR_AGENT_UNRESPONSIVE | sys::VIR_ERR_AGENT_UNSYNCED | sys::VIR_ERR_OPERATION_TIMEOUT => {
            LibvirtErrorKind::AgentSilent
        }
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
