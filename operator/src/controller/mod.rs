//! The cluster-wide role: accepts, resolves and places Instances, watches over hosts.

use std::net::SocketAddr;

/// Arguments of the controller.
#[derive(clap::Args, Clone, Debug)]
pub struct Args {
    /// Kubeconfig; default: the environment's, or the pod's service account.
    #[arg(long, env = "VIRTSHELL_KUBECONFIG")]
    pub kubeconfig: Option<std::path::PathBuf>,
    /// The operator's own namespace: Leases and the service accounts of hosts.
    #[arg(long, env = "VIRTSHELL_NAMESPACE", default_value = "virtshell-system")]
    pub namespace: String,
    /// Address of /healthz, /readyz and /metrics.
    #[arg(long, default_value = "127.0.0.1:10351")]
    pub listen: SocketAddr,
}

/// Runs until the process is asked to end.
///
/// # Errors
/// When the cluster cannot be reached at the start, or the address cannot be listened on.
#[expect(clippy::unused_async, reason = "the role's work follows")]
pub async fn run(args: Args) -> anyhow::Result<()> {
    anyhow::bail!("the controller has no work yet: {args:?}")
}
