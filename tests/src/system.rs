//! The whole of VirtShell on this machine, as `hack/up.sh` brings it up: control plane, libvirt, the three roles with their own
//! identities, and two guests.
//!
//! A system has its own folders, host name and ports, so any number run beside each other and beside a user's own. What it
//! shares with them is the machine's libvirt.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use anyhow::Context;
use serde_json::Value;

use crate::kubectl::Outcome;
use crate::watchdog::Watchdog;
use crate::{Kubectl, leftovers, repository};

/// Settings of `hack/system.sh` that take a port.
const PORTS: [&str; 6] = [
    "VIRTSHELL_APISERVER_PORT",
    "VIRTSHELL_GATEWAY_PORT",
    "VIRTSHELL_ROOT_PORT",
    "VIRTSHELL_CONTROLLER_PORT",
    "VIRTSHELL_NODE_PORT",
    "VIRTSHELL_NODE_API_PORT",
];

/// A running system. Everything it made is removed when it is dropped, and when this process ends.
#[derive(Debug)]
pub struct System {
    directory: PathBuf,
    host: String,
    _watchdog: Watchdog,
}

impl System {
    /// Brings one up. Call it where [`crate::level::end_to_end`] holds.
    ///
    /// # Errors
    /// When `hack/up.sh` fails; the message carries all it said.
    pub fn start() -> anyhow::Result<Self> {
        let directory = leftovers::own_directory("system")?;
        let host = directory
            .file_name()
            .and_then(OsStr::to_str)
            .map(|name| name.replace('.', "-"))
            .context("the temporary directory is UTF-8")?;
        // There from the start: it tells the clean-up that this is a system.
        std::fs::create_dir(directory.join("state"))?;
        let watchdog = leftovers::guard(&directory)?;
        let system = Self {
            directory,
            host,
            _watchdog: watchdog,
        };
        let outcome = system.script("up.sh")?;
        anyhow::ensure!(
            outcome.success,
            "hack/up.sh failed:\n{}{}",
            outcome.stderr,
            outcome.stdout
        );
        Ok(system)
    }

    /// The one that the tests of this binary share.
    ///
    /// # Errors
    /// As [`Self::start`]; every test gets the same answer.
    pub fn shared() -> anyhow::Result<&'static Self> {
        static SHARED: OnceLock<Result<System, String>> = OnceLock::new();
        SHARED
            .get_or_init(|| Self::start().map_err(|error| format!("{error:#}")))
            .as_ref()
            .map_err(|error| anyhow::anyhow!("the shared system did not start: {error}"))
    }

    /// metadata.name of its Host.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Its `.virtshell`: `env`, `logs/`, identities.
    #[must_use]
    pub fn state(&self) -> PathBuf {
        self.directory.join("state")
    }

    /// Where its images and disks are.
    #[must_use]
    pub fn data(&self) -> PathBuf {
        self.directory.join("data")
    }

    /// Runs a program of `hack/` on this system: `up.sh`, `down.sh`.
    ///
    /// # Errors
    /// When it cannot be run.
    pub fn script(&self, name: &str) -> anyhow::Result<Outcome> {
        self.run(Command::new(repository().join("hack").join(name)))
    }

    /// Types `line` into a shell that has sourced the system's `env`, at the root of the source tree: what a reader of the
    /// documents does.
    ///
    /// # Errors
    /// When the shell cannot be run.
    pub fn shell(&self, line: &str) -> anyhow::Result<Outcome> {
        let mut shell = Command::new("bash");
        shell
            .args(["-c", "set -e; . \"$1\"; eval \"$2\"", "bash"])
            .arg(self.state().join("env"))
            .arg(line);
        self.run(shell)
    }

    /// What a line prints that is typed as by [`Self::shell`].
    ///
    /// # Errors
    /// When it fails; the message carries what it printed.
    pub fn sh(&self, line: &str) -> anyhow::Result<String> {
        let outcome = self.shell(line)?;
        anyhow::ensure!(outcome.success, "{line}\n{}{}", outcome.stdout, outcome.stderr);
        Ok(outcome.stdout.trim_end().to_owned())
    }

    /// Applies an object with `kubectl`.
    ///
    /// # Errors
    /// When it is refused; the message carries why.
    pub fn apply(&self, object: &Value) -> anyhow::Result<()> {
        self.kubectl()?
            .ok_with(["apply", "-f", "-"], &object.to_string())
            .map(drop)
    }

    /// A variable of the system's `env`, such as `VIRTSHELL_URL`.
    ///
    /// # Errors
    /// When `env` does not set it.
    pub fn variable(&self, name: &str) -> anyhow::Result<String> {
        let outcome = self.shell(&format!("printf %s \"${{{name}:?}}\""))?;
        anyhow::ensure!(outcome.success, "{}", outcome.stderr);
        Ok(outcome.stdout)
    }

    /// `kubectl` as a full administrator of the system's cluster.
    ///
    /// # Errors
    /// When `env` does not say where it is.
    pub fn kubectl(&self) -> anyhow::Result<Kubectl> {
        let program = self.shell("command -v kubectl")?.stdout;
        let kubeconfig = self.variable("KUBECONFIG")?;
        Ok(Kubectl::new(Path::new(program.trim()), Path::new(&kubeconfig)))
    }

    /// Runs a command with the system's settings, and nobody else's cluster.
    fn run(&self, mut command: Command) -> anyhow::Result<Outcome> {
        without_cargo(&mut command)
            .current_dir(repository())
            .stdin(Stdio::null())
            .env_remove("KUBECONFIG")
            .env("VIRTSHELL_STATE_DIR", self.state())
            .env("VIRTSHELL_DATA_DIR", self.data())
            .env("VIRTSHELL_HOST_NAME", &self.host)
            .env("VIRTSHELL_UNSAFE_NO_FSYNC", "1")
            .envs(PORTS.map(|port| (port, "auto")));
        let output = command
            .output()
            .with_context(|| format!("cannot run {command:?}"))?;
        Ok(Outcome {
            success: output.status.success(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }
}

/// Takes away what `cargo test` tells its tests: build scripts of libraries read it, so that a build in a test would make
/// everything anew.
pub fn without_cargo(command: &mut Command) -> &mut Command {
    let told = |name: &str| name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_");
    for (name, _) in std::env::vars().filter(|(name, _)| told(name)) {
        command.env_remove(name);
    }
    command
}

/// One word of a shell line, whatever is in it.
#[must_use]
pub fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}
