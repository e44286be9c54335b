//! `console`: the guest's serial console, or a container's terminal, as a WebSocket.
//!
//! One caller at a time, for two that read one terminal would each get a part; another one may take it over.
//!
//! ```text
//! guest --event loop--> at most 1 MiB --> caller       what does not fit is left out, and the caller is told
//! guest <--own thread-- a few frames  <-- caller       typed faster than a guest reads, the caller waits
//! ```
//!
//! libvirt's client library keeps whatever arrives in memory until it is read, so it must be read at once: a caller that
//! does not keep up with its guest loses output, rather than the agent its memory.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::body::Bytes;
use libvirt_ffi::Arrival;
use tokio::runtime::Handle;
use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;

use super::super::hypervisor::{HypervisorError, chain};
use super::super::libvirt::{Console, Link};
use super::devices::devices;
use super::error::ApiError;
use super::relay::{Guest, Input};
use super::target::Target;

/// Pieces of output that wait for the caller; each has 16 KiB at most.
const PIECES: usize = 64;
/// Frames of input that wait for the guest.
const FRAMES: usize = 4;
/// Bytes of input in a second. libvirtd keeps what a guest does not read, so a caller must not send without measure; a
/// serial line takes 11 KiB/s.
const INPUT_RATE: u32 = 64 * 1024;
/// How long a session that is taken over may take to end.
const HAND_OVER: Duration = Duration::from_secs(5);
/// The pause when libvirt takes no input for a moment.
const FULL: Duration = Duration::from_millis(10);
/// How often a console where nobody types is looked at.
const LOOK: Duration = Duration::from_secs(5);

// --- Sessions -------------------------------------------------------------------------------------------------------

/// Who reads which console.
#[derive(Default)]
pub struct Sessions {
    open: Mutex<HashMap<String, Session>>,
    ended: Notify,
    count: AtomicU64,
}

struct Session {
    id: u64,
    cancel: CancellationToken,
}

/// The right to read one console; dropping it gives it back.
pub struct Seat {
    sessions: Arc<Sessions>,
    uid: String,
    id: u64,
    cancelled: CancellationToken,
}

impl Seat {
    /// Cancelled when somebody takes the console over.
    #[must_use]
    pub fn cancelled(&self) -> CancellationToken {
        self.cancelled.clone()
    }
}

impl Sessions {
    /// Takes the console of an Instance, at once if nobody has it. With `force` a present session is asked to end.
    /// Returns nothing when it is, or stays, in use.
    pub async fn take(self: &Arc<Self>, uid: &str, force: bool) -> Option<Seat> {
        let take = async {
            loop {
                let ended = self.ended.notified();
                let mut ended = std::pin::pin!(ended);
                // From here on, an end is heard.
                ended.as_mut().enable();
                match self.try_take(uid) {
                    Ok(seat) => return Some(seat),
                    Err(_) if !force => return None,
                    Err(present) => present.cancel(),
                }
                ended.await;
            }
        };
        tokio::time::timeout(HAND_OVER, take).await.ok().flatten()
    }

    fn try_take(self: &Arc<Self>, uid: &str) -> Result<Seat, CancellationToken> {
        let mut open = self.lock();
        if let Some(present) = open.get(uid) {
            return Err(present.cancel.clone());
        }
        let id = self.count.fetch_add(1, Ordering::Relaxed);
        let cancel = CancellationToken::new();
        let session = Session {
            id,
            cancel: cancel.clone(),
        };
        open.insert(uid.to_owned(), session);
        Ok(Seat {
            sessions: Arc::clone(self),
            uid: uid.to_owned(),
            id,
            cancelled: cancel,
        })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Session>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut open = self.sessions.lock();
        if open.get(&self.uid).is_some_and(|session| session.id == self.id) {
            open.remove(&self.uid);
        }
        drop(open);
        self.sessions.ended.notify_waiters();
    }
}

// --- One console ----------------------------------------------------------------------------------------------------

/// What the guest printed.
pub struct Output {
    pieces: mpsc::Receiver<Piece>,
    after_hole: Option<Bytes>,
}

/// A piece of output.
struct Piece {
    /// Bytes that were left out just before it.
    lost: u64,
    bytes: Bytes,
}

/// What the caller types. When it is dropped, the console is closed.
pub struct Typed(mpsc::Sender<Bytes>);

/// Opens the console. The seat is given back when the console is closed.
pub async fn open(target: &Target, seat: Seat, force: bool) -> Result<(Output, Typed), ApiError> {
    let name = target.name();
    let xml = target.ask("describe", Link::running_xml).await?;
    let devices = devices(&xml).map_err(|source| HypervisorError::Unreadable {
        domain: name.to_owned(),
        source,
    })?;
    if !devices.console {
        return Err(ApiError::Conflict(format!(
            "the Instance {name} runs without a console: set spec.consoles.serial and restart it"
        )));
    }
    let (pieces, output) = mpsc::channel(PIECES);
    let sink = collect(pieces);
    let opened = target
        .ask("open the console of", move |link, uuid| {
            link.open_console(uuid, force, sink)
        })
        .await;
    let console = opened.map_err(|error| in_use(name, error))?;
    let (typed, input) = mpsc::channel(FRAMES);
    let runtime = Handle::current();
    // libvirt's calls block: a console has a thread for as long as it is open, and no place of any line.
    let thread = std::thread::Builder::new().name(format!("console-{}", seat.id));
    thread
        .spawn(move || {
            write(&console, input, &runtime);
            // Closed before somebody else may open it.
            drop(console);
            drop(seat);
        })
        .map_err(|error| ApiError::Unavailable(format!("no thread for a console: {error}")))?;
    let output = Output {
        pieces: output,
        after_hole: None,
    };
    Ok((output, Typed(typed)))
}

/// libvirt keeps sessions of its other clients apart from ours: `virsh console`, another agent.
fn in_use(name: &str, error: HypervisorError) -> ApiError {
    match &error {
        HypervisorError::Refused { source, .. }
            if source.message.contains("Active console session exists") =>
        {
            busy(name)
        }
        HypervisorError::Refused { .. }
        | HypervisorError::Disconnected { .. }
        | HypervisorError::TimedOut { .. }
        | HypervisorError::Stuck { .. }
        | HypervisorError::Crowded { .. }
        | HypervisorError::Unreadable { .. } => error.into(),
    }
}

/// What a caller is told who comes second.
#[must_use]
pub fn busy(name: &str) -> ApiError {
    ApiError::Conflict(format!(
        "somebody else has the console of the Instance {name}; add ?force=true to take it over"
    ))
}

/// Runs on the event loop's thread: keeps what fits, and counts the rest.
fn collect(pieces: mpsc::Sender<Piece>) -> impl Fn(Arrival<'_>) + Send + 'static {
    let pieces = Mutex::new(Some(pieces));
    let lost = AtomicU64::new(0);
    move |arrival| {
        let mut pieces = pieces.lock().unwrap_or_else(PoisonError::into_inner);
        match arrival {
            // Whoever waits for more is told that there is none.
            Arrival::End => *pieces = None,
            Arrival::Data(data) => {
                let Some(room) = pieces.as_ref().and_then(|pieces| pieces.try_reserve().ok()) else {
                    lost.fetch_add(data.len() as u64, Ordering::Relaxed);
                    return;
                };
                room.send(Piece {
                    lost: lost.swap(0, Ordering::Relaxed),
                    bytes: Bytes::copy_from_slice(data),
                });
            }
        }
    }
}

/// Carries what is typed to the guest until there is nobody to type, then closes the console.
fn write(console: &Console, mut input: mpsc::Receiver<Bytes>, runtime: &Handle) {
    loop {
        let typed = runtime.block_on(async { tokio::time::timeout(LOOK, input.recv()).await });
        let frame = match typed {
            Ok(Some(frame)) => frame,
            // Not every stream is told that its connection has gone.
            Err(_) if console.is_open() => continue,
            Ok(None) | Err(_) => return,
        };
        let mut rest = &frame[..];
        while !rest.is_empty() {
            match console.send(rest) {
                Ok(0) => std::thread::sleep(FULL),
                Ok(taken) => {
                    rest = &rest[taken..];
                    let bytes = u32::try_from(taken).unwrap_or(u32::MAX);
                    std::thread::sleep(Duration::from_secs(1) * bytes / INPUT_RATE);
                }
                Err(error) => {
                    tracing::debug!(error = chain(&error), "a console takes no more input");
                    return;
                }
            }
            if input.is_closed() {
                return;
            }
        }
    }
}

impl Guest for Output {
    async fn output(&mut self) -> Option<Bytes> {
        if let Some(bytes) = self.after_hole.take() {
            return Some(bytes);
        }
        let piece = self.pieces.recv().await?;
        if piece.lost == 0 {
            return Some(piece.bytes);
        }
        self.after_hole = Some(piece.bytes);
        Some(format!("\r\n[{} bytes left out: too slow a reader]\r\n", piece.lost).into())
    }
}

impl Input for Typed {
    async fn input(&mut self, bytes: Bytes) -> bool {
        self.0.send(bytes).await.is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn one_at_a_time_unless_it_is_taken_over() {
        let sessions = Arc::new(Sessions::default());
        let first = sessions.take("a", false).await.unwrap();
        assert!(sessions.take("a", false).await.is_none());
        let other = sessions.take("b", false).await;
        assert!(other.is_some(), "another console is another matter");

        // It is handed over when the first has ended, not before.
        let cancelled = first.cancelled();
        let second = tokio::spawn({
            let sessions = Arc::clone(&sessions);
            async move { sessions.take("a", true).await }
        });
        cancelled.cancelled().await;
        assert!(!second.is_finished() && !other.unwrap().cancelled().is_cancelled());
        drop(first);
        let second = second.await.unwrap().unwrap();

        // One that does not end keeps it.
        assert!(sessions.take("a", true).await.is_none());
        drop(second);
        assert!(sessions.take("a", false).await.is_some());
        assert!(sessions.lock().is_empty());
    }

    #[tokio::test]
    async fn a_slow_reader_is_told_what_it_missed() {
        let (pieces, receiver) = mpsc::channel(2);
        let mut output = Output {
            pieces: receiver,
            after_hole: None,
        };
        let sink = collect(pieces);
        for text in ["one", "two", "lost", "lost too"] {
            sink(Arrival::Data(text.as_bytes()));
        }
        assert_eq!(output.output().await.unwrap(), "one");
        sink(Arrival::Data(b"three"));
        sink(Arrival::End);
        sink(Arrival::Data(b"never"));
        assert_eq!(output.output().await.unwrap(), "two");
        assert_eq!(
            output.output().await.unwrap(),
            "\r\n[12 bytes left out: too slow a reader]\r\n"
        );
        assert_eq!(output.output().await.unwrap(), "three");
        assert_eq!(output.output().await, None);
    }
}
