//! `virtshell-operator`: see `--help` for its two roles.

use clap::{Parser, Subcommand};
use virtshell_operator::{controller, node, telemetry};

/// VirtShell's reconcilers.
#[derive(Parser)]
#[command(version, about)]
struct Cli {
    #[command(subcommand)]
    role: Role,
}

#[derive(Subcommand)]
enum Role {
    /// Accepts and places Instances for the whole cluster; any number may run, one leads.
    Controller(controller::Args),
    /// Drives the libvirt of this machine; one per machine.
    Node(Box<node::Args>),
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    telemetry::init();
    // Several TLS providers may be linked in; choose before the first connection does.
    let _ = rustls::crypto::ring::default_provider().install_default();
    match Cli::parse().role {
        Role::Controller(args) => controller::run(args).await,
        Role::Node(args) => node::run(*args).await,
    }
}
