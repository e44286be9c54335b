//! Keeps the image cache within its limits: asks every libvirt what its domains refer to, and lets the rest go.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use virtshell_crds::instance::Driver;

use super::connection::Lane;
use super::context::Context;
use super::hypervisor::{HypervisorError, chain};
use super::libvirt::Link;

/// How often the cache is gone through.
const PERIOD: Duration = Duration::from_hours(1);
/// How often it is looked whether room runs short, when it is gone through at once.
const GLANCE: Duration = Duration::from_mins(5);
/// How long all domains of one libvirt may take to say which files they name: 2 ms each, and hundreds of them.
const FILES_DEADLINE: Duration = Duration::from_mins(1);

/// Removes unused images until the process ends; `look` asks for the Host to be told.
pub async fn run(context: Arc<Context>, look: Arc<Notify>) {
    let mut last: Option<Instant> = None;
    loop {
        tokio::time::sleep(GLANCE).await;
        let due = last.is_none_or(|last| last.elapsed() >= PERIOD);
        let short = context
            .storage
            .room()
            .await
            .is_ok_and(|room| room.is_nearly_full());
        if due || short {
            last = Some(Instant::now());
            if once(&context).await {
                look.notify_one();
            }
        }
    }
}

/// Whether an image went.
async fn once(context: &Arc<Context>) -> bool {
    // Before the question: what is handed out meanwhile may get a reference that the answer does not have.
    let asked = Instant::now();
    let files = match files(context).await {
        Ok(files) => files,
        Err(error) => {
            tracing::info!(
                error = chain(&error),
                "libvirt does not say what is in use; no image is removed"
            );
            return false;
        }
    };
    match context.storage.evict_images(files, asked).await {
        Ok(gone) => {
            for image in &gone {
                tracing::info!(
                    image = image.name,
                    sha256 = image.sha256,
                    bytes = image.size_bytes,
                    "unused image removed"
                );
            }
            !gone.is_empty()
        }
        Err(error) => {
            tracing::warn!(error = error.explain(), "the image cache cannot be gone through");
            false
        }
    }
}

/// What all domains of this host name. One libvirt with virtual machines that does not answer is no answer.
///
/// Containers rest on nothing in the cache: each has a copy of its root. So a host without them, where theirs never
/// answers, still gets rid of its images.
async fn files(context: &Arc<Context>) -> Result<Vec<PathBuf>, HypervisorError> {
    let mut files = BTreeSet::new();
    for (driver, connection) in context.libvirts() {
        let named = connection
            .call(
                Lane::Read,
                "all domains",
                "list the files of",
                FILES_DEADLINE,
                Link::files,
            )
            .await;
        match named {
            Ok(named) => files.extend(named),
            Err(HypervisorError::Disconnected { .. }) if driver == Driver::Lxc => {}
            Err(error) => return Err(error),
        }
    }
    Ok(files.into_iter().collect())
}

/// Reads an age: a number and `s`, `m`, `h` or `d`; 0 for no limit.
///
/// # Errors
/// What is wrong, for the command line.
pub fn age(text: &str) -> Result<Duration, String> {
    let refused = || format!("{text:?} is no age; write for example 14d, 12h, 30m, or 0 for no limit");
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let unit = text.chars().last().ok_or_else(refused)?;
    let seconds: u64 = match unit {
        's' => 1,
        'm' => 60,
        'h' => 3600,
        'd' => 86_400,
        _ => return Err(refused()),
    };
    let number: u64 = text[..text.len() - 1].parse().map_err(|_| refused())?;
    number
        .checked_mul(seconds)
        .map(Duration::from_secs)
        .ok_or_else(refused)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages() {
        for (text, seconds) in [
            ("14d", Some(14 * 86_400)),
            ("12h", Some(43_200)),
            ("30m", Some(1800)),
            ("5s", Some(5)),
            ("0", Some(0)),
            ("0d", Some(0)),
            ("", None),
            ("d", None),
            ("14", None),
            ("-1d", None),
            ("1w", None),
            ("1é", None),
            ("999999999999999999d", None),
        ] {
            assert_eq!(age(text).ok(), seconds.map(Duration::from_secs), "{text}");
        }
    }
}
