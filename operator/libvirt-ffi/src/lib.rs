//! The libvirt calls that the `virt` crate does not bind, as safe functions. All of `VirtShell`'s unsafe code.
