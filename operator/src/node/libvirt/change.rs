//! Changes: of definitions, and of running domains.

use virt::domain::{DomainState as VirtState, SchedBandwidth, SchedulerInfo};
use virt::enumutil::Enum;
use virt::sys;
use virtshell_crds::DOMAIN_METADATA_NAMESPACE;

use super::super::carried::{disk_of, interface_of};
use super::super::domain_xml::CONTAINER_PERIOD_US;
use super::super::hypervisor::{HypervisorError, LibvirtError, LibvirtErrorKind};
use super::super::metadata::{Metadata, PREFIX};
use super::super::observed::Power;
use super::super::plan::Device;
use super::super::storage::disk_file_name;
use super::super::xml::Element;
use super::read::power;
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

    /// Suspends its CPUs if they run; whether they did.
    pub fn suspend_running(&self, uuid: &str) -> Answer<bool> {
        let domain = self.domain(uuid)?;
        let runs = power(&domain).map_err(|e| self.failed("look at", uuid, &e))? == Power::Running;
        if runs {
            self.done("suspend", uuid, domain.suspend().map(drop))?;
        }
        Ok(runs)
    }

    /// Resumes its CPUs, also of a guest that put itself to sleep.
    pub fn resume(&self, uuid: &str) -> Answer<()> {
        let domain = self.domain(uuid)?;
        let asleep = matches!(domain.state(), Ok((Enum::Known(VirtState::PMSuspended), _)));
        let resumed = if asleep {
            domain.pm_wakeup(0)
        } else {
            domain.resume().map(drop)
        };
        self.done("resume", uuid, resumed)
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

    /// Changes the number of CPUs of the running domain; of a container, its share of the scheduler's time.
    pub fn set_vcpus(&self, uuid: &str, cpus: i32) -> Answer<()> {
        let domain = self.domain(uuid)?;
        let set = if self.is("LXC") {
            let parameters = SchedulerInfo {
                vcpu_bw: SchedBandwidth {
                    period: u64::try_from(CONTAINER_PERIOD_US).ok(),
                    quota: Some(CONTAINER_PERIOD_US * i64::from(cpus)),
                },
                ..SchedulerInfo::default()
            };
            let live = sys::VIR_DOMAIN_AFFECT_LIVE;
            domain.set_scheduler_parameters_flags(&parameters, live).map(drop)
        } else {
            let cpus = u32::try_from(cpus).unwrap_or(1);
            domain.set_vcpus_flags(cpus, sys::VIR_DOMAIN_VCPU_LIVE).map(drop)
        };
        self.done("change the CPUs of", uuid, set)
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

    // --- Devices of the running domain ------------------------------------------------------------------------------

    /// Gives the running domain a device as its configuration has it: at the same place, so that a restart moves nothing.
    ///
    /// Returns before the guest knows. A device that is there already is success.
    pub fn attach(&self, uuid: &str, device: &Device) -> Answer<()> {
        let domain = self.domain(uuid)?;
        let live = self.description(&domain, uuid, 0)?;
        if find(&live, uuid, device).is_some() {
            return Ok(());
        }
        let config = self.description(&domain, uuid, sys::VIR_DOMAIN_XML_INACTIVE)?;
        let wanted =
            find(&config, uuid, device).ok_or_else(|| nothing("attach a device to", uuid, device))?;
        for controller in missing_controllers(&config, &live, wanted) {
            let attached = domain.attach_device_flags(&controller.render(), sys::VIR_DOMAIN_AFFECT_LIVE);
            self.done("attach a controller to", uuid, attached)?;
        }
        let attached = domain.attach_device_flags(&wanted.render(), sys::VIR_DOMAIN_AFFECT_LIVE);
        self.done("attach a device to", uuid, attached)
    }

    /// Asks the running guest to let go of a device. It may do so later, which an event tells, or never.
    pub fn detach(&self, uuid: &str, device: &Device) -> Answer<()> {
        let domain = self.domain(uuid)?;
        let live = self.description(&domain, uuid, 0)?;
        let Some(found) = find(&live, uuid, device) else {
            return Ok(());
        };
        let detached = domain.detach_device_flags(&found.render(), sys::VIR_DOMAIN_AFFECT_LIVE);
        self.done("detach a device from", uuid, detached)
    }

    /// Connects an interface of the running domain to what its configuration says.
    pub fn update(&self, uuid: &str, device: &Device) -> Answer<()> {
        let domain = self.domain(uuid)?;
        let live = self.description(&domain, uuid, 0)?;
        let config = self.description(&domain, uuid, sys::VIR_DOMAIN_XML_INACTIVE)?;
        let (Some(found), Some(wanted)) = (find(&live, uuid, device), find(&config, uuid, device)) else {
            return Err(nothing("update a device of", uuid, device));
        };
        // libvirt takes another source, and nothing else: the place in the running domain stays.
        let mut updated = wanted.clone();
        updated.children.retain(|child| child.name != "address");
        let places = found.children.iter().filter(|child| child.name == "address");
        let updated = updated.with_children(places.cloned());
        let done = domain.update_device_flags(&updated.render(), sys::VIR_DOMAIN_AFFECT_LIVE);
        self.done("update a device of", uuid, done)
    }

    /// Enlarges a disk of the running domain; the guest sees the new size at once.
    pub fn grow(&self, uuid: &str, disk: &str, mib: i64) -> Answer<()> {
        let domain = self.domain(uuid)?;
        let live = self.description(&domain, uuid, 0)?;
        let device = Device::Disk(disk.to_owned());
        let target = find(&live, uuid, &device)
            .and_then(|disk| disk.find(&["target"])?.attribute("dev"))
            .ok_or_else(|| nothing("enlarge a disk of", uuid, &device))?;
        let bytes = u64::try_from(mib).unwrap_or(0) << 20;
        let grown = domain.block_resize(target, bytes, sys::VIR_DOMAIN_BLOCK_RESIZE_BYTES);
        self.done("enlarge a disk of", uuid, grown)
    }
}

fn nothing(what: &'static str, uuid: &str, device: &Device) -> HypervisorError {
    HypervisorError::Refused {
        what,
        domain: uuid.to_owned(),
        source: LibvirtError {
            kind: LibvirtErrorKind::Other,
            message: format!("its configuration has no {} {}", device.field(), device.name()),
        },
    }
}

/// The domain's UUID is its Instance's uid in every domain we make.
fn find<'a>(xml: &'a Element, uid: &str, device: &Device) -> Option<&'a Element> {
    match device {
        Device::Disk(name) => disk_of(xml, uid, &disk_file_name(name)),
        Device::Interface(mac) => interface_of(xml, mac),
    }
}

/// The SCSI controllers of the configuration that a SCSI disk needs and the running domain lacks: one that libvirt adds
/// by itself is of a model that few guests have a driver for.
fn missing_controllers<'a>(config: &'a Element, live: &Element, disk: &Element) -> Vec<&'a Element> {
    if disk.find(&["target"]).and_then(|t| t.attribute("bus")) != Some("scsi") {
        return vec![];
    }
    let have: Vec<&str> = scsi_controllers(live).map(|(index, _)| index).collect();
    scsi_controllers(config)
        .filter(|(index, _)| !have.contains(index))
        .map(|(_, controller)| controller)
        .collect()
}

/// SCSI controllers by their index.
fn scsi_controllers(xml: &Element) -> impl Iterator<Item = (&str, &Element)> {
    let devices = xml.find(&["devices"]).into_iter();
    devices
        .flat_map(|devices| devices.named("controller"))
        .filter(|controller| controller.attribute("type") == Some("scsi"))
        .filter_map(|controller| Some((controller.attribute("index")?, controller)))
}
