//! Streams that are read without waiting: what arrives is handed to a closure on the event loop's thread.
//!
//! The `virt` crate binds stream callbacks too, but registers the address of a value that may move.

use std::ffi::{c_int, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};

use virt::connect::Connect;
use virt::error::Error;
use virt::stream::Stream;
use virt_sys as sys;

/// Bytes that are taken from a stream at once.
const PIECE: usize = 16 * 1024;
/// Pieces that are taken in one turn of the event loop: other connections have their turn too.
const PIECES: usize = 16;

/// What a stream brought.
#[derive(Debug, PartialEq, Eq)]
pub enum Arrival<'a> {
    /// Bytes.
    Data(&'a [u8]),
    /// Nothing more will come: the other side ended it, or the connection is gone. Said once.
    End,
}

/// An open stream in both directions; dropping it ends it, which asks libvirt and so may wait for its answer.
pub struct Duplex {
    stream: Stream,
    /// libvirt holds it too, and not every version gives it back: the sink in it goes with this.
    shared: Arc<Shared>,
}

type Sink = Box<dyn Fn(Arrival<'_>) + Send>;

/// What libvirt's callback reads.
struct Shared(Mutex<Option<Sink>>);

impl Shared {
    /// Hands over what arrived, if there is anybody still; a panic must not unwind into C.
    fn deliver(&self, arrival: Arrival<'_>) {
        let sink = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(sink) = sink.as_ref() {
            let _ = catch_unwind(AssertUnwindSafe(|| sink(arrival)));
        }
    }
}

impl Duplex {
    /// A stream on this connection that never waits, not open yet: `open` gives it to a call that opens it. From then on
    /// `sink` hears what arrives.
    ///
    /// `sink` runs on the thread of the event loop, which must run: it must not block and must not call libvirt. It is
    /// dropped no later than the stream.
    ///
    /// # Errors
    /// What libvirt says when the stream is made, opened or listened to.
    pub fn open(
        connect: &Connect,
        open: impl FnOnce(&Stream) -> Result<(), Error>,
        sink: impl Fn(Arrival<'_>) + Send + 'static,
    ) -> Result<Self, Error> {
        let stream = Stream::new(connect, sys::VIR_STREAM_NONBLOCK)?;
        open(&stream)?;
        let duplex = Self {
            stream,
            shared: Arc::new(Shared(Mutex::new(Some(Box::new(sink))))),
        };
        duplex.receive()?;
        Ok(duplex)
    }

    fn receive(&self) -> Result<(), Error> {
        let opaque = Arc::into_raw(Arc::clone(&self.shared)).cast_mut().cast();
        let events =
            sys::VIR_STREAM_EVENT_READABLE | sys::VIR_STREAM_EVENT_ERROR | sys::VIR_STREAM_EVENT_HANGUP;
        // SAFETY: the stream pointer is valid while `self.stream` lives, which is until after the callback was taken back
        // in `drop`. `opaque` owns a count of `shared`, which `on_event` reads and `free_shared` gives back at most once:
        // libvirt calls it when the callback is taken back, after a call of `on_event` that runs at that moment. Its
        // remote driver may not call it at all: the count is never given back then, and an empty `Shared` stays.
        let added = unsafe {
            sys::virStreamEventAddCallback(
                self.stream.as_ptr(),
                events.cast_signed(),
                Some(on_event),
                opaque,
                Some(free_shared),
            )
        };
        if added < 0 {
            let error = Error::last_error();
            // SAFETY: libvirt does not take `opaque` over when it refuses, so this is the only owner of that count.
            unsafe { free_shared(opaque) };
            return Err(error);
        }
        Ok(())
    }

    /// Sends bytes; returns how many libvirt took, which is 0 when it takes none now. Waits for the socket of the
    /// connection at most, never for the other side.
    ///
    /// # Errors
    /// When the stream has ended.
    pub fn send(&self, bytes: &[u8]) -> Result<usize, Error> {
        // -2 stands for "not now"; the crate makes an error of -1 only.
        Ok(usize::try_from(self.stream.send(bytes)?).unwrap_or(0))
    }
}

impl Drop for Duplex {
    fn drop(&mut self) {
        // SAFETY: the stream is valid. Where there is no callback, or `on_event` took it back itself, this fails and
        // changes nothing.
        unsafe { sys::virStreamEventRemoveCallback(self.stream.as_ptr()) };
        *self.shared.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
        // SAFETY: the stream is valid and belongs to nobody else; one that has ended already is refused and stays as it is.
        unsafe { sys::virStreamAbort(self.stream.as_ptr()) };
    }
}

/// # Safety
/// `opaque` comes from [`Duplex::receive`], and its count has not been given back: libvirt does so only after the last
/// call.
unsafe extern "C" fn on_event(stream: sys::virStreamPtr, events: c_int, opaque: *mut c_void) {
    // SAFETY: by the contract of this function.
    let shared = unsafe { &*opaque.cast_const().cast::<Shared>() };
    let ended = events.cast_unsigned() & (sys::VIR_STREAM_EVENT_ERROR | sys::VIR_STREAM_EVENT_HANGUP) != 0;
    // What is there is read before an end is believed.
    let more = drain(stream, shared);
    if ended || !more {
        shared.deliver(Arrival::End);
        // Else libvirt would call again, at once and for ever.
        // SAFETY: libvirt gives a valid stream, and allows this in its callback: `opaque` is freed after the callback, and
        // `shared` is not used any more.
        unsafe { sys::virStreamEventRemoveCallback(stream) };
    }
}

/// Takes what is there; returns whether more may come.
fn drain(stream: sys::virStreamPtr, shared: &Shared) -> bool {
    let mut piece = [0u8; PIECE];
    for _ in 0..PIECES {
        // SAFETY: libvirt gives its callback a valid stream, and writes at most as many bytes as the buffer has. The
        // stream does not block.
        let got = unsafe { sys::virStreamRecv(stream, piece.as_mut_ptr().cast(), piece.len()) };
        match usize::try_from(got) {
            Ok(0) => return false,
            Ok(count) => shared.deliver(Arrival::Data(&piece[..count])),
            // -2: nothing now. -1: it has failed.
            Err(_) => return got == -2,
        }
    }
    true
}

/// Gives back the count that [`Duplex::receive`] gave to libvirt.
///
/// # Safety
/// `opaque` comes from there and is not used again.
unsafe extern "C" fn free_shared(opaque: *mut c_void) {
    // SAFETY: by the contract of this function.
    drop(unsafe { Arc::from_raw(opaque.cast_const().cast::<Shared>()) });
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;

    /// A picture of the screen is the one stream that the driver `test` has.
    fn picture(sink: impl Fn(Arrival<'_>) + Send + 'static) -> Duplex {
        crate::start_event_loop().unwrap();
        virt::error::clear_error_callback();
        let connect = Connect::open(Some("test:///default")).unwrap();
        let domain = connect.lookup_domain_by_name("test").unwrap();
        Duplex::open(&connect, |stream| domain.screenshot(stream, 0, 0).map(drop), sink).unwrap()
    }

    #[test]
    fn everything_arrives_in_order_and_the_end_once() {
        let (tx, rx) = mpsc::channel();
        let duplex = picture(move |arrival| {
            drop(tx.send(match arrival {
                Arrival::Data(bytes) => Some(bytes.to_vec()),
                Arrival::End => None,
            }));
        });
        let mut bytes = Vec::new();
        while let Some(piece) = rx.recv_timeout(Duration::from_secs(20)).unwrap() {
            bytes.extend(piece);
        }
        assert!(bytes.starts_with(b"\x89PNG") && bytes.ends_with(b"IEND\xaeB`\x82"));
        assert_eq!(
            rx.recv_timeout(Duration::from_millis(200)),
            Err(mpsc::RecvTimeoutError::Timeout)
        );
        drop(duplex);
        assert_eq!(
            rx.recv(),
            Err(mpsc::RecvError),
            "the sink is gone with the stream"
        );
    }

    #[test]
    fn a_stream_that_is_dropped_early_drops_its_sink() {
        let (tx, rx) = mpsc::channel::<()>();
        drop(picture(move |_| _ = &tx));
        assert_eq!(rx.recv(), Err(mpsc::RecvError));
    }
}
