//! Why QEMU suspended a guest whose disk failed.

use std::ffi::{CStr, c_int};

use virt::domain::Domain;
use virt::error::Error;
use virt_sys as sys;

/// A disk that failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskError {
    /// Its target, such as `vda`.
    pub disk: String,
    /// The storage had no room, rather than any other fault.
    pub no_space: bool,
}

/// The disks of a running domain on which a read or a write failed and that were not resumed since. QEMU is asked.
///
/// # Errors
/// What libvirt says; drivers without QEMU do not know.
pub fn disk_errors(domain: &Domain) -> Result<Vec<DiskError>, Error> {
    // SAFETY: `domain` owns a reference to the domain, so its pointer is valid during the call; without a buffer and with
    // a count of 0 the call writes nothing and returns how many entries there may be.
    let most = count(unsafe { sys::virDomainGetDiskErrors(domain.as_ptr(), std::ptr::null_mut(), 0, 0) })?;
    let empty = sys::virDomainDiskError {
        disk: std::ptr::null_mut(),
        error: 0,
    };
    let mut found = vec![empty; most as usize];
    // SAFETY: as above; `found` has room for as many entries as are announced, and outlives the call, which writes at most
    // so many.
    let written = unsafe { sys::virDomainGetDiskErrors(domain.as_ptr(), found.as_mut_ptr(), most, 0) };
    let written = count(written)?;
    found.truncate(written as usize);
    Ok(found.into_iter().map(taken).collect())
}

fn count(answer: c_int) -> Result<u32, Error> {
    u32::try_from(answer).map_err(|_| Error::last_error())
}

/// Takes over what libvirt allocated.
fn taken(raw: sys::virDomainDiskError) -> DiskError {
    let disk = if raw.disk.is_null() {
        String::new()
    } else {
        // SAFETY: libvirt wrote a terminated string that belongs to the caller, who frees it with `free`; it is copied
        // before, and nothing else has the pointer.
        unsafe {
            let name = CStr::from_ptr(raw.disk).to_string_lossy().into_owned();
            libc::free(raw.disk.cast());
            name
        }
    };
    DiskError {
        disk,
        no_space: u32::try_from(raw.error) == Ok(sys::VIR_DOMAIN_DISK_ERROR_NO_SPACE),
    }
}
