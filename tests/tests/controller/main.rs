//! The cluster controller against a real API server, with its own account and node agents played by the test.
//!
//! - [`world`]: a namespace with an Environment and hosts of its own, and what agents do there.
//! - `dependencies`: what an Instance waits for.
//! - `housekeeping`: names, nodes, keys, deletion.
//! - `launches`: groups of Instances.
//! - `tasks`: work that hosts do inside guests.

#![expect(
    clippy::unwrap_used,
    reason = "a test fails by panicking, also in its helpers"
)]
mod dependencies;
mod housekeeping;
mod launches;
mod tasks;
mod world;
