//! One front-end's negotiated state, and its rings.

use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::JoinHandle;

use vhost::vhost_user::message::VhostTransferStateDirection;

use super::checker::DescriptorChecker;
use super::config_notifier::ConfigNotifier;
use super::config_record::ConfigRecord;
use super::debug_log;
use super::device_state::StateError;
use super::device_state::transfer::{Transfer, TransferError};
use super::front_ends::FrontEnds;
use super::postcopy::{self, Postcopy, PostcopyError};
use super::vring::Vring;
use super::writer_lock::{SessionId, WriterLock};
use crate::disk::{Disk, DiskError};
use crate::limits::budget::{Charge, DiskBudget, Exceeded};
use crate::limits::thread;
use crate::log::{Cause, LogLimit};
use crate::virtio::blk::{CacheMode, Counters, Device, features};
use crate::virtio::memory::{DirtyLog, LogError, MemoryError, MemoryTable};
use crate::virtio::queue::{RingError, RingKind, RingLayout, RingLog};
use crate::worker::Cpus;
use crate::worker::{AnyRing, Pool, PoolError, RingKey, RingParts};

/// `VHOST_USER_F_PROTOCOL_FEATURES`: once it is acknowledged, rings wait for `SET_VRING_ENABLE`.
pub(super) const F_PROTOCOL_FEATURES: u64 = 1 << 30;

/// `VHOST_F_LOG_ALL`: while it is acknowledged, what is written to guest memory is marked in the dirty log.
pub(super) const F_LOG_ALL: u64 = 1 << 26;

/// Feature bits for the front-end, which the guest never sees.
pub(super) const FRONT_END_FEATURES: u64 = F_PROTOCOL_FEATURES | F_LOG_ALL;

/// Why a message is refused. The front-end gets a NACK where it asked for an answer, and the log the reason.
#[derive(Debug, thiserror::Error)]
pub(super) enum SessionError {
    #[error("ring {0} does not exist: the disk has {1}")]
    NoSuchRing(u32, u16),
    #[error("ring {0}: {1}")]
    Ring(u16, RingError),
    #[error("ring {0}: {1}")]
    Worker(u16, PoolError),
    #[error("ring {0}: rings of another front-end run")]
    OtherWriter(u16),
    #[error("ring {0}: {1} descriptor: {2}")]
    Descriptor(u32, &'static str, std::io::Error),
    #[error("ring {0}: kicks without a descriptor are not supported")]
    Polling(u32),
    #[error(transparent)]
    Memory(#[from] MemoryError),
    #[error(transparent)]
    Log(#[from] LogError),
    #[error("{0} memory regions came with {1} descriptors")]
    RegionFiles(usize, usize),
    #[error("flush: {0}")]
    Flush(DiskError),
    #[error(
        "{1} bytes at {0} of the configuration: only the writeback byte, at 32, can be written, to 0 or 1"
    )]
    ConfigReadOnly(u32, usize),
    #[error("the guest cannot flush (it has not acknowledged FLUSH): its disk stays in write-through mode")]
    WriteThrough,
    #[error("the device's state can only be saved or loaded while no ring runs: stop them first")]
    StateOfRunning,
    #[error("the device's state: none was saved or loaded")]
    NoTransfer,
    #[error("the device's state: {0}")]
    Transfer(#[from] TransferError),
    #[error("the device's state is refused: {0}")]
    State(#[from] StateError),
    #[error(transparent)]
    Budget(#[from] Exceeded),
    #[error("postcopy: {0}")]
    Postcopy(#[from] PostcopyError),
    #[error("{0} is not supported")]
    Unsupported(&'static str),
}

/// What the sessions of one disk share.
#[derive(Debug)]
pub struct SessionContext<D: Disk> {
    /// The device they serve.
    pub device: Arc<Device<D>>,
    /// Who drives the rings.
    pub pool: Arc<Pool<D>>,
    /// Where; none for anywhere.
    pub cpus: Option<Arc<Cpus>>,
    /// Whose rings may run.
    pub writer_lock: WriterLock,
    /// What rings that have stopped did.
    pub totals: Mutex<Counters>,
    /// Whether postcopy migration is offered.
    pub offers_postcopy: bool,
    /// Set while one of them is in a postcopy migration.
    pub postcopy_turn: Arc<AtomicBool>,
    /// What the front-end knows whose rings ran last; none for a disk that serves several at once.
    pub config_record: Option<ConfigRecord>,
    /// What receives descriptors.
    pub checker: Arc<DescriptorChecker>,
    /// What they may take of the process.
    pub budget: DiskBudget,
    /// Who is connected.
    pub front_ends: FrontEnds<D>,
    /// For lines that a front-end or its guest can cause.
    pub log_limit: Arc<LogLimit>,
}

/// The part of a session that messages change. Workers never see it.
#[derive(Debug)]
pub(super) struct State<D: Disk> {
    pub(super) memory: Arc<MemoryTable>,
    /// `SET_LOG_BASE`: for as long as the front-end wants it.
    pub(super) log: Option<Arc<DirtyLog>>,
    pub(super) vrings: Vec<Vring>,
    pub(super) features: u64,
    pub(super) protocol_features: u64,
    /// The device's state on its way in or out.
    pub(super) transfer: Option<(VhostTransferStateDirection, Transfer)>,
    /// A migration whose pages come while the guest runs, or may do so.
    pub(super) postcopy: Option<Postcopy<D>>,
    /// A ring has run in this connection.
    pub(super) has_run: bool,
    /// The cache mode came with the device's state.
    pub(super) has_loaded_mode: bool,
    /// Waits for the writer lock.
    waiter: Option<JoinHandle<()>>,
}

/// One front-end's session, from its first message until it leaves.
#[derive(Debug)]
pub struct Session<D: Disk> {
    id: SessionId,
    pub(super) context: Arc<SessionContext<D>>,
    pub(super) cache: Arc<CacheMode>,
    pub(super) config_notifier: ConfigNotifier,
    /// What its front-end is connected by, for rings whose memory is lost.
    pub(super) connection: Option<Arc<UnixStream>>,
    state: Mutex<State<D>>,
    pub(super) is_closed: AtomicBool,
    pub(super) me: Weak<Self>,
    _charge: Charge,
}

impl<D: Disk> Session<D> {
    /// A session that has heard nothing yet.
    /// What it takes of the disk's budget is given back when it has ended.
    pub fn new(
        id: SessionId,
        context: Arc<SessionContext<D>>,
        connection: Option<UnixStream>,
        charge: Charge,
    ) -> Arc<Self> {
        let connection = connection.map(Arc::new);
        let vrings = (0..context.device.queues()).map(|_| Vring::default()).collect();
        let state = State {
            memory: Arc::default(),
            log: None,
            vrings,
            features: 0,
            protocol_features: 0,
            transfer: None,
            postcopy: None,
            has_run: false,
            has_loaded_mode: false,
            waiter: None,
        };
        let writeback = context.device.disk().initial_writeback();
        let session = Arc::new_cyclic(|me| Self {
            id,
            context: context.clone(),
            cache: Arc::new(CacheMode::unknown(writeback)),
            config_notifier: ConfigNotifier::default(),
            connection,
            state: Mutex::new(state),
            is_closed: AtomicBool::new(false),
            me: me.clone(),
            _charge: charge,
        });
        context.front_ends.join(&session);
        session
    }

    /// Its number, for logs.
    pub const fn id(&self) -> SessionId {
        self.id
    }

    /// The disk's name.
    pub fn disk(&self) -> &str {
        &self.context.device.identity().name
    }

    /// The front-end is gone: drains and drops its rings, and releases the writer lock.
    pub fn close(&self) {
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
            // It has seen the flag and ends.
            let _ = waiter.join();
        }
        let postcopy = {
            let mut state = self.state();
            self.stop_all(&mut state);
            state.memory = Arc::default();
            state.log = None;
            state.transfer = None;
            state.postcopy.take()
        };
        if let Some(postcopy) = postcopy {
            postcopy.finish();
        }
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State<D>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes what is known of a ring. If it runs it is taken back for that and goes on afterwards, where
    /// its used index stands, with one look at it: so no notification is lost.
    pub(super) fn change(&self, index: u32, change: impl FnOnce(&mut Vring)) -> Result<(), SessionError> {
        let mut state = self.state();
        let number = self.ring_number(index)?;
        self.halt(&mut state, number);
        change(state.vring(index)?);
        let started = self.start(&mut state, number);
        self.release_if_idle(&state);
        started
    }

    /// Changes what all rings share: memory or features. A ring that cannot go on with it is that ring's own
    /// trouble: its error descriptor is signalled.
    pub(super) fn change_all(
        &self,
        change: impl FnOnce(&mut State<D>) -> Result<(), SessionError>,
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

    /// Stops a ring for good, until it is kicked anew. Returns where it stopped.
    pub(super) fn stop(&self, index: u32) -> Result<u32, SessionError> {
        let mut state = self.state();
        state.vring(index)?;
        let number = self.ring_number(index)?;
        self.halt(&mut state, number);
        let vring = state.vring(index)?;
        vring.kick = None;
        let base = vring.base;
        self.release_if_idle(&state);
        Ok(base)
    }

    /// Stops every ring and forgets what was said of it.
    pub(super) fn stop_all(&self, state: &mut State<D>) {
        for index in state.running() {
            self.halt(state, index);
        }
        for vring in &mut state.vrings {
            *vring = Vring { base: vring.base, ..Vring::default() };
        }
        self.release_if_idle(state);
    }

    /// As a number that a ring can have.
    pub(super) fn ring_number(&self, index: u32) -> Result<u16, SessionError> {
        u16::try_from(index).map_err(|_| SessionError::NoSuchRing(index, self.context.device.queues()))
    }

    /// Makes everything acknowledged so far persist.
    pub(super) fn flush(&self) -> Result<(), SessionError> {
        self.context.device.disk().flush().map_err(SessionError::Flush)
    }

    /// Takes a ring back from its worker.
    fn halt(&self, state: &mut State<D>, index: u16) {
        let key = RingKey { session: self.id, index };
        let pool = postcopy::pool(state.postcopy.as_ref(), &self.context.pool);
        let Some(vring) = state.vrings.get_mut(usize::from(index)) else { return };
        let Some(ring) = vring.worker.take().and_then(|worker| pool.detach(worker, key)) else {
            return;
        };
        self.context.writer_lock.ring_stopped();
        self.config_notifier.ring_stopped();
        vring.base = ring.base();
        debug_log::ring_stops(self.disk(), self.id, index, vring.base);
        if ring.counters().media_written_bytes != 0 {
            self.media_is_written();
        }
        self.context.totals.lock().unwrap_or_else(PoisonError::into_inner).add(ring.counters());
    }

    /// Gives a ring to a worker if all is known that is needed and it is this session's turn.
    fn start(&self, state: &mut State<D>, index: u16) -> Result<(), SessionError> {
        let Some(layout) = state.to_be_started(index) else { return Ok(()) };
        let (features, memory) = (state.features, state.memory.clone());
        let log = state.log.clone().filter(|_| features & F_LOG_ALL != 0);
        let is_fetched = state.vrings.get(usize::from(index)).is_some_and(|vring| vring.is_fetched);
        if let Some(postcopy) = &mut state.postcopy
            && !is_fetched
            && postcopy.is_listening()
        {
            return Ok(self.fetch_rings(postcopy)?);
        }
        if !self.context.writer_lock.try_take(self.id) {
            return self.wait_for_writer_lock(state);
        }
        if !state.has_run {
            self.restore_cache_mode(state);
        }
        let Some(vring) = state.vrings.get_mut(usize::from(index)) else { return Ok(()) };
        let Some(kick) = &vring.kick else { return Ok(()) };
        let parts = RingParts {
            key: RingKey { session: self.id, index },
            layout,
            memory: memory.clone(),
            device: self.context.device.clone(),
            cache: self.cache_mode(features),
            kick: kick.clone(),
            call: vring.call.clone(),
            err: vring.err.clone(),
            connection: self.connection.clone(),
        };
        let is_logged = log.is_some();
        let log = log.map(|log| RingLog::new(log, memory, &layout, vring.log_address));
        let mut ring = AnyRing::start(parts, self.context.log_limit.clone())
            .map_err(|error| SessionError::Ring(index, error))?;
        log.into_iter().for_each(|log| ring.log_to(log));
        if !self.context.writer_lock.ring_starts(self.id) {
            return Err(SessionError::OtherWriter(index));
        }
        let pool = postcopy::pool(state.postcopy.as_ref(), &self.context.pool);
        let worker = pool.attach(ring, self.context.cpus.as_ref());
        let worker = worker.inspect_err(|_| self.context.writer_lock.ring_stopped());
        vring.worker = Some(worker.map_err(|error| SessionError::Worker(index, error))?);
        debug_log::ring_starts(self.disk(), self.id, index, &layout, is_logged);
        state.has_run = true;
        self.ring_runs();
        Ok(())
    }

    /// A driver that cannot flush gets every write persisted (VIRTIO 1.2 §5.2.6.2).
    fn cache_mode(&self, features: u64) -> Arc<CacheMode> {
        match features & features::FLUSH {
            0 => Arc::new(CacheMode::write_through()),
            _ => self.cache.clone(),
        }
    }

    pub(super) fn start_all(&self, state: &mut State<D>) {
        let count = u16::try_from(state.vrings.len()).unwrap_or(u16::MAX);
        for index in 0..count {
            let Err(error) = self.start(state, index) else { continue };
            if let Some(err) = state.vrings.get(usize::from(index)).and_then(|vring| vring.err.as_ref()) {
                err.signal();
            }
            if let Some(suppressed) = self.context.log_limit.admit(Cause::RingStopped) {
                tracing::warn!(disk = self.disk(), session = self.id, %error, suppressed, "a ring stopped");
            }
        }
    }

    /// Waits on a thread of its own, since the front-end must get its answer meanwhile.
    fn wait_for_writer_lock(&self, state: &mut State<D>) -> Result<(), SessionError> {
        let (Some(me), None) = (self.me.upgrade(), &state.waiter) else { return Ok(()) };
        if let Some(suppressed) = self.context.log_limit.admit(Cause::Waits) {
            let (disk, session) = (self.disk(), self.id);
            tracing::info!(disk, session, suppressed, "waiting: another front-end's rings run");
        }
        let wait = move || {
            if me.context.writer_lock.wait(me.id, &me.is_closed) {
                me.writer_lock_acquired();
            }
        };
        let thread = thread::spawn(format!("writer-{}", self.id), wait);
        state.waiter = Some(thread.map_err(|error| SessionError::Worker(0, PoolError::Spawn(error)))?);
        Ok(())
    }

    fn writer_lock_acquired(&self) {
        let mut state = self.state();
        // Dropping the handle of the thread that runs this: nobody needs to join it any more.
        state.waiter = None;
        if self.is_closed.load(Ordering::Acquire) {
            return self.context.writer_lock.release(self.id);
        }
        if let Some(suppressed) = self.context.log_limit.admit(Cause::Runs) {
            let (disk, session) = (self.disk(), self.id);
            tracing::info!(disk, session, suppressed, "this front-end's rings run now");
        }
        self.start_all(&mut state);
        self.release_if_idle(&state);
    }

    /// Releases the writer lock once no ring is started. A ring that is only disabled keeps it: the guest is
    /// paused and will go on.
    fn release_if_idle(&self, state: &State<D>) {
        if state.vrings.iter().all(|vring| vring.kick.is_none()) {
            self.context.writer_lock.release(self.id);
        }
    }
}

impl<D: Disk> State<D> {
    pub(super) fn vring(&mut self, index: u32) -> Result<&mut Vring, SessionError> {
        let position = usize::try_from(index).ok();
        let rings = u16::try_from(self.vrings.len()).unwrap_or(u16::MAX);
        let vring = position.and_then(|position| self.vrings.get_mut(position));
        vring.ok_or(SessionError::NoSuchRing(index, rings))
    }

    /// The format of all rings.
    pub(super) const fn ring_kind(&self) -> RingKind {
        match self.features & features::RING_PACKED {
            0 => RingKind::Split,
            _ => RingKind::Packed,
        }
    }

    /// A guest that could choose its cache mode, and cannot flush: writes persist, and it is shown nothing else
    /// (VIRTIO 1.2 §5.2.5.2, §5.2.6.2).
    pub(super) const fn stays_write_through(&self) -> bool {
        self.features & (features::CONFIG_WCE | features::FLUSH) == features::CONFIG_WCE
    }

    /// What a ring is started with, if it is to run and does not yet.
    pub(super) fn to_be_started(&self, index: u16) -> Option<RingLayout> {
        let features = self.features;
        let vring = self.vrings.get(usize::from(index))?;
        let (Some(_), Some(addresses), None) = (&vring.kick, vring.addresses, vring.worker) else {
            return None;
        };
        let needs_enable = features & F_PROTOCOL_FEATURES != 0;
        if self.memory.is_empty() || needs_enable && !vring.is_enabled {
            return None;
        }
        Some(RingLayout {
            kind: self.ring_kind(),
            size: vring.size,
            addresses,
            base: vring.base,
            event_idx: features & features::EVENT_IDX != 0,
            indirect: features & features::INDIRECT_DESC != 0,
        })
    }

    pub(super) fn running(&self) -> Vec<u16> {
        let indices = (0_u16..).zip(&self.vrings);
        indices.filter(|(_, vring)| vring.worker.is_some()).map(|(index, _)| index).collect()
    }
}
