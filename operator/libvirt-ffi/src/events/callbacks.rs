//! What libvirt calls, one function for each signature of its events.

use std::ffi::{CStr, c_char, c_int, c_ulonglong, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};

use virt_sys as sys;

use super::{BlockJobStatus, DomainEvent, Lifecycle, Notice, Sink};

/// Calls the sink; a panic must not unwind into C.
///
/// # Safety
/// `opaque` comes from `into_opaque` and has not been freed: libvirt frees it only after the last call.
unsafe fn deliver(opaque: *mut c_void, notice: Notice) {
    // SAFETY: by the contract of this function.
    let sink = unsafe { &*opaque.cast::<Sink>() };
    let _ = catch_unwind(AssertUnwindSafe(|| sink(notice)));
}

/// # Safety
/// `domain` is a valid domain for the time of the call, as libvirt gives it to event callbacks.
unsafe fn notice(domain: sys::virDomainPtr, event: DomainEvent) -> Option<Notice> {
    let mut buffer: [c_char; sys::VIR_UUID_STRING_BUFLEN as usize] =
        [0; sys::VIR_UUID_STRING_BUFLEN as usize];
    // SAFETY: both calls only read the client's copy of the domain; the buffer has the length that libvirt asks for and
    // is terminated by it. The name belongs to the domain, and is copied before the callback returns.
    unsafe {
        if sys::virDomainGetUUIDString(domain, buffer.as_mut_ptr()) < 0 {
            return None;
        }
        let name = sys::virDomainGetName(domain);
        if name.is_null() {
            return None;
        }
        Some(Notice::Domain {
            uuid: CStr::from_ptr(buffer.as_ptr()).to_string_lossy().into_owned(),
            name: CStr::from_ptr(name).to_string_lossy().into_owned(),
            event,
        })
    }
}

/// Tells the sink of an event.
///
/// # Safety
/// `domain` is a valid domain and `opaque` that of the registration: what libvirt calls every callback with.
unsafe fn tell(domain: sys::virDomainPtr, opaque: *mut c_void, event: DomainEvent) {
    // SAFETY: by the contract of this function.
    unsafe {
        if let Some(notice) = notice(domain, event) {
            deliver(opaque, notice);
        }
    }
}

/// A copy of a string of libvirt's; `None` where it gives none.
///
/// # Safety
/// `text` is null, or a terminated string that stays as it is during the call.
unsafe fn text(text: *const c_char) -> Option<String> {
    if text.is_null() {
        return None;
    }
    // SAFETY: by the contract of this function.
    Some(unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned())
}

// Strings given to a callback belong to libvirt and live until it returns; all are copied before.

pub(super) unsafe extern "C" fn lifecycle(
    _connect: sys::virConnectPtr,
    domain: sys::virDomainPtr,
    event: c_int,
    _detail: c_int,
    opaque: *mut c_void,
) -> c_int {
    let event = DomainEvent::Lifecycle(Lifecycle::from_raw(event));
    // SAFETY: libvirt calls this with a valid domain and the `opaque` of the registration.
    unsafe { tell(domain, opaque, event) };
    0
}

pub(super) unsafe extern "C" fn reboot(
    _connect: sys::virConnectPtr,
    domain: sys::virDomainPtr,
    opaque: *mut c_void,
) {
    // SAFETY: libvirt calls this with a valid domain and the `opaque` of the registration.
    unsafe { tell(domain, opaque, DomainEvent::Rebooted) };
}

pub(super) unsafe extern "C" fn agent(
    _connect: sys::virConnectPtr,
    domain: sys::virDomainPtr,
    state: c_int,
    _reason: c_int,
    opaque: *mut c_void,
) {
    // VIR_CONNECT_DOMAIN_EVENT_AGENT_LIFECYCLE_STATE_CONNECTED
    let connected = state == 1;
    // SAFETY: libvirt calls this with a valid domain and the `opaque` of the registration.
    unsafe { tell(domain, opaque, DomainEvent::Agent { connected }) };
}

/// # Safety
/// `domain`, `alias` and `opaque` are what libvirt gives to the callback of a device event.
unsafe fn device(
    domain: sys::virDomainPtr,
    alias: *const c_char,
    opaque: *mut c_void,
    event: impl FnOnce(String) -> DomainEvent,
) {
    // SAFETY: by the contract of this function.
    unsafe {
        let alias = text(alias).unwrap_or_default();
        tell(domain, opaque, event(alias));
    }
}

pub(super) unsafe extern "C" fn device_added(
    _connect: sys::virConnectPtr,
    domain: sys::virDomainPtr,
    alias: *const c_char,
    opaque: *mut c_void,
) {
    // SAFETY: libvirt calls this with a valid domain, the device's alias, and the `opaque` of the registration.
    unsafe { device(domain, alias, opaque, |alias| DomainEvent::DeviceAdded { alias }) };
}

pub(super) unsafe extern "C" fn device_removed(
    _connect: sys::virConnectPtr,
    domain: sys::virDomainPtr,
    alias: *const c_char,
    opaque: *mut c_void,
) {
    // SAFETY: libvirt calls this with a valid domain, the device's alias, and the `opaque` of the registration.
    unsafe {
        device(domain, alias, opaque, |alias| DomainEvent::DeviceRemoved {
            alias,
        });
    }
}

pub(super) unsafe extern "C" fn device_removal_failed(
    _connect: sys::virConnectPtr,
    domain: sys::virDomainPtr,
    alias: *const c_char,
    opaque: *mut c_void,
) {
    // SAFETY: libvirt calls this with a valid domain, the device's alias, and the `opaque` of the registration.
    unsafe {
        device(domain, alias, opaque, |alias| DomainEvent::DeviceRemovalFailed {
            alias,
        });
    }
}

pub(super) unsafe extern "C" fn block_job(
    _connect: sys::virConnectPtr,
    domain: sys::virDomainPtr,
    disk: *const c_char,
    _kind: c_int,
    status: c_int,
    opaque: *mut c_void,
) {
    let status = BlockJobStatus::from_raw(status);
    // SAFETY: libvirt calls this with a valid domain, the disk's target, and the `opaque` of the registration.
    unsafe {
        let disk = text(disk).unwrap_or_default();
        tell(domain, opaque, DomainEvent::BlockJob { disk, status });
    }
}

pub(super) unsafe extern "C" fn io_error(
    _connect: sys::virConnectPtr,
    domain: sys::virDomainPtr,
    _path: *const c_char,
    alias: *const c_char,
    action: c_int,
    reason: *const c_char,
    opaque: *mut c_void,
) {
    // VIR_DOMAIN_EVENT_IO_ERROR_PAUSE
    let paused = action == 1;
    // SAFETY: libvirt calls this with a valid domain, the disk's alias, a word for the cause, and the `opaque` of the
    // registration.
    unsafe {
        let (alias, reason) = (text(alias).unwrap_or_default(), text(reason).unwrap_or_default());
        let event = DomainEvent::IoError {
            alias,
            reason,
            paused,
        };
        tell(domain, opaque, event);
    }
}

pub(super) unsafe extern "C" fn metadata_changed(
    _connect: sys::virConnectPtr,
    domain: sys::virDomainPtr,
    _kind: c_int,
    uri: *const c_char,
    opaque: *mut c_void,
) {
    // SAFETY: libvirt calls this with a valid domain, a namespace or null, and the `opaque` of the registration.
    unsafe {
        let uri = text(uri);
        tell(domain, opaque, DomainEvent::MetadataChanged { uri });
    }
}

pub(super) unsafe extern "C" fn balloon_changed(
    _connect: sys::virConnectPtr,
    domain: sys::virDomainPtr,
    actual: c_ulonglong,
    opaque: *mut c_void,
) {
    let event = DomainEvent::BalloonChanged { memory_kib: actual };
    // SAFETY: libvirt calls this with a valid domain and the `opaque` of the registration.
    unsafe { tell(domain, opaque, event) };
}

pub(super) unsafe extern "C" fn on_close(_connect: sys::virConnectPtr, _reason: c_int, opaque: *mut c_void) {
    // SAFETY: libvirt calls this with the `opaque` of the registration.
    unsafe { deliver(opaque, Notice::Closed) };
}
