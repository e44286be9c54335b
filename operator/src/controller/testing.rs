//! What several tests of the controller use.

use virtshell_crds::HostType;

use super::placement::{Candidate, Reach, Used};

/// A host that can take anything that fits, with nothing on it.
pub fn roomy(name: &str, memory_mib: i64, disk_mib: i64) -> Candidate<'_> {
    Candidate {
        name,
        reach: Reach::Inside,
        enabled: true,
        has_its_name: true,
        type_: HostType::GeneralPurpose,
        offers_driver: true,
        ready: true,
        has_room: true,
        memory_mib,
        disk_mib,
        used: Used::default(),
    }
}

/// Numbers that look random and are the same for the same seed (the `SplitMix64` generator), so that a failure can be run again.
pub struct Random(u64);

impl Random {
    /// A sequence of its own for each seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// A number below `limit`.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z ^ (z >> 31)) % limit
    }
}
