//! The devices of a running domain that the Node API speaks of, read from libvirt's definition of it.

use super::super::xml::{Element, XmlError, parse};

/// What a running domain has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Devices {
    /// Its disks.
    pub disks: Vec<Disk>,
    /// Its interfaces.
    pub interfaces: Vec<Interface>,
    /// Whether it has a serial console.
    pub console: bool,
    /// Its VNC server: address and port.
    pub vnc: Option<(String, u16)>,
}

/// A disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disk {
    /// The name that libvirt knows it by: vda.
    pub device: String,
    /// Its file on the host; empty when it has none.
    pub file: String,
}

/// An interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// The host's end of it: vnet0.
    pub device: String,
    /// MAC address, lower case.
    pub mac: String,
}

/// Reads them.
pub fn devices(xml: &str) -> Result<Devices, XmlError> {
    let domain = parse(xml)?;
    let Some(devices) = domain.find(&["devices"]) else {
        return Ok(Devices::default());
    };
    Ok(Devices {
        disks: devices.named("disk").filter_map(disk).collect(),
        interfaces: devices.named("interface").filter_map(interface).collect(),
        console: devices.named("console").next().is_some(),
        vnc: devices.named("graphics").find_map(vnc),
    })
}

fn word(element: &Element, path: &[&str], attribute: &str) -> Option<String> {
    element.find(path)?.attribute(attribute).map(str::to_owned)
}

fn disk(disk: &Element) -> Option<Disk> {
    Some(Disk {
        device: word(disk, &["target"], "dev")?,
        file: word(disk, &["source"], "file").unwrap_or_default(),
    })
}

fn interface(interface: &Element) -> Option<Interface> {
    Some(Interface {
        device: word(interface, &["target"], "dev")?,
        mac: word(interface, &["mac"], "address")?.to_lowercase(),
    })
}

/// Where its VNC server is reached from this machine: one that listens everywhere also does on loopback.
fn vnc(graphics: &Element) -> Option<(String, u16)> {
    if graphics.attribute("type") != Some("vnc") {
        return None;
    }
    let port = graphics.attribute("port")?.parse().ok()?;
    let listen = match graphics.attribute("listen") {
        None | Some("" | "0.0.0.0") => "127.0.0.1",
        Some("::") => "::1",
        Some(address) => address,
    };
    Some((listen.to_owned(), port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_of_a_running_domain() {
        let found = devices(
            "<domain type='qemu' id='3'><name>a</name><devices>\
             <disk type='file' device='disk'><source file='/d/root.qcow2' index='2'/><target dev='vda' bus='virtio'/></disk>\
             <disk type='file' device='cdrom'><target dev='sda' bus='sata'/></disk>\
             <interface type='network'><mac address='52:54:00:AA:bb:01'/><target dev='vnet7'/></interface>\
             <console type='pty' tty='/dev/pts/3'/>\
             <graphics type='vnc' port='5901' autoport='yes' listen='0.0.0.0'><listen type='address' address='0.0.0.0'/></graphics>\
             </devices></domain>",
        )
        .unwrap();
        let disk = |device: &str, file: &str| Disk {
            device: device.into(),
            file: file.into(),
        };
        let expected = Devices {
            disks: vec![disk("vda", "/d/root.qcow2"), disk("sda", "")],
            interfaces: vec![Interface {
                device: "vnet7".into(),
                mac: "52:54:00:aa:bb:01".into(),
            }],
            console: true,
            vnc: Some(("127.0.0.1".into(), 5901)),
        };
        assert_eq!(found, expected);
    }

    #[test]
    fn what_is_not_there_is_not_found() {
        assert_eq!(
            devices("<domain><devices/></domain>").unwrap(),
            Devices::default()
        );
        assert_eq!(devices("<domain/>").unwrap(), Devices::default());
        let spice = "<domain><devices><graphics type='spice' port='5900'/></devices></domain>";
        assert_eq!(devices(spice).unwrap().vnc, None);
        // autoport of a domain that is being started.
        let starting = "<domain><devices><graphics type='vnc' port='-1'/></devices></domain>";
        assert_eq!(devices(starting).unwrap().vnc, None);
        let v6 = "<domain><devices><graphics type='vnc' port='5900' listen='fd00::5'/></devices></domain>";
        assert_eq!(devices(v6).unwrap().vnc, Some(("fd00::5".into(), 5900)));
        assert!(devices("nonsense").is_err());
    }
}
