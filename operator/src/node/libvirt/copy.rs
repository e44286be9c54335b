//! Copying the disks of a running domain, all of them at one instant.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use libvirt_ffi::{CopyInto, EndBlockJob, block_copy, block_job, end_block_job};

use super::super::carried::disk_of;
use super::super::hypervisor::{HypervisorError, LibvirtError, LibvirtErrorKind};
use super::super::metadata::Metadata;
use super::super::observed::{PausedBy, Power};
use super::super::storage::{COPY_PREFIX, disk_file_name};
use super::super::xml::{Element, element};
use super::read::power;
use super::{Answer, Link};

/// How the disks of a domain can be copied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Copyable {
    /// Nobody writes to them.
    Still,
    /// A running virtual machine has these open: name in the spec, and target.
    Open(BTreeMap<String, String>),
    /// A running container, and the process id of its controller, the parent of its init.
    Container(u32),
    /// It is paused because its storage failed: what it wrote is not all there.
    Failed,
}

/// How far copies are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CopyProgress {
    /// Whether all follow their source from now on.
    pub ready: bool,
    /// What was done, in a unit of its own; it grows while they run.
    pub done: u64,
}

impl Link {
    /// How the disks `names` of the domain can be copied; a domain that is not there writes to none.
    pub fn copyable(&self, uuid: &str, names: &[String]) -> Answer<Copyable> {
        let domain = match self.domain(uuid) {
            Err(HypervisorError::Refused { source, .. }) if source.kind == LibvirtErrorKind::NoDomain => {
                return Ok(Copyable::Still);
            }
            other => other?,
        };
        let failed = |e| self.failed("look at", uuid, &e);
        if !domain.is_active().map_err(failed)? {
            return Ok(Copyable::Still);
        }
        if self.is("LXC") {
            return Ok(Copyable::Container(domain.id().unwrap_or_default()));
        }
        if power(&domain).map_err(failed)? == Power::Paused(PausedBy::IoError) {
            return Ok(Copyable::Failed);
        }
        let live = self.description(&domain, uuid, 0)?;
        let target = |name: &String| {
            let disk = disk_of(&live, uuid, &disk_file_name(name))?;
            let target = disk.find(&["target"])?.attribute("dev")?;
            Some((name.clone(), target.to_owned()))
        };
        Ok(Copyable::Open(names.iter().filter_map(target).collect()))
    }

    /// Begins to copy the topmost layer of a disk into a file that was made for it.
    pub fn begin_copy(&self, uuid: &str, target: &str, into: &Path) -> Answer<()> {
        let source = element("source").attr("file", into.display());
        let xml = element("disk")
            .attr("type", "file")
            .child(source)
            .child(element("driver").attr("type", "qcow2"))
            .render();
        let begun = block_copy(&self.domain(uuid)?, target, &xml, CopyInto::Layer);
        self.done("copy a disk of", uuid, begun)
    }

    /// How far the copies of these disks are.
    ///
    /// # Errors
    /// When one has ended before it was ready: its target is incomplete.
    pub fn copy_progress(&self, uuid: &str, targets: &[String]) -> Answer<CopyProgress> {
        let domain = self.domain(uuid)?;
        let live = self.description(&domain, uuid, 0)?;
        let mut progress = CopyProgress { ready: true, done: 0 };
        for target in targets {
            let job = block_job(&domain, target).map_err(|e| self.failed("copy a disk of", uuid, &e))?;
            let job = job.ok_or_else(|| ended_early(uuid, target))?;
            progress.done += job.done;
            progress.ready &= mirror(&live, target).is_some_and(|m| m.attribute("ready") == Some("yes"));
        }
        Ok(progress)
    }

    /// Ends copies that are ready, all at one instant: the guest stands still meanwhile, and goes on whatever happens.
    ///
    /// # Errors
    /// When one cannot be ended, or the guest cannot be suspended or resumed: then no target is worth anything.
    pub fn end_copies(&self, uuid: &str, targets: &[String]) -> Answer<()> {
        let domain = self.domain(uuid)?;
        let found = power(&domain).map_err(|e| self.failed("look at", uuid, &e))?;
        if found == Power::Running {
            self.done("suspend", uuid, domain.suspend())?;
        }
        let ended = targets.iter().try_for_each(|target| {
            let job = block_job(&domain, target).map_err(|e| self.failed("copy a disk of", uuid, &e))?;
            job.ok_or_else(|| ended_early(uuid, target))?;
            let ended = end_block_job(&domain, target, EndBlockJob::Abort);
            self.done("end the copy of a disk of", uuid, ended)
        });
        // One that was suspended before stays so.
        if found == Power::Running {
            self.done("resume", uuid, domain.resume())?;
        }
        ended
    }

    /// Ends copies that will not be used. One that has ended is success.
    pub fn abandon_copies(&self, uuid: &str, targets: &[String]) -> Answer<()> {
        let domain = self.domain(uuid)?;
        for target in targets {
            if let Ok(Some(_)) = block_job(&domain, target) {
                let ended = end_block_job(&domain, target, EndBlockJob::Abort);
                self.done("end the copy of a disk of", uuid, ended)?;
            }
        }
        Ok(())
    }

    /// Ends copies that an agent began which is gone: those of our domains into files that are half-made by their name.
    /// `in_hand` says of a domain's UUID whether somebody here works on it. Returns how many there were.
    pub fn end_stale_copies(&self, in_hand: impl Fn(&str) -> bool) -> Answer<usize> {
        let domains = self
            .connect
            .list_all_domains(virt::sys::VIR_CONNECT_LIST_DOMAINS_ACTIVE)
            .map_err(|e| self.failed("list", "all domains", &e))?;
        let mut ended = 0;
        for domain in domains {
            let Ok(uuid) = domain.uuid_string() else { continue };
            let Ok(live) = self.description(&domain, &uuid, 0) else {
                continue;
            };
            if Metadata::of_domain(&live).is_none() {
                continue;
            }
            let targets = stale(&live);
            if !targets.is_empty() && !in_hand(&uuid) {
                self.abandon_copies(&uuid, &targets)?;
                ended += targets.len();
            }
        }
        Ok(ended)
    }
}

fn ended_early(uuid: &str, target: &str) -> HypervisorError {
    HypervisorError::Refused {
        what: "copy a disk of",
        domain: uuid.to_owned(),
        source: LibvirtError {
            kind: LibvirtErrorKind::Other,
            message: format!("the copy of {target} has ended before it was complete"),
        },
    }
}

fn disks(live: &Element) -> impl Iterator<Item = &Element> {
    live.find(&["devices"]).into_iter().flat_map(|d| d.named("disk"))
}

fn target_of(disk: &Element) -> Option<&str> {
    disk.find(&["target"])?.attribute("dev")
}

fn mirror<'a>(live: &'a Element, target: &str) -> Option<&'a Element> {
    disks(live)
        .find(|disk| target_of(disk) == Some(target))?
        .find(&["mirror"])
}

/// Disks that are being copied into a half-made file of ours.
fn stale(live: &Element) -> Vec<String> {
    let into = |disk: &Element| -> Option<PathBuf> {
        Some(disk.find(&["mirror", "source"])?.attribute("file")?.into())
    };
    let ours = |path: PathBuf| {
        path.file_name()
            .and_then(|name| name.to_str())
            .is_some_and(|name| name.starts_with(COPY_PREFIX))
    };
    disks(live)
        .filter(|disk| into(disk).is_some_and(ours))
        .filter_map(|disk| target_of(disk).map(str::to_owned))
        .collect()
}

#[cfg(test)]
mod tests;
