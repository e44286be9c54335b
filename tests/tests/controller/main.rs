//! The cluster controller against a real API server, with its own account and node agents played by the test.
//!
//! - [`world`]: a namespace with an Environment and hosts of its own, and what agents do there.
//! - `dependencies`: what an Instance waits for.
//! - `failover`: several controllers, of which one is killed, stopped or started again.
//! - `healing`: what an Instance refers to and is not there yet.
//! - `housekeeping`: names, nodes, keys, namespaces.
//! - `in_use`: what is asked to go while something needs it.
//! - `launches`: groups of Instances.
//! - `placing`: room that becomes free, and bindings that nobody was told of.
//! - `silence`: hosts that are not heard of.
//! - `sums`: what hosts, sections, environments and groups show of others.
//! - `tasks`: work that hosts do inside guests.

#![expect(
    clippy::unwrap_used,
    reason = "a test fails by panicking, also in its helpers"
)]
mod dependencies;
mod failover;
mod healing;
mod housekeeping;
mod in_use;
mod launches;
mod placing;
mod silence;
mod sums;
mod tasks;
mod world;
