//! The domain XML of a machine.
//!
//! Pure: a [`Machine`], the paths of its files and its metadata go in. Nothing is left to libvirt's choice that a guest
//! would notice when it changed.

use std::path::{Path, PathBuf};

use super::goal::{DomainType, InterfaceSource, Machine, MachineInterface};
use super::metadata::Metadata;
use super::xml::{Element, element};

mod places;

use places::keep_places;

/// Where the files of a machine are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Paths {
    /// Root disk, or the image of a container's root file system.
    pub root: PathBuf,
    /// Seed; absent for containers, whose root holds it.
    pub seed: Option<PathBuf>,
    /// The answer file of an unattended installation.
    pub answers: Option<PathBuf>,
    /// Disks beside the root disk, in the order of the spec.
    pub disks: Vec<PathBuf>,
    /// The medium to install from.
    pub iso: Option<PathBuf>,
    /// Kernel and initial RAM disk for direct boot.
    pub kernel: Option<(PathBuf, Option<PathBuf>)>,
}

/// Length of the scheduler period of a container's CPU quota, in microseconds.
pub const CONTAINER_PERIOD_US: i64 = 100_000;
/// PCI ports left free for devices attached to the running domain: a port cannot be added while it runs.
const SPARE_PORTS: usize = 4;
/// Root disk, seed, agent channel, balloon, random numbers.
const PORTS_OF_EVERY_GUEST: usize = 5;
/// Units of a SCSI controller: libvirt puts sda to sdg on the first, sdh on the second.
const SCSI_UNITS: u8 = 7;

/// The definition; devices that the present one has stay at their places.
#[must_use]
pub fn domain_xml(
    machine: &Machine,
    paths: &Paths,
    metadata: &Metadata,
    present: Option<&Element>,
) -> String {
    let domain = match machine.domain_type {
        DomainType::Kvm | DomainType::Qemu | DomainType::Test => virtual_machine(machine, paths, metadata),
        DomainType::Lxc => container(machine, paths, metadata),
    };
    match present {
        Some(present) => keep_places(domain, present).render(),
        None => domain.render(),
    }
}

fn domain(machine: &Machine, metadata: &Metadata) -> Element {
    let mib = |name: &str, value: i64| element(name).attr("unit", "MiB").with_text(value);
    element("domain")
        .attr("type", machine.domain_type.as_str())
        .child(leaf("name", &machine.id.domain_name))
        .child(leaf("uuid", &machine.id.uid))
        .child(element("metadata").child(metadata.to_element()))
        .child(mib("memory", machine.max_memory_mib))
        .child(mib("currentMemory", machine.memory_mib))
}

fn leaf(name: &str, text: &str) -> Element {
    element(name).with_text(text)
}

fn lifecycle() -> [Element; 3] {
    // A crashed guest ends, so that the agent sees it and starts it again, with a pause when that repeats.
    [
        leaf("on_poweroff", "destroy"),
        leaf("on_reboot", "restart"),
        leaf("on_crash", "destroy"),
    ]
}

// --- Virtual machines -----------------------------------------------------------------------------------------------

fn virtual_machine(machine: &Machine, paths: &Paths, metadata: &Metadata) -> Element {
    let cpus = element("vcpu")
        .attr("placement", "static")
        .attr("current", machine.cpus)
        .with_text(machine.max_cpus);
    let features = element("features").child(element("acpi")).child(element("apic"));
    let clock = element("clock")
        .attr("offset", "utc")
        .child(element("timer").attr("name", "hpet").attr("present", "no"));
    domain(machine, metadata)
        .child(cpus)
        .child(os(machine, paths))
        .child(features)
        .with_children(cpu(machine.domain_type))
        .child(clock)
        .with_children(lifecycle())
        .child(devices(machine, paths))
}

fn os(machine: &Machine, paths: &Paths) -> Element {
    let kind = match machine.domain_type {
        DomainType::Kvm | DomainType::Qemu => {
            leaf("type", "hvm").attr("arch", "x86_64").attr("machine", "q35")
        }
        DomainType::Test | DomainType::Lxc => leaf("type", "hvm"),
    };
    let os = element("os").child(kind);
    let Some((kernel, initrd)) = &paths.kernel else {
        return os;
    };
    let boot = machine.image.as_ref().and_then(|i| i.boot.as_ref());
    os.child(path("kernel", kernel))
        .with_children(initrd.as_ref().map(|initrd| path("initrd", initrd)))
        .with_children(
            boot.filter(|b| !b.cmdline.is_empty())
                .map(|b| leaf("cmdline", &b.cmdline)),
        )
}

fn path(name: &str, path: &Path) -> Element {
    element(name).with_text(path.display())
}

fn cpu(domain_type: DomainType) -> Option<Element> {
    match domain_type {
        DomainType::Kvm => Some(
            element("cpu")
                .attr("mode", "host-passthrough")
                .attr("migratable", "on"),
        ),
        // All that the emulator knows.
        DomainType::Qemu => Some(element("cpu").attr("mode", "maximum")),
        DomainType::Lxc | DomainType::Test => None,
    }
}

fn devices(machine: &Machine, paths: &Paths) -> Element {
    let mut devices = element("devices");
    let mut names = DiskNames::default();
    let mut scsi_controllers = 0;
    // With direct kernel boot no disk boots, and libvirt refuses an order.
    let boots = paths.kernel.is_none();
    let boot = |order: u32| boots.then(|| element("boot").attr("order", order));
    devices = devices.child(qcow2(&paths.root, &names.next("virtio"), "virtio").with_children(boot(1)));
    if let Some(iso) = &paths.iso {
        let cdrom = raw(iso, "cdrom", &names.next("sata"), "sata").with_children(boot(2));
        devices = devices.child(cdrom);
    }
    if let Some(seed) = &paths.seed {
        // A virtio disk: cloud kernels have no driver for a CD-ROM.
        devices = devices.child(raw(seed, "disk", &names.next("virtio"), "virtio"));
    }
    if let Some(answers) = &paths.answers {
        devices = devices.child(raw(answers, "disk", &names.next("virtio"), "virtio"));
    }
    for (disk, path) in machine.disks.iter().zip(&paths.disks) {
        let serial = leaf("serial", &disk.name);
        devices = devices.child(qcow2(path, &names.next(disk.bus), disk.bus).child(serial));
        if disk.bus == "scsi" {
            scsi_controllers = names.scsi.div_ceil(SCSI_UNITS);
        }
    }
    devices = devices.with_children((0..scsi_controllers).map(scsi_controller));
    devices = devices.child(element("controller").attr("type", "usb").attr("model", "none"));
    devices = devices.with_children(
        machine
            .interfaces
            .iter()
            .map(|i| interface(i).with_children(no_rom(i))),
    );
    if machine.serial {
        devices = devices
            .child(
                element("serial")
                    .attr("type", "pty")
                    .child(element("target").attr("port", 0)),
            )
            .child(console("serial"));
    }
    if machine.has_agent() {
        devices = devices.child(
            element("controller")
                .attr("type", "virtio-serial")
                .attr("index", 0),
        );
        let target = element("target")
            .attr("type", "virtio")
            .attr("name", "org.qemu.guest_agent.0");
        devices = devices.child(element("channel").attr("type", "unix").child(target));
    }
    if let Some(listen) = &machine.vnc {
        devices = devices
            .child(
                element("graphics")
                    .attr("type", "vnc")
                    .attr("autoport", "yes")
                    .attr("listen", listen),
            )
            .child(element("video").child(element("model").attr("type", "vga")));
    }
    devices
        .with_children(ports(machine))
        .child(element("memballoon").attr("model", "virtio"))
        .with_children(entropy(machine.domain_type))
        .with_children(panic_device(machine.domain_type))
}

/// A PCI port for each device, and spare ones. libvirt would make just as many as are needed, and one more.
fn ports(machine: &Machine) -> Vec<Element> {
    let port = |model: &str| element("controller").attr("type", "pci").attr("model", model);
    match machine.domain_type {
        DomainType::Kvm | DomainType::Qemu => {
            let devices = PORTS_OF_EVERY_GUEST + machine.disks.len() + machine.interfaces.len();
            let mut ports = vec![port("pcie-root").attr("index", 0)];
            ports.extend((1..=devices + SPARE_PORTS).map(|n| port("pcie-root-port").attr("index", n)));
            ports
        }
        DomainType::Test | DomainType::Lxc => vec![],
    }
}

/// Without it, a guest that was never booted before can wait for randomness.
fn entropy(domain_type: DomainType) -> Option<Element> {
    let source = element("backend")
        .attr("model", "random")
        .with_text("/dev/urandom");
    match domain_type {
        DomainType::Kvm | DomainType::Qemu => Some(element("rng").attr("model", "virtio").child(source)),
        DomainType::Lxc | DomainType::Test => None,
    }
}

/// Lets a guest say that its kernel panicked: without it, a panicked guest looks like one that runs.
fn panic_device(domain_type: DomainType) -> Option<Element> {
    match domain_type {
        // The model that Linux and Windows have a driver for on every emulated x86 board.
        DomainType::Kvm | DomainType::Qemu => Some(element("panic").attr("model", "isa")),
        DomainType::Lxc | DomainType::Test => None,
    }
}

fn qcow2(path: &Path, target: &str, bus: &str) -> Element {
    let driver = element("driver")
        .attr("name", "qemu")
        .attr("type", "qcow2")
        .attr("discard", "unmap");
    disk(path, "disk", driver, target, bus)
}

fn raw(path: &Path, device: &str, target: &str, bus: &str) -> Element {
    let driver = element("driver").attr("name", "qemu").attr("type", "raw");
    disk(path, device, driver, target, bus).child(element("readonly"))
}

fn disk(path: &Path, device: &str, driver: Element, target: &str, bus: &str) -> Element {
    element("disk")
        .attr("type", "file")
        .attr("device", device)
        .child(driver)
        .child(element("source").attr("file", path.display()))
        .child(element("target").attr("dev", target).attr("bus", bus))
}

/// Every controller is named: those that libvirt adds itself are of a model that few guests have a driver for.
fn scsi_controller(index: u8) -> Element {
    element("controller")
        .attr("type", "scsi")
        .attr("index", index)
        .attr("model", "virtio-scsi")
}

/// Device names are libvirt's keys of disks: vda, vdb, ... on virtio; sda, ... shared by scsi and sata.
#[derive(Default)]
struct DiskNames {
    virtio: u8,
    scsi: u8,
}

impl DiskNames {
    fn next(&mut self, bus: &str) -> String {
        let (prefix, count) = if bus == "virtio" {
            ("vd", &mut self.virtio)
        } else {
            ("sd", &mut self.scsi)
        };
        let letter = char::from(b'a' + *count);
        *count += 1;
        format!("{prefix}{letter}")
    }
}

fn interface(interface: &MachineInterface) -> Element {
    let (kind, source) = match &interface.source {
        InterfaceSource::Network(network) => ("network", element("source").attr("network", network)),
        InterfaceSource::Bridge(bridge) => ("bridge", element("source").attr("bridge", bridge)),
    };
    element("interface")
        .attr("type", kind)
        .child(element("mac").attr("address", &interface.mac))
        .child(source)
        .child(element("model").attr("type", interface.model))
}

/// Nothing boots from the network, and loading the card's ROM costs a guest a part of its start.
fn no_rom(interface: &MachineInterface) -> Option<Element> {
    (interface.model == "virtio").then(|| element("rom").attr("enabled", "no"))
}

fn console(target: &str) -> Element {
    let target = element("target").attr("type", target).attr("port", 0);
    element("console").attr("type", "pty").child(target)
}

// --- Containers -----------------------------------------------------------------------------------------------------

fn container(machine: &Machine, paths: &Paths, metadata: &Metadata) -> Element {
    // Containers have no virtual CPUs: the scheduler gives them as much time as so many CPUs would have.
    let cputune = element("cputune")
        .child(leaf("period", &CONTAINER_PERIOD_US.to_string()))
        .child(leaf(
            "quota",
            &(CONTAINER_PERIOD_US * i64::from(machine.cpus)).to_string(),
        ));
    let os = element("os")
        .child(leaf("type", "exe"))
        .child(leaf("init", "/sbin/init"));
    let root = element("filesystem")
        .attr("type", "file")
        .attr("accessmode", "passthrough")
        .child(element("driver").attr("type", "loop").attr("format", "raw"))
        .child(element("source").attr("file", paths.root.display()))
        .child(element("target").attr("dir", "/"));
    let devices = element("devices")
        .child(root)
        .with_children(machine.interfaces.iter().map(container_interface))
        .child(console("lxc"));
    domain(machine, metadata)
        .child(leaf("vcpu", &machine.cpus.to_string()))
        .child(cputune)
        .child(os)
        // A network of its own even without an interface: never the host's.
        .child(element("features").child(element("privnet")))
        .child(element("clock").attr("offset", "utc"))
        .with_children(lifecycle())
        .child(devices)
}

fn container_interface(machine: &MachineInterface) -> Element {
    let mut element_ = interface(machine);
    // A container has no card, so no model; the name inside is the one in the spec.
    element_.children.retain(|child| child.name != "model");
    element_.child(element("guest").attr("dev", &machine.name))
}

#[cfg(test)]
#[path = "domain_xml/tests.rs"]
mod tests;
