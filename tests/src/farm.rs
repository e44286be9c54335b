//! Hosts of their own on this machine, each with a real libvirt and a node agent, under one control plane and controller.
//!
//! What the tests of [`crate::system`] share, the machine's libvirtd, must not be killed. These hosts have one each, in
//! namespaces of their own (`hack/host.sh`), so libvirtd, the agent, the whole host and its disk can be made to fail.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use kube::Api;
use kube::api::{Patch, PatchParams};
use serde_json::json;
use virtshell_crds::{Host, condition};

use crate::kubectl::Outcome;
use crate::program;
use crate::system::without_cargo;
use crate::watchdog::Watchdog;
use crate::{ControlPlane, Controller, leftovers, repository, wait_for};

/// The namespace that has what Instances of a farm need: the Environment "default" and the Image [`IMAGE`].
pub const NAMESPACE: &str = "virtshell";
/// A small real guest, from `hack/guest-image.sh`.
pub const IMAGE: &str = "debian-guest";
/// How long a part may take to come up: libvirtd alone probes emulators for some seconds.
const STARTS: Duration = Duration::from_mins(1);

/// A control plane with a controller, and hosts. All of it is gone when it is dropped and when this process ends.
#[derive(Debug)]
pub struct Farm {
    hosts: Vec<PrivateHost>,
    controllers: Vec<Controller>,
    control_plane: ControlPlane,
}

impl Farm {
    /// Starts one with hosts of these names. Call it where [`crate::level::end_to_end`] holds.
    ///
    /// # Errors
    /// When a part does not start; the message carries what it said.
    pub async fn start(names: &[&str]) -> Result<Self> {
        let control_plane = ControlPlane::start()?;
        let mut farm = Self {
            hosts: Vec::new(),
            controllers: vec![
                Controller::start(&control_plane, &program::operator()?, "controller-1").await?,
            ],
            control_plane,
        };
        farm.furnish()?;
        for name in names {
            farm.add(name, None).await?;
        }
        Ok(farm)
    }

    /// What Instances need.
    fn furnish(&self) -> Result<()> {
        let image = tool("guest-image.sh", &[])?;
        let metadata = |name: &str| json!({"name": name, "namespace": NAMESPACE});
        for object in [
            json!({"kind": "Section", "metadata": {"name": "default"}, "spec": {"description": "the farm"}}),
            json!({"kind": "Environment", "metadata": metadata("default"), "spec": {"section": "default"}}),
            json!({"kind": "Image", "metadata": metadata(IMAGE),
                   "spec": {"type": "disk", "downloadUrl": format!("file://{}", image.trim())}}),
        ] {
            let mut object = object;
            object["apiVersion"] = virtshell_crds::API_VERSION.into();
            self.control_plane
                .kubectl()
                .ok_with(["apply", "-f", "-"], &object.to_string())?;
        }
        Ok(())
    }

    /// Starts another host; with `data_mib`, its data directory is a file system of that size.
    ///
    /// # Errors
    /// When it does not start, or its Host does not become ready.
    pub async fn add(&mut self, name: &str, data_mib: Option<u32>) -> Result<&PrivateHost> {
        let host = PrivateHost::start(&self.control_plane, name, data_mib)?;
        let hosts: Api<Host> = Api::all(self.control_plane.admin().await?);
        let placed = json!({"spec": {"section": "default"}});
        hosts
            .patch(name, &PatchParams::default(), &Patch::Merge(placed))
            .await?;
        wait_for(
            "the host to be ready",
            STARTS,
            async || hosts.get(name).await,
            |host: &Host| {
                let is = |type_| {
                    let conditions = host.status.iter().flat_map(|status| &status.conditions);
                    conditions
                        .into_iter()
                        .any(|c| c.type_ == type_ && c.status == "True")
                };
                is(condition::READY) && is(condition::SCHEDULABLE)
            },
        )
        .await?;
        self.hosts.push(host);
        self.hosts.last().context("it was pushed")
    }

    /// Ends a host for good: its power is cut, its files are removed. Its objects stay.
    pub fn remove(&mut self, name: &str) {
        self.hosts.retain(|host| host.name != name);
    }

    /// A host.
    ///
    /// # Panics
    /// When there is none of this name.
    #[must_use]
    pub fn host(&self, name: &str) -> &PrivateHost {
        let found = self.hosts.iter().find(|host| host.name == name);
        found.expect("the farm has a host of this name")
    }

    /// Starts another controller, which waits to lead.
    ///
    /// # Errors
    /// When it does not become ready.
    pub async fn add_controller(&mut self) -> Result<&Controller> {
        let name = format!("controller-{}", self.controllers.len() + 1);
        let controller = Controller::start(&self.control_plane, &program::operator()?, &name).await?;
        self.controllers.push(controller);
        self.controllers.last().context("it was pushed")
    }

    /// The controllers, in the order in which they were started.
    #[must_use]
    pub fn controllers(&self) -> &[Controller] {
        &self.controllers
    }

    /// The control plane that they share.
    #[must_use]
    pub const fn control_plane(&self) -> &ControlPlane {
        &self.control_plane
    }
}

/// A host of its own. Its power is cut and its files are removed when it is dropped, and when this process ends.
#[derive(Debug)]
pub struct PrivateHost {
    name: String,
    directory: PathBuf,
    kubeconfig: PathBuf,
    operator: PathBuf,
    data_mib: Option<u32>,
    _watchdog: Watchdog,
}

impl PrivateHost {
    /// Starts one, and its agent, which joins the cluster as Host `name`. With `data_mib`, its data directory is a file
    /// system of that size.
    ///
    /// # Errors
    /// When `hack/host.sh` fails; the message carries what it said.
    pub fn start(control_plane: &ControlPlane, name: &str, data_mib: Option<u32>) -> Result<Self> {
        let directory = leftovers::own_directory("hosts")?;
        // There from the start: it tells the clean-up what this is.
        std::fs::create_dir(directory.join("hosts"))?;
        let host = Self {
            _watchdog: leftovers::guard(&directory)?,
            name: name.to_owned(),
            directory,
            kubeconfig: control_plane.kubeconfig(),
            operator: program::operator()?,
            data_mib,
        };
        host.power_on()?;
        host.start_agent()?;
        Ok(host)
    }

    /// metadata.name of its Host, and its host name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its files: `logs/`, `log/` (libvirt's), `data/` unless that has a file system of its own.
    #[must_use]
    pub fn folder(&self) -> PathBuf {
        self.directory.join("hosts").join(&self.name)
    }

    /// The agent's data directory, as the host sees it.
    #[must_use]
    pub fn data(&self) -> &'static Path {
        Path::new("/srv/virtshell")
    }

    /// Runs a shell line on the host and returns the outcome whatever it is.
    ///
    /// # Errors
    /// When it cannot be run.
    pub fn try_sh(&self, line: &str) -> Result<Outcome> {
        self.script(&["exec", &self.name, "bash", "-c", line])
    }

    /// Runs a shell line on the host and returns what it printed.
    ///
    /// # Errors
    /// When it fails; the message carries what it complained about.
    pub fn sh(&self, line: &str) -> Result<String> {
        let outcome = self.try_sh(line)?;
        ensure!(outcome.success, "{line}\n{}{}", outcome.stdout, outcome.stderr);
        Ok(outcome.stdout.trim_end().to_owned())
    }

    /// Runs a shell line in a guest, by its agent, and returns what it printed.
    ///
    /// # Errors
    /// When the agent does not answer, or the line fails.
    pub fn in_guest(&self, domain: &str, line: &str) -> Result<String> {
        let call = json!({"execute": "guest-exec",
            "arguments": {"path": "/bin/sh", "arg": ["-c", line], "capture-output": true}});
        let ask = format!(
            r#"ask() {{ virsh -q -c qemu:///system qemu-agent-command --timeout 20 {domain} "$1"; }}
            pid=$(ask '{call}' | jq .return.pid) && [ -n "$pid" ] || exit 1
            while answer=$(ask "{{\"execute\": \"guest-exec-status\", \"arguments\": {{\"pid\": $pid}}}}"); do
                [ "$(jq .return.exited <<<"$answer")" = false ] || break
                sleep 0.1
            done
            jq -r '.return["out-data"] // ""' <<<"$answer" | base64 -d
            exit "$(jq -r '.return.exitcode // 128' <<<"$answer")""#
        );
        self.sh(&ask)
    }

    /// Brings the host up, with the files that it has; the agent is started apart.
    ///
    /// # Errors
    /// When `hack/host.sh` fails.
    pub fn power_on(&self) -> Result<()> {
        self.told("start")
    }

    /// Cuts the power: every process on it ends at once.
    ///
    /// # Errors
    /// When `hack/host.sh` fails.
    pub fn cut_power(&self) -> Result<()> {
        self.told("cut")
    }

    /// Starts the agent and waits until it is ready; nothing happens when it runs.
    ///
    /// # Errors
    /// When it does not become ready.
    pub fn start_agent(&self) -> Result<()> {
        self.told("join")
    }

    /// Sends the agent a signal by `kill`'s name for it.
    ///
    /// # Errors
    /// When it does not run.
    pub fn signal_agent(&self, signal: &str) -> Result<()> {
        let record = self.folder().join("run/agent");
        let line = format!("kill -{signal} \"$(cut -d ' ' -f 1 {})\"", record.display());
        self.sh(&line).map(drop)
    }

    /// What the agent has said so far.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub fn agent_log(&self) -> std::io::Result<String> {
        std::fs::read_to_string(self.folder().join("logs/agent.log"))
    }

    /// Kills libvirtd.
    ///
    /// # Errors
    /// When it does not run.
    pub fn kill_libvirtd(&self) -> Result<()> {
        self.sh("kill -9 $(cat /run/libvirtd.pid)").map(drop)
    }

    /// Starts libvirtd, and waits until it answers; nothing happens when it runs.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn start_libvirtd(&self) -> Result<()> {
        // The host's start does what is missing.
        self.told("start")
    }

    fn told(&self, what: &str) -> Result<()> {
        let outcome = self.script(&[what, &self.name])?;
        ensure!(
            outcome.success,
            "hack/host.sh {what} {}:\n{}{}",
            self.name,
            outcome.stdout,
            outcome.stderr
        );
        Ok(())
    }

    fn script(&self, arguments: &[&str]) -> Result<Outcome> {
        let mut command = Command::new(repository().join("hack/host.sh"));
        command
            .args(arguments)
            .env("VIRTSHELL_STATE_DIR", &self.directory)
            .env("KUBECONFIG", &self.kubeconfig)
            .env("VIRTSHELL_OPERATOR", &self.operator);
        if let Some(mib) = self.data_mib {
            command.env("VIRTSHELL_HOST_DATA_MIB", mib.to_string());
        }
        let output = without_cargo(&mut command)
            .current_dir("/")
            .stdin(Stdio::null())
            .output()?;
        Ok(Outcome {
            success: output.status.success(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }
}

/// Runs a program of `hack/` and returns what it printed.
fn tool(name: &str, arguments: &[&str]) -> Result<String> {
    let path = repository().join("hack").join(name);
    let output = Command::new(&path).args(arguments).output();
    let output = output.with_context(|| format!("cannot run {}", path.display()))?;
    let complaint = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{} failed:\n{complaint}", path.display());
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
