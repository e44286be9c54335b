//! VirtShell's REST gateway: REST dialects in front of Kubernetes custom resources.

pub mod store;
