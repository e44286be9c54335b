//! Changes: of definitions, and of running domains.

use virt::sys;
use virtshell_crds::DOMAIN_METADATA_NAMESPACE;

use super::super::hypervisor::{HypervisorError, LibvirtErrorKind};
use super::super::metadata::{Metadata, PREFIX};
use super::{Answer, Link};

impl Link {
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
}
