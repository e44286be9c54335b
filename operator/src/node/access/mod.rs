//! Commands and files inside guests, whatever leads there.
//!
//! ```text
//! kvm, qemu   guest agent over libvirt (agent); SSH with this agent's own key where none answers (ssh)
//! lxc         a process in the container's namespaces (namespaces)
//! ```
//!
//! [`choose()`] picks the way, [`Guest::open`] makes sure that the domain is ours and runs, [`Guest::run`] and
//! [`Guest::write_file`] are the same for all. What a guest says is bounded before it leaves the guest ([`script`]).

mod agent;
mod child;
mod choose;
mod error;
mod namespaces;
mod script;
pub mod ssh;

use std::sync::Arc;
use std::time::{Duration, Instant};

use tempfile::TempPath;
use tokio::io::AsyncRead;
use virtshell_crds::Instance;

pub use choose::{Channel, Choice, Signs, choose};
pub use error::AccessError;
pub use script::{Command, Ended, Keep, quoted};

use super::connection::{Connection, Lane};
use super::context::Context;
use super::goal::{Identity, identity};
use super::observed::{DomainState, Power};

/// How long libvirt may take to answer for itself.
const READ_DEADLINE: Duration = Duration::from_secs(5);
/// How long the removal of what could not be written may take.
const CLEANING: Duration = Duration::from_secs(10);
/// Bytes of a complaint about a file that are kept.
const COMPLAINT: usize = 512;

/// A running guest, and the way into it.
pub struct Guest {
    id: Identity,
    /// UUID of the domain.
    uuid: String,
    connection: Arc<Connection>,
    channel: Channel,
    key: Option<Arc<ssh::Key>>,
}

/// What is put into a file of a guest.
#[derive(Debug)]
pub enum Content {
    /// Little.
    Bytes(Vec<u8>),
    /// In a file of this host that goes with this.
    File(TempPath),
}

impl Content {
    async fn open(&self) -> std::io::Result<Box<dyn AsyncRead + Send + Unpin + '_>> {
        Ok(match self {
            Self::Bytes(bytes) => Box::new(bytes.as_slice()),
            Self::File(path) => Box::new(tokio::fs::File::open(path).await?),
        })
    }
}

/// A file to be put into a guest.
#[derive(Clone, Copy, Debug)]
pub struct NewFile<'a> {
    /// Where: absolute, and exactly this. Its directory exists.
    pub path: &'a str,
    /// What is in it.
    pub content: &'a Content,
    /// Its owner; default: root.
    pub owner: Option<&'a str>,
    /// Its group; default: root's.
    pub group: Option<&'a str>,
    /// Its mode, octal; default: 644.
    pub mode: Option<&'a str>,
}

impl Guest {
    /// The guest of an Instance, when libvirt says that its domain is ours and runs.
    pub async fn open(context: &Context, instance: &Instance, channel: Channel) -> Result<Self, AccessError> {
        let id = identity(instance);
        let driver = instance
            .status
            .as_ref()
            .and_then(|s| s.resolved.as_ref()?.driver)
            .ok_or(AccessError::NoDomain)?;
        let connection = context.connections.get(&driver).ok_or_else(|| {
            AccessError::NoChannel(format!("the agent has no connection for driver {driver}"))
        })?;
        let whose = id.clone();
        let seen = connection
            .call(Lane::Read, &id.uid, "look at", READ_DEADLINE, move |link| {
                link.observe(&whose)
            })
            .await
            .map_err(AccessError::Hypervisor)?;
        let domain = match seen {
            DomainState::Ours(domain) => domain,
            DomainState::Absent | DomainState::Foreign { .. } => return Err(AccessError::NoDomain),
        };
        if domain.power != Power::Running {
            return Err(AccessError::NotRunning);
        }
        Ok(Self {
            id,
            uuid: domain.uuid,
            connection: Arc::clone(connection),
            channel,
            key: context.ssh_key.clone(),
        })
    }

    /// Runs a command to its end, or ends it at the deadline.
    ///
    /// # Errors
    /// When it was not run, or its end cannot be known.
    pub async fn run(&self, command: &Command, deadline: Duration) -> Result<Ended, AccessError> {
        match &self.channel {
            Channel::Agent => agent::run(self, command, deadline).await,
            Channel::Namespaces => namespaces::run(self, command, deadline).await,
            Channel::Ssh(address) => ssh::run(self, address, command, deadline).await,
        }
    }

    /// Puts a file in its place. It appears at once and whole; what was there before goes.
    ///
    /// # Errors
    /// When it is not there then; an unfinished copy may be left beside it when the guest does not answer any more.
    pub async fn write_file(&self, file: &NewFile<'_>, deadline: Duration) -> Result<(), AccessError> {
        let end = Instant::now() + deadline;
        let directory = file.path.rsplit_once('/').map_or("", |(directory, _)| directory);
        let unfinished = format!("{directory}/.virtshell-{:016x}", random());
        let at = unfinished.as_str();
        let content = file.content.open().await.map_err(|error| AccessError::File {
            path: file.path.to_owned(),
            why: format!("its content cannot be read: {error}"),
        })?;
        let uploaded = match &self.channel {
            Channel::Agent => agent::upload(self, at, content, end).await,
            Channel::Namespaces => namespaces::upload(self, at, content, until(end)).await,
            Channel::Ssh(address) => ssh::upload(self, address, at, content, until(end)).await,
        };
        if let Err(error) = uploaded {
            // What a guest has no room for must not go on taking it.
            let clean = Command {
                text: format!("rm -f {}", quoted(&unfinished)),
                ..Command::default()
            };
            let _ = self.run(&clean, CLEANING).await;
            return Err(error.at(file.path));
        }
        self.succeed(finish(file, &unfinished), file.path, until(end))
            .await
    }

    /// Runs a step of a file's way; its complaint is the error.
    async fn succeed(&self, text: String, path: &str, deadline: Duration) -> Result<(), AccessError> {
        let command = Command {
            text,
            limit: COMPLAINT,
            ..Command::default()
        };
        let ended = self.run(&command, deadline).await?;
        match ended.exit_code {
            Some(0) => Ok(()),
            Some(_) => Err(AccessError::File {
                path: path.to_owned(),
                why: String::from_utf8_lossy(&ended.output).trim().to_owned(),
            }),
            None => Err(AccessError::TimedOut(deadline)),
        }
    }
}

/// Gives an uploaded file its owner and mode, then its name.
fn finish(file: &NewFile<'_>, unfinished: &str) -> String {
    let (from, to) = (quoted(unfinished), quoted(file.path));
    let owner = match (file.owner, file.group) {
        (None, None) => String::new(),
        (owner, group) => {
            let who = format!(
                "{}{}",
                owner.unwrap_or_default(),
                group.map(|group| format!(":{group}")).unwrap_or_default()
            );
            format!("chown {} {from} && ", quoted(&who))
        }
    };
    let mode = quoted(file.mode.unwrap_or("644"));
    format!(
        "if [ -d {to} ]; then echo 'it is a directory'; false; else {owner}chmod {mode} {from} && mv -f {from} {to}; fi || \
         {{ code=$?; rm -f {from}; exit $code; }}"
    )
}

/// What is left until `end`.
fn until(end: Instant) -> Duration {
    end.saturating_duration_since(Instant::now())
}

fn random() -> u64 {
    getrandom::u64().unwrap_or_else(|_| u64::from(std::process::id()))
}
