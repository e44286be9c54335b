//! `agent`: what the guest agent says of the guest, as far as it answers.

use std::time::Duration;

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
    Ok(guest(&answers.await?))
}

/// All commands, one after the other: an agent serves one at a time.
fn ask(link: &Link, uuid: &str) -> Result<Answers, HypervisorError> {
    // One that does not answer at all is not asked seven times.
    link.ping_agent(uuid, COMMAND_DEADLINE)?;
    Ok(COMMANDS.map(|command| {
        let command = json!({"execute": command}).to_string();
        let answer = link.agent_command(uuid, &command, COMMAND_DEADLINE).ok();
        let answer = answer.and_then(|text| serde_json::from_str::<Value>(&text).ok());
        answer.map_or(Value::Null, |mut answer| answer["return"].take())
    }))
}

/// What was answered, in our words.
fn guest([info, hostname, os, timezone, users, interfaces, filesystems]: &Answers) -> Guest {
    Guest {
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
        assert_eq!(
            json!(guest(&answers)),
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
            })
        );
    }

    #[test]
    fn what_it_does_not_tell_is_null() {
        assert_eq!(guest(&Answers::default()), Guest::default());
        let strange = COMMANDS.map(|_| json!([{"unexpected": 1}]));
        let seen = guest(&strange);
        assert_eq!((seen.hostname, seen.os), (None, None));
        assert_eq!((seen.users, seen.filesystems), (Some(vec![]), Some(vec![])));
    }
}
