//! Domain events and the end of a connection, as calls of a closure.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use virt::connect::Connect;
use virt::error::Error;
use virt_sys as sys;

/// What a connection told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// Something happened to a domain.
    Domain {
        /// UUID of the domain, in the usual form with hyphens.
        uuid: String,
        /// Its name at that time.
        name: String,
        /// What happened.
        event: DomainEvent,
    },
    /// The connection is gone: its daemon ended, or did not answer keepalive.
    Closed,
}

/// What happened to a domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DomainEvent {
    /// It was defined, started, stopped, ...
    Lifecycle(Lifecycle),
    /// The guest rebooted itself; the domain stayed.
    Rebooted,
    /// The guest agent opened (true) or closed its channel.
    Agent {
        /// Whether it is there now.
        connected: bool,
    },
}

/// libvirt's lifecycle events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lifecycle {
    /// Defined or redefined.
    Defined,
    /// Undefined.
    Undefined,
    /// Started.
    Started,
    /// Suspended.
    Suspended,
    /// Resumed.
    Resumed,
    /// Stopped, for whatever reason.
    Stopped,
    /// The guest has begun to shut down.
    Shutdown,
    /// Suspended by the guest's power management.
    PmSuspended,
    /// Crashed.
    Crashed,
    /// One that this version does not know.
    Other(i32),
}

impl Lifecycle {
    fn from_raw(event: c_int) -> Self {
        match event {
            0 => Self::Defined,
            1 => Self::Undefined,
            2 => Self::Started,
            3 => Self::Suspended,
            4 => Self::Resumed,
            5 => Self::Stopped,
            6 => Self::Shutdown,
            7 => Self::PmSuspended,
            8 => Self::Crashed,
            other => Self::Other(other),
        }
    }
}

type Sink = Arc<dyn Fn(Notice) + Send + Sync>;

/// Registered callbacks; dropping it takes them back.
pub struct Subscription {
    connect: Connect,
    callbacks: Vec<c_int>,
}

impl Drop for Subscription {
    fn drop(&mut self) {
        for id in &self.callbacks {
            // SAFETY: `connect` owns a reference to the connection, so the pointer is valid; the id was returned by the
            // registration on this connection. Failure (the daemon is gone) leaves the callback registered, and libvirt
            // frees its `opaque` with the connection.
            unsafe { sys::virConnectDomainEventDeregisterAny(self.connect.as_ptr(), *id) };
        }
        let close: sys::virConnectCloseFunc = Some(on_close);
        // SAFETY: as above; `on_close` is the function that was registered, or none was and the call fails.
        unsafe { sys::virConnectUnregisterCloseCallback(self.connect.as_ptr(), close) };
    }
}

/// Calls `sink` for each lifecycle, reboot and agent event of any domain, and when the connection ends.
///
/// `sink` runs on the thread of the event loop: it must not block and must not call libvirt. Events that the driver
/// does not have (agent events of containers, the end of an in-process connection) are left out.
///
/// # Errors
/// When the driver has no lifecycle events, or the connection is gone.
pub fn subscribe(
    connect: &Connect,
    sink: impl Fn(Notice) + Send + Sync + 'static,
) -> Result<Subscription, Error> {
    let sink: Sink = Arc::new(sink);
    let mut subscription = Subscription {
        connect: connect.clone(),
        callbacks: Vec::new(),
    };
    // libvirt declares every callback as the generic type and calls it with the signature that belongs to the event id.
    let lifecycle: sys::virConnectDomainEventCallback = Some(lifecycle);
    // SAFETY: function pointers of different signatures have one size and representation, and libvirt calls what is
    // registered for LIFECYCLE with the signature of `lifecycle`.
    let lifecycle =
        unsafe { std::mem::transmute::<sys::virConnectDomainEventCallback, Registered>(lifecycle) };
    let agent: sys::virConnectDomainEventAgentLifecycleCallback = Some(agent);
    // SAFETY: as above, for AGENT_LIFECYCLE and the signature of `agent`.
    let agent =
        unsafe { std::mem::transmute::<sys::virConnectDomainEventAgentLifecycleCallback, Registered>(agent) };
    let first = register(connect, sys::VIR_DOMAIN_EVENT_ID_LIFECYCLE, lifecycle, &sink)?;
    subscription.callbacks.push(first);
    for (event, callback) in [
        (sys::VIR_DOMAIN_EVENT_ID_REBOOT, Some(reboot as Generic)),
        (sys::VIR_DOMAIN_EVENT_ID_AGENT_LIFECYCLE, agent),
    ] {
        if let Ok(id) = register(connect, event, callback, &sink) {
            subscription.callbacks.push(id);
        }
    }
    register_close(connect, &sink);
    Ok(subscription)
}

/// The type under which every callback is registered.
type Registered = sys::virConnectDomainEventGenericCallback;

type Generic = unsafe extern "C" fn(sys::virConnectPtr, sys::virDomainPtr, *mut c_void);

fn register(
    connect: &Connect,
    event: sys::virDomainEventID,
    callback: sys::virConnectDomainEventGenericCallback,
    sink: &Sink,
) -> Result<c_int, Error> {
    let opaque = into_opaque(sink);
    // SAFETY: the connection pointer is valid while `connect` lives; a null domain means "all domains"; `opaque` is a
    // leaked box that `callback` reads as a `Sink` and that `free_sink` frees exactly once: libvirt calls it when the
    // callback is deregistered or the connection is disposed of.
    let id = unsafe {
        sys::virConnectDomainEventRegisterAny(
            connect.as_ptr(),
            std::ptr::null_mut(),
            event.cast_signed(),
            callback,
            opaque,
            Some(free_sink),
        )
    };
    if id < 0 {
        let error = Error::last_error();
        // SAFETY: libvirt does not take `opaque` over when it refuses, so this is the only owner.
        unsafe { free_sink(opaque) };
        return Err(error);
    }
    Ok(id)
}

fn register_close(connect: &Connect, sink: &Sink) {
    let opaque = into_opaque(sink);
    // SAFETY: as in `register`; a connection takes one close callback, and refuses a second one. A driver without close
    // callbacks accepts and forgets them: the box then stays, once for each such connection.
    let refused = unsafe {
        sys::virConnectRegisterCloseCallback(connect.as_ptr(), Some(on_close), opaque, Some(free_sink)) < 0
    };
    if refused {
        // SAFETY: libvirt does not take `opaque` over when it refuses.
        unsafe { free_sink(opaque) };
    }
}

fn into_opaque(sink: &Sink) -> *mut c_void {
    Box::into_raw(Box::new(Arc::clone(sink))).cast()
}

/// Frees what [`into_opaque`] leaked.
///
/// # Safety
/// `opaque` comes from `into_opaque` and is not used again.
unsafe extern "C" fn free_sink(opaque: *mut c_void) {
    // SAFETY: by the contract of this function.
    drop(unsafe { Box::from_raw(opaque.cast::<Sink>()) });
}

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

unsafe extern "C" fn lifecycle(
    _connect: sys::virConnectPtr,
    domain: sys::virDomainPtr,
    event: c_int,
    _detail: c_int,
    opaque: *mut c_void,
) -> c_int {
    // SAFETY: libvirt calls this with a valid domain and the `opaque` of the registration.
    unsafe {
        if let Some(notice) = notice(domain, DomainEvent::Lifecycle(Lifecycle::from_raw(event))) {
            deliver(opaque, notice);
        }
    }
    0
}

unsafe extern "C" fn reboot(_connect: sys::virConnectPtr, domain: sys::virDomainPtr, opaque: *mut c_void) {
    // SAFETY: libvirt calls this with a valid domain and the `opaque` of the registration.
    unsafe {
        if let Some(notice) = notice(domain, DomainEvent::Rebooted) {
            deliver(opaque, notice);
        }
    }
}

unsafe extern "C" fn agent(
    _connect: sys::virConnectPtr,
    domain: sys::virDomainPtr,
    state: c_int,
    _reason: c_int,
    opaque: *mut c_void,
) {
    // VIR_CONNECT_DOMAIN_EVENT_AGENT_LIFECYCLE_STATE_CONNECTED
    let connected = state == 1;
    // SAFETY: libvirt calls this with a valid domain and the `opaque` of the registration.
    unsafe {
        if let Some(notice) = notice(domain, DomainEvent::Agent { connected }) {
            deliver(opaque, notice);
        }
    }
}

unsafe extern "C" fn on_close(_connect: sys::virConnectPtr, _reason: c_int, opaque: *mut c_void) {
    // SAFETY: libvirt calls this with the `opaque` of the registration.
    unsafe { deliver(opaque, Notice::Closed) };
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_domain_that_starts_is_heard_of_until_the_subscription_ends() {
        crate::start_event_loop().unwrap();
        virt::error::clear_error_callback();
        let connect = Connect::open(Some("test:///default")).unwrap();
        let (tx, rx) = mpsc::channel();
        let subscription = subscribe(&connect, move |notice| drop(tx.send(notice))).unwrap();
        let xml =
            "<domain type='test'><name>heard</name><memory>1024</memory><os><type>hvm</type></os></domain>";
        let domain = connect.define_domain_xml(xml).unwrap();
        domain.create().unwrap();
        let uuid = domain.uuid_string().unwrap();
        let mut seen = Vec::new();
        while !seen.contains(&DomainEvent::Lifecycle(Lifecycle::Started)) {
            match rx.recv_timeout(Duration::from_secs(20)).unwrap() {
                Notice::Domain {
                    uuid: of,
                    name,
                    event,
                } => {
                    assert_eq!((of.as_str(), name.as_str()), (uuid.as_str(), "heard"));
                    seen.push(event);
                }
                Notice::Closed => panic!("the connection is open"),
            }
        }
        assert_eq!(seen[0], DomainEvent::Lifecycle(Lifecycle::Defined));
        drop(subscription);
        domain.destroy().unwrap();
        domain.undefine().unwrap();
        assert_eq!(
            rx.recv_timeout(Duration::from_secs(1)),
            Err(mpsc::RecvTimeoutError::Timeout)
        );
    }
}
