//! Questions that libvirt answers by itself: which domains there are, whose they are, what the machine has.

use std::collections::HashSet;

use virt::domain::{
    Domain, DomainPausedReason, DomainShutoffReason, DomainState as VirtState, DomainStateReason,
};
use virt::enumutil::Enum;
use virt::error::Error;
use virt::sys;
use virtshell_crds::DOMAIN_METADATA_NAMESPACE;

use super::super::carried::carried;
use super::super::goal::Identity;
use super::super::hypervisor::{HypervisorError, LibvirtErrorKind};
use super::super::metadata::Metadata;
use super::super::observed::{Definition, DomainState, OurDomain, PausedBy, Power};
use super::super::xml::{self, Element};
use super::{Answer, Link, libvirt_error};

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

impl Link {
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
        let (power, crashed) = power_and_end(domain).map_err(failed)?;
        let persistent = domain.is_persistent().map_err(failed)?;
        // One that was undefined while it runs has no configuration to read.
        let config = persistent
            .then(|| self.description(domain, &name, sys::VIR_DOMAIN_XML_INACTIVE))
            .transpose()?;
        let live = match power {
            Power::Off => None,
            Power::Running | Power::Paused(_) => Some(self.description(domain, &name, 0)?),
        };
        let mark = |xml: &Option<Element>| {
            xml.as_ref()
                .and_then(Metadata::of_domain)
                .filter(|m| m.uid == uid)
        };
        let (marked, marked_live) = (mark(&config), mark(&live));
        let Some(record) = marked.clone().or_else(|| marked_live.clone()) else {
            return Ok(DomainState::Foreign { name, uuid });
        };
        let define = |xml: &Element, metadata: Metadata| Definition {
            carries: carried(xml, uid, &metadata.applied, &record.applied),
            metadata,
        };
        let live_copy = live
            .as_ref()
            .map(|xml| define(xml, marked_live.clone().unwrap_or_else(|| record.clone())));
        let config = match (config, &live_copy) {
            (Some(xml), _) => define(&xml, marked.unwrap_or_else(|| record.clone())),
            (None, Some(live)) => live.clone(),
            (None, None) => return Ok(DomainState::Absent),
        };
        let autostart = persistent && domain.autostart().map_err(failed)?;
        let agent_open = power == Power::Running && live.as_ref().is_some_and(agent_open);
        Ok(DomainState::Ours(Box::new(OurDomain {
            name,
            uuid,
            power,
            crashed,
            config,
            live: live_copy,
            persistent,
            autostart,
            agent_open,
        })))
    }

    pub(super) fn description(&self, domain: &Domain, name: &str, flags: u32) -> Answer<Element> {
        let text = domain
            .xml_desc(flags)
            .map_err(|e| self.failed("read", name, &e))?;
        xml::parse(&text).map_err(|source| HypervisorError::Unreadable {
            domain: name.to_owned(),
            source,
        })
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

    /// Whether the guest agent has its channel open.
    pub fn agent_is_open(&self, uuid: &str) -> Answer<bool> {
        self.description(&self.domain(uuid)?, uuid, 0)
            .map(|xml| agent_open(&xml))
    }

    /// The configuration's XML; absent when there is none.
    pub fn configuration(&self, uuid: &str) -> Answer<Option<Element>> {
        let found = self.present(self.connect.lookup_domain_by_uuid_string(uuid), uuid)?;
        let Some(domain) = found else { return Ok(None) };
        if !domain
            .is_persistent()
            .map_err(|e| self.failed("read", uuid, &e))?
        {
            return Ok(None);
        }
        self.description(&domain, uuid, sys::VIR_DOMAIN_XML_INACTIVE)
            .map(Some)
    }

    /// A question that QEMU's monitor must answer, and that costs little.
    pub fn probe(&self, uuid: &str) -> Answer<()> {
        let answered = self.domain(uuid)?.memory_stats(0);
        self.done("get a sign of life from", uuid, answered)
    }

    /// Whether a disk of a guest that its storage suspended found no room; QEMU's monitor must answer.
    pub fn found_no_space(&self, uuid: &str) -> Answer<bool> {
        let errors = libvirt_ffi::disk_errors(&self.domain(uuid)?)
            .map_err(|e| self.failed("ask for the disk errors of", uuid, &e))?;
        Ok(errors.iter().any(|error| error.no_space))
    }

    /// All domains but those with the given UUIDs: of each it must be read whose it is.
    pub fn list(&self, but: &HashSet<String>) -> Answer<Vec<Listed>> {
        let domains = self
            .connect
            .list_all_domains(0)
            .map_err(|e| self.failed("list", "all domains", &e))?;
        let mut listed = Vec::with_capacity(domains.len());
        for domain in domains {
            let Ok(name) = domain.name() else { continue };
            let failed = |e: Error| self.failed("read", &name, &e);
            let uuid = domain.uuid_string().map_err(failed)?;
            if but.contains(&uuid) {
                continue;
            }
            let Ok((state, _)) = domain.state() else { continue };
            let owner = self.metadata(&domain, &name, sys::VIR_DOMAIN_AFFECT_CURRENT)?;
            listed.push(Listed {
                uuid,
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
}

fn agent_open(xml: &Element) -> bool {
    let open = |channel: &Element| {
        channel.find(&["target"]).is_some_and(|target| {
            target.attribute("name") == Some("org.qemu.guest_agent.0")
                && target.attribute("state") == Some("connected")
        })
    };
    xml.find(&["devices"])
        .is_some_and(|devices| devices.named("channel").any(open))
}

pub(super) fn power(domain: &Domain) -> Result<Power, Error> {
    power_and_end(domain).map(|(power, _)| power)
}

/// The second: whether it is off because it crashed.
fn power_and_end(domain: &Domain) -> Result<(Power, bool), Error> {
    let (state, reason) = domain.state()?;
    let crashed = Enum::Known(DomainStateReason::Shutoff(Enum::Known(
        DomainShutoffReason::Crashed,
    )));
    let power = match state {
        Enum::Known(VirtState::Paused) => Power::Paused(match reason {
            Enum::Known(DomainStateReason::Paused(Enum::Known(DomainPausedReason::IOError))) => {
                PausedBy::IoError
            }
            Enum::Known(_) | Enum::Unknown(_) => PausedBy::Request,
        }),
        Enum::Known(VirtState::Shutoff) => Power::Off,
        Enum::Known(VirtState::PMSuspended) => Power::Paused(PausedBy::Sleep),
        Enum::Known(VirtState::Crashed) => Power::Paused(PausedBy::Crash),
        Enum::Known(VirtState::Running | VirtState::Blocked | VirtState::Shutdown | VirtState::NoState)
        | Enum::Unknown(_) => Power::Running,
    };
    Ok((power, reason == crashed))
}

pub(super) fn state_word(state: virt::domain::DomainStateEnum) -> &'static str {
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
