//! The libvirt calls that the `virt` crate does not bind, as safe functions. All of `VirtShell`'s unsafe code.
//!
//! [`start_event_loop`] runs libvirt's default event loop on a thread of its own; without it no event is delivered and
//! keepalive does nothing. [`subscribe`] turns a connection's domain events, and its end, into calls of one closure.
//! [`Duplex`] is a stream, such as a console, that is read by a closure.
//! [`block_copy`], [`block_job`] and [`end_block_job`] copy the disks of running domains, and [`disk_errors()`] tells which
//! of them failed.

mod block;
mod disk_errors;
mod event_loop;
mod events;
mod stream;

pub use block::{BlockJob, BlockJobKind, CopyInto, EndBlockJob, block_copy, block_job, end_block_job};
pub use disk_errors::{DiskError, disk_errors};
pub use event_loop::start_event_loop;
pub use events::{BlockJobStatus, DomainEvent, Lifecycle, Notice, Subscription, subscribe};
pub use stream::{Arrival, Duplex};
