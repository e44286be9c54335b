//! What is true at this moment only: counters, the running definition, the console, the screen.

use std::io::Read;
use std::time::Duration;

use libvirt_ffi::{Arrival, Duplex};
use virt::stream::Stream;
use virt::sys;

use super::super::hypervisor::{HypervisorError, LibvirtError, LibvirtErrorKind};
use super::{Answer, Link, read};

/// A screen is at most this large: 8K in 32 bit.
const SCREEN_BYTES: u64 = 128 << 20;

/// What a running domain has used, and of what.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// libvirt's word for its state.
    pub state: &'static str,
    /// Virtual CPUs that are online.
    pub vcpus: u32,
    /// CPU time of all of them, and of the emulator.
    pub cpu_time_ns: u64,
    /// Memory that it has now: the balloon's size.
    pub memory_kib: u64,
    /// Memory that it may have.
    pub max_memory_kib: u64,
    /// Further figures of its memory, as far as driver and guest tell them.
    pub memory: MemoryFigures,
    /// Counters of disks, by target device; none where the driver has no such counter.
    pub disks: Vec<(String, Option<DiskCounters>)>,
    /// Counters of interfaces, by the host's device.
    pub interfaces: Vec<(String, Option<InterfaceCounters>)>,
}

/// Figures of memory, KiB.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryFigures {
    /// Resident memory of its process on the host.
    pub rss: Option<u64>,
    /// What the guest's kernel has in all.
    pub available: Option<u64>,
    /// What it has not touched.
    pub unused: Option<u64>,
    /// What it could give without swapping.
    pub usable: Option<u64>,
}

/// Counters of one disk, since the domain was started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DiskCounters {
    /// Bytes read.
    pub read_bytes: i64,
    /// Reads.
    pub read_requests: i64,
    /// Bytes written.
    pub write_bytes: i64,
    /// Writes.
    pub write_requests: i64,
}

/// Counters of one interface, as the guest sees the directions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct InterfaceCounters {
    /// Bytes received.
    pub rx_bytes: i64,
    /// Packets received.
    pub rx_packets: i64,
    /// Bytes sent.
    pub tx_bytes: i64,
    /// Packets sent.
    pub tx_packets: i64,
}

/// An open console. Dropping it closes it, which waits for libvirt's answer: not on a thread that serves others.
pub struct Console {
    duplex: Duplex,
    link: Link,
    uuid: String,
}

impl Console {
    /// Whether its connection is there still. Known without asking.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.link.connect.is_alive().unwrap_or(false)
    }

    /// Sends bytes to the guest; returns how many were taken, 0 when none are now. Waits for libvirt's socket at most.
    pub fn send(&self, bytes: &[u8]) -> Answer<usize> {
        self.duplex
            .send(bytes)
            .map_err(|e| self.link.failed("write to the console of", &self.uuid, &e))
    }
}

impl Link {
    /// The definition of the running domain, without secrets.
    pub fn running_xml(&self, uuid: &str) -> Answer<String> {
        self.domain(uuid)?
            .xml_desc(0)
            .map_err(|e| self.failed("describe", uuid, &e))
    }

    /// What a running domain has used. `disks` and `interfaces` are the devices to ask for.
    pub fn counters(&self, uuid: &str, disks: &[String], interfaces: &[String]) -> Answer<Counters> {
        let domain = self.domain(uuid)?;
        let info = domain.info().map_err(|e| self.failed("look at", uuid, &e))?;
        let disk = |device: &String| {
            let found = domain.block_stats(device).ok().map(|of| DiskCounters {
                read_bytes: of.rd_bytes,
                read_requests: of.rd_req,
                write_bytes: of.wr_bytes,
                write_requests: of.wr_req,
            });
            (device.clone(), found)
        };
        let interface = |device: &String| {
            let found = domain.interface_stats(device).ok().map(|of| InterfaceCounters {
                rx_bytes: of.rx_bytes,
                rx_packets: of.rx_packets,
                tx_bytes: of.tx_bytes,
                tx_packets: of.tx_packets,
            });
            (device.clone(), found)
        };
        let mut memory = MemoryFigures::default();
        for figure in domain.memory_stats(0).unwrap_or_default() {
            let kib = Some(figure.val);
            match figure.tag {
                sys::VIR_DOMAIN_MEMORY_STAT_RSS => memory.rss = kib,
                sys::VIR_DOMAIN_MEMORY_STAT_AVAILABLE => memory.available = kib,
                sys::VIR_DOMAIN_MEMORY_STAT_UNUSED => memory.unused = kib,
                sys::VIR_DOMAIN_MEMORY_STAT_USABLE => memory.usable = kib,
                _ => {}
            }
        }
        Ok(Counters {
            state: read::state_word(info.state),
            vcpus: info.nr_virt_cpu,
            cpu_time_ns: info.cpu_time,
            memory_kib: info.memory,
            max_memory_kib: info.max_mem,
            memory,
            disks: disks.iter().map(disk).collect(),
            interfaces: interfaces.iter().map(interface).collect(),
        })
    }

    /// One command of the guest agent's protocol, JSON, and its answer. `deadline` counts in whole seconds, at least one.
    pub fn agent_command(&self, uuid: &str, command: &str, deadline: Duration) -> Answer<String> {
        let seconds = i32::try_from(deadline.as_secs().max(1)).unwrap_or(i32::MAX);
        self.domain(uuid)?
            .qemu_agent_command(command, seconds, 0)
            .map_err(|e| self.failed("ask the agent of", uuid, &e))
    }

    /// Opens the first console of a running domain, on a connection of its own: what a guest prints must not delay the
    /// answers for others. `sink` runs on the event loop's thread: it must not block. With `force` a session that another
    /// client of libvirt has is ended.
    pub fn open_console(
        &self,
        uuid: &str,
        force: bool,
        sink: impl Fn(Arrival<'_>) + Send + 'static,
    ) -> Answer<Console> {
        let link = Self::open(&self.uri)?;
        let domain = link.domain(uuid)?;
        // The console of a container is a terminal that any number may open, and its driver takes no flags.
        let flags = if force && link.is("QEMU") {
            sys::VIR_DOMAIN_CONSOLE_FORCE
        } else {
            0
        };
        let duplex = Duplex::open(
            &link.connect,
            |stream| domain.open_console(None, stream, flags),
            sink,
        )
        .map_err(|e| link.failed("open the console of", uuid, &e))?;
        Ok(Console {
            duplex,
            link,
            uuid: uuid.to_owned(),
        })
    }

    /// A picture of the first screen, in the format that the hypervisor likes: its MIME type and its bytes.
    pub fn screenshot(&self, uuid: &str) -> Answer<(String, Vec<u8>)> {
        let failed = |e| self.failed("take a picture of", uuid, &e);
        let domain = self.domain(uuid)?;
        let stream = Stream::new(&self.connect, 0).map_err(failed)?;
        let mime = domain.screenshot(&stream, 0, 0).map_err(failed)?;
        let mut bytes = Vec::new();
        let taken = Taken(&stream).take(SCREEN_BYTES + 1).read_to_end(&mut bytes);
        if let Err(error) = taken {
            let _ = stream.abort();
            return Err(other("take a picture of", uuid, error.to_string()));
        }
        if bytes.len() as u64 > SCREEN_BYTES {
            let _ = stream.abort();
            return Err(other(
                "take a picture of",
                uuid,
                "the screen is too large".to_owned(),
            ));
        }
        stream.finish().map_err(failed)?;
        Ok((mime, bytes))
    }
}

fn other(what: &'static str, uuid: &str, message: String) -> HypervisorError {
    HypervisorError::Refused {
        what,
        domain: uuid.to_owned(),
        source: LibvirtError {
            kind: LibvirtErrorKind::Other,
            message,
        },
    }
}

/// Reads a stream that waits.
struct Taken<'a>(&'a Stream);

impl Read for Taken<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let got = self
            .0
            .recv(buffer)
            .map_err(|e| std::io::Error::other(e.to_string()))?;
        usize::try_from(got).map_err(|_| std::io::Error::other("the stream has a hole"))
    }
}
