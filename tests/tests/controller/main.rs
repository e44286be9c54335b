//! The cluster controller against a real API server, with its own account and node agents played by the test.
//!
//! - [`world`]: a namespace with an Environment and hosts of its own, and what agents do there.
//! - `dependencies`: what an Instance waits for.
//! - `failover`: several controllers, of which one is killed, stopped or started again.
//! - `housekeeping`: names, nodes, keys, deletion.
//! - `launches`: groups of Instances.
//! - `placing`: room that becomes free, and bindings that nobody was told of.
//! - `silence`: hosts that are not heard of.
//! - `tasks`: work that hosts do inside guests.

#![expect(
    clippy::unwrap_used,
    reason = "a test fails by panicking, also in its helpers"
)]
mod dependencies;
mod failover;
mod housekeeping;
mod launches;
mod placing;
mod silence;
mod tasks;
mod world;
