//! Clean-up that happens however the test process ends.
//!
//! `Drop` does not run for statics, nor when a process is killed. A watchdog is a small shell that waits for the end of its
//! standard input, which is a pipe from this process: the kernel closes it when the process is gone. Then it runs its script.

use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

/// Runs a shell script when it is dropped or when this process ends, whichever is first.
#[derive(Debug)]
pub struct Watchdog {
    shell: Child,
}

impl Watchdog {
    /// Guards with `script`, which finds `arguments` as `$1`, `$2`, ...
    ///
    /// # Errors
    /// When the shell cannot be started.
    pub fn new<'a>(script: &str, arguments: impl IntoIterator<Item = &'a str>) -> io::Result<Self> {
        // A signal to the terminal's foreground group ends the test; it must not end the clean-up.
        let script = format!("trap '' INT TERM HUP; cat >/dev/null; {script}");
        let shell = Command::new("sh")
            .args(["-c", &script, "watchdog"])
            .args(arguments)
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        Ok(Self { shell })
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        drop(self.shell.stdin.take());
        // The script's own failures have nobody to go to: nothing here can repair them.
        let _ = self.shell.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_script_has_run_when_the_watchdog_is_dropped_and_not_before() {
        let directory = tempfile::tempdir().unwrap();
        let mark = directory.path().join("mark");
        let watchdog = Watchdog::new("touch \"$1\"", [mark.to_str().unwrap()]).unwrap();
        assert!(!mark.exists());
        drop(watchdog);
        assert!(mark.exists());
    }
}
