//! `virtshell-gateway`: see `--help`.

use clap::Parser;
use virtshell_gateway::{server, telemetry};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    telemetry::init();
    // Several TLS providers may be linked in; choose before the first connection does.
    let _ = rustls::crypto::ring::default_provider().install_default();
    server::run(server::Args::parse()).await
}
