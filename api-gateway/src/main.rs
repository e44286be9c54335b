//! `virtshell-gateway`: see `--help`.

use std::process::ExitCode;

use clap::Parser;
use virtshell_gateway::{server, telemetry};

#[tokio::main]
async fn main() -> ExitCode {
    telemetry::init();
    // Several TLS providers may be linked in; choose before the first connection does.
    let _ = rustls::crypto::ring::default_provider().install_default();
    match server::run(server::Args::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // What went wrong and what would help, without a backtrace: it is configuration.
            eprintln!("virtshell-gateway: {error:#}");
            ExitCode::FAILURE
        }
    }
}
