//! libvirt's default event loop, once for each process.

use std::sync::OnceLock;

use virt::error::Error;

/// Registers libvirt's default event implementation and runs it on a thread of its own, for the life of the process.
///
/// Must be called before the first connection is opened: a connection made earlier has no event loop. Calling it again
/// does nothing and repeats the first answer.
///
/// # Errors
/// When libvirt refuses to register the implementation, or no thread can be made.
pub fn start_event_loop() -> Result<(), String> {
    static STARTED: OnceLock<Result<(), String>> = OnceLock::new();
    STARTED
        .get_or_init(|| {
            virt::event::event_register_default_impl().map_err(|e| e.to_string())?;
            keep_awake().map_err(|e| e.to_string())?;
            std::thread::Builder::new()
                .name("libvirt-events".to_owned())
                .spawn(run)
                .map(drop)
                .map_err(|e| e.to_string())
        })
        .clone()
}

fn run() {
    loop {
        if virt::event::event_run_default_impl().is_err() {
            // The loop has no cause of its own to fail; do not spin should it have found one.
            std::thread::sleep(std::time::Duration::from_millis(100));
        }
    }
}

/// A timer that does nothing, so that an iteration of the loop ends now and then whatever else is registered.
fn keep_awake() -> Result<(), Error> {
    extern "C" fn tick(_timer: libc::c_int, _opaque: *mut libc::c_void) {}
    // SAFETY: the default implementation has been registered just before. The callback is a plain function that uses
    // neither argument, so the null `opaque` is never read, and there is nothing to free.
    let timer = unsafe { virt_sys::virEventAddTimeout(5_000, Some(tick), std::ptr::null_mut(), None) };
    if timer < 0 {
        Err(Error::last_error())
    } else {
        Ok(())
    }
}
