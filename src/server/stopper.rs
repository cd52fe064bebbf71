//! What wakes the acceptor's thread, and stops the server.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// Asks a server to stop; returns at once.
#[derive(Debug, Clone)]
pub struct Stopper {
    is_stopping: Arc<AtomicBool>,
    wake: Arc<EventFd>,
}

impl Stopper {
    /// Stops the server, as often as it is called.
    pub fn stop(&self) {
        self.is_stopping.store(true, Ordering::Release);
        self.wake();
    }

    /// Has the acceptor look for commands.
    pub(super) fn wake(&self) {
        // Only a full counter can fail, and that wakes as well.
        let _ = self.wake.write(1);
    }

    /// # Errors
    /// No descriptor is left.
    pub(super) fn new() -> io::Result<Self> {
        let wake = Arc::new(EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?);
        Ok(Self { is_stopping: Arc::default(), wake })
    }

    /// Whether the server was asked to stop.
    pub(super) fn is_stopping(&self) -> bool {
        self.is_stopping.load(Ordering::Acquire)
    }

    /// What [`wake`](Self::wake) makes readable, and [`rest`](Self::rest) takes back.
    pub(super) fn event(&self) -> &EventFd {
        &self.wake
    }

    pub(super) fn rest(&self) {
        // Fails when nobody has woken it.
        let _ = self.wake.read();
    }
}
