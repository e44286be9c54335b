//! Directories of test processes, and the removal of those whose process is gone.
//!
//! A directory is named `<what>.<pid>.<start time>.<n>`: pid and start time together name one process for as long as the machine
//! is up. The [watchdog](crate::watchdog) of a process removes its directories; when that was killed too, the next test
//! process does.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::Context;

use crate::repository;
use crate::watchdog::Watchdog;

/// Script that stops what runs in the directory `$2`, by the programs in `$1`, and removes it: a [system](crate::system)
/// has a folder `state`, [hosts](crate::farm) are in a folder `hosts`, the rest are control planes.
const REMOVE: &str = r#"
    if [ -d "$2/state" ]; then VIRTSHELL_STATE_DIR="$2/state" "$1/clean.sh"
    elif [ -d "$2/hosts" ]; then
        for host in "$2"/hosts/*/; do
            [ ! -d "$host" ] || VIRTSHELL_STATE_DIR="$2" "$1/host.sh" remove "$(basename "$host")" || exit
        done
    else "$1/controlplane.sh" stop "$2"; fi &&
    rm -rf "$2""#;

/// Stops what runs in one of our directories and removes it, when the guard is dropped or this process ends.
///
/// # Errors
/// When the watchdog cannot be started.
pub fn guard(directory: &Path) -> anyhow::Result<Watchdog> {
    let tools = repository().join("hack");
    let arguments = [tools.to_str(), directory.to_str()].map(|path| path.context("paths are UTF-8"));
    let [tools, directory] = arguments;
    Ok(Watchdog::new(REMOVE, [tools?, directory?])?)
}

/// A new directory that belongs to this process, after the removal of what dead processes left.
///
/// # Errors
/// When the temporary directory cannot be written.
pub fn own_directory(what: &str) -> anyhow::Result<PathBuf> {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let root = std::env::temp_dir().join("virtshell-tests");
    std::fs::create_dir_all(&root).with_context(|| format!("cannot make {}", root.display()))?;
    remove_dead(&root)?;
    let pid = std::process::id();
    let started = start_time(pid).context("/proc is mounted")?;
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let directory = root.join(format!("{what}.{pid}.{started}.{count}"));
    std::fs::create_dir(&directory).with_context(|| format!("cannot make {}", directory.display()))?;
    Ok(directory)
}

fn remove_dead(root: &Path) -> anyhow::Result<()> {
    for entry in std::fs::read_dir(root)? {
        let path = entry?.path();
        if is_dead(&path, start_time) {
            // Another process may do the same at this moment; both want it gone.
            let _ = Command::new("sh")
                .args(["-c", REMOVE, "leftovers"])
                .arg(repository().join("hack"))
                .arg(&path)
                .output()?;
        }
    }
    Ok(())
}

/// Whether the process that the directory's name names is gone. Names of another form belong to somebody else.
fn is_dead(directory: &Path, start_time: impl Fn(u32) -> Option<u64>) -> bool {
    let name = directory
        .file_name()
        .and_then(|name| name.to_str())
        .unwrap_or_default();
    let [_, pid, started, _] = name.split('.').collect::<Vec<_>>()[..] else {
        return false;
    };
    match (pid.parse(), started.parse::<u64>()) {
        (Ok(pid), Ok(started)) => start_time(pid) != Some(started),
        _ => false,
    }
}

/// Start of a process in clock ticks since boot; none when it is gone.
pub(crate) fn start_time(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The program's name, in parentheses, may hold spaces; field 3 follows it, the start time is field 22.
    stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_directories_of_dead_processes_are_removed() {
        let alive = |pid| (pid == 7).then_some(100);
        for (rule, name, expected) in [
            ("its process lives", "control-plane.7.100.0", false),
            ("its process is gone", "control-plane.8.100.0", true),
            ("the pid was used again", "control-plane.7.99.0", true),
            ("not ours", "something.else", false),
            ("not ours, with numbers", "a.b.c.d", false),
        ] {
            assert_eq!(is_dead(Path::new(name), alive), expected, "{rule}");
        }
    }

    #[test]
    fn a_process_has_one_start_time() {
        let own = start_time(std::process::id());
        assert!(own.is_some() && own == start_time(std::process::id()));
        assert_eq!(start_time(u32::MAX), None);
    }
}
