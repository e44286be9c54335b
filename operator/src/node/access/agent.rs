//! Commands and files through the QEMU guest agent.
//!
//! A command is started by one call and asked after by others, with pauses that grow: no libvirt call is in flight while
//! it runs. A guest or a libvirt that does not answer for a while does not end it.

use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt};

use super::{AccessError, Command, Ended, Guest, quoted, until};
use crate::node::connection::Lane;

/// How long the agent may take for one answer.
const ANSWER: Duration = Duration::from_secs(5);
/// The first and the longest pause between two questions after a command.
const PAUSE: (Duration, Duration) = (Duration::from_millis(30), Duration::from_secs(1));
/// The pause after a question without an answer: such a question holds a place that other guests need.
const AFTER_SILENCE: Duration = Duration::from_secs(10);
/// How long a killed command may take to be gone.
const LAST_WORDS: Duration = Duration::from_secs(5);
/// Bytes of a file in one call, before base64: libvirt takes messages of 4 MiB, the agent's line is slower than that.
const CHUNK: usize = 48 << 10;

/// A shell in a process group of its own, so that it can be ended with all that it started.
const SHELL: &str = "if command -v setsid >/dev/null; then exec setsid /bin/sh -s; else exec /bin/sh -s; fi";

/// Runs a command.
pub async fn run(guest: &Guest, command: &Command, deadline: Duration) -> Result<Ended, AccessError> {
    let end = Instant::now() + deadline;
    let process = exec(guest, SHELL, &command.script()).await?;
    if let Some(answer) = wait(guest, process, end).await? {
        let ended = command.read(&answer.output);
        return ended.ok_or_else(|| AccessError::Lost(answer.breakage()));
    }
    // The shell leads its group where the guest has `setsid`.
    let kill = format!("kill -KILL -{process} || kill -KILL {process}");
    exec(guest, &kill, "").await?;
    let rest = wait(guest, process, Instant::now() + LAST_WORDS).await?;
    Ok(command.broken_off(&rest.map(|answer| answer.output).unwrap_or_default()))
}

/// What the agent says of a process that ended.
struct Answer {
    output: Vec<u8>,
    complaint: Vec<u8>,
    how: String,
}

impl Answer {
    /// Why the shell's answer has no end.
    fn breakage(&self) -> String {
        let complaint = String::from_utf8_lossy(&self.complaint);
        format!("its shell ended with {} {}", self.how, complaint.trim())
            .trim_end()
            .to_owned()
    }
}

/// Starts `/bin/sh -c text`; returns its process id in the guest.
async fn exec(guest: &Guest, text: &str, input: &str) -> Result<i64, AccessError> {
    let arguments = json!({
        "path": "/bin/sh", "arg": ["-c", text], "input-data": STANDARD.encode(input), "capture-output": true,
    });
    let started = call(guest, "guest-exec", arguments).await?;
    started["pid"]
        .as_i64()
        .ok_or_else(|| AccessError::Lost("the guest agent names no process".to_owned()))
}

/// Waits until a process ended and all its output is closed; nothing when it goes on past `end`.
async fn wait(guest: &Guest, process: i64, end: Instant) -> Result<Option<Answer>, AccessError> {
    let mut pause = PAUSE.0;
    loop {
        tokio::time::sleep(pause.min(until(end))).await;
        match call(guest, "guest-exec-status", json!({"pid": process})).await {
            Ok(status) if status["exited"] == true => return Ok(Some(answer(&status))),
            Ok(_) => pause = (pause * 3 / 2).min(PAUSE.1),
            Err(error) if error.may_pass() && Instant::now() < end => {
                tracing::debug!(instance.uid = guest.id.uid, %error, "a command in a guest cannot be asked after now");
                pause = AFTER_SILENCE;
            }
            // The agent knows nothing of it: the guest or its agent was started anew.
            Err(AccessError::AgentRefused(_)) => {
                return Err(AccessError::Lost(
                    "the guest agent does not know it any more".to_owned(),
                ));
            }
            Err(error) => return Err(error),
        }
        if Instant::now() >= end {
            return Ok(None);
        }
    }
}

fn answer(status: &Value) -> Answer {
    let bytes = |field: &str| {
        let text = status[field].as_str().unwrap_or_default();
        STANDARD.decode(text).unwrap_or_default()
    };
    let how = match (status["exitcode"].as_i64(), status["signal"].as_i64()) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => "no exit code".to_owned(),
    };
    Answer {
        output: bytes("out-data"),
        complaint: bytes("err-data"),
        how,
    }
}

/// Writes a file that only root can read.
pub async fn upload(
    guest: &Guest,
    path: &str,
    content: impl AsyncRead + Unpin,
    end: Instant,
) -> Result<(), AccessError> {
    // The agent would make it readable and writable for everybody.
    let make = format!("umask 077; : >{}", quoted(path));
    guest.succeed(make, path, until(end)).await?;
    let handle = call(guest, "guest-file-open", json!({"path": path, "mode": "w"})).await?;
    let written = write(guest, &handle, path, content, end).await;
    // Closing writes what the agent still holds back.
    let closed = call(guest, "guest-file-close", json!({"handle": handle})).await;
    written.and(closed.map(drop))
}

async fn write(
    guest: &Guest,
    handle: &Value,
    path: &str,
    mut content: impl AsyncRead + Unpin,
    end: Instant,
) -> Result<(), AccessError> {
    let began = Instant::now();
    let failed = |why: String| AccessError::File {
        path: path.to_owned(),
        why,
    };
    let mut buffer = vec![0; CHUNK];
    // What of the buffer the guest does not have yet.
    let (mut from, mut to) = (0, 0);
    loop {
        if from == to {
            let read = content.read(&mut buffer).await;
            (from, to) = (
                0,
                read.map_err(|error| failed(format!("its content cannot be read: {error}")))?,
            );
            if to == 0 {
                return Ok(());
            }
        }
        if Instant::now() >= end {
            return Err(AccessError::TimedOut(end.saturating_duration_since(began)));
        }
        let arguments = json!({"handle": handle, "buf-b64": STANDARD.encode(&buffer[from..to])});
        let answer = call(guest, "guest-file-write", arguments).await?;
        let count = answer["count"]
            .as_u64()
            .and_then(|count| usize::try_from(count).ok());
        match count.filter(|count| (1..=to - from).contains(count)) {
            Some(count) => from += count,
            None => return Err(failed("the guest agent wrote nothing".to_owned())),
        }
    }
}

/// Makes one call of the agent's protocol.
async fn call(guest: &Guest, command: &'static str, arguments: Value) -> Result<Value, AccessError> {
    let uuid = guest.uuid.clone();
    guest
        .connection
        .call(Lane::Agent, &guest.id.uid, command, ANSWER * 2, move |link| {
            link.agent(&uuid, command, &arguments, ANSWER)
        })
        .await
        .map_err(AccessError::of_agent)
}
