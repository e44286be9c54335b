//! Domain events and the end of a connection, as calls of a closure.

mod callbacks;

use std::ffi::{c_int, c_void};
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
///
/// Devices are named by libvirt's alias, as in the live XML (`<alias name='...'/>`).
#[derive(Clone, Debug, PartialEq, Eq)]
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
    /// A device is there.
    DeviceAdded {
        /// Of the device.
        alias: String,
    },
    /// The guest has let go of a device, and it is gone.
    DeviceRemoved {
        /// Of the device.
        alias: String,
    },
    /// The guest refused to let go of a device, which stays.
    DeviceRemovalFailed {
        /// Of the device.
        alias: String,
    },
    /// A block job became ready or ended.
    BlockJob {
        /// The disk's target in the guest, such as `vda`.
        disk: String,
        /// What the job has come to.
        status: BlockJobStatus,
    },
    /// The host could not read or write for the guest.
    IoError {
        /// Of the disk.
        alias: String,
        /// libvirt's word for the cause: `enospc`, `eperm`, `eio`; empty when it does not know one.
        reason: String,
        /// Whether the guest was paused for it; else the error was reported to the guest, or ignored.
        paused: bool,
    },
    /// Its metadata was written or removed, by us or by others.
    MetadataChanged {
        /// Namespace of the element; absent for title and description.
        uri: Option<String>,
    },
    /// The guest's balloon has another size.
    BalloonChanged {
        /// What the guest has now, in KiB.
        memory_kib: u64,
    },
}

/// What a block job has come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockJobStatus {
    /// It did all of its work.
    Completed,
    /// It stopped at an error.
    Failed,
    /// It was aborted; of a copy that was ready, the target is complete.
    Canceled,
    /// Source and target are the same from now on: it can be ended.
    Ready,
    /// One that this version does not know.
    Other(i32),
}

impl BlockJobStatus {
    pub(crate) fn from_raw(status: c_int) -> Self {
        match status {
            0 => Self::Completed,
            1 => Self::Failed,
            2 => Self::Canceled,
            3 => Self::Ready,
            other => Self::Other(other),
        }
    }
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
    pub(crate) fn from_raw(event: c_int) -> Self {
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
        let close: sys::virConnectCloseFunc = Some(callbacks::on_close);
        // SAFETY: as above; `on_close` is the function that was registered, or none was and the call fails.
        unsafe { sys::virConnectUnregisterCloseCallback(self.connect.as_ptr(), close) };
    }
}

/// The type under which every callback is registered.
type Registered = sys::virConnectDomainEventGenericCallback;

/// A callback of [`callbacks`] as the generic type; the compiler checks it against what libvirt declares for its event.
macro_rules! generic {
    ($callback:ident as $declared:ident) => {{
        let declared: sys::$declared = Some(callbacks::$callback);
        // SAFETY: function pointers of different signatures have one size and representation. libvirt takes every
        // callback as the generic type, and calls it with the signature that it declares for the event id: the one that
        // the line above has checked.
        unsafe { std::mem::transmute::<sys::$declared, Registered>(declared) }
    }};
}

/// Calls `sink` for each [`DomainEvent`] of any domain, and when the connection ends.
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
    let lifecycle = generic!(lifecycle as virConnectDomainEventCallback);
    let first = register(connect, sys::VIR_DOMAIN_EVENT_ID_LIFECYCLE, lifecycle, &sink)?;
    subscription.callbacks.push(first);
    let more: [(sys::virDomainEventID, Registered); 9] = [
        (sys::VIR_DOMAIN_EVENT_ID_REBOOT, Some(callbacks::reboot)),
        (
            sys::VIR_DOMAIN_EVENT_ID_AGENT_LIFECYCLE,
            generic!(agent as virConnectDomainEventAgentLifecycleCallback),
        ),
        (
            sys::VIR_DOMAIN_EVENT_ID_DEVICE_ADDED,
            generic!(device_added as virConnectDomainEventDeviceAddedCallback),
        ),
        (
            sys::VIR_DOMAIN_EVENT_ID_DEVICE_REMOVED,
            generic!(device_removed as virConnectDomainEventDeviceRemovedCallback),
        ),
        (
            sys::VIR_DOMAIN_EVENT_ID_DEVICE_REMOVAL_FAILED,
            generic!(device_removal_failed as virConnectDomainEventDeviceRemovalFailedCallback),
        ),
        (
            sys::VIR_DOMAIN_EVENT_ID_BLOCK_JOB_2,
            generic!(block_job as virConnectDomainEventBlockJobCallback),
        ),
        (
            sys::VIR_DOMAIN_EVENT_ID_IO_ERROR_REASON,
            generic!(io_error as virConnectDomainEventIOErrorReasonCallback),
        ),
        (
            sys::VIR_DOMAIN_EVENT_ID_METADATA_CHANGE,
            generic!(metadata_changed as virConnectDomainEventMetadataChangeCallback),
        ),
        (
            sys::VIR_DOMAIN_EVENT_ID_BALLOON_CHANGE,
            generic!(balloon_changed as virConnectDomainEventBalloonChangeCallback),
        ),
    ];
    for (event, callback) in more {
        if let Ok(id) = register(connect, event, callback, &sink) {
            subscription.callbacks.push(id);
        }
    }
    register_close(connect, &sink);
    Ok(subscription)
}

fn register(
    connect: &Connect,
    event: sys::virDomainEventID,
    callback: Registered,
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
        sys::virConnectRegisterCloseCallback(
            connect.as_ptr(),
            Some(callbacks::on_close),
            opaque,
            Some(free_sink),
        ) < 0
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

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use virt::domain::Domain;

    use super::*;

    /// A domain in a world of its own: `test:///default` is one for the whole process.
    fn world(domain: &str) -> (Connect, Domain) {
        crate::start_event_loop().unwrap();
        virt::error::clear_error_callback();
        let file = std::env::temp_dir().join(format!("libvirt-ffi-{}-{domain}.xml", std::process::id()));
        std::fs::write(&file, "<node/>").unwrap();
        let connect = Connect::open(Some(&format!("test://{}", file.display())));
        std::fs::remove_file(file).unwrap();
        let connect = connect.unwrap();
        let xml = format!(
            "<domain type='test'><name>{domain}</name><memory>1024</memory><os><type>hvm</type></os></domain>"
        );
        let domain = connect.define_domain_xml(&xml).unwrap();
        (connect, domain)
    }

    fn about(domain: &Domain, event: DomainEvent) -> Notice {
        Notice::Domain {
            uuid: domain.uuid_string().unwrap(),
            name: domain.name().unwrap(),
            event,
        }
    }

    #[test]
    fn a_domain_that_starts_is_heard_of_until_the_subscription_ends() {
        let (connect, domain) = world("heard");
        let (tx, rx) = mpsc::channel();
        let subscription = subscribe(&connect, move |notice| drop(tx.send(notice))).unwrap();
        domain.create().unwrap();
        assert_eq!(
            rx.recv_timeout(Duration::from_secs(20)).unwrap(),
            about(&domain, DomainEvent::Lifecycle(Lifecycle::Started))
        );
        drop(subscription);
        domain.destroy().unwrap();
        domain.undefine().unwrap();
        let after = rx.recv_timeout(Duration::from_secs(1));
        assert!(after.is_err(), "{after:?}");
    }

    #[test]
    fn a_change_of_metadata_is_heard_of_with_its_namespace() {
        let (connect, domain) = world("told");
        let (tx, rx) = mpsc::channel();
        let _subscription = subscribe(&connect, move |notice| drop(tx.send(notice))).unwrap();
        let kind = sys::VIR_DOMAIN_METADATA_ELEMENT.cast_signed();
        let copy = sys::VIR_DOMAIN_AFFECT_CONFIG;
        domain
            .set_metadata(kind, Some("<i/>"), Some("p"), Some("urn:ours"), copy)
            .unwrap();
        let changed = DomainEvent::MetadataChanged {
            uri: Some("urn:ours".to_owned()),
        };
        assert_eq!(
            rx.recv_timeout(Duration::from_secs(20)).unwrap(),
            about(&domain, changed)
        );
    }
}
