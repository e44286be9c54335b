//! Child processes that carry a command into a guest: bounded in time and in what they say.

use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::process::Command;

/// Bytes of standard error that are kept: a program's complaint, not the guest's output.
const COMPLAINT: usize = 2048;

/// How a child ended.
#[derive(Debug)]
pub struct Done {
    /// How; absent when it was killed at its deadline.
    pub status: Option<ExitStatus>,
    /// The beginning of what it said.
    pub stdout: Vec<u8>,
    /// The beginning of what it complained about.
    pub stderr: String,
}

/// Runs `program` with `input` on its standard input until it ended and closed its output, at most for `deadline`; then
/// its whole process group is killed, as it is when the caller gives up. At most `limit` bytes of output are kept.
///
/// It gets none of this process's environment: a container's programs would inherit it.
///
/// # Errors
/// When it cannot be started, or the input cannot be read to its end: it was killed then.
pub async fn run(
    program: &str,
    arguments: &[&str],
    mut input: impl AsyncRead + Unpin,
    limit: usize,
    deadline: Duration,
) -> std::io::Result<Done> {
    let mut child = Command::new(program)
        .args(arguments)
        .env_clear()
        .env(
            "PATH",
            "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        )
        .env("HOME", "/root")
        .env("LC_ALL", "C")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true)
        .spawn()?;
    let mut group = Group(
        child
            .id()
            .and_then(|id| i32::try_from(id).ok())
            .map(Pid::from_raw),
    );
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let (mut said, mut complained) = (Vec::new(), Vec::new());
    let work = async {
        let (fed, (), ()) = tokio::join!(
            feed(&mut input, stdin),
            read(stdout, limit, &mut said),
            read(stderr, COMPLAINT, &mut complained)
        );
        fed?;
        child.wait().await
    };
    let status = match tokio::time::timeout(deadline, work).await {
        Ok(status) => {
            let status = status?;
            group.0 = None;
            Some(status)
        }
        Err(_) => None,
    };
    drop(group);
    Ok(Done {
        status,
        stdout: said,
        stderr: String::from_utf8_lossy(&complained).trim().to_owned(),
    })
}

/// Hands the input over.
async fn feed(
    input: &mut (impl AsyncRead + Unpin),
    pipe: Option<impl AsyncWrite + Unpin>,
) -> std::io::Result<()> {
    let Some(mut pipe) = pipe else { return Ok(()) };
    let mut buffer = vec![0; 64 << 10];
    while let count @ 1.. = input.read(&mut buffer).await? {
        // A program that ends early breaks the pipe; its status says why.
        if pipe.write_all(&buffer[..count]).await.is_err() {
            break;
        }
    }
    Ok(())
}

/// Reads to the end, keeping the first `limit` bytes.
async fn read(pipe: Option<impl AsyncRead + Unpin>, limit: usize, kept: &mut Vec<u8>) {
    let Some(mut pipe) = pipe else { return };
    let mut buffer = vec![0; 16 << 10];
    while let Ok(count @ 1..) = pipe.read(&mut buffer).await {
        let room = limit.saturating_sub(kept.len());
        kept.extend_from_slice(&buffer[..count.min(room)]);
    }
}

/// A process group that is killed when this is dropped.
struct Group(Option<Pid>);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(group) = self.0 {
            // It may have ended by itself.
            let _ = killpg(group, Signal::SIGKILL);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn sh(text: &str, limit: usize, deadline: Duration) -> Done {
        run("sh", &["-c", text], b"input\n".as_slice(), limit, deadline)
            .await
            .unwrap()
    }

    #[tokio::test]
    async fn what_a_child_says_is_bounded_and_nothing_of_ours_reaches_it() {
        let done = sh(
            "cat; seq 1 100000; echo no >&2; exit 3",
            10,
            Duration::from_secs(20),
        )
        .await;
        assert_eq!(done.status.unwrap().code(), Some(3));
        assert_eq!(
            (done.stdout.as_slice(), done.stderr.as_str()),
            (&b"input\n1\n2\n"[..], "no")
        );
        let done = sh("env | grep CARGO || echo none", 100, Duration::from_secs(20)).await;
        assert_eq!(done.stdout, b"none\n");
        // It ends without reading what it is given.
        let much = vec![b'x'; 1 << 20];
        let done = run("true", &[], much.as_slice(), 1, Duration::from_secs(20))
            .await
            .unwrap();
        assert!(done.status.unwrap().success());
    }

    #[tokio::test]
    async fn input_that_breaks_off_is_no_whole_input() {
        let broken = breaking_off();
        let done = run("cat", &[], broken, 100, Duration::from_secs(20)).await;
        assert_eq!(done.unwrap_err().to_string(), "media error");
    }

    /// Some bytes, then a failure.
    fn breaking_off() -> impl AsyncRead + Unpin {
        let pieces = [Ok(&b"some"[..]), Err(std::io::Error::other("media error"))];
        tokio_util::io::StreamReader::new(futures::stream::iter(pieces))
    }

    #[tokio::test]
    async fn the_deadline_ends_the_whole_group() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let text = format!(
            "(sleep 1; echo late >{}) & echo early; wait",
            file.path().display()
        );
        let done = sh(&text, 100, Duration::from_millis(300)).await;
        assert!(done.status.is_none());
        assert_eq!(done.stdout, b"early\n");
        tokio::time::sleep(Duration::from_millis(1200)).await;
        assert_eq!(
            std::fs::read(file.path()).unwrap(),
            b"",
            "the grandchild was killed too"
        );
    }
}
