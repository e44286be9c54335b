//! Writes `manifests/crds/` from the API types: `crdgen [FOLDER]`, by default `manifests/crds`.

use std::path::PathBuf;
use std::process::ExitCode;

fn main() -> ExitCode {
    let folder = std::env::args()
        .nth(1)
        .map_or_else(|| PathBuf::from("manifests/crds"), PathBuf::from);
    match write(&folder) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("crdgen: cannot write {}: {error}", folder.display());
            ExitCode::FAILURE
        }
    }
}

fn write(folder: &std::path::Path) -> Result<(), Box<dyn std::error::Error>> {
    std::fs::create_dir_all(folder)?;
    for (file, text) in virtshell_crds::manifests::manifests()? {
        std::fs::write(folder.join(file), text)?;
    }
    Ok(())
}
