//! The record of what a definition was made to carry: each field of the spec as one text, kept in the domain's metadata.
//!
//! Two definitions that differ have different records, so that nothing needs to compare XML, which libvirt rewrites;
//! [`super::carried`] reads the same texts back from XML to see whether the record still holds.

use std::fmt;

use sha2::{Digest, Sha256};

use super::goal::{InterfaceSource, Machine, MachineInterface};
use super::metadata::Applied;
use super::storage::disk_file_name;

/// A disk, as `name:bus`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiskWord<'a> {
    /// Name in the spec, or root.
    pub name: &'a str,
    /// libvirt's word for the bus.
    pub bus: &'a str,
}

impl<'a> DiskWord<'a> {
    /// Reads it; `None` for what was not written here.
    #[must_use]
    pub fn parse(word: &'a str) -> Option<Self> {
        let (name, bus) = word.split_once(':')?;
        Some(Self { name, bus })
    }

    /// Name of its file.
    #[must_use]
    pub fn file_name(&self) -> String {
        disk_file_name(self.name)
    }
}

impl fmt::Display for DiskWord<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.name, self.bus)
    }
}

/// A network interface, as `name:kind=source:model:mac`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InterfaceWord<'a> {
    /// Name in the spec.
    pub name: &'a str,
    /// network or bridge.
    pub kind: &'a str,
    /// Which one.
    pub source: &'a str,
    /// libvirt's word for the model.
    pub model: &'a str,
    /// MAC address, lower case: what identifies it.
    pub mac: &'a str,
}

/// Characters of a MAC address.
const MAC: usize = "52:54:00:00:00:00".len();

impl<'a> InterfaceWord<'a> {
    /// The word of an interface.
    #[must_use]
    pub fn of(interface: &'a MachineInterface) -> Self {
        let (kind, source) = match &interface.source {
            InterfaceSource::Network(network) => ("network", network),
            InterfaceSource::Bridge(bridge) => ("bridge", bridge),
        };
        Self {
            name: &interface.name,
            kind,
            source,
            model: interface.model,
            mac: &interface.mac,
        }
    }

    /// Reads it; `None` for what was not written here.
    #[must_use]
    pub fn parse(word: &'a str) -> Option<Self> {
        let (rest, mac) = word.split_at_checked(word.len().checked_sub(MAC)?)?;
        let (rest, model) = rest.strip_suffix(':')?.rsplit_once(':')?;
        let (name, joined) = rest.split_once(':')?;
        let (kind, source) = joined.split_once('=')?;
        Some(Self {
            name,
            kind,
            source,
            model,
            mac,
        })
    }
}

impl fmt::Display for InterfaceWord<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            name,
            kind,
            source,
            model,
            mac,
        } = self;
        // Words are separated by spaces, and libvirt allows them in the names of networks.
        let source = source.replace(char::is_whitespace, "+");
        write!(f, "{name}:{kind}={source}:{model}:{mac}")
    }
}

/// The words of a field that is a list.
pub fn words<'a>(applied: &'a Applied, field: &str) -> impl Iterator<Item = &'a str> {
    applied.get(field).map_or("", String::as_str).split_whitespace()
}

/// The consoles of a machine.
#[must_use]
pub fn consoles(serial: bool, vnc: Option<&str>) -> String {
    format!("serial={serial} vnc={}", vnc.unwrap_or("none"))
}

impl Machine {
    /// The values of the spec that its definition carries, by field.
    #[must_use]
    pub fn applied(&self) -> Applied {
        let root = DiskWord {
            name: "root",
            bus: "virtio",
        };
        let disks = self.disks.iter().map(|d| DiskWord {
            name: &d.name,
            bus: d.bus,
        });
        [
            ("driver", self.domain_type.as_str().to_owned()),
            ("cpus", self.cpus.to_string()),
            ("maxCpus", self.max_cpus.to_string()),
            ("memoryMiB", self.memory_mib.to_string()),
            ("maxMemoryMiB", self.max_memory_mib.to_string()),
            ("disks", sorted(std::iter::once(root).chain(disks))),
            (
                "interfaces",
                sorted(self.interfaces.iter().map(InterfaceWord::of)),
            ),
            ("consoles", consoles(self.serial, self.vnc.as_deref())),
            ("hostname", self.seed.hostname.clone()),
            ("cloudInit", self.cloud_init_digest()),
        ]
        .into_iter()
        .map(|(field, value)| (field.to_owned(), value))
        .collect()
    }

    /// Short, for it is only compared. A Secret's content is not part of it, only which one it is.
    fn cloud_init_digest(&self) -> String {
        let from = self.seed.user_data_from.as_ref();
        let parts = [
            self.seed.user_data.as_deref(),
            from.map(|from| from.secret.as_str()),
            from.map(|from| from.key.as_str()),
            self.seed.network_data.as_deref(),
        ];
        let mut hash = Sha256::new();
        for part in parts {
            // The length goes first, so that no two lists of parts read alike.
            hash.update(part.map_or(u64::MAX, |text| text.len() as u64).to_le_bytes());
            hash.update(part.unwrap_or_default());
        }
        hex::encode(&hash.finalize()[..8])
    }
}

fn sorted(words: impl Iterator<Item = impl fmt::Display>) -> String {
    let mut words: Vec<String> = words.map(|word| word.to_string()).collect();
    words.sort_unstable();
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_read_back() {
        for word in [
            "eth0:network=default:virtio:52:54:00:00:00:01",
            "a-1:bridge=br.10:e1000e:52:54:00:00:00:ff",
            "e:network=a:b=c:virtio:52:54:00:00:00:01",
        ] {
            assert_eq!(InterfaceWord::parse(word).unwrap().to_string(), word);
        }
        assert_eq!(
            DiskWord::parse("data:scsi").unwrap().file_name(),
            "disk-data.qcow2"
        );
        assert_eq!(DiskWord::parse("root:virtio").unwrap().file_name(), "root.qcow2");
        for bad in [
            "",
            "eth0",
            "eth0:network=default",
            ":52:54:00:00:00:01",
            "é:52:54:00:00:00:0",
        ] {
            assert!(InterfaceWord::parse(bad).is_none(), "{bad}");
        }
        let spaced = InterfaceWord {
            name: "eth0",
            kind: "network",
            source: "my net",
            model: "virtio",
            mac: "52:54:00:00:00:01",
        };
        assert_eq!(spaced.to_string().split_whitespace().count(), 1);
    }
}
