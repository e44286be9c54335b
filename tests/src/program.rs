//! Programs under test: run as they are installed, logs kept, ended with the test.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context;

use crate::leftovers::start_time;
use crate::watchdog::Watchdog;
use crate::{repository, wait_for};

/// How long a program may take to end after SIGTERM before it is killed.
const GRACE: Duration = Duration::from_secs(15);

/// A running program. Ended when dropped (asked, then killed), and killed when this process ends.
#[derive(Debug)]
pub struct Program {
    name: String,
    child: Child,
    log: PathBuf,
    _watchdog: Watchdog,
}

impl Program {
    /// Starts `command`, with all that it prints in `folder/<name>.log`.
    ///
    /// # Errors
    /// When it cannot be started or the log cannot be written.
    pub fn start(name: &str, command: &mut Command, folder: &Path) -> anyhow::Result<Self> {
        let log = folder.join(format!("{name}.log"));
        let output = File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
        let child = command
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()
            .with_context(|| format!("cannot start {name}: {command:?}"))?;
        // The start time tells the process from a later one with the same id.
        let script =
            r#"[ "$(sed 's/.*) //' /proc/$1/stat 2>/dev/null | cut -d' ' -f20)" = "$2" ] && kill -KILL "$1""#;
        let pid = child.id().to_string();
        let started = start_time(child.id()).map_or_else(String::new, |time| time.to_string());
        let watchdog = Watchdog::new(script, [pid.as_str(), started.as_str()])?;
        Ok(Self {
            name: name.to_owned(),
            child,
            log,
            _watchdog: watchdog,
        })
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has printed so far.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub fn log(&self) -> std::io::Result<String> {
        std::fs::read_to_string(&self.log)
    }

    /// Waits until `GET url` answers 200.
    ///
    /// # Errors
    /// When the program ends before, or `limit` is over; the message carries the end of its log.
    pub async fn wait_until_ready(&mut self, url: &str, limit: Duration) -> anyhow::Result<()> {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let http = reqwest::Client::builder()
            .timeout(Duration::from_secs(5))
            .build()?;
        let child = &mut self.child;
        let look = async || -> anyhow::Result<Readiness> {
            if let Some(status) = child.try_wait()? {
                return Ok(Readiness::Ended(status));
            }
            Ok(Readiness::Answers(http.get(url).send().await?.status().as_u16()))
        };
        let seen = wait_for(&format!("{} to be ready", self.name), limit, look, |seen| {
            matches!(seen, Readiness::Answers(200) | Readiness::Ended(_))
        })
        .await;
        match seen {
            Ok(Readiness::Answers(_)) => Ok(()),
            Ok(Readiness::Ended(status)) => anyhow::bail!("{} ended: {status}\n{}", self.name, self.tail()),
            Err(error) => Err(error.context(self.tail())),
        }
    }

    /// Sends it a signal by `kill`'s name for it: TERM, KILL, STOP, CONT.
    ///
    /// # Errors
    /// When `kill` cannot be run or refuses.
    pub fn signal(&self, name: &str) -> anyhow::Result<()> {
        let status = Command::new("kill")
            .args([format!("-{name}"), self.pid().to_string()])
            .status()?;
        anyhow::ensure!(status.success(), "kill -{name} of {} failed", self.name);
        Ok(())
    }

    /// Asks it to end and waits; kills it when it does not. Returns how it ended.
    ///
    /// # Errors
    /// When it cannot be waited for.
    pub fn stop(&mut self) -> anyhow::Result<ExitStatus> {
        if let Some(status) = self.child.try_wait()? {
            return Ok(status);
        }
        self.signal("TERM")?;
        let deadline = Instant::now() + GRACE;
        while Instant::now() < deadline {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        self.child.kill()?;
        Ok(self.child.wait()?)
    }

    /// The end of its log, for messages.
    fn tail(&self) -> String {
        let log = self.log().unwrap_or_default();
        let lines: Vec<_> = log.lines().collect();
        let from = lines.len().saturating_sub(30);
        format!(
            "the last lines of {}:\n{}",
            self.log.display(),
            lines[from..].join("\n")
        )
    }
}

#[derive(Debug)]
enum Readiness {
    Answers(u16),
    Ended(ExitStatus),
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.stop();
        if std::thread::panicking() {
            eprintln!("{}", self.tail());
        }
    }
}

/// One of the workspace's own programs: where `cargo build --workspace` put it, beside the test.
///
/// # Errors
/// When it has not been built.
pub fn own(name: &str) -> anyhow::Result<PathBuf> {
    let test = std::env::current_exe()?;
    // target/<profile>/deps/<test>
    let built = test.ancestors().nth(2).map(|folder| folder.join(name));
    match built {
        Some(path) if path.exists() => Ok(path),
        _ => anyhow::bail!(
            "{name} has not been built: run `cargo build --workspace` in {}",
            repository().display()
        ),
    }
}

/// The operator under test: `VIRTSHELL_OPERATOR`, as `make test` sets it, else as [`own`].
///
/// # Errors
/// When it has not been built.
pub fn operator() -> anyhow::Result<PathBuf> {
    match std::env::var_os("VIRTSHELL_OPERATOR") {
        Some(path) => Ok(path.into()),
        None => own("virtshell-operator"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_logged_and_ended() {
        let folder = tempfile::tempdir().unwrap();
        let mut program = Program::start(
            "sleeper",
            Command::new("sh").args(["-c", "echo started; exec sleep 600"]),
            folder.path(),
        )
        .unwrap();
        let deadline = Instant::now() + GRACE;
        while program.log().unwrap() != "started\n" {
            assert!(Instant::now() < deadline, "log: {:?}", program.log());
            std::thread::sleep(Duration::from_millis(10));
        }
        let pid = program.pid();
        assert!(!program.stop().unwrap().success());
        assert_eq!(start_time(pid), None);
    }

    #[tokio::test]
    async fn a_program_that_ends_is_not_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let mut program = Program::start(
            "failing",
            Command::new("sh").args(["-c", "echo no such thing; exit 3"]),
            folder.path(),
        )
        .unwrap();
        let [port] = crate::ports::free().unwrap();
        let error = program
            .wait_until_ready(&format!("http://127.0.0.1:{port}/"), crate::wait::SOON)
            .await
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("exit status: 3") && error.contains("no such thing"),
            "{error}"
        );
    }
}
