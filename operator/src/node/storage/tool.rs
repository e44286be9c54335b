//! Running the programs that do the work on files: qemu-img, mke2fs and their like.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use super::error::StorageError;

/// A program, and the Debian package that has it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tool {
    pub name: &'static str,
    pub package: &'static str,
}

pub(super) const QEMU_IMG: Tool = Tool::new("qemu-img", "qemu-utils");
pub(super) const MKE2FS: Tool = Tool::new("mke2fs", "e2fsprogs");
pub(super) const RESIZE2FS: Tool = Tool::new("resize2fs", "e2fsprogs");
pub(super) const E2FSCK: Tool = Tool::new("e2fsck", "e2fsprogs");
pub(super) const DEBUGFS: Tool = Tool::new("debugfs", "e2fsprogs");
pub(super) const CP: Tool = Tool::new("cp", "coreutils");
pub(super) const GZIP: Tool = Tool::new("gzip", "gzip");
pub(super) const XZ: Tool = Tool::new("xz", "xz-utils");
pub(super) const ZSTD: Tool = Tool::new("zstd", "zstd");
pub(super) const PRLIMIT: Tool = Tool::new("prlimit", "util-linux");

impl Tool {
    const fn new(name: &'static str, package: &'static str) -> Self {
        Self { name, package }
    }
}

/// What a program that reads untrusted bytes may use.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Bytes of address space.
    pub memory: u64,
    /// Seconds of processor time.
    pub cpu: u64,
}

/// One run of a program.
pub(super) struct Run {
    tool: Tool,
    arguments: Vec<OsString>,
    limits: Option<Limits>,
    deadline: Duration,
    input: Option<String>,
    directory: Option<PathBuf>,
    /// Exit codes beside 0 that are no failure.
    accepted: &'static [i32],
}

impl Run {
    pub(super) fn new(tool: Tool) -> Self {
        Self {
            tool,
            arguments: Vec::new(),
            limits: None,
            deadline: Duration::from_mins(10),
            input: None,
            directory: None,
            accepted: &[],
        }
    }

    pub(super) fn arg(mut self, argument: impl Into<OsString>) -> Self {
        self.arguments.push(argument.into());
        self
    }

    pub(super) fn args(mut self, arguments: &[&str]) -> Self {
        self.arguments.extend(arguments.iter().map(OsString::from));
        self
    }

    pub(super) fn limits(mut self, limits: Limits) -> Self {
        self.limits = Some(limits);
        self
    }

    pub(super) fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// Text for standard input.
    pub(super) fn input(mut self, text: String) -> Self {
        self.input = Some(text);
        self
    }

    /// Working directory.
    pub(super) fn directory(mut self, directory: &Path) -> Self {
        self.directory = Some(directory.to_owned());
        self
    }

    /// Exit codes beside 0 that are no failure.
    pub(super) fn accept(mut self, codes: &'static [i32]) -> Self {
        self.accepted = codes;
        self
    }

    /// Runs to the end; `action` says in a message what was done.
    ///
    /// The program is killed when the caller gives up waiting.
    pub(super) async fn output(self, action: &str) -> Result<Output, StorageError> {
        let tool = self.tool;
        let failed = |why: String| StorageError::ToolFailed {
            action: action.to_owned(),
            tool: tool.name,
            why,
        };
        let input = self.input.clone();
        let deadline = self.deadline;
        let work = async {
            let mut child = self
                .command()
                .spawn()
                .map_err(|error| missing_or(tool, &error, failed))?;
            if let (Some(text), Some(mut pipe)) = (input, child.stdin.take()) {
                // A program that ends early breaks the pipe; its status says why.
                let _ = pipe.write_all(text.as_bytes()).await;
            }
            child
                .wait_with_output()
                .await
                .map_err(|error| failed(error.to_string()))
        };
        let output = tokio::time::timeout(deadline, work)
            .await
            .map_err(|_| failed(format!("not done after {} s", deadline.as_secs())))??;
        let accepted = output
            .status
            .code()
            .is_some_and(|code| self.accepted.contains(&code));
        if output.status.success() || accepted {
            return Ok(output);
        }
        // prlimit is there, but the program behind it is not.
        if self.limits.is_some() && output.status.code() == Some(127) {
            return Err(missing(tool));
        }
        Err(failed(complaint(&output)))
    }

    pub(super) fn command(&self) -> Command {
        let mut command = match self.limits {
            None => Command::new(self.tool.name),
            Some(limits) => {
                let mut command = Command::new(PRLIMIT.name);
                command
                    .arg(format!("--as={}", limits.memory))
                    .arg(format!("--cpu={}", limits.cpu))
                    .arg("--core=0")
                    .arg("--")
                    .arg(self.tool.name);
                command
            }
        };
        command
            .args(&self.arguments)
            // mke2fs and its family live in sbin, which a service's PATH may lack.
            .env("PATH", path_with_sbin())
            .env("LC_ALL", "C")
            .stdin(if self.input.is_some() {
                Stdio::piped()
            } else {
                Stdio::null()
            })
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        if let Some(directory) = &self.directory {
            command.current_dir(directory);
        }
        command
    }
}

fn path_with_sbin() -> String {
    let path = std::env::var("PATH").unwrap_or_else(|_| "/usr/bin:/bin".to_owned());
    format!("{path}:/usr/sbin:/sbin")
}

pub(super) fn missing(tool: Tool) -> StorageError {
    StorageError::ToolMissing {
        tool: tool.name,
        package: tool.package,
    }
}

fn missing_or(tool: Tool, error: &std::io::Error, failed: impl Fn(String) -> StorageError) -> StorageError {
    if error.kind() == std::io::ErrorKind::NotFound {
        missing(tool)
    } else {
        failed(error.to_string())
    }
}

/// The last lines of standard error, or how the program ended.
pub(super) fn complaint(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stderr);
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|l| !l.is_empty()).collect();
    if lines.is_empty() {
        return output.status.to_string();
    }
    lines[lines.len().saturating_sub(3)..].join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_missing_program_names_its_package() {
        let nothing = Tool::new("no-such-program-here", "some-package");
        for limits in [
            None,
            Some(Limits {
                memory: 1 << 30,
                cpu: 5,
            }),
        ] {
            let mut run = Run::new(nothing);
            run.limits = limits;
            let error = run.output("trying").await.expect_err("it is not there");
            assert!(error.to_string().contains("some-package"), "{error}");
        }
    }

    #[tokio::test]
    async fn a_program_past_its_deadline_is_ended() {
        let sleep = Tool::new("sleep", "coreutils");
        let error = Run::new(sleep)
            .arg("30")
            .deadline(Duration::from_millis(50))
            .output("waiting")
            .await
            .expect_err("too slow");
        assert_eq!(error.reason(), "DiskFailed");
    }

    #[tokio::test]
    async fn limits_hold() {
        // dd wants one block of memory.
        let dd = Tool::new("dd", "coreutils");
        let limits = Limits {
            memory: 64 << 20,
            cpu: 10,
        };
        let run = || Run::new(dd).args(&["if=/dev/zero", "of=/dev/null", "bs=256M", "count=1"]);
        run().output("copying").await.expect("without limits");
        let error = run()
            .limits(limits)
            .output("copying")
            .await
            .expect_err("more than allowed");
        assert!(error.to_string().contains("memory exhausted"), "{error}");
    }
}
