//! Commands and files through the namespaces of a container.
//!
//! A process with threads cannot enter them, so `virsh` does. It says an exit code only in words; the shell's answer
//! carries it.

use std::time::Duration;

use tokio::io::AsyncRead;

use super::{AccessError, Command, Ended, Guest, child, quoted};

const VIRSH: &str = "virsh";

/// Runs a command.
pub async fn run(guest: &Guest, command: &Command, deadline: Duration) -> Result<Ended, AccessError> {
    enter(
        guest,
        &["/bin/sh", "-s"],
        command.script().as_bytes(),
        command,
        deadline,
    )
    .await
}

/// Writes a file that only root can read.
pub async fn upload(
    guest: &Guest,
    path: &str,
    content: impl AsyncRead + Unpin,
    deadline: Duration,
) -> Result<(), AccessError> {
    let (text, command) = receive(path);
    let ended = enter(guest, &["/bin/sh", "-c", &text], content, &command, deadline).await?;
    received(path, &ended, deadline)
}

async fn enter(
    guest: &Guest,
    words: &[&str],
    input: impl AsyncRead + Unpin,
    command: &Command,
    deadline: Duration,
) -> Result<Ended, AccessError> {
    let enter = [
        "-q",
        "-c",
        guest.connection.uri(),
        "lxc-enter-namespace",
        "--noseclabel",
        &guest.uuid,
        "--",
    ];
    let arguments = [&enter, words].concat();
    let done = child::run(VIRSH, &arguments, input, command.answer_limit(), deadline)
        .await
        .map_err(|error| AccessError::Program {
            program: VIRSH,
            why: format!("{error} (Debian package libvirt-clients)"),
        })?;
    if done.status.is_none() {
        return Ok(command.broken_off(&done.stdout));
    }
    command.read(&done.stdout).ok_or(AccessError::Program {
        program: VIRSH,
        why: done.stderr,
    })
}

/// The shell text that writes its input to a file, and how its answer is read.
pub(super) fn receive(path: &str) -> (String, Command) {
    let path = quoted(path);
    let command = Command {
        limit: super::COMPLAINT,
        ..Command::default()
    };
    (
        format!("{{ umask 077; cat >{path}; }} 2>&1; printf '\\n%s' $?"),
        command,
    )
}

/// What the answer to [`receive`] means.
pub(super) fn received(path: &str, ended: &Ended, deadline: Duration) -> Result<(), AccessError> {
    match ended.exit_code {
        Some(0) => Ok(()),
        Some(_) => Err(AccessError::File {
            path: path.to_owned(),
            why: String::from_utf8_lossy(&ended.output).trim().to_owned(),
        }),
        None => Err(AccessError::TimedOut(deadline)),
    }
}
