//! What happens to guests when something else fails: libvirtd, QEMU, the agent, the API server, the disk, or an
//! administrator's hand; and what only a whole host can show. On a host of its own, so that its libvirtd may be killed ([`virtshell_tests::farm`]).
//!
//! All stories share one farm and take turns on it; each begins with everything up and no Instance, and says which
//! defence it guards and how it was seen to fail without it.

mod agent;
mod boot;
mod clone;
mod crash;
mod drift;
mod libvirtd;
mod lifecycle;
mod live;
mod ownership;
mod storage;
mod story;
mod stuck;
