//! VirtShell's REST gateway: REST dialects in front of Kubernetes custom resources.
//!
//! A request goes [`router`] -> [`dialects`] (translate) -> [`service`] (decide) -> [`store`] (read from watch caches,
//! write through the API server), and back the same way. [`auth`] says on whose behalf. What does not fit the API server is
//! in [`blobs`]; what is not state is asked of [`nodes`].

pub mod auth;
pub mod blobs;
pub mod dialects;
pub mod metrics;
pub mod nodes;
pub mod router;
pub mod server;
pub mod service;
pub mod store;
pub mod telemetry;
