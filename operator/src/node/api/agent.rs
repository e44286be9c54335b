//! `agent`: what the guest agent says of the guest, as far as it answers.

use std::net::Ipv4Addr;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;
use serde_json::{Value, json};
use virtshell_crds::instance::Driver;

use super::super::connection::Lane;
use super::super::hypervisor::HypervisorError;
use super::super::libvirt::Link;
use super::error::ApiError;
use super::target::Target;

/// How long the agent may take for one command.
const COMMAND_DEADLINE: Duration = Duration::from_secs(2);
/// How long all of them may take.
const DEADLINE: Duration = Duration::from_secs(15);

/// The answer; null is what the agent does not tell.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Guest {
    /// The guest's host name.
    hostname: Option<String>,
    /// Its operating system.
    os: Option<Os>,
    /// Its time zone.
    timezone: Option<Timezone>,
    /// Who is logged in.
    users: Option<Vec<User>>,
    /// Its interfaces, loopback included.
    interfaces: Option<Vec<Interface>>,
    /// Its mounted file systems.
    filesystems: Option<Vec<Filesystem>>,
    /// Version of the agent.
    agent_version: Option<String>,
    /// Swap space.
    swap: Option<Swap>,
    /// What its scheduler has to do.
    tasks: Option<Tasks>,
    /// Its IPv4 default gateway.
    gateway: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Swap {
    total_kib: u64,
    used_kib: u64,
}

/// Threads of all processes: Linux counts no processes in a place of its own.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Tasks {
    total: u64,
    /// Running, or ready to.
    running: u64,
    /// Waiting for a device.
    blocked: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Os {
    id: Option<String>,
    name: Option<String>,
    version: Option<String>,
    kernel_release: Option<String>,
    machine: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Timezone {
    name: Option<String>,
    /// East of Greenwich.
    offset_seconds: Option<i64>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
struct User {
    name: String,
    /// Seconds since 1970.
    login_time: Option<f64>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
struct Interface {
    name: String,
    mac: Option<String>,
    /// In CIDR notation.
    addresses: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Filesystem {
    mountpoint: String,
    #[serde(rename = "type")]
    type_: Option<String>,
    device: Option<String>,
    total_bytes: Option<i64>,
    used_bytes: Option<i64>,
}

/// The agent's commands, in the order of [`Answers`].
const COMMANDS: [&str; 7] = [
    "guest-info",
    "guest-get-host-name",
    "guest-get-osinfo",
    "guest-get-timezone",
    "guest-get-users",
    "guest-network-get-interfaces",
    "guest-get-fsinfo",
];

/// What the agent returned to each of [`COMMANDS`]; null for what it refused.
type Answers = [Value; COMMANDS.len()];

/// What Linux tells in files, in the order of [`Files`].
const FILES: [&str; 4] = ["/proc/swaps", "/proc/loadavg", "/proc/stat", "/proc/net/route"];
/// Most bytes that are read of one: many times what matters of each.
const LONGEST_FILE: usize = 64 * 1024;

/// The text of each of [`FILES`]; none for what could not be read.
type Files = [Option<String>; FILES.len()];

/// Asks the agent.
pub async fn read(target: &Target) -> Result<Guest, ApiError> {
    let name = target.name();
    if target.driver == Driver::Lxc {
        return Err(ApiError::NotImplemented(format!(
            "the Instance {name} is a container, which has no guest agent"
        )));
    }
    if target.paused {
        return Err(ApiError::Conflict(format!(
            "the Instance {name} is paused: its guest agent cannot answer"
        )));
    }
    // Calling an agent whose channel is closed is an error in libvirtd's log.
    if !target.ask("look at", Link::agent_is_open).await? {
        return Err(ApiError::Conflict(format!(
            "the guest agent of the Instance {name} is not connected"
        )));
    }
    let answers = target.ask_on(Lane::Agent, "ask the agent of", DEADLINE, ask);
    let (answers, files) = answers.await?;
    Ok(guest(&answers, &files))
}

/// All commands, one after the other: an agent serves one at a time.
fn ask(link: &Link, uuid: &str) -> Result<(Answers, Files), HypervisorError> {
    // One that does not answer at all is not asked seven times.
    link.ping_agent(uuid, COMMAND_DEADLINE)?;
    let command = |command: Value| {
        let answer = link
            .agent_command(uuid, &command.to_string(), COMMAND_DEADLINE)
            .ok()?;
        let mut answer: Value = serde_json::from_str(&answer).ok()?;
        Some(answer["return"].take())
    };
    let answers = COMMANDS.map(|name| command(json!({"execute": name})).unwrap_or_default());
    Ok((answers, FILES.map(|path| file(path, &command))))
}

/// Reads a file of the guest as far as [`LONGEST_FILE`], and closes it in any case.
fn file(path: &str, command: &impl Fn(Value) -> Option<Value>) -> Option<String> {
    let open = json!({"execute": "guest-file-open", "arguments": {"path": path, "mode": "r"}});
    let handle = command(open)?.as_i64()?;
    let read = json!({"execute": "guest-file-read", "arguments": {"handle": handle, "count": LONGEST_FILE}});
    let content = command(read);
    command(json!({"execute": "guest-file-close", "arguments": {"handle": handle}}));
    let bytes = STANDARD.decode(content?["buf-b64"].as_str()?).ok()?;
    String::from_utf8(bytes).ok()
}

/// What was answered, in our words.
fn guest(
    [info, hostname, os, timezone, users, interfaces, filesystems]: &Answers,
    [swaps, loadavg, stat, routes]: &Files,
) -> Guest {
    Guest {
        swap: swaps.as_deref().and_then(swap),
        tasks: loadavg
            .as_deref()
            .zip(stat.as_deref())
            .and_then(|(loadavg, stat)| tasks(loadavg, stat)),
        gateway: routes.as_deref().and_then(gateway),
        hostname: text(hostname, "host-name"),
        os: os.is_object().then(|| Os {
            id: text(os, "id"),
            name: text(os, "pretty-name").or_else(|| text(os, "name")),
            version: text(os, "version-id").or_else(|| text(os, "version")),
            kernel_release: text(os, "kernel-release"),
            machine: text(os, "machine"),
        }),
        timezone: timezone.is_object().then(|| Timezone {
            name: text(timezone, "zone"),
            offset_seconds: timezone["offset"].as_i64(),
        }),
        users: list(users, |user| {
            Some(User {
                name: text(user, "user")?,
                login_time: user["login-time"].as_f64(),
            })
        }),
        interfaces: list(interfaces, interface),
        filesystems: list(filesystems, |filesystem| {
            Some(Filesystem {
                mountpoint: text(filesystem, "mountpoint")?,
                type_: text(filesystem, "type"),
                device: text(filesystem, "name"),
                total_bytes: filesystem["total-bytes"].as_i64(),
                used_bytes: filesystem["used-bytes"].as_i64(),
            })
        }),
        agent_version: text(info, "version"),
    }
}

/// The sums of `/proc/swaps`; a guest without swap has a table with no lines but the head.
fn swap(table: &str) -> Option<Swap> {
    let mut sum = Swap {
        total_kib: 0,
        used_kib: 0,
    };
    for line in table.lines().skip(1) {
        // Name, type, size, used, priority.
        let mut numbers = line.split_whitespace().skip(2).map(str::parse::<u64>);
        sum.total_kib += numbers.next()?.ok()?;
        sum.used_kib += numbers.next()?.ok()?;
    }
    table.starts_with("Filename").then_some(sum)
}

/// `0.20 0.18 0.12 1/80 11206` and the lines `procs_running`, `procs_blocked` of `/proc/stat`.
fn tasks(loadavg: &str, stat: &str) -> Option<Tasks> {
    let (_, total) = loadavg.split_whitespace().nth(3)?.split_once('/')?;
    let line = |name: &str| {
        let mut lines = stat.lines().filter_map(|line| line.strip_prefix(name));
        lines.next()?.trim().parse().ok()
    };
    Some(Tasks {
        total: total.parse().ok()?,
        running: line("procs_running")?,
        blocked: line("procs_blocked")?,
    })
}

/// The way to everywhere with the least metric in `/proc/net/route`, whose addresses are in the guest's byte order: a
/// little-endian one's, as all guests here are.
fn gateway(table: &str) -> Option<String> {
    let routes = table.lines().skip(1).filter_map(|line| {
        // Iface, Destination, Gateway, Flags, RefCnt, Use, Metric, Mask.
        let fields: Vec<&str> = line.split_whitespace().collect();
        let address = u32::from_str_radix(fields.get(2)?, 16).ok()?;
        let is_default = fields.get(1) == Some(&"00000000") && fields.get(7) == Some(&"00000000");
        let metric: u32 = fields.get(6)?.parse().ok()?;
        (is_default && address != 0).then_some((metric, address))
    });
    let (_, address) = routes.min_by_key(|(metric, _)| *metric)?;
    Some(Ipv4Addr::from(address.to_le_bytes()).to_string())
}

fn interface(interface: &Value) -> Option<Interface> {
    let address = |address: &Value| {
        let ip = text(address, "ip-address")?;
        Some(match address["prefix"].as_u64() {
            Some(prefix) => format!("{ip}/{prefix}"),
            None => ip,
        })
    };
    Some(Interface {
        name: text(interface, "name")?,
        mac: text(interface, "hardware-address").map(|mac| mac.to_lowercase()),
        addresses: list(&interface["ip-addresses"], address).unwrap_or_default(),
    })
}

fn text(of: &Value, field: &str) -> Option<String> {
    of.get(field)?
        .as_str()
        .filter(|text| !text.is_empty())
        .map(str::to_owned)
}

fn list<T>(of: &Value, read: impl Fn(&Value) -> Option<T>) -> Option<Vec<T>> {
    Some(of.as_array()?.iter().filter_map(read).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agent_that_tells_everything() {
        let answers = [
            json!({"version": "7.2.0", "supported_commands": []}),
            json!({"host-name": "web"}),
            json!({"id": "debian", "name": "Debian GNU/Linux", "pretty-name": "Debian GNU/Linux 12", "version-id": "12",
                "kernel-release": "6.1.0", "machine": "x86_64", "version": "12 (bookworm)"}),
            json!({"zone": "CET", "offset": 3600}),
            json!([{"user": "root", "login-time": 1.5}]),
            json!([{"name": "lo", "ip-addresses": [{"ip-address": "127.0.0.1", "prefix": 8, "ip-address-type": "ipv4"}]},
                {"name": "eth0", "hardware-address": "52:54:00:AA:00:01"}]),
            json!([{"mountpoint": "/", "type": "ext4", "name": "vda1", "total-bytes": 10, "used-bytes": 4, "disk": []}]),
        ];
        let files = [
            "Filename Type Size Used Priority\n/dev/vdb partition 1048572 512 -2\n/swap file 1024 8 -3\n",
            "0.20 0.18 0.12 2/80 11206\n",
            "cpu 1 2 3\nprocesses 900\nprocs_running 2\nprocs_blocked 1\n",
            "Iface Destination Gateway Flags RefCnt Use Metric Mask MTU Window IRTT\n\
             eth0 00000000 017AA8C0 0003 0 0 100 00000000 0 0 0\n\
             eth1 00000000 0101000A 0003 0 0 50 00000000 0 0 0\n\
             eth0 007AA8C0 00000000 0001 0 0 0 00FFFFFF 0 0 0\n",
        ]
        .map(|text| Some(text.to_owned()));
        assert_eq!(
            json!(guest(&answers, &files)),
            json!({
                "hostname": "web",
                "os": {"id": "debian", "name": "Debian GNU/Linux 12", "version": "12", "kernelRelease": "6.1.0",
                    "machine": "x86_64"},
                "timezone": {"name": "CET", "offsetSeconds": 3600},
                "users": [{"name": "root", "loginTime": 1.5}],
                "interfaces": [{"name": "lo", "mac": null, "addresses": ["127.0.0.1/8"]},
                    {"name": "eth0", "mac": "52:54:00:aa:00:01", "addresses": []}],
                "filesystems": [{"mountpoint": "/", "type": "ext4", "device": "vda1", "totalBytes": 10, "usedBytes": 4}],
                "agentVersion": "7.2.0",
                "swap": {"totalKib": 1_049_596, "usedKib": 520},
                "tasks": {"total": 80, "running": 2, "blocked": 1},
                "gateway": "10.0.1.1",
            })
        );
    }

    #[test]
    fn a_guest_without_swap_or_a_way_out() {
        let none = Swap {
            total_kib: 0,
            used_kib: 0,
        };
        assert_eq!(swap("Filename\t\t\tType\n"), Some(none));
        assert_eq!(swap("Filename Type\n/dev/vdb partition many 0 -2\n"), None);
        assert_eq!(gateway("Iface Destination Gateway\n"), None);
    }

    #[test]
    fn a_file_is_closed_whatever_it_holds() {
        let asked = std::cell::RefCell::new(Vec::new());
        let agent = |command: Value| {
            let name = command["execute"].as_str().unwrap_or_default().to_owned();
            asked.borrow_mut().push(name.clone());
            match name.as_str() {
                "guest-file-open" if command["arguments"]["path"] == "/proc/swaps" => Some(json!(7)),
                "guest-file-read" if command["arguments"]["handle"] == 7 => {
                    Some(json!({"count": 3, "buf-b64": "YWJj", "eof": false}))
                }
                _ => None,
            }
        };
        assert_eq!(file("/proc/swaps", &agent).as_deref(), Some("abc"));
        assert_eq!(
            asked.take(),
            ["guest-file-open", "guest-file-read", "guest-file-close"]
        );
        assert_eq!(file("/none", &agent), None);
        assert_eq!(asked.take(), ["guest-file-open"]);
    }

    #[test]
    fn what_it_does_not_tell_is_null() {
        assert_eq!(guest(&Answers::default(), &Files::default()), Guest::default());
        let strange = COMMANDS.map(|_| json!([{"unexpected": 1}]));
        let odd = FILES.map(|_| Some("<html>\nno such thing".to_owned()));
        let seen = guest(&strange, &odd);
        assert_eq!((seen.swap, seen.tasks, seen.gateway), (None, None, None));
        assert_eq!((seen.hostname, seen.os), (None, None));
        assert_eq!((seen.users, seen.filesystems), (Some(vec![]), Some(vec![])));
    }
}
