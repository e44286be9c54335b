//! Which files domains name, whoever's they are.

use std::collections::BTreeSet;
use std::path::PathBuf;

use virt::domain::Domain;
use virt::error::Error;
use virt::sys;

use super::super::hypervisor::{HypervisorError, LibvirtErrorKind};
use super::super::xml::{self, Element};
use super::{Answer, Link, libvirt_error};

impl Link {
    /// Every file that a domain has open, would open at its next start, or has a disk resting on.
    ///
    /// # Errors
    /// When one domain does not say: the others' files are not all, then.
    pub fn files(&self) -> Answer<BTreeSet<PathBuf>> {
        let domains = self
            .connect
            .list_all_domains(0)
            .map_err(|e| self.failed("list", "all domains", &e))?;
        let mut files = BTreeSet::new();
        for domain in domains {
            // A running domain has two copies, and they may differ.
            for copy in [0, sys::VIR_DOMAIN_XML_INACTIVE] {
                if let Some(document) = self.document(&domain, copy)? {
                    collect(&document, &mut files);
                }
            }
        }
        Ok(files)
    }

    /// The domain's XML; `None` when it went away.
    fn document(&self, domain: &Domain, copy: u32) -> Answer<Option<Element>> {
        let name = domain.name().unwrap_or_default();
        match domain.xml_desc(copy) {
            Ok(text) => xml::parse(&text)
                .map(Some)
                .map_err(|source| HypervisorError::Unreadable { domain: name, source }),
            Err(error) if gone(&error) => Ok(None),
            Err(error) => Err(self.failed("read", &name, &error)),
        }
    }
}

fn gone(error: &Error) -> bool {
    libvirt_error(error).kind == LibvirtErrorKind::NoDomain
}

/// Files in attributes (disks, their backing chains and the targets of copies, roots of containers) and in texts (kernel,
/// initial RAM disk, firmware).
fn collect(element: &Element, files: &mut BTreeSet<PathBuf>) {
    for name in ["file", "dev", "dir"] {
        files.extend(
            element
                .attribute(name)
                .filter(|value| value.starts_with('/'))
                .map(PathBuf::from),
        );
    }
    if element.text().starts_with('/') {
        files.insert(PathBuf::from(element.text()));
    }
    for child in &element.children {
        collect(child, files);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_a_domain() {
        let document = xml::parse(
            "<domain type='qemu'><name>/not-checked</name>
               <os><type>hvm</type><kernel>/images/k</kernel><initrd>/images/i</initrd></os>
               <devices>
                 <emulator>/usr/bin/qemu-system-x86_64</emulator>
                 <disk type='file' device='disk'><source file='/vm/root.qcow2'/>
                   <backingStore type='file'><format type='qcow2'/><source file='/images/b1'/>
                     <backingStore type='file'><format type='raw'/><source file='/images/b2'/><backingStore/></backingStore>
                   </backingStore>
                   <mirror type='file'><source file='/vm/copy.qcow2'/></mirror>
                   <target dev='vda' bus='virtio'/></disk>
                 <disk type='block' device='disk'><source dev='/dev/vg/lv'/><target dev='vdb'/></disk>
                 <disk type='file' device='cdrom'><source file='/images/iso'/></disk>
                 <filesystem type='file'><source file='/vm/root'/><target dir='/'/></filesystem>
               </devices></domain>",
        )
        .unwrap();
        let mut files = BTreeSet::new();
        collect(&document, &mut files);
        for file in [
            "/images/k",
            "/images/i",
            "/vm/root.qcow2",
            "/images/b1",
            "/images/b2",
            "/vm/copy.qcow2",
            "/dev/vg/lv",
            "/images/iso",
            "/vm/root",
        ] {
            assert!(files.contains(&PathBuf::from(file)), "{file}");
        }
        assert!(!files.contains(&PathBuf::from("vda")), "a target is no file");
    }
}
