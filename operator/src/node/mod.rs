//! The role beside libvirt: drives the domains of its host to what their Instances ask for.

pub mod storage;

use std::net::SocketAddr;
use std::path::PathBuf;

/// Arguments of the node agent.
#[derive(clap::Args, Clone, Debug)]
pub struct Args {
    /// Kubeconfig; default: the environment's, or the pod's service account.
    #[arg(long, env = "VIRTSHELL_KUBECONFIG")]
    pub kubeconfig: Option<PathBuf>,
    /// File with this agent's service account token; kept fresh by the agent.
    #[arg(long)]
    pub token_file: Option<PathBuf>,
    /// The operator's own namespace: Leases and the service accounts of hosts.
    #[arg(long, env = "VIRTSHELL_NAMESPACE", default_value = "virtshell-system")]
    pub namespace: String,
    /// metadata.name of the Host that this agent serves; default: the machine's host name.
    #[arg(long, env = "VIRTSHELL_HOST_NAME")]
    pub host_name: Option<String>,
    /// The Kubernetes node that this agent runs on.
    #[arg(long, env = "VIRTSHELL_NODE_NAME")]
    pub node_name: Option<String>,
    /// Images, disks and seeds; must be readable by QEMU's user.
    #[arg(long, default_value = "/var/lib/virtshell")]
    pub data_dir: PathBuf,
    /// libvirt connection of a driver, `DRIVER=URI`; may repeat. Default: kvm and qemu at `qemu:///system`, lxc at
    /// `lxc:///system`.
    #[arg(long = "driver", value_name = "DRIVER=URI")]
    pub drivers: Vec<String>,
    /// Run guests of driver kvm emulated where hardware virtualization is not usable.
    #[arg(long)]
    pub allow_emulation: bool,
    /// Allow images with file:// URLs.
    #[arg(long)]
    pub allow_file_images: bool,
    /// Address of /healthz, /readyz and /metrics.
    #[arg(long, default_value = "127.0.0.1:10352")]
    pub listen: SocketAddr,
}

/// Runs until the process is asked to end.
///
/// # Errors
/// When the configuration makes no sense, or the address cannot be listened on.
#[expect(clippy::unused_async, reason = "the role's work follows")]
pub async fn run(args: Args) -> anyhow::Result<()> {
    anyhow::bail!("the node agent has no work yet: {args:?}")
}
