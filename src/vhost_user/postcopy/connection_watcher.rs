//! Notices that the front-end has left while it has to bring pages.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread::JoinHandle;

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::io::Errno;

use super::missing_pages::MissingPages;
use crate::limits::thread;
use crate::sandbox::ThreadKind;
use crate::vhost_user::writer_lock::SessionId;

/// A thread that gives the memory up when the front-end leaves, or is hung up on: whoever reads its messages may be
/// waiting for a ring whose worker waits for a page. Dropping it ends the thread.
#[derive(Debug)]
pub(super) struct ConnectionWatcher {
    cancel: OwnedFd,
    thread: Option<JoinHandle<()>>,
}

impl ConnectionWatcher {
    /// # Errors
    /// No descriptor or no thread is left.
    pub(super) fn start(
        session: SessionId,
        connection: Option<Arc<UnixStream>>,
        missing: Arc<MissingPages>,
    ) -> io::Result<Self> {
        let cancel = eventfd(0, EventfdFlags::CLOEXEC)?;
        let cancelled = cancel.try_clone()?;
        let watch = move || {
            let Some(connection) = connection else { return };
            if !is_cancelled_first(&cancelled, &connection) {
                missing.give_up();
            }
        };
        let thread = thread::spawn(ThreadKind::ConnectionWatcher, format!("watcher-{session}"), watch)?;
        Ok(Self { cancel, thread: Some(thread) })
    }
}

impl Drop for ConnectionWatcher {
    fn drop(&mut self) {
        // Cannot fail: the counter is far from full.
        let _ = rustix::io::write(&self.cancel, &1_u64.to_ne_bytes());
        if let Some(thread) = self.thread.take() {
            // A panic there leaves whoever waits for a page to the end of the session, which gives the memory up as well.
            let _ = thread.join();
        }
    }
}

/// Waits for the one or the other. Messages that come meanwhile are for others to read.
fn is_cancelled_first(cancelled: &OwnedFd, connection: &UnixStream) -> bool {
    loop {
        let mut both = [
            PollFd::new(cancelled, PollFlags::IN),
            PollFd::from_borrowed_fd(connection.as_fd(), PollFlags::RDHUP),
        ];
        match poll(&mut both, None) {
            Ok(_) => {
                let [cancelled, _] = both;
                return !cancelled.revents().is_empty();
            }
            Err(Errno::INTR) => {}
            // The kernel has no memory for the call. The connection counts as closed, since those who wait for pages must not
            // wait for ever.
            Err(_) => return false,
        }
    }
}
