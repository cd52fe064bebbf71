//! The rings of one front-end: when each is given to a worker, and taken back.
//!
//! A ring runs once the front-end has said all that is needed ([`SessionState::to_be_started`]), no page that it consists of is
//! missing, and the session holds the disk's [`WriterLock`](super::writer_lock::WriterLock). Whatever a message changes
//! about it, it is taken back before and given to a worker again afterwards.

use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use super::context::SessionContext;
use super::debug_log;
use super::error::SessionError;
use super::front_end_config::FrontEndConfig;
use super::front_ends::MoveRings;
use super::state::{MissingRing, SessionState};
use super::vring::Vring;
use super::writer_lock::SessionId;
use crate::disk::Disk;
use crate::limits::budget::Charge;
use crate::limits::thread;
use crate::log::Cause;
use crate::sandbox::ThreadKind;
use crate::virtio::memory::MemoryTable;
use crate::virtio::queue::{RingLayout, RingLog};
use crate::worker::{AnyRing, PoolError, RingKey, RingParts, WorkerId};

impl<D: Disk> MoveRings for Rings<D> {
    fn move_rings(&self) {
        let mut state = self.state();
        // While pages are missing each ring has a worker of its own already, and may wait for one.
        if self.is_closed() || state.is_listening() {
            return;
        }
        for index in state.running() {
            self.halt(&mut state, index);
        }
        self.start_all(&mut state);
        self.release_if_idle(&state);
    }
}

/// The rings of one front-end, and what they share.
#[derive(Debug)]
pub(super) struct Rings<D: Disk> {
    session: SessionId,
    context: Arc<SessionContext<D>>,
    config: Arc<FrontEndConfig<D>>,
    /// What the front-end is connected by: a worker shuts it down if the guest's memory is lost.
    connection: Option<Arc<UnixStream>>,
    state: Mutex<SessionState<D>>,
    is_closed: AtomicBool,
    /// For the threads that start rings later.
    me: Weak<Self>,
    /// What the session takes of the disk's budget, its threads included: as long as one of them lives.
    _charge: Charge,
}

impl<D: Disk> Rings<D> {
    /// Before anything is said of them.
    pub(super) fn new(
        session: SessionId,
        context: Arc<SessionContext<D>>,
        config: Arc<FrontEndConfig<D>>,
        connection: Option<Arc<UnixStream>>,
        charge: Charge,
    ) -> Arc<Self> {
        let state = Mutex::new(SessionState::new(context.device.queues()));
        Arc::new_cyclic(|me| Self {
            session,
            context,
            config,
            connection,
            state,
            is_closed: AtomicBool::new(false),
            me: me.clone(),
            _charge: charge,
        })
    }

    /// The front-end is gone: drains and drops them, releases the writer lock, and ends the session's threads.
    pub(super) fn close(&self) {
        self.is_closed.store(true, Ordering::Release);
        self.context.writer_lock.wake();
        let waiter = {
            let mut state = self.state();
            if let Some(postcopy) = &state.postcopy {
                postcopy.give_up();
            }
            state.waiter.take()
        };
        if let Some(waiter) = waiter {
            // It has seen the flag and ends; if it has panicked, it has started nothing.
            let _ = waiter.join();
        }
        let postcopy = {
            let mut state = self.state();
            self.stop_all(&mut state);
            state.memory = Arc::default();
            state.log = None;
            state.postcopy.take()
        };
        if let Some(postcopy) = postcopy {
            postcopy.finish();
        }
    }

    /// For when they are to have other workers.
    pub(super) fn for_moves(&self) -> Weak<dyn MoveRings> {
        self.me.clone()
    }

    pub(super) fn state(&self) -> MutexGuard<'_, SessionState<D>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes what is known of a ring. If it runs it is taken back for that and goes on afterwards, where
    /// its used index stands; it is polled once then, so no notification is lost.
    ///
    /// # Errors
    /// There is no such ring, or it cannot be started with that.
    pub(super) fn change(&self, index: u32, change: impl FnOnce(&mut Vring)) -> Result<(), SessionError> {
        let mut state = self.state();
        let number = self.number(index)?;
        self.halt(&mut state, number);
        change(state.vring(index)?);
        let started = self.start(&mut state, number);
        self.release_if_idle(&state);
        started
    }

    /// Changes what all rings share: memory or features. A ring that cannot go on with it is that ring's own
    /// trouble: its error descriptor is signalled.
    ///
    /// # Errors
    /// Those of `change`; the rings go on with what there was then.
    pub(super) fn change_all(
        &self,
        change: impl FnOnce(&mut SessionState<D>) -> Result<(), SessionError>,
    ) -> Result<(), SessionError> {
        let mut state = self.state();
        let running = state.running();
        for index in &running {
            self.halt(&mut state, *index);
        }
        let changed = change(&mut state);
        self.start_all(&mut state);
        self.release_if_idle(&state);
        changed
    }

    /// Puts another table in force.
    ///
    /// # Errors
    /// Its pages cannot be waited for.
    pub(super) fn set_memory(&self, memory: MemoryTable) -> Result<(), SessionError> {
        self.change_all(|state| state.set_memory(Arc::new(memory)))
    }

    /// Stops a ring for good, until it is kicked anew. Returns where it stopped.
    ///
    /// # Errors
    /// There is no such ring.
    pub(super) fn stop(&self, index: u32) -> Result<u32, SessionError> {
        let mut state = self.state();
        state.vring(index)?;
        let number = self.number(index)?;
        self.halt(&mut state, number);
        let vring = state.vring(index)?;
        vring.kick = None;
        let base = vring.base;
        self.release_if_idle(&state);
        Ok(base)
    }

    /// Stops every ring and forgets what was said of it, but for where it stopped.
    pub(super) fn reset(&self) {
        self.stop_all(&mut self.state());
    }

    /// Starts what can be started by now.
    pub(super) fn start_all(&self, state: &mut SessionState<D>) {
        let count = u16::try_from(state.vrings.len()).unwrap_or(u16::MAX);
        for index in 0..count {
            let Err(error) = self.start(state, index) else { continue };
            if let Some(err) = state.vrings.get(usize::from(index)).and_then(|vring| vring.err.as_ref()) {
                err.signal();
            }
            if let Some(suppressed) = self.context.log_limit.admit(Cause::RingStopped) {
                tracing::warn!(
                    disk = self.disk(),
                    session = self.session,
                    %error,
                    suppressed,
                    "a ring stopped"
                );
            }
        }
    }

    /// As a number that a ring can have.
    pub(super) fn number(&self, index: u32) -> Result<u16, SessionError> {
        u16::try_from(index).map_err(|_| SessionError::NoSuchRing(index, self.context.device.queues()))
    }

    fn disk(&self) -> &str {
        &self.context.device.identity().name
    }

    fn is_closed(&self) -> bool {
        self.is_closed.load(Ordering::Acquire)
    }

    fn stop_all(&self, state: &mut SessionState<D>) {
        for index in state.running() {
            self.halt(state, index);
        }
        for vring in &mut state.vrings {
            *vring = Vring { base: vring.base, ..Vring::default() };
        }
        self.release_if_idle(state);
    }

    /// Takes a ring back from its worker.
    fn halt(&self, state: &mut SessionState<D>, index: u16) {
        let key = RingKey { session: self.session, index };
        let pool = state.pool(&self.context.pool).clone();
        let Some(vring) = state.vrings.get_mut(usize::from(index)) else { return };
        let Some(ring) = vring.worker.take().and_then(|worker| pool.detach(worker, key)) else {
            return;
        };
        self.context.writer_lock.ring_stopped();
        self.config.ring_stopped();
        vring.base = ring.base();
        debug_log::ring_stops(self.disk(), self.session, index, vring.base);
        if ring.counters().media_written_bytes != 0 {
            self.config.media_is_written();
        }
        self.context.totals.lock().unwrap_or_else(PoisonError::into_inner).add(index, ring.counters());
    }

    /// Gives a ring to a worker if all is known that is needed, its pages have come, and the writer lock is this session's.
    fn start(&self, state: &mut SessionState<D>, index: u16) -> Result<(), SessionError> {
        let Some(layout) = state.to_be_started(index) else { return Ok(()) };
        if state.needs_prefault(index) {
            return self.prefault(state);
        }
        if !self.context.writer_lock.try_take(self.session) {
            return self.wait_for_writer_lock(state);
        }
        if !state.has_run {
            self.config.restore_cache_mode(state.vrings.iter().all(Vring::is_at_start));
        }
        let Some(worker) = self.attach(state, index, layout)? else { return Ok(()) };
        if let Some(vring) = state.vrings.get_mut(usize::from(index)) {
            vring.worker = Some(worker);
        }
        debug_log::ring_starts(self.disk(), self.session, index, &layout, state.log_in_force().is_some());
        state.has_run = true;
        self.config.ring_started();
        Ok(())
    }

    /// Gives a ring to a worker.
    fn attach(
        &self,
        state: &SessionState<D>,
        index: u16,
        layout: RingLayout,
    ) -> Result<Option<WorkerId>, SessionError> {
        let Some(vring) = state.vrings.get(usize::from(index)) else { return Ok(None) };
        let Some(kick) = &vring.kick else { return Ok(None) };
        let parts = RingParts {
            key: RingKey { session: self.session, index },
            layout,
            memory: state.memory.clone(),
            device: self.context.device.clone(),
            cache: self.config.cache_mode(state.features),
            kick: kick.clone(),
            call: vring.call.clone(),
            err: vring.err.clone(),
            connection: self.connection.clone(),
            hold_ups: self.context.hold_ups.clone(),
        };
        let log = state.log_in_force();
        let log = log.map(|log| RingLog::new(log, state.memory.clone(), &layout, vring.log_address));
        let mut ring = AnyRing::start(parts, self.context.log_limit.clone())
            .map_err(|error| SessionError::Ring(index, error))?;
        log.into_iter().for_each(|log| ring.log_to(log));
        // Packed rings begin with their wrap bits.
        let goes_on = ring.base() & !0x8000_8000 != 0;
        let is_first = state.running().is_empty();
        if !self.context.writer_lock.ring_starts(self.session) {
            return Err(SessionError::OtherWriter(index));
        }
        if self.context.device.disk().ring_starts(index, goes_on, is_first)
            && let Some(suppressed) = self.context.log_limit.admit(Cause::Lost)
        {
            let (disk, session) = (self.disk(), self.session);
            tracing::error!(
                disk,
                session,
                suppressed,
                "what this guest has written is lost: it was in the memory of a daemon that has ended (overlay=memory). Its requests \
                 fail until its driver begins anew: restart the guest"
            );
        }
        let worker = state.pool(&self.context.pool).attach(ring, self.context.cpus.as_ref());
        let worker = worker.inspect_err(|_| self.context.writer_lock.ring_stopped());
        worker.map(Some).map_err(|error| SessionError::Worker(index, error))
    }

    /// Waits on a thread of its own, since the front-end must get its answer meanwhile.
    fn wait_for_writer_lock(&self, state: &mut SessionState<D>) -> Result<(), SessionError> {
        let (Some(me), None) = (self.me.upgrade(), &state.waiter) else { return Ok(()) };
        if let Some(suppressed) = self.context.log_limit.admit(Cause::Waits) {
            let (disk, session) = (self.disk(), self.session);
            tracing::info!(disk, session, suppressed, "waiting: another front-end's rings run");
        }
        let wait = move || {
            if me.context.writer_lock.wait(me.session, &me.is_closed) {
                me.writer_lock_acquired();
            }
        };
        let thread = thread::spawn(ThreadKind::WriterLock, format!("writer-{}", self.session), wait);
        state.waiter = Some(thread.map_err(|error| SessionError::Worker(0, PoolError::Spawn(error)))?);
        Ok(())
    }

    fn writer_lock_acquired(&self) {
        let mut state = self.state();
        // Dropping the handle of the thread that runs this: nobody needs to join it any more.
        state.waiter = None;
        if self.is_closed() {
            // Its end releases the lock, once rings are stopped that a message may have started meanwhile.
            return;
        }
        if let Some(suppressed) = self.context.log_limit.admit(Cause::Runs) {
            let (disk, session) = (self.disk(), self.session);
            tracing::info!(disk, session, suppressed, "this front-end's rings run now");
        }
        self.start_all(&mut state);
        self.release_if_idle(&state);
    }

    /// Releases the writer lock once no ring is started. A ring that is only disabled keeps it: the guest is
    /// paused and will go on.
    fn release_if_idle(&self, state: &SessionState<D>) {
        if state.vrings.iter().all(|vring| vring.kick.is_none()) {
            self.context.writer_lock.release(self.session);
        }
    }

    /// Has a thread touch all pages that rings consist of, and start them then: nothing that answers messages waits for a
    /// page.
    fn prefault(&self, state: &mut SessionState<D>) -> Result<(), SessionError> {
        let (Some(me), Some(postcopy)) = (self.me.upgrade(), &mut state.postcopy) else { return Ok(()) };
        let run = move || {
            while let Some((memory, rings)) = me.to_be_prefaulted() {
                let areas = rings.iter().flat_map(|(_, layout)| layout.areas());
                // What is lost is noticed once the ring runs.
                areas.for_each(|(address, len_bytes)| _ = memory.touch_user(address, len_bytes));
                me.start_prefaulted(&memory, &rings);
            }
        };
        Ok(postcopy.start_prefaulting(self.session, run)?)
    }

    /// For the thread that prefaults: what is to be touched, if anything is.
    fn to_be_prefaulted(&self) -> Option<(Arc<MemoryTable>, Vec<MissingRing>)> {
        let mut state = self.state();
        let (memory, rings) = (state.memory.clone(), state.to_be_prefaulted());
        let postcopy = state.postcopy.as_mut()?;
        if rings.is_empty() || !postcopy.may_prefault() || self.is_closed() {
            postcopy.prefaulting_ends();
            return None;
        }
        Some((memory, rings))
    }

    /// Starts the rings that are still what was touched.
    fn start_prefaulted(&self, memory: &Arc<MemoryTable>, rings: &[MissingRing]) {
        let mut state = self.state();
        if self.is_closed() || !Arc::ptr_eq(memory, &state.memory) {
            return;
        }
        for (index, layout) in rings {
            let is_same = state.to_be_started(*index) == Some(*layout);
            if let Some(vring) = state.vrings.get_mut(usize::from(*index)).filter(|_| is_same) {
                vring.is_prefaulted = true;
            }
        }
        self.start_all(&mut state);
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU16;

    use super::*;
    use crate::copy::testing::memfd;
    use crate::disk::{FileLock, Geometry, MappedDisk};
    use crate::limits::budget::{Amounts, Budget};
    use crate::vhost_user::{DescriptorChecker, FrontEnds, Session, WriterLock};
    use crate::virtio::blk::{Device, Identity};
    use crate::worker::{Polling, Pool};

    fn context() -> Arc<SessionContext<MappedDisk>> {
        let geometry = Geometry { capacity_bytes: 4096, block_bytes: 512, read_only: false };
        let identity = Identity { name: "disk".into(), serial: [b'x'; 20] };
        let device = Device::new(MappedDisk::new(memfd("disk", 4096), geometry).unwrap(), identity, 1);
        Arc::new(SessionContext {
            log_limit: device.log_limit().clone(),
            device: Arc::new(device),
            pool: Arc::new(Pool::new(NonZeroU16::new(1), Polling::Never)),
            cpus: None,
            writer_lock: WriterLock::new(true, FileLock::none(), || ()),
            totals: Arc::default(),
            offers_postcopy: false,
            is_in_postcopy: Arc::default(),
            config_record: None,
            checker: DescriptorChecker::start().unwrap(),
            hold_ups: Arc::default(),
            budget: Budget::of_process(1).add(),
            front_ends: FrontEnds::default(),
            template: None,
        })
    }

    /// Found by the fuzzer of postcopy migrations: a message has started a ring by then, and the session's end stops it.
    #[test]
    fn a_thread_that_gets_the_lock_at_the_sessions_end_leaves_it_to_rings_that_run() {
        let context = context();
        let charge = context.budget.charge(Amounts::SESSION).unwrap();
        let session = Session::new(1, context.clone(), None, charge);
        assert!(context.writer_lock.try_take(1) && context.writer_lock.ring_starts(1));
        session.rings.is_closed.store(true, Ordering::Release);
        session.rings.writer_lock_acquired();
        assert!(!context.writer_lock.try_take(2), "a ring runs");
        context.writer_lock.ring_stopped();
        session.rings.close();
        assert!(context.writer_lock.try_take(2));
    }
}
