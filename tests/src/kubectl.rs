//! `kubectl`, run as a user would.

use std::ffi::OsStr;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::Context;

/// `kubectl` with a kubeconfig.
#[derive(Clone, Debug)]
pub struct Kubectl {
    program: PathBuf,
    kubeconfig: PathBuf,
}

/// What a run of `kubectl` gave.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Whether it ended with status 0.
    pub success: bool,
    /// What it printed.
    pub stdout: String,
    /// What it complained about.
    pub stderr: String,
}

impl Kubectl {
    /// The program at `program`, with the identity in `kubeconfig`.
    #[must_use]
    pub fn new(program: &Path, kubeconfig: &Path) -> Self {
        Self {
            program: program.to_owned(),
            kubeconfig: kubeconfig.to_owned(),
        }
    }

    /// The same program with another identity.
    #[must_use]
    pub fn with(&self, kubeconfig: &Path) -> Self {
        Self::new(&self.program, kubeconfig)
    }

    /// Runs it with `input` on its standard input, and returns the outcome whatever it is.
    ///
    /// # Errors
    /// When the program cannot be run.
    pub fn run<S: AsRef<OsStr>>(
        &self,
        arguments: impl IntoIterator<Item = S>,
        input: &str,
    ) -> anyhow::Result<Outcome> {
        let mut child = Command::new(&self.program)
            .args(arguments)
            .env("KUBECONFIG", &self.kubeconfig)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot run {}", self.program.display()))?;
        let mut stdin = child.stdin.take().context("stdin is piped")?;
        let input = input.to_owned();
        // Beside reading the output, so that neither pipe can fill up while the other waits.
        let writer = std::thread::spawn(move || stdin.write_all(input.as_bytes()));
        let output = child.wait_with_output()?;
        // A kubectl that ends before it has read everything breaks the pipe; its status says why.
        let _ = writer.join();
        Ok(Outcome {
            success: output.status.success(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }

    /// Runs it and returns what it printed.
    ///
    /// # Errors
    /// When it cannot be run or ends with another status than 0; the message carries what it complained about.
    pub fn ok<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> anyhow::Result<String> {
        self.ok_with(arguments, "")
    }

    /// As [`Self::ok`], with `input` on its standard input.
    ///
    /// # Errors
    /// As [`Self::ok`].
    pub fn ok_with<S: AsRef<OsStr>>(
        &self,
        arguments: impl IntoIterator<Item = S>,
        input: &str,
    ) -> anyhow::Result<String> {
        let arguments: Vec<_> = arguments.into_iter().map(|a| a.as_ref().to_owned()).collect();
        let outcome = self.run(&arguments, input)?;
        anyhow::ensure!(
            outcome.success,
            "kubectl {arguments:?} failed:\n{}",
            outcome.stderr
        );
        Ok(outcome.stdout)
    }
}
