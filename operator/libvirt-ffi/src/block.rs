//! Block jobs of a running domain: copying a disk while the guest writes to it.

use std::ffi::CString;

use virt::domain::Domain;
use virt::error::Error;
use virt_sys as sys;

/// A block job under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockJob {
    /// What it does.
    pub kind: BlockJobKind,
    /// How far it is, in a unit of its own.
    pub done: u64,
    /// Where it ends, in the same unit. May grow while the guest writes; 0 before the job knows.
    pub end: u64,
}

impl BlockJob {
    /// Whether all was copied that there is. Of a copy, that is not yet "ready": the live XML says so by `ready='yes'` in
    /// the disk's `<mirror>`, and [`crate::DomainEvent::BlockJob`] tells.
    #[must_use]
    pub const fn is_through(&self) -> bool {
        self.end > 0 && self.done == self.end
    }
}

/// What a block job does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockJobKind {
    /// Copies the disk to another file.
    Copy,
    /// Another one of libvirt's kinds, which `VirtShell` does not start.
    Other(i32),
}

/// How a block job is ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndBlockJob {
    /// The domain keeps its disk. The target of a copy that was ready holds what the disk held at this instant.
    Abort,
    /// The domain goes on with the copy as its disk; only of a copy that is ready.
    Pivot,
}

/// What of a disk is copied, and into what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CopyInto {
    /// Everything, into a file that libvirt makes, which it refuses over a file that is there.
    New,
    /// What the disk's topmost file holds, into a file that is there already: with the disk's size, and resting on what
    /// that file rests on.
    Layer,
}

/// Begins to copy the disk `disk` (its target, such as `vda`, or its path) into the target that `target_xml` describes: a
/// `<disk>` element with `<source>` and `<driver>`. Returns once the copy runs.
///
/// The job does not survive the domain, which therefore may be persistent.
///
/// # Errors
/// What libvirt says.
pub fn block_copy(domain: &Domain, disk: &str, target_xml: &str, into: CopyInto) -> Result<(), Error> {
    let disk = c_string(disk);
    let target = c_string(target_xml);
    let flags = sys::VIR_DOMAIN_BLOCK_COPY_TRANSIENT_JOB
        | match into {
            CopyInto::New => 0,
            CopyInto::Layer => sys::VIR_DOMAIN_BLOCK_COPY_SHALLOW | sys::VIR_DOMAIN_BLOCK_COPY_REUSE_EXT,
        };
    // SAFETY: `domain` owns a reference to the domain, so its pointer is valid during the call; both strings are
    // terminated, outlive the call and are only read; no parameters are given, so null with a count of 0 is right.
    let outcome = unsafe {
        sys::virDomainBlockCopy(
            domain.as_ptr(),
            disk.as_ptr(),
            target.as_ptr(),
            std::ptr::null_mut(),
            0,
            flags,
        )
    };
    checked(outcome).map(drop)
}

/// The block job of a disk (its target or its path), if one runs.
///
/// # Errors
/// What libvirt says.
pub fn block_job(domain: &Domain, disk: &str) -> Result<Option<BlockJob>, Error> {
    let disk = c_string(disk);
    let mut info = sys::virDomainBlockJobInfo {
        type_: 0,
        bandwidth: 0,
        cur: 0,
        end: 0,
    };
    // SAFETY: the domain's pointer and the string are valid during the call, as above; `info` is a whole structure of the
    // type that libvirt writes to, and is read after the call alone.
    let outcome = unsafe { sys::virDomainGetBlockJobInfo(domain.as_ptr(), disk.as_ptr(), &raw mut info, 0) };
    Ok((checked(outcome)? > 0).then(|| BlockJob {
        kind: if info.type_ == sys::VIR_DOMAIN_BLOCK_JOB_TYPE_COPY.cast_signed() {
            BlockJobKind::Copy
        } else {
            BlockJobKind::Other(info.type_)
        },
        done: info.cur,
        end: info.end,
    }))
}

/// Ends the block job of a disk (its target or its path), and waits until it has ended.
///
/// # Errors
/// What libvirt says: no job, not ready to pivot.
pub fn end_block_job(domain: &Domain, disk: &str, how: EndBlockJob) -> Result<(), Error> {
    let disk = c_string(disk);
    let flags = match how {
        EndBlockJob::Abort => 0,
        EndBlockJob::Pivot => sys::VIR_DOMAIN_BLOCK_JOB_ABORT_PIVOT,
    };
    // SAFETY: the domain's pointer and the string are valid during the call, and libvirt only reads the string.
    let outcome = unsafe { sys::virDomainBlockJobAbort(domain.as_ptr(), disk.as_ptr(), flags) };
    checked(outcome).map(drop)
}

/// The text up to its first zero byte, which is all that C would see of it; libvirt refuses what makes no sense then.
fn c_string(text: &str) -> CString {
    CString::new(text.split('\0').next().unwrap_or_default()).unwrap_or_default()
}

fn checked(outcome: i32) -> Result<i32, Error> {
    if outcome < 0 {
        Err(Error::last_error())
    } else {
        Ok(outcome)
    }
}
