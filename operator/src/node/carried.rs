//! What a definition really carries, in the words of the record that its metadata keeps.
//!
//! Pure: libvirt's XML and the record go in. Only what the spec can say is read, so that libvirt's own defaults, and
//! devices that somebody else attached, never show as a difference. A field that XML cannot tell is taken from the
//! record.

use super::applied::{self, DiskWord, InterfaceWord};
use super::metadata::Applied;
use super::xml::Element;

/// Microseconds of a container's scheduler period and quota, as numbers in XML.
const CPUTUNE: (&str, &str) = ("period", "quota");

/// What the copy of a domain in `xml` carries of the fields in `record` and `beside`.
///
/// `beside` is a record that may already know devices which this one does not: that of the configuration, when a device
/// was attached to the running domain a moment ago.
#[must_use]
pub fn carried(xml: &Element, uid: &str, record: &Applied, beside: &Applied) -> Applied {
    let container = xml.attribute("type") == Some("lxc");
    let read = |field: &str| match field {
        "driver" => xml.attribute("type").map(str::to_owned),
        "cpus" if container => container_cpus(xml),
        "cpus" => vcpu(xml).map(|vcpu| vcpu.attribute("current").unwrap_or(vcpu.text()).to_owned()),
        "maxCpus" if !container => vcpu(xml).map(|vcpu| vcpu.text().to_owned()),
        "memoryMiB" => mib(xml, "currentMemory"),
        "maxMemoryMiB" => mib(xml, "memory"),
        "disks" if !container => Some(disks(xml, uid, record, beside)),
        "interfaces" => Some(interfaces(xml, record, beside)),
        "consoles" if !container => Some(consoles(xml)),
        _ => None,
    };
    let fields = record.keys().chain(beside.keys());
    fields
        .filter_map(|field| Some((field.clone(), read(field).or_else(|| record.get(field).cloned())?)))
        .collect()
}

fn vcpu(xml: &Element) -> Option<&Element> {
    xml.find(&["vcpu"])
}

/// A container has no virtual CPUs but as much time as so many would have.
fn container_cpus(xml: &Element) -> Option<String> {
    let number = |name| xml.find(&["cputune", name])?.text().parse::<i64>().ok();
    let (period, quota) = (number(CPUTUNE.0)?, number(CPUTUNE.1)?);
    (period > 0).then(|| (quota / period).to_string())
}

/// A size that is not whole MiB was not written by us: it is shown as it is.
fn mib(xml: &Element, name: &str) -> Option<String> {
    let size = xml.find(&[name])?;
    let number: i64 = size.text().parse().ok()?;
    let kib = match size.attribute("unit").unwrap_or("KiB") {
        "b" | "bytes" => number / 1024,
        "KiB" | "k" => number,
        "MiB" | "M" => number * 1024,
        "GiB" | "G" => number << 20,
        _ => return None,
    };
    Some(if kib % 1024 == 0 {
        (kib / 1024).to_string()
    } else {
        format!("{kib}KiB")
    })
}

fn devices<'a>(xml: &'a Element, name: &'a str) -> impl Iterator<Item = &'a Element> {
    xml.find(&["devices"])
        .into_iter()
        .flat_map(move |all| all.named(name))
}

/// Our own disks are known by their files; a disk elsewhere is somebody else's.
#[must_use]
pub fn disk_of<'a>(xml: &'a Element, uid: &str, file_name: &str) -> Option<&'a Element> {
    let ours = format!("/{uid}/{file_name}");
    devices(xml, "disk").find(|disk| {
        disk.find(&["source"])
            .and_then(|source| source.attribute("file"))
            .is_some_and(|path| path.ends_with(&ours))
    })
}

/// The interface with this MAC address.
#[must_use]
pub fn interface_of<'a>(xml: &'a Element, mac: &str) -> Option<&'a Element> {
    devices(xml, "interface").find(|interface| {
        interface
            .find(&["mac"])
            .and_then(|m| m.attribute("address"))
            .is_some_and(|address| address.eq_ignore_ascii_case(mac))
    })
}

fn words<'a>(field: &'a str, record: &'a Applied, beside: &'a Applied) -> Vec<&'a str> {
    let mut words: Vec<&str> = applied::words(record, field)
        .chain(applied::words(beside, field))
        .collect();
    words.sort_unstable();
    words.dedup();
    words
}

fn joined(mut found: Vec<String>) -> String {
    found.sort_unstable();
    found.dedup();
    found.join(" ")
}

fn disks(xml: &Element, uid: &str, record: &Applied, beside: &Applied) -> String {
    let found = words("disks", record, beside).into_iter().filter_map(|word| {
        let known = DiskWord::parse(word)?;
        let target = disk_of(xml, uid, &known.file_name())?.find(&["target"])?;
        let bus = target.attribute("bus").unwrap_or_default();
        Some(DiskWord { bus, ..known }.to_string())
    });
    joined(found.collect())
}

fn interfaces(xml: &Element, record: &Applied, beside: &Applied) -> String {
    let found = words("interfaces", record, beside)
        .into_iter()
        .filter_map(|word| {
            let known = InterfaceWord::parse(word)?;
            let found = interface_of(xml, known.mac)?;
            let source = found.find(&["source"]);
            let attribute = |name| source.and_then(|s: &Element| s.attribute(name));
            // The running copy of an interface names the bridge of its network as well.
            let (kind, source) = match (attribute("network"), attribute("bridge")) {
                (Some(network), _) => ("network", network),
                (None, Some(bridge)) => ("bridge", bridge),
                (None, None) => ("none", ""),
            };
            // A container's interface has no model.
            let model = found.find(&["model"]).and_then(|m| m.attribute("type"));
            let word = InterfaceWord {
                kind,
                source,
                model: model.unwrap_or(known.model),
                ..known
            };
            Some(word.to_string())
        });
    joined(found.collect())
}

fn consoles(xml: &Element) -> String {
    let serial = devices(xml, "serial").next().is_some();
    let vnc = devices(xml, "graphics").find(|g| g.attribute("type") == Some("vnc"));
    let listen = vnc.map(|g| g.attribute("listen").unwrap_or("127.0.0.1"));
    applied::consoles(serial, listen)
}

#[cfg(test)]
mod tests {
    use super::super::xml::parse;
    use super::*;

    const UID: &str = "8f0c21d4-1111-2222-3333-444444444444";
    const XML: &str = "<domain type='qemu'><memory unit='KiB'>2097152</memory><currentMemory unit='KiB'>1048576</currentMemory>
        <vcpu placement='static' current='2'>4</vcpu><devices>
        <disk type='file' device='disk'><source file='/d/vm/8f0c21d4-1111-2222-3333-444444444444/root.qcow2' index='1'/>
          <target dev='vda' bus='virtio'/></disk>
        <disk type='file' device='disk'><source file='/d/vm/8f0c21d4-1111-2222-3333-444444444444/disk-data.qcow2'/>
          <target dev='vdc' bus='virtio'/></disk>
        <disk type='file' device='disk'><source file='/elsewhere.qcow2'/><target dev='vdd' bus='virtio'/></disk>
        <interface type='network'><mac address='52:54:00:00:00:01'/>
          <source network='default' portid='x' bridge='virbr0'/><model type='virtio'/></interface>
        <interface type='bridge'><mac address='52:54:00:00:00:99'/><source bridge='br9'/><model type='e1000'/></interface>
        <serial type='pty'/></devices></domain>";

    fn applied(pairs: &[(&str, &str)]) -> Applied {
        pairs
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect()
    }

    fn record() -> Applied {
        applied(&[
            ("driver", "qemu"),
            ("cpus", "2"),
            ("maxCpus", "4"),
            ("memoryMiB", "1024"),
            ("maxMemoryMiB", "2048"),
            ("disks", "data:virtio root:virtio"),
            ("interfaces", "eth0:network=default:virtio:52:54:00:00:00:01"),
            ("consoles", "serial=true vnc=none"),
            ("cloudInit", "5feceb66"),
        ])
    }

    fn read(xml: &str) -> Applied {
        carried(&parse(xml).unwrap(), UID, &record(), &record())
    }

    #[test]
    fn what_was_recorded_and_is_there_reads_equal_whatever_libvirt_and_others_added() {
        assert_eq!(read(XML), record());
    }

    #[test]
    fn every_edit_behind_our_back_shows_in_its_field() {
        for (from, to, field, value) in [
            ("current='2'", "current='3'", "cpus", "3"),
            (" current='2'", "", "cpus", "4"),
            (">4</vcpu>", ">8</vcpu>", "maxCpus", "8"),
            (">1048576<", ">524288<", "memoryMiB", "512"),
            (">1048576<", ">1000000<", "memoryMiB", "1000000KiB"),
            ("'KiB'>2097152", "'GiB'>3", "maxMemoryMiB", "3072"),
            ("disk-data.qcow2", "other.qcow2", "disks", "root:virtio"),
            (
                "dev='vda' bus='virtio'",
                "dev='sda' bus='sata'",
                "disks",
                "data:virtio root:sata",
            ),
            (
                "network='default' portid='x'",
                "network='isolated'",
                "interfaces",
                "eth0:network=isolated:virtio:52:54:00:00:00:01",
            ),
            (
                "<model type='virtio'/>",
                "<model type='e1000e'/>",
                "interfaces",
                "eth0:network=default:e1000e:52:54:00:00:00:01",
            ),
            ("00:00:01", "00:00:02", "interfaces", ""),
            ("<serial type='pty'/>", "", "consoles", "serial=false vnc=none"),
            (
                "<serial",
                "<graphics type='vnc' listen='0.0.0.0'/><serial",
                "consoles",
                "serial=true vnc=0.0.0.0",
            ),
            ("type='qemu'", "type='kvm'", "driver", "kvm"),
        ] {
            let mut expected = record();
            expected.insert(field.to_owned(), value.to_owned());
            assert_eq!(read(&XML.replace(from, to)), expected, "{from} to {to}");
        }
    }

    #[test]
    fn a_device_that_only_the_configuration_records_is_seen_in_the_running_domain() {
        let mut old = record();
        old.insert("disks".to_owned(), "root:virtio".to_owned());
        old.insert("interfaces".to_owned(), String::new());
        let xml = parse(XML).unwrap();
        assert_eq!(carried(&xml, UID, &old, &record()), record());
        assert_eq!(carried(&xml, UID, &old, &old), old, "else it is somebody else's");
    }

    #[test]
    fn a_containers_cpus_are_its_quota() {
        let xml = "<domain type='lxc'><vcpu>1</vcpu><cputune><period>100000</period><quota>300000</quota></cputune>
            <devices><interface type='network'><mac address='52:54:00:00:00:01'/><source network='default'/></interface>
            </devices></domain>";
        let record = applied(&[
            ("cpus", "1"),
            ("maxCpus", "4"),
            ("disks", "root:virtio"),
            ("interfaces", "eth0:network=default:virtio:52:54:00:00:00:01"),
        ]);
        let mut expected = record.clone();
        expected.insert("cpus".to_owned(), "3".to_owned());
        assert_eq!(carried(&parse(xml).unwrap(), UID, &record, &record), expected);
    }
}
