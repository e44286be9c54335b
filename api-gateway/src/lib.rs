//! VirtShell's REST gateway: REST dialects in front of Kubernetes custom resources.

pub mod auth;
pub mod service;
pub mod store;
