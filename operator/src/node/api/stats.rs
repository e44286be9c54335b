//! `stats`: what a guest has used since it was started, and what it has now.

use serde::Serialize;
use virtshell_crds::Instance;

use super::super::goal::mac;
use super::super::hypervisor::HypervisorError;
use super::super::libvirt::{Counters, DiskCounters, InterfaceCounters};
use super::devices::{Devices, devices};
use super::error::ApiError;
use super::target::Target;

/// The answer. Counters begin at 0 when the domain is started; what the driver or the guest does not tell is null.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Stats {
    /// libvirt's word for the domain's state: running, paused, ...
    state: &'static str,
    /// Virtual CPUs that are online. A container has none of its own: what it may use at once.
    vcpus: u32,
    /// CPU time used, nanoseconds.
    cpu_time_ns: u64,
    memory: Memory,
    disks: Vec<Disk>,
    interfaces: Vec<Interface>,
}

/// Memory, KiB.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Memory {
    /// What the guest has now: the balloon's size.
    #[serde(rename = "currentKiB")]
    current: u64,
    /// What it may have.
    #[serde(rename = "maximumKiB")]
    maximum: u64,
    /// Resident memory on the host.
    #[serde(rename = "rssKiB")]
    rss: Option<u64>,
    /// What the guest's kernel has in all.
    #[serde(rename = "availableKiB")]
    available: Option<u64>,
    /// What it has not touched.
    #[serde(rename = "unusedKiB")]
    unused: Option<u64>,
    /// What it could give without swapping.
    #[serde(rename = "usableKiB")]
    usable: Option<u64>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Disk {
    /// The name in the spec, `root` for the first; null for what has none, such as the seed.
    name: Option<String>,
    /// The device that libvirt knows it by.
    device: String,
    read_bytes: Option<i64>,
    read_requests: Option<i64>,
    write_bytes: Option<i64>,
    write_requests: Option<i64>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Interface {
    /// The name in the spec.
    name: Option<String>,
    /// The host's end of it.
    device: String,
    mac: String,
    rx_bytes: Option<i64>,
    rx_packets: Option<i64>,
    tx_bytes: Option<i64>,
    tx_packets: Option<i64>,
}

/// Asks libvirt.
pub async fn read(target: &Target) -> Result<Stats, ApiError> {
    let xml = target
        .ask("describe", super::super::libvirt::Link::running_xml)
        .await?;
    let devices = devices(&xml).map_err(|source| HypervisorError::Unreadable {
        domain: target.name().to_owned(),
        source,
    })?;
    let disks: Vec<String> = devices.disks.iter().map(|disk| disk.device.clone()).collect();
    let interfaces: Vec<String> = devices.interfaces.iter().map(|i| i.device.clone()).collect();
    let counters = target
        .ask("count", move |link, uuid| {
            link.counters(uuid, &disks, &interfaces)
        })
        .await?;
    Ok(stats(counters, &devices, &target.instance))
}

/// The MAC addresses of the spec's interfaces, lower case, and their names.
fn interface_names(instance: &Instance) -> Vec<(String, &str)> {
    let uid = instance.metadata.uid.as_deref().unwrap_or_default();
    let of = |name| (mac(uid, name), name);
    if instance.spec.interfaces.is_empty() {
        return vec![of("eth0")];
    }
    let interfaces = instance.spec.interfaces.iter();
    interfaces
        .map(|i| match &i.mac {
            Some(mac) => (mac.to_lowercase(), i.name.as_str()),
            None => of(&i.name),
        })
        .collect()
}

/// The counters, with the names that the user gave to the devices.
fn stats(counters: Counters, devices: &Devices, instance: &Instance) -> Stats {
    let names = interface_names(instance);
    let disks = instance.status.iter().flat_map(|status| &status.disks);
    let disk = |(device, of): (String, Option<DiskCounters>)| {
        let file = devices.disks.iter().find(|disk| disk.device == device);
        let known = file.and_then(|file| disks.clone().find(|disk| disk.path == file.file));
        Disk {
            name: known.map(|disk| disk.name.clone()),
            device,
            read_bytes: of.map(|of| of.read_bytes),
            read_requests: of.map(|of| of.read_requests),
            write_bytes: of.map(|of| of.write_bytes),
            write_requests: of.map(|of| of.write_requests),
        }
    };
    let interface = |(device, of): (String, Option<InterfaceCounters>)| {
        let mac = devices.interfaces.iter().find(|i| i.device == device);
        let mac = mac.map(|i| i.mac.clone()).unwrap_or_default();
        let known = names.iter().find(|(known, _)| *known == mac);
        Interface {
            name: known.map(|(_, name)| (*name).to_owned()),
            device,
            mac,
            rx_bytes: of.map(|of| of.rx_bytes),
            rx_packets: of.map(|of| of.rx_packets),
            tx_bytes: of.map(|of| of.tx_bytes),
            tx_packets: of.map(|of| of.tx_packets),
        }
    };
    Stats {
        state: counters.state,
        vcpus: counters.vcpus,
        cpu_time_ns: counters.cpu_time_ns,
        memory: Memory {
            current: counters.memory_kib,
            maximum: counters.max_memory_kib,
            rss: counters.memory.rss,
            available: counters.memory.available,
            unused: counters.memory.unused,
            usable: counters.memory.usable,
        },
        disks: counters.disks.into_iter().map(disk).collect(),
        interfaces: counters.interfaces.into_iter().map(interface).collect(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::super::libvirt::MemoryFigures;
    use super::*;

    #[test]
    fn devices_have_the_users_names_and_what_is_not_told_is_null() {
        let devices = devices(
            "<domain><devices>\
             <disk><source file='/d/root.qcow2'/><target dev='vda'/></disk>\
             <disk><source file='/d/seed.iso'/><target dev='vdb'/></disk>\
             <interface><mac address='52:54:00:aa:bb:01'/><target dev='vnet0'/></interface>\
             </devices></domain>",
        )
        .unwrap();
        let instance: Instance = serde_json::from_value(json!({
            "apiVersion": "virtshell.io/v1alpha1", "kind": "Instance", "metadata": {"name": "a", "uid": "u"},
            "spec": {"interfaces": [{"name": "eth0", "network": "n", "mac": "52:54:00:AA:bb:01"}]},
            "status": {"disks": [{"name": "root", "path": "/d/root.qcow2", "sizeMiB": 1}]},
        }))
        .unwrap();
        let counters = Counters {
            state: "running",
            vcpus: 2,
            cpu_time_ns: 7,
            memory_kib: 100,
            max_memory_kib: 200,
            memory: MemoryFigures {
                rss: Some(90),
                ..MemoryFigures::default()
            },
            disks: vec![
                (
                    "vda".into(),
                    Some(DiskCounters {
                        read_bytes: 1,
                        read_requests: 2,
                        write_bytes: 3,
                        write_requests: 4,
                    }),
                ),
                ("vdb".into(), None),
            ],
            interfaces: vec![(
                "vnet0".into(),
                Some(InterfaceCounters {
                    rx_bytes: 5,
                    rx_packets: 6,
                    tx_bytes: 7,
                    tx_packets: 8,
                }),
            )],
        };
        assert_eq!(
            json!(stats(counters, &devices, &instance)),
            json!({
                "state": "running", "vcpus": 2, "cpuTimeNs": 7,
                "memory": {"currentKiB": 100, "maximumKiB": 200, "rssKiB": 90, "availableKiB": null, "unusedKiB": null,
                    "usableKiB": null},
                "disks": [
                    {"name": "root", "device": "vda", "readBytes": 1, "readRequests": 2, "writeBytes": 3, "writeRequests": 4},
                    {"name": null, "device": "vdb", "readBytes": null, "readRequests": null, "writeBytes": null,
                        "writeRequests": null},
                ],
                "interfaces": [{"name": "eth0", "device": "vnet0", "mac": "52:54:00:aa:bb:01", "rxBytes": 5, "rxPackets": 6,
                    "txBytes": 7, "txPackets": 8}],
            })
        );
    }

    #[test]
    fn an_interface_that_nobody_named_has_the_address_that_follows_from_its_name() {
        let instance = |spec| -> Instance {
            serde_json::from_value(json!({
                "apiVersion": "virtshell.io/v1alpha1", "kind": "Instance", "metadata": {"name": "a", "uid": "u"}, "spec": spec,
            }))
            .unwrap()
        };
        let none = instance(json!({}));
        assert_eq!(interface_names(&none), [(mac("u", "eth0"), "eth0")]);
        let named = instance(json!({"interfaces": [{"name": "lan", "network": "n"}]}));
        assert_eq!(interface_names(&named), [(mac("u", "lan"), "lan")]);
    }
}
