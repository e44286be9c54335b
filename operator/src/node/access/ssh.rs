//! Commands and files through SSH, for guests without an agent; and the key that makes it possible.
//!
//! The key is this agent's own, made once; its public half is in the seed of every virtual machine. What a guest's host
//! key was at first is remembered per Instance, whatever address it has.

use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::io::AsyncRead;

use super::namespaces::{receive, received};
use super::{AccessError, Command, Ended, Guest, child, quoted};

const SSH: &str = "ssh";
/// How long a guest may take to accept a connection.
const CONNECT: &str = "ConnectTimeout=10";
/// How long ending a command may take.
const KILL_DEADLINE: Duration = Duration::from_secs(15);
/// Bytes that the line with the process group may take.
const GROUP: usize = 16;
/// ssh's own exit code for its own failures.
const FAILED: i32 = 255;

/// A shell that first says its process group, so that it can be ended with all that it started.
const SHELL: &str =
    "read -r pid name state parent group rest </proc/$$/stat; echo \"$group\"; exec /bin/sh -s";

/// This agent's own key.
#[derive(Debug)]
pub struct Key {
    private: PathBuf,
    known_hosts: PathBuf,
    public: String,
}

impl Key {
    /// The key in the data directory, made when there is none. Blocks.
    ///
    /// # Errors
    /// When it cannot be made: mostly because `ssh-keygen` is not there.
    pub fn load_or_make(data_dir: &Path, host: &str) -> std::io::Result<Self> {
        let directory = data_dir.join("ssh");
        let known_hosts = directory.join("known_hosts");
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&known_hosts)?;
        let private = directory.join("id_ed25519");
        let public = directory.join("id_ed25519.pub");
        if !public.exists() {
            // One without the other is what an interrupted run left.
            let _ = std::fs::remove_file(&private);
            let made = std::process::Command::new("ssh-keygen")
                .args([
                    "-q",
                    "-t",
                    "ed25519",
                    "-N",
                    "",
                    "-C",
                    &format!("virtshell@{host}"),
                    "-f",
                ])
                .arg(&private)
                .output()?;
            if !made.status.success() {
                let why = String::from_utf8_lossy(&made.stderr).trim().to_owned();
                return Err(std::io::Error::other(format!("ssh-keygen: {why}")));
            }
        }
        Ok(Self {
            public: std::fs::read_to_string(public)?.trim().to_owned(),
            private,
            known_hosts,
        })
    }

    /// Its public half, one line.
    #[must_use]
    pub fn public(&self) -> &str {
        &self.public
    }

    /// Forgets the host key of an Instance that is gone.
    pub fn forget(&self, uid: &str) {
        // It may never have been reached by SSH.
        let _ = std::fs::remove_file(self.known_hosts.join(uid));
    }
}

/// Runs a command.
pub async fn run(
    guest: &Guest,
    address: &str,
    command: &Command,
    deadline: Duration,
) -> Result<Ended, AccessError> {
    let done = connect(
        guest,
        address,
        SHELL,
        command.script().as_bytes(),
        GROUP + command.answer_limit(),
        deadline,
    )
    .await?;
    let line = done.stdout.iter().position(|byte| *byte == b'\n');
    let (group, answer) = line.map_or((&[][..], &[][..]), |end| {
        (&done.stdout[..end], &done.stdout[end + 1..])
    });
    if done.status.is_none() {
        let group = String::from_utf8_lossy(group);
        if !group.is_empty() && group.bytes().all(|b| b.is_ascii_digit()) {
            connect(
                guest,
                address,
                &format!("kill -KILL -{group}"),
                tokio::io::empty(),
                0,
                KILL_DEADLINE,
            )
            .await?;
        }
        return Ok(command.broken_off(answer));
    }
    command.read(answer).ok_or_else(|| match group {
        [] => failed(&done),
        [..] => AccessError::Lost(done.stderr.clone()),
    })
}

/// Writes a file that only root can read.
pub async fn upload(
    guest: &Guest,
    address: &str,
    path: &str,
    content: impl AsyncRead + Unpin,
    deadline: Duration,
) -> Result<(), AccessError> {
    let (text, command) = receive(path);
    let done = connect(guest, address, &text, content, command.answer_limit(), deadline).await?;
    if done.status.is_none() {
        return Err(AccessError::TimedOut(deadline));
    }
    let ended = command.read(&done.stdout).ok_or_else(|| failed(&done))?;
    received(path, &ended, deadline)
}

fn failed(done: &child::Done) -> AccessError {
    if done.status.and_then(|status| status.code()) == Some(FAILED) {
        return AccessError::Program {
            program: SSH,
            why: done.stderr.clone(),
        };
    }
    AccessError::Lost(done.stderr.clone())
}

/// Runs `/bin/sh -c text` in the guest, as root.
async fn connect(
    guest: &Guest,
    address: &str,
    text: &str,
    input: impl AsyncRead + Unpin,
    limit: usize,
    deadline: Duration,
) -> Result<child::Done, AccessError> {
    let key = guest
        .key
        .as_ref()
        .ok_or_else(|| AccessError::NoChannel("this host has no key for SSH".to_owned()))?;
    let arguments = arguments(key, &guest.id.uid, address, text);
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    child::run(SSH, &words, input, limit, deadline)
        .await
        .map_err(|error| AccessError::Program {
            program: SSH,
            why: format!("{error} (Debian package openssh-client)"),
        })
}

fn arguments(key: &Key, uid: &str, address: &str, text: &str) -> Vec<String> {
    let known_hosts = format!("UserKnownHostsFile={}", key.known_hosts.join(uid).display());
    let alias = format!("HostKeyAlias={uid}");
    let mut words: Vec<String> = ["-F", "/dev/null", "-T", "-l", "root", "-i"]
        .map(str::to_owned)
        .into();
    words.push(key.private.display().to_string());
    for option in [
        "BatchMode=yes",
        "LogLevel=ERROR",
        "IdentitiesOnly=yes",
        "PreferredAuthentications=publickey",
        "StrictHostKeyChecking=accept-new",
        &known_hosts,
        &alias,
        CONNECT,
        "ServerAliveInterval=15",
        "ServerAliveCountMax=4",
    ] {
        words.extend(["-o".to_owned(), option.to_owned()]);
    }
    // Root's login shell need not be a POSIX one.
    words.extend([
        "--".to_owned(),
        address.to_owned(),
        format!("exec /bin/sh -c {}", quoted(text)),
    ]);
    words
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn the_key_is_made_once_and_nobody_else_can_read_it() {
        let folder = tempfile::tempdir().unwrap();
        let key = Key::load_or_make(folder.path(), "host-1").unwrap();
        assert!(key.public().starts_with("ssh-ed25519 AAAA") && key.public().ends_with(" virtshell@host-1"));
        for (path, mode) in [(&key.private, 0o600), (&folder.path().join("ssh"), 0o700)] {
            let found = std::fs::metadata(path).unwrap().permissions().mode();
            assert_eq!(found & 0o777, mode, "{}", path.display());
        }
        let again = Key::load_or_make(folder.path(), "host-1").unwrap();
        assert_eq!(again.public(), key.public());
        // What an interrupted run left is made anew.
        std::fs::remove_file(folder.path().join("ssh/id_ed25519.pub")).unwrap();
        let new = Key::load_or_make(folder.path(), "host-1").unwrap();
        assert_ne!(new.public(), key.public());
    }

    #[test]
    fn only_this_key_and_only_this_guest() {
        let key = Key {
            private: "/d/key".into(),
            known_hosts: "/d/known".into(),
            public: String::new(),
        };
        let words = arguments(&key, "u-1", "10.0.0.2", "echo 'x'");
        for needed in [
            "BatchMode=yes",
            "IdentitiesOnly=yes",
            "StrictHostKeyChecking=accept-new",
            "UserKnownHostsFile=/d/known/u-1",
            "HostKeyAlias=u-1",
            "/d/key",
        ] {
            assert!(words.iter().any(|word| word == needed), "{needed}: {words:?}");
        }
        let last = ["--", "10.0.0.2", r"exec /bin/sh -c 'echo '\''x'\'''"];
        assert_eq!(words[words.len() - 3..], last);
    }
}
