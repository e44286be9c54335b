//! The harness of VirtShell's suites: a real control plane, libvirt, and the programs under test.
