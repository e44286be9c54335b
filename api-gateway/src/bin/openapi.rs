//! Writes `docs/openapi.json` from the gateway's routes: `openapi [FILE]`, by default `docs/openapi.json`.

use std::path::PathBuf;
use std::process::ExitCode;

fn main() -> ExitCode {
    let file = std::env::args()
        .nth(1)
        .map_or_else(|| PathBuf::from("docs/openapi.json"), PathBuf::from);
    match std::fs::write(&file, virtshell_gateway::dialects::virtshell::document_text()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("openapi: cannot write {}: {error}", file.display());
            ExitCode::FAILURE
        }
    }
}
