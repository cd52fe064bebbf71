//! Postcopy migration: the guest runs here before all of its memory has come (`VHOST_USER_PROTOCOL_F_PAGEFAULT`).
//!
//! ```text
//! ADVISE ─▶ LISTEN ─▶ memory, told where it is mapped ─▶ its ack ─▶ rings run, and fetch pages ─▶ END
//! ```
//!
//! What the front-end is handed, a userfaultfd, reaches all memory of this process. So it is offered only where that is
//! asked for, by a disk that is alone in its process (`check_postcopy`), and without memory slots, as the specification
//! of autumn 2026 has it.
//!
//! From LISTEN to END whoever touches a page that is missing sleeps until the front-end has brought it. So
//! - each ring has a worker of its own ([`Pool::beside`]): it holds no other up, least of all another guest's;
//! - the pages that a ring itself lies in are prefaulted by a thread of the session before the ring is started, so that the
//!   thread which answers messages never touches guest memory. A message that takes a ring back waits for the request that
//!   the ring is at, and so for its pages, as it does for slow media: the front-end must not bring pages on the thread that
//!   sends such a message;
//! - the connection is watched ([`ConnectionWatcher`]). When the front-end leaves, all memory is given up: whoever waits for a
//!   page is woken, and fails. A request that waited for its data writes nothing then, and nothing more reaches the guest.

mod connection_watcher;
mod missing_pages;

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use super::writer_lock::SessionId;
use crate::copy::fault::Userfault;
use crate::disk::Disk;
use crate::limits::budget::Charge;
use crate::limits::thread;
use crate::sandbox::ThreadKind;
use crate::virtio::memory::{MemoryError, MemoryTable};
use crate::worker::Pool;
use connection_watcher::ConnectionWatcher;
pub(super) use missing_pages::MissingPages;

/// Why a message of a postcopy migration is refused.
#[derive(Debug, thiserror::Error)]
pub(super) enum PostcopyError {
    #[error("was not negotiated")]
    NotNegotiated,
    #[error("there was no POSTCOPY_ADVISE before it")]
    NotAdvised,
    #[error("it is already in progress")]
    IsListening,
    #[error("another front-end of the disk is migrating")]
    NotItsTurn,
    #[error("there is guest memory already, which may have been used")]
    HasMemory,
    #[error("its regions are malformed")]
    Malformed,
    #[error("no userfaultfd: {0}")]
    Userfault(io::Error),
    #[error("cannot start a thread: {0}")]
    Spawn(io::Error),
}

/// Whether the host allows it. Says in the log why not.
pub(crate) fn is_possible() -> bool {
    let userfault = Userfault::open().map_err(PostcopyError::Userfault);
    userfault.inspect_err(|error| tracing::warn!("postcopy migration is not offered: {error}")).is_ok()
}

/// That no other front-end of the disk has pages missing; until it is dropped. From LISTEN on only: an advice alone may come
/// to nothing, which nobody says (QEMU 10).
#[derive(Debug)]
pub(super) struct Permit(Arc<AtomicBool>);

impl Permit {
    /// Takes that of a disk, if no other front-end has it.
    pub(super) fn take(is_taken: &Arc<AtomicBool>) -> Result<Self, PostcopyError> {
        match is_taken.swap(true, Ordering::AcqRel) {
            true => Err(PostcopyError::NotItsTurn),
            false => Ok(Self(is_taken.clone())),
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

/// A postcopy migration of one session, from ADVISE on.
#[derive(Debug)]
pub(super) struct Postcopy<D: Disk> {
    missing: Arc<MissingPages>,
    listening: Option<Listening<D>>,
}

/// What there is from LISTEN on.
#[derive(Debug)]
struct Listening<D: Disk> {
    /// Its rings' workers.
    pool: Arc<Pool<D>>,
    _watcher: ConnectionWatcher,
    _permit: Permit,
    _charge: Charge,
    /// The front-end has been told where regions are mapped, and does not know it yet: no page of them would come.
    awaits_ack: bool,
    /// Touches what rings consist of.
    prefaulter: Option<JoinHandle<()>>,
}

impl<D: Disk> Postcopy<D> {
    /// ADVISE: also returns what the front-end hears of missing pages by.
    ///
    /// # Errors
    /// The host gives no userfaultfd, or no descriptor is left.
    pub(super) fn advise() -> Result<(Self, OwnedFd), PostcopyError> {
        let missing = MissingPages::new(Userfault::open().map_err(PostcopyError::Userfault)?);
        let for_front_end = missing.for_front_end().map_err(PostcopyError::Userfault)?;
        Ok((Self { missing: Arc::new(missing), listening: None }, for_front_end))
    }

    /// LISTEN: memory that is announced from now on has not come yet. It is given up when `connection` ends.
    ///
    /// # Errors
    /// No thread or descriptor is left.
    pub(super) fn listen(
        &mut self,
        session: SessionId,
        connection: Option<Arc<UnixStream>>,
        usual: &Pool<D>,
        permit: Permit,
        charge: Charge,
    ) -> Result<(), PostcopyError> {
        let watcher = ConnectionWatcher::start(session, connection, self.missing.clone());
        self.listening = Some(Listening {
            _watcher: watcher.map_err(PostcopyError::Spawn)?,
            pool: usual.beside(),
            _permit: permit,
            _charge: charge,
            awaits_ack: false,
            prefaulter: None,
        });
        Ok(())
    }

    /// Whether pages may be missing.
    pub(super) const fn is_listening(&self) -> bool {
        self.listening.is_some()
    }

    /// Who drives the rings while pages may be missing.
    pub(super) fn pool(&self) -> Option<&Arc<Pool<D>>> {
        self.listening.as_ref().map(|listening| &listening.pool)
    }

    /// Whoever touches a page of this table that is missing waits for it. Before anybody has touched any.
    ///
    /// # Errors
    /// Its pages cannot be waited for.
    pub(super) fn wait_for_pages(&self, table: &Arc<MemoryTable>) -> Result<(), MemoryError> {
        self.missing.add(table)
    }

    /// Another table is in force than `before`, whose pages are not brought any more. The front-end is to be told where the
    /// new one is mapped: no ring is started before it says that it knows.
    pub(super) fn table_replaced(&mut self, before: &MemoryTable) {
        // Only the thread that prefaults can be waiting for one.
        self.missing.give_up_table(before);
        if let Some(listening) = &mut self.listening {
            listening.awaits_ack = true;
        }
    }

    /// The front-end knows where all memory is mapped.
    pub(super) const fn acknowledged(&mut self) {
        if let Some(listening) = &mut self.listening {
            listening.awaits_ack = false;
        }
    }

    /// Whether pages that are missing would be brought.
    pub(super) fn may_prefault(&self) -> bool {
        self.listening.as_ref().is_some_and(|listening| !listening.awaits_ack)
    }

    /// Starts the thread that touches what rings consist of, unless it runs already, or no page would be brought.
    ///
    /// # Errors
    /// No thread is left.
    pub(super) fn start_prefaulting(
        &mut self,
        session: SessionId,
        run: impl FnOnce() + Send + 'static,
    ) -> Result<(), PostcopyError> {
        let Some(Listening { awaits_ack: false, prefaulter: prefaulter @ None, .. }) = &mut self.listening
        else {
            return Ok(());
        };
        let thread = thread::spawn(ThreadKind::Prefault, format!("prefault-{session}"), run);
        *prefaulter = Some(thread.map_err(PostcopyError::Spawn)?);
        Ok(())
    }

    /// For that thread: it is about to end. Nobody needs to join it any more, and another may be started.
    pub(super) fn prefaulting_ends(&mut self) {
        if let Some(listening) = &mut self.listening {
            listening.prefaulter = None;
        }
    }

    /// Nobody brings pages any more: whoever waits for one is woken, and fails.
    pub(super) fn give_up(&self) {
        self.missing.give_up();
    }

    /// The memory whose pages come later.
    pub(super) fn missing_pages(&self) -> Arc<MissingPages> {
        self.missing.clone()
    }

    /// Ends its threads, none of which waits any more. To be called without the session's state locked, which they lock.
    pub(super) fn finish(self) {
        let Some(Listening { pool, prefaulter, .. }) = self.listening else { return };
        if let Some(prefaulter) = prefaulter {
            // If it has panicked, rings that it would have started stay stopped: they are stopped now anyway.
            let _ = prefaulter.join();
        }
        pool.stop();
    }
}
