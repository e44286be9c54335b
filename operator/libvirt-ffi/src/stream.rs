//! Streams that are read without waiting: what arrives is handed to a closure on the event loop's thread.
//!
//! The `virt` crate binds stream callbacks too, but registers the address of a value that may move.

use std::ffi::{c_int, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};

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
    receiving: bool,
}

type Sink = Box<dyn Fn(Arrival<'_>) + Send + Sync>;

impl Duplex {
    /// A stream on this connection that never waits, not open yet: `open` gives it to a call that opens it. From then on
    /// `sink` hears what arrives.
    ///
    /// `sink` runs on the thread of the event loop, which must run: it must not block and must not call libvirt.
    ///
    /// # Errors
    /// What libvirt says when the stream is made, opened or listened to.
    pub fn open(
        connect: &Connect,
        open: impl FnOnce(&Stream) -> Result<(), Error>,
        sink: impl Fn(Arrival<'_>) + Send + Sync + 'static,
    ) -> Result<Self, Error> {
        let stream = Stream::new(connect, sys::VIR_STREAM_NONBLOCK)?;
        open(&stream)?;
        let mut duplex = Self {
            stream,
            receiving: false,
        };
        duplex.receive(Box::new(sink))?;
        Ok(duplex)
    }

    fn receive(&mut self, sink: Sink) -> Result<(), Error> {
        let opaque: *mut c_void = Box::into_raw(Box::new(sink)).cast();
        let events =
            sys::VIR_STREAM_EVENT_READABLE | sys::VIR_STREAM_EVENT_ERROR | sys::VIR_STREAM_EVENT_HANGUP;
        // SAFETY: the stream pointer is valid while `self.stream` lives, which is until after the callback was taken back
        // in `drop`. `opaque` is a leaked box that `on_event` reads as a `Sink` and that `free_sink` frees exactly once:
        // libvirt calls it when the callback is taken back, after a call of `on_event` that runs at that moment.
        let added = unsafe {
            sys::virStreamEventAddCallback(
                self.stream.as_ptr(),
                events.cast_signed(),
                Some(on_event),
                opaque,
                Some(free_sink),
            )
        };
        if added < 0 {
            let error = Error::last_error();
            // SAFETY: libvirt does not take `opaque` over when it refuses, so this is the only owner.
            unsafe { free_sink(opaque) };
            return Err(error);
        }
        self.receiving = true;
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
        if self.receiving {
            // SAFETY: the stream is valid. When `on_event` took the callback back itself this fails and changes nothing.
            unsafe { sys::virStreamEventRemoveCallback(self.stream.as_ptr()) };
        }
        // SAFETY: the stream is valid and belongs to nobody else; one that has ended already is refused and stays as it is.
        unsafe { sys::virStreamAbort(self.stream.as_ptr()) };
    }
}

/// # Safety
/// `opaque` comes from [`Duplex::receive`] and has not been freed: libvirt frees it only after the last call.
unsafe extern "C" fn on_event(stream: sys::virStreamPtr, events: c_int, opaque: *mut c_void) {
    // SAFETY: by the contract of this function.
    let sink = unsafe { &*opaque.cast::<Sink>() };
    let ended = events.cast_unsigned() & (sys::VIR_STREAM_EVENT_ERROR | sys::VIR_STREAM_EVENT_HANGUP) != 0;
    // What is there is read before an end is believed.
    let more = drain(stream, sink);
    if ended || !more {
        let _ = catch_unwind(AssertUnwindSafe(|| sink(Arrival::End)));
        // Else libvirt would call again, at once and for ever.
        // SAFETY: libvirt gives a valid stream, and allows this in its callback: `opaque` is freed after the callback.
        unsafe { sys::virStreamEventRemoveCallback(stream) };
    }
}

/// Takes what is there; returns whether more may come.
fn drain(stream: sys::virStreamPtr, sink: &Sink) -> bool {
    let mut piece = [0u8; PIECE];
    for _ in 0..PIECES {
        // SAFETY: libvirt gives its callback a valid stream, and writes at most as many bytes as the buffer has. The
        // stream does not block.
        let got = unsafe { sys::virStreamRecv(stream, piece.as_mut_ptr().cast(), piece.len()) };
        match usize::try_from(got) {
            Ok(0) => return false,
            Ok(count) => {
                let _ = catch_unwind(AssertUnwindSafe(|| sink(Arrival::Data(&piece[..count]))));
            }
            // -2: nothing now. -1: it has failed.
            Err(_) => return got == -2,
        }
    }
    true
}

/// Frees what [`Duplex::receive`] leaked.
///
/// # Safety
/// `opaque` comes from there and is not used again.
unsafe extern "C" fn free_sink(opaque: *mut c_void) {
    // SAFETY: by the contract of this function.
    drop(unsafe { Box::from_raw(opaque.cast::<Sink>()) });
}
