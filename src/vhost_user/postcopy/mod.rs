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
//! - what a ring consists of is touched by a thread of the session before the ring is started, so that nothing which
//!   answers messages touches guest memory. A message that takes a ring back waits for the request that the ring is
//!   at, and so for its pages, as it does for slow media: the front-end must not bring them on the thread that asks;
//! - the connection is watched ([`Watcher`]), and with the front-end all memory is given up: whoever waits is woken,
//!   and fails. A request that waited for its data writes nothing then, and nothing more reaches the guest.

mod connection_watcher;

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::JoinHandle;

use super::rings::{Session, SessionError, State};
use crate::copy::fault::Userfault;
use crate::disk::Disk;
use crate::limits::budget::{Amounts, Charge};
use crate::limits::thread;
use crate::log::Cause;
use crate::virtio::memory::{MemoryError, MemoryTable};
use crate::virtio::queue::RingLayout;
use crate::worker::Pool;
use connection_watcher::Watcher;

/// Why a message of a postcopy migration is refused.
#[derive(Debug, thiserror::Error)]
pub(super) enum PostcopyError {
    #[error("was not negotiated")]
    NotNegotiated,
    #[error("there was no POSTCOPY_ADVISE before it")]
    NotAdvised,
    #[error("it is under way already")]
    Listening,
    #[error("another front-end of the disk is in one")]
    NotItsTurn,
    #[error("there is guest memory already, which may have been used")]
    HasMemory,
    #[error("its regions are malformed")]
    Malformed,
    #[error("no userfaultfd: {0}")]
    Userfault(io::Error),
    #[error("no thread: {0}")]
    Spawn(io::Error),
}

/// Whether the host allows it. Says in the log why not.
pub(crate) fn is_possible() -> bool {
    let userfault = Userfault::open().map_err(PostcopyError::Userfault);
    userfault.inspect_err(|error| tracing::warn!("postcopy migration is not offered: {error}")).is_ok()
}

/// A postcopy migration of one session.
#[derive(Debug)]
pub(super) struct Postcopy<D: Disk> {
    missing: Arc<Missing>,
    listening: Option<Listening<D>>,
}

/// That no other front-end of the disk has pages missing; until it is dropped. An advice alone may come to nothing, which
/// nobody says (QEMU 10).
#[derive(Debug)]
struct Turn(Arc<AtomicBool>);

impl Turn {
    fn take(turn: &Arc<AtomicBool>) -> Result<Self, PostcopyError> {
        match turn.swap(true, Ordering::AcqRel) {
            true => Err(PostcopyError::NotItsTurn),
            false => Ok(Self(turn.clone())),
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

/// What there is from LISTEN on.
#[derive(Debug)]
struct Listening<D: Disk> {
    /// Its rings' workers.
    pool: Arc<Pool<D>>,
    _watcher: Watcher,
    _turn: Turn,
    _charge: Charge,
    /// The front-end has been told where regions are mapped, and does not know it yet: no page of them would come.
    awaits_ack: bool,
    /// Touches what rings consist of.
    fetcher: Option<JoinHandle<()>>,
}

/// Guest memory whose pages come later.
#[derive(Debug)]
struct Missing {
    userfault: Userfault,
    tables: Mutex<Tables>,
}

#[derive(Debug, Default)]
struct Tables {
    /// Also those that are not in force any more: somebody may be waiting in them still.
    all: Vec<Weak<MemoryTable>>,
    is_given_up: bool,
}

impl Missing {
    /// Before anybody touches the table.
    fn add(&self, table: &Arc<MemoryTable>) -> Result<(), MemoryError> {
        let mut tables = self.lock();
        if tables.is_given_up {
            table.give_up(&self.userfault);
        } else {
            table.wait_for_pages(&self.userfault)?;
        }
        tables.all.retain(|table| table.strong_count() != 0);
        tables.all.push(Arc::downgrade(table));
        Ok(())
    }

    fn give_up(&self) {
        let mut tables = self.lock();
        tables.is_given_up = true;
        tables.all.iter().filter_map(Weak::upgrade).for_each(|table| table.give_up(&self.userfault));
    }

    fn cease_waiting(&self) {
        self.lock()
            .all
            .iter()
            .filter_map(Weak::upgrade)
            .for_each(|table| table.cease_waiting(&self.userfault));
    }

    fn lock(&self) -> MutexGuard<'_, Tables> {
        self.tables.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A ring that is to run, and of which something may be missing.
type Unfetched = (u16, RingLayout);

/// Who drives a session's rings.
pub(super) fn pool<'a, D: Disk>(
    postcopy: Option<&'a Postcopy<D>>,
    usual: &'a Arc<Pool<D>>,
) -> &'a Arc<Pool<D>> {
    postcopy.and_then(|postcopy| postcopy.listening.as_ref()).map_or(usual, |listening| &listening.pool)
}

impl<D: Disk> Postcopy<D> {
    /// Whether pages may be missing.
    pub(super) const fn is_listening(&self) -> bool {
        self.listening.is_some()
    }

    /// Nobody brings pages any more.
    pub(super) fn give_up(&self) {
        self.missing.give_up();
    }

    /// Ends its threads, none of which waits any more. Without the session's state locked: they look at it.
    pub(super) fn finish(self) {
        let Some(Listening { pool, fetcher, .. }) = self.listening else { return };
        if let Some(fetcher) = fetcher {
            let _ = fetcher.join();
        }
        pool.stop();
    }
}

impl<D: Disk> State<D> {
    /// Puts another table in force; no ring runs meanwhile.
    fn set_memory(&mut self, memory: Arc<MemoryTable>) -> Result<(), SessionError> {
        if let Some(postcopy) = self.postcopy.as_ref().filter(|postcopy| postcopy.is_listening()) {
            postcopy.missing.add(&memory)?;
        }
        self.vrings.iter_mut().for_each(|vring| vring.is_fetched = false);
        self.memory = memory;
        Ok(())
    }

    /// Rings that are to run, and of which something may be missing.
    fn unfetched(&self) -> Vec<Unfetched> {
        let indices = (0_u16..).zip(&self.vrings).filter(|(_, vring)| !vring.is_fetched);
        indices.filter_map(|(index, _)| Some((index, self.to_be_started(index)?))).collect()
    }
}

impl<D: Disk> Session<D> {
    /// Puts another table in force.
    pub(super) fn set_memory(&self, memory: MemoryTable) -> Result<(), SessionError> {
        self.change_all(|state| state.set_memory(Arc::new(memory)))
    }

    /// Whether pages may be missing.
    pub(super) fn is_listening(&self) -> bool {
        self.state().postcopy.as_ref().is_some_and(Postcopy::is_listening)
    }

    /// `POSTCOPY_ADVISE`: what the front-end will hear of missing pages by.
    pub(super) fn advise_postcopy(&self) -> Result<OwnedFd, SessionError> {
        let mut state = self.state();
        if state.postcopy.as_ref().is_some_and(Postcopy::is_listening) {
            return Err(PostcopyError::Listening.into());
        }
        let userfault = Userfault::open().map_err(PostcopyError::Userfault)?;
        let for_front_end = userfault.as_fd().try_clone_to_owned().map_err(PostcopyError::Userfault)?;
        let missing = Arc::new(Missing { userfault, tables: Mutex::default() });
        // One that was begun before this and came to nothing: its memory was waited for by nobody.
        state.postcopy = Some(Postcopy { missing, listening: None });
        Ok(for_front_end)
    }

    /// `POSTCOPY_LISTEN`: memory that is announced from now on has not come yet.
    pub(super) fn listen_to_postcopy(&self) -> Result<(), SessionError> {
        let mut state = self.state();
        let has_memory = !state.memory.is_empty();
        let postcopy = state.postcopy.as_mut().ok_or(PostcopyError::NotAdvised)?;
        if postcopy.is_listening() {
            return Err(PostcopyError::Listening.into());
        }
        if has_memory {
            return Err(PostcopyError::HasMemory.into());
        }
        let turn = Turn::take(&self.context.postcopy_turn)?;
        let charge = self.context.budget.charge(Amounts::postcopy(self.context.device.queues()))?;
        let watcher = Watcher::start(self.id(), self.connection.clone(), postcopy.missing.clone());
        let watcher = watcher.map_err(PostcopyError::Spawn)?;
        let pool = self.context.pool.beside();
        let listening = Listening {
            pool,
            _watcher: watcher,
            _turn: turn,
            _charge: charge,
            awaits_ack: false,
            fetcher: None,
        };
        postcopy.listening = Some(listening);
        if let Some(suppressed) = self.context.log_limit.admit(Cause::PostcopyBegins) {
            let (disk, session) = (self.disk(), self.id());
            tracing::info!(disk, session, suppressed, "the guest comes before its memory (postcopy)");
        }
        Ok(())
    }

    /// `POSTCOPY_END`: all pages have come. Also where it came to none, and the guest has all of its memory.
    pub(super) fn end_postcopy(&self) -> Result<(), SessionError> {
        let missing = self.state().postcopy.as_ref().map(|postcopy| postcopy.missing.clone());
        // First: what follows would wait for whoever waits still.
        missing.ok_or(PostcopyError::NotAdvised)?.cease_waiting();
        let mut ended = None;
        self.change_all(|state| {
            ended = state.postcopy.take();
            Ok(())
        })?;
        if let Some(postcopy) = ended {
            postcopy.finish();
        }
        if let Some(suppressed) = self.context.log_limit.admit(Cause::PostcopyEnds) {
            let (disk, session) = (self.disk(), self.id());
            tracing::info!(disk, session, suppressed, "all of the guest's memory has come (postcopy)");
        }
        Ok(())
    }

    /// Puts memory in force that has not come yet. The front-end is to be told where it is mapped, and no ring runs
    /// before it says that it knows.
    pub(super) fn set_missing_memory(&self, memory: MemoryTable) -> Result<Arc<MemoryTable>, SessionError> {
        let memory = Arc::new(memory);
        self.change_all(|state| {
            let before = state.memory.clone();
            state.set_memory(memory.clone())?;
            let Some(postcopy) = &mut state.postcopy else { return Ok(()) };
            // Its pages are not brought any more; only the fetcher can be waiting for one.
            before.give_up(&postcopy.missing.userfault);
            if let Some(listening) = &mut postcopy.listening {
                listening.awaits_ack = true;
            }
            Ok(())
        })?;
        Ok(memory)
    }

    /// The front-end knows where all memory is mapped.
    pub(super) fn acknowledge_memory(&self) {
        let mut state = self.state();
        if let Some(listening) = state.postcopy.as_mut().and_then(|postcopy| postcopy.listening.as_mut()) {
            listening.awaits_ack = false;
        }
        self.start_all(&mut state);
    }

    /// Has somebody touch all of which something may be missing, and start it then.
    pub(super) fn fetch_rings(&self, postcopy: &mut Postcopy<D>) -> Result<(), PostcopyError> {
        let Some(listening) = &mut postcopy.listening else { return Ok(()) };
        let (Some(me), None, false) = (self.me.upgrade(), &listening.fetcher, listening.awaits_ack) else {
            return Ok(());
        };
        let fetch = move || {
            while let Some((memory, rings)) = me.unfetched() {
                let areas = rings.iter().flat_map(|(_, layout)| layout.areas());
                // What is lost is noticed once the ring runs.
                areas.for_each(|(address, len_bytes)| _ = memory.touch_user(address, len_bytes));
                me.start_fetched(&memory, &rings);
            }
        };
        let thread = thread::spawn(format!("pages-{}", self.id()), fetch);
        listening.fetcher = Some(thread.map_err(PostcopyError::Spawn)?);
        Ok(())
    }

    /// For the fetcher: what is to be touched, if anything is.
    fn unfetched(&self) -> Option<(Arc<MemoryTable>, Vec<Unfetched>)> {
        let mut state = self.state();
        let (memory, rings) = (state.memory.clone(), state.unfetched());
        let listening = state.postcopy.as_mut()?.listening.as_mut()?;
        if rings.is_empty() || listening.awaits_ack || self.is_closed.load(Ordering::Acquire) {
            // Dropping the handle of the thread that asks: nobody needs to join it any more.
            listening.fetcher = None;
            return None;
        }
        Some((memory, rings))
    }

    /// Starts the rings that are still what was touched.
    fn start_fetched(&self, memory: &Arc<MemoryTable>, rings: &[Unfetched]) {
        let mut state = self.state();
        if self.is_closed.load(Ordering::Acquire) || !Arc::ptr_eq(memory, &state.memory) {
            return;
        }
        for (index, layout) in rings {
            let is_same = state.to_be_started(*index) == Some(*layout);
            if let Some(vring) = state.vrings.get_mut(usize::from(*index)).filter(|_| is_same) {
                vring.is_fetched = true;
            }
        }
        self.start_all(&mut state);
    }
}
