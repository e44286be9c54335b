//! What one look at the world showed. A failed look is an error and never gets here: "could not ask" must not look like
//! "is not there".

use std::collections::BTreeMap;
use std::time::Duration;

use super::metadata::{Applied, Metadata};
use super::plan::{Change, Device};

/// A moment on the agent's own clock: time since it started. Steady, and free of the calendar.
pub type Moment = Duration;

/// Everything a plan rests on.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Observed {
    /// The domain.
    pub domain: DomainState,
    /// The files.
    pub files: Files,
    /// Whether the file system with the disks has room for guests to write.
    pub room: bool,
    /// Whether want of room is what suspended the guest.
    pub no_space: bool,
    /// What this agent remembers.
    pub memory: Memory,
}

/// What libvirt says.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum DomainState {
    /// No domain has this UUID or name.
    #[default]
    Absent,
    /// The name or the UUID is taken by a domain without our metadata.
    Foreign {
        /// Its name.
        name: String,
        /// Its UUID.
        uuid: String,
    },
    /// It is ours.
    Ours(Box<OurDomain>),
}

/// A domain with our metadata.
#[derive(Clone, Debug, PartialEq)]
pub struct OurDomain {
    /// libvirt's name of it.
    pub name: String,
    /// libvirt's UUID of it.
    pub uuid: String,
    /// Whether it is active.
    pub power: Power,
    /// Whether its last run ended by itself without a shutdown: the guest panicked, or its QEMU died.
    pub crashed: bool,
    /// The configuration, with which it starts next.
    pub config: Definition,
    /// The running domain.
    pub live: Option<Definition>,
    /// Whether it has a configuration: one undefined while it ran has none.
    pub persistent: bool,
    /// libvirt's autostart flag.
    pub autostart: bool,
    /// Whether the guest agent has its channel open.
    pub agent_open: bool,
}

/// One of libvirt's two copies of a domain.
#[derive(Clone, Debug, PartialEq)]
pub struct Definition {
    /// Our metadata in it: what it was made to carry is `metadata.applied`.
    pub metadata: Metadata,
    /// What it carries, read from its XML: differs from the record when somebody else edited it.
    pub carries: Applied,
}

/// Whether a domain is active.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Power {
    /// Its CPUs run.
    Running,
    /// Its CPUs are suspended.
    Paused(PausedBy),
    /// It is inactive.
    Off,
}

/// Who suspended a domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PausedBy {
    /// Somebody asked for it.
    Request,
    /// QEMU, because its storage failed: see [`Observed::no_space`].
    IoError,
    /// The guest's power management; it sleeps.
    Sleep,
    /// The guest crashed, and its remains are kept.
    Crash,
}

/// Which finished files there are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Files {
    /// The root disk, and its size in MiB.
    pub root: Option<i64>,
    /// The seed.
    pub seed: bool,
    /// Disks beside the root disk, and their sizes in MiB.
    pub disks: BTreeMap<String, i64>,
    /// Anything at all that we made for this Instance.
    pub any: bool,
}

/// What this agent remembers of one Instance. All of it may be lost: that costs time (a grace period starts again, a
/// back-off is forgotten), never correctness.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Memory {
    /// The guest has been asked to shut down.
    pub asked: Option<Asked>,
    /// Starts that were soon followed by an end.
    pub starts: Starts,
    /// Live changes that the guest or QEMU refused since its start.
    pub refused: Vec<Change>,
    /// The balloon asked for last, in MiB, and when.
    pub balloon: Option<(i64, Moment)>,
    /// Devices that the guest was asked to let go of, and when.
    pub detaching: BTreeMap<Device, Moment>,
    /// When a guest that its storage suspended was last resumed.
    pub resumed: Option<Moment>,
    /// Every image that the Instance's files are made from is in the cache.
    pub images_cached: bool,
}

/// A shutdown that was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asked {
    /// When first.
    pub since: Moment,
    /// When last.
    pub last: Moment,
    /// How often.
    pub times: u32,
}

/// Recent starts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Starts {
    /// When last.
    pub last: Option<Moment>,
    /// How many in a row did not stay up.
    pub quick: u32,
}
