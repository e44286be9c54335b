//! Room on the file system of the data directory.

use std::path::{Path, PathBuf};

use super::error::StorageError;

const MIB: u64 = 1 << 20;

/// Room where images and disks are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// Size of the file system in MiB.
    pub total_mib: u64,
    /// What the agent could still write, in MiB.
    pub free_mib: u64,
    /// What the agent leaves free, in MiB: guests write into the same file system.
    pub keep_mib: u64,
}

impl Room {
    /// Whether so little is left that no new guest should come here.
    #[must_use]
    pub const fn is_nearly_full(&self) -> bool {
        self.free_mib <= self.keep_mib
    }

    /// MiB to free where it is nearly full, so that it is not at once again: twice what is kept free.
    #[must_use]
    pub const fn shortage_mib(&self) -> u64 {
        if self.is_nearly_full() {
            (2 * self.keep_mib).saturating_sub(self.free_mib)
        } else {
            0
        }
    }

    /// Whether `need` bytes fit, with what is kept free.
    const fn fits(&self, need: u64) -> bool {
        self.free_mib >= self.keep_mib + need.div_ceil(MIB)
    }
}

/// Looks after the room of one directory.
#[derive(Clone, Debug)]
pub(super) struct RoomGuard {
    pub path: PathBuf,
    pub keep_mib: u64,
}

impl RoomGuard {
    pub(super) fn now(&self) -> Result<Room, StorageError> {
        let stat = nix::sys::statvfs::statvfs(&self.path)
            .map_err(std::io::Error::from)
            .map_err(StorageError::disk("asking for room on", &self.path))?;
        let mib = |blocks: u64| blocks * stat.fragment_size() / MIB;
        Ok(Room {
            total_mib: mib(stat.blocks()),
            free_mib: mib(stat.blocks_available()),
            keep_mib: self.keep_mib,
        })
    }

    /// Fails when `need` bytes for `what` would not fit.
    pub(super) fn check(&self, what: &str, need: u64) -> Result<(), StorageError> {
        let room = self.now()?;
        if room.fits(need) {
            return Ok(());
        }
        Err(no_room(&self.path, what, need, &room))
    }

    /// A failed write: no room where it was that, else the failure itself.
    pub(super) fn write_error(&self, what: &str, path: &Path, error: std::io::Error) -> StorageError {
        if is_no_room(&error)
            && let Ok(room) = self.now()
        {
            return no_room(&self.path, what, 1, &room);
        }
        StorageError::disk("writing", path)(error)
    }
}

fn no_room(path: &Path, what: &str, need: u64, room: &Room) -> StorageError {
    StorageError::NoRoom {
        path: path.to_owned(),
        what: what.to_owned(),
        need_mib: need.div_ceil(MIB),
        free_mib: room.free_mib,
        keep_mib: room.keep_mib,
    }
}

fn is_no_room(error: &std::io::Error) -> bool {
    matches!(
        error.kind(),
        std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fits() {
        let room = Room {
            total_mib: 10_000,
            free_mib: 600,
            keep_mib: 512,
        };
        for (need, expected) in [
            (0, true),
            (88 * MIB, true),
            (88 * MIB + 1, false),
            (u64::MAX / 2, false),
        ] {
            assert_eq!(room.fits(need), expected, "{need}");
        }
        assert!(!room.is_nearly_full());
        for (free_mib, shortage) in [(600, 0), (513, 0), (512, 512), (100, 924)] {
            let room = Room { free_mib, ..room };
            assert_eq!(room.shortage_mib(), shortage, "{free_mib}");
        }
        assert!(
            Room {
                free_mib: 512,
                ..room
            }
            .is_nearly_full()
        );
    }

    #[test]
    fn a_request_beyond_the_disk_says_what_is_free() {
        let guard = RoomGuard {
            path: "/tmp".into(),
            keep_mib: 1,
        };
        guard.check("image i", 0).unwrap();
        let error = guard.check("image i", 1 << 60).expect_err("no disk is that big");
        assert_eq!(error.reason(), "NoRoom");
        assert!(
            error.to_string().starts_with("no room in /tmp: image i needs "),
            "{error}"
        );
    }
}
