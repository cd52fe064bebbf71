//! Eventfds that can be replaced while they are in use, as a front-end replaces them on a started ring.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::common::{PATIENCE, is_readable};

/// The eventfd in force; clones share it.
#[derive(Debug, Clone)]
pub struct SharedEventFd(Arc<Mutex<Arc<EventFd>>>);

impl SharedEventFd {
    /// An eventfd that nobody has written to.
    pub fn new() -> Self {
        Self(Arc::new(Mutex::new(Arc::new(event()))))
    }

    /// The eventfd in force.
    pub fn current(&self) -> Arc<EventFd> {
        Arc::clone(&self.0.lock().unwrap())
    }

    /// Notifies once.
    pub fn signal(&self) {
        self.0.lock().unwrap().write(1).unwrap();
    }

    /// Puts another eventfd in force, which `announce` tells the back-end. Nobody signals meanwhile: what was
    /// signalled before went to the old one, and what comes later goes to the new one.
    pub fn replace(&self, announce: impl FnOnce(&EventFd)) {
        let mut current = self.0.lock().unwrap();
        let event = event();
        announce(&event);
        *current = Arc::new(event);
    }

    /// Whether a notification has come that was not taken.
    pub fn is_signalled(&self) -> bool {
        is_readable(&*self.current(), Duration::ZERO)
    }

    /// Takes the notifications that have come; returns how many.
    pub fn take(&self) -> u64 {
        self.current().read().unwrap_or(0)
    }

    /// Waits for a notification and takes it.
    pub fn wait(&self, what: &str) {
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            let event = self.current();
            // Not longer, since another eventfd may be put in force meanwhile.
            if is_readable(&*event, Duration::from_millis(20)) && event.read().is_ok() {
                return;
            }
        }
        panic!("waited {PATIENCE:?} in vain for a notification: {what}");
    }
}

/// An eventfd that does not block.
pub fn event() -> EventFd {
    EventFd::new(EFD_NONBLOCK).unwrap()
}
