//! A real control plane: etcd, kube-apiserver and kube-controller-manager, with VirtShell's manifests installed.

use std::net::{Ipv4Addr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::Context;
use k8s_openapi::api::core::v1::Namespace;
use kube::api::{ObjectMeta, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config};

use crate::watchdog::Watchdog;
use crate::{Kubectl, leftovers, repository};

/// A running control plane. Stopped and removed when dropped, and when this process ends.
#[derive(Debug)]
pub struct ControlPlane {
    directory: PathBuf,
    kubectl: Kubectl,
    _watchdog: Watchdog,
}

impl ControlPlane {
    /// Starts one of its own, with `manifests/local` installed and in force.
    ///
    /// # Errors
    /// When the control plane does not start or refuses the manifests; the message carries what the scripts said.
    pub fn start() -> anyhow::Result<Self> {
        Self::start_in(leftovers::own_directory("control-plane")?)
    }

    /// The one that the tests of this binary share. A test keeps to a [namespace](Self::namespace) of its own, and to
    /// names of its own for kinds without one.
    ///
    /// # Errors
    /// As [`Self::start`]; every test gets the same answer.
    pub fn shared() -> anyhow::Result<&'static Self> {
        static SHARED: OnceLock<Result<ControlPlane, String>> = OnceLock::new();
        SHARED
            .get_or_init(|| Self::start().map_err(|error| format!("{error:#}")))
            .as_ref()
            .map_err(|error| anyhow::anyhow!("the shared control plane did not start: {error}"))
    }

    fn start_in(directory: PathBuf) -> anyhow::Result<Self> {
        let programs = PathBuf::from(script(&["bin"])?.trim());
        let path = directory.to_str().context("the temporary directory is UTF-8")?;
        let watchdog = leftovers::guard(&directory)?;
        script(&["start", path])?;
        let kubectl = Kubectl::new(&programs.join("kubectl"), &directory.join("admin.kubeconfig"));
        let control_plane = Self {
            directory,
            kubectl,
            _watchdog: watchdog,
        };
        control_plane.install()?;
        Ok(control_plane)
    }

    /// Applies `manifests/local` and waits until it is in force.
    fn install(&self) -> anyhow::Result<()> {
        let manifests = repository().join("manifests/local");
        let manifests = manifests.to_str().context("the source tree's path is UTF-8")?;
        self.kubectl.ok(["apply", "--server-side", "-k", manifests])?;
        self.kubectl.ok([
            "wait",
            "--for=condition=Established",
            "--timeout=60s",
            "crd",
            "--all",
        ])?;
        // Policies are taken up about once a second, all together: the last one applied answers for all.
        let probe = serde_json::json!({
            "apiVersion": virtshell_crds::API_VERSION, "kind": "Instance",
            "metadata": {"name": "probe", "namespace": "default", "finalizers": [virtshell_crds::FINALIZER_DOMAIN]},
            "spec": {"blank": true},
        });
        let deadline = std::time::Instant::now() + crate::wait::SOON;
        loop {
            let outcome = self
                .kubectl
                .run(["create", "--dry-run=server", "-f", "-"], &probe.to_string())?;
            if outcome.stderr.contains("virtshell-instance-finalizer") {
                return Ok(());
            }
            anyhow::ensure!(
                std::time::Instant::now() < deadline,
                "the admission policies do not come into force; last answer: {outcome:?}"
            );
            std::thread::sleep(std::time::Duration::from_millis(100));
        }
    }

    /// Kills the API server; etcd keeps what is stored.
    ///
    /// # Errors
    /// When it cannot be ended.
    pub fn stop_api_server(&self) -> anyhow::Result<()> {
        let line = ". \"$1/hack/lib.sh\" && stop_process \"$2\" kube-apiserver 0";
        let output = Command::new("bash")
            .args(["-c", line, "bash"])
            .args([&repository(), &self.directory])
            .output()?;
        let complaint = String::from_utf8_lossy(&output.stderr);
        anyhow::ensure!(
            output.status.success(),
            "the API server does not end: {complaint}"
        );
        // The kernel takes a moment to release the port of a process that was large; until then another one would be chosen.
        let port = std::fs::read_to_string(self.directory.join("run/kube-apiserver.port"))?;
        let deadline = std::time::Instant::now() + crate::wait::SOON;
        while TcpStream::connect((Ipv4Addr::LOCALHOST, port.trim().parse()?)).is_ok() {
            anyhow::ensure!(
                std::time::Instant::now() < deadline,
                "port {port} is still listened on"
            );
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        Ok(())
    }

    /// Starts the API server again, where it was, and waits until it is ready; nothing happens when it runs.
    ///
    /// # Errors
    /// When it does not become ready.
    pub fn start_api_server(&self) -> anyhow::Result<()> {
        let path = self
            .directory
            .to_str()
            .context("the temporary directory is UTF-8")?;
        script(&["start", path]).map(drop)
    }

    /// The kubeconfig of a full administrator.
    #[must_use]
    pub fn kubeconfig(&self) -> PathBuf {
        self.directory.join("admin.kubeconfig")
    }

    /// Where its logs are, and where tests may put files that shall go with it.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// `kubectl` as a full administrator.
    #[must_use]
    pub const fn kubectl(&self) -> &Kubectl {
        &self.kubectl
    }

    /// `kubectl` with another kubeconfig, such as one of [`crate::identity`].
    #[must_use]
    pub fn kubectl_with(&self, kubeconfig: &Path) -> Kubectl {
        self.kubectl.with(kubeconfig)
    }

    /// A client that is a full administrator. It belongs to the runtime of the test that asks: do not share it.
    ///
    /// # Errors
    /// When the kubeconfig cannot be read.
    pub async fn admin(&self) -> anyhow::Result<Client> {
        client(&self.kubeconfig()).await
    }

    /// A namespace that no other test has, named after `stem`.
    ///
    /// # Errors
    /// Whatever the API server answers.
    pub async fn namespace(&self, stem: &str) -> anyhow::Result<String> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("{stem}-{}", COUNT.fetch_add(1, Ordering::Relaxed));
        let namespace = Namespace {
            metadata: ObjectMeta {
                name: Some(name.clone()),
                ..ObjectMeta::default()
            },
            ..Namespace::default()
        };
        Api::all(self.admin().await?)
            .create(&PostParams::default(), &namespace)
            .await?;
        Ok(name)
    }
}

/// A client with the identity in a kubeconfig.
///
/// # Errors
/// When the file cannot be read or makes no sense.
pub async fn client(kubeconfig: &Path) -> anyhow::Result<Client> {
    // Several TLS providers may be linked in; the first choice stays, so a second one is no failure.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let kubeconfig = Kubeconfig::read_from(kubeconfig)?;
    let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
    Ok(Client::try_from(config)?)
}

/// Runs `hack/controlplane.sh` and returns what it printed.
fn script(arguments: &[&str]) -> anyhow::Result<String> {
    let path = repository().join("hack/controlplane.sh");
    let output = Command::new(&path)
        .args(arguments)
        .env("VIRTSHELL_APISERVER_PORT", "auto")
        .env("VIRTSHELL_UNSAFE_NO_FSYNC", "1")
        .output()
        .with_context(|| format!("cannot run {}", path.display()))?;
    let complaint = String::from_utf8_lossy(&output.stderr);
    anyhow::ensure!(
        output.status.success(),
        "{} {arguments:?} failed:\n{complaint}",
        path.display()
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
