//! Bytes between a WebSocket and a guest, in binary frames, with bounds everywhere.

use std::time::Duration;

use axum::body::Bytes;
use axum::extract::ws::{CloseFrame, Message, WebSocket};
use futures::stream::{SplitSink, SplitStream};
use futures::{SinkExt, StreamExt};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

/// Largest frame that is taken: more than anybody types or pastes at once.
pub const MOST_BYTES: usize = 64 * 1024;
/// How often a caller is asked whether it is there.
const PING: Duration = Duration::from_secs(15);
/// How long it may be silent. Every client answers a ping by itself.
const SILENCE: Duration = Duration::from_secs(45);
/// How long a frame may take to be sent. A caller that takes nothing for so long is gone.
const SEND: Duration = Duration::from_secs(30);

/// The guest's side.
pub trait Guest {
    /// The next bytes from it; `None` when there will be none. Nothing is lost when the wait for them is given up.
    fn output(&mut self) -> impl Future<Output = Option<Bytes>> + Send;
}

/// Takes bytes for the guest.
pub trait Input {
    /// Waits until it has taken them; false when it takes none any more.
    fn input(&mut self, bytes: Bytes) -> impl Future<Output = bool> + Send;
}

/// Why a session ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// The guest's side is gone.
    Guest,
    /// The caller said so, or is gone.
    Caller,
    /// Somebody else took it over.
    TakenOver,
}

/// Carries bytes both ways until one side ends, or the session is `cancelled`. The caller is told why by the close frame.
pub async fn relay(
    socket: WebSocket,
    mut guest: impl Guest,
    mut input: impl Input,
    cancelled: &CancellationToken,
) {
    let (mut sender, mut receiver) = socket.split();
    let end = tokio::select! {
        end = carry_out(&mut sender, &mut guest) => end,
        end = carry_in(&mut receiver, &mut input) => end,
        () = cancelled.cancelled() => End::TakenOver,
    };
    let (code, reason) = match end {
        End::Caller => return,
        // 1000: normal. 4000 and above are for applications.
        End::Guest => (1000, "the guest's side has ended"),
        End::TakenOver => (4000, "taken over by another caller"),
    };
    let close = Message::Close(Some(CloseFrame {
        code,
        reason: reason.into(),
    }));
    let _ = tokio::time::timeout(SEND, sender.send(close)).await;
}

async fn carry_out(sender: &mut SplitSink<WebSocket, Message>, guest: &mut impl Guest) -> End {
    let mut pings = tokio::time::interval(PING);
    pings.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        // A guest that prints all the time does not keep the caller from being asked.
        let message = tokio::select! {
            biased;
            _ = pings.tick() => Message::Ping(Bytes::new()),
            output = guest.output() => match output {
                Some(bytes) => Message::Binary(bytes),
                None => return End::Guest,
            },
        };
        match tokio::time::timeout(SEND, sender.send(message)).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) | Err(_) => return End::Caller,
        }
    }
}

async fn carry_in(receiver: &mut SplitStream<WebSocket>, input: &mut impl Input) -> End {
    loop {
        let Ok(Some(Ok(message))) = tokio::time::timeout(SILENCE, receiver.next()).await else {
            return End::Caller;
        };
        let bytes = match message {
            Message::Binary(bytes) => bytes,
            Message::Text(text) => text.into(),
            Message::Ping(_) | Message::Pong(_) => continue,
            Message::Close(_) => return End::Caller,
        };
        if !input.input(bytes).await {
            return End::Guest;
        }
    }
}
