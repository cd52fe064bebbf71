//! The same disk for daemons that are built on the crate `vhost-user-backend`.
//!
//! [`Stock`] implements that crate's trait over a [`Device`]: requests are parsed, checked and executed by the code that
//! the daemon of this crate runs, only that the messages are the crate's business and the rings `virtio-queue`'s. A
//! program that serves other devices that way can serve this disk beside them:
//!
//! ```no_run
//! use std::sync::Arc;
//!
//! use vhost_user_backend::VhostUserDaemon;
//! use vhost_user_pmem::config::Serial;
//! use vhost_user_pmem::disk::{self, OpenOptions};
//! use vhost_user_pmem::stock::Stock;
//! use vhost_user_pmem::virtio::blk::{Device, Identity};
//! use vm_memory::{GuestMemoryAtomic, GuestMemoryMmap};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! // The lock is in force as long as `opened.lock` lives.
//! let opened = disk::open("/mnt/pmem/db0.img".as_ref(), &OpenOptions::new("db0"))?;
//! let identity = Identity { name: "db0".to_owned(), serial: *Serial::from_name("db0").as_bytes() };
//! let device = Arc::new(Device::new(opened.disk, identity, 2));
//! loop {
//!     // One front-end after the other, each with a state of its own.
//!     let stock = Arc::new(Stock::new(device.clone())?);
//!     let memory = GuestMemoryAtomic::new(GuestMemoryMmap::new());
//!     let daemon = VhostUserDaemon::new("db0".to_owned(), stock, memory);
//!     daemon.and_then(|mut daemon| daemon.serve("/run/db0.sock")).map_err(|error| error.to_string())?;
//! }
//! # }
//! ```
//!
//! What is there: several queues, each with a thread; indirect descriptors and event indices; memory slots that come and
//! go; the cache mode; read, write, flush, discard, write zeroes and serial number; and rings that go on where their used
//! index stands, whatever base a front-end sends, so that a daemon may be killed and started again.
//!
//! What is *not* there is what the crate cannot do, or not in a way that loses nothing: packed rings, live migration, a
//! disk that grows while it is served, polling, and one writer at a time where two front-ends are connected to one disk.
//! Guest memory that its owner has truncated costs the requests that touch it; truncated under a ring it ends the process.
//! [`Server`](crate::server::Server) does all of that.

use std::fmt;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLockWriteGuard};
use std::task::{Wake, Waker};
use std::thread::{self, Thread};

use vhost::vhost_user::message::{VhostUserProtocolFeatures, VhostUserVirtioFeatures};
use vhost_user_backend::{VhostUserBackend, VringRwLock, VringState, VringT as _};
use virtio_queue::{DescriptorChain, QueueOwnedT as _, QueueT as _};
use vm_memory::{
    Address as _, GuestAddressSpace as _, GuestMemoryAtomic, GuestMemoryBackend as _, GuestMemoryMmap,
    GuestMemoryRegion as _,
};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::event::{EventConsumer, EventFlag, EventNotifier, new_event_consumer_and_notifier};

use crate::copy::fault;
use crate::disk::Disk;
use crate::log::{Cause, LogLimit};
use crate::virtio::blk::{
    CacheMode, ConfigSpace, Counters, Device, Progress, SlicedRequest, WRITEBACK_OFFSET, features,
};
use crate::virtio::memory::{MemoryError, MemoryTable, RegionSpec, SharedError};
use crate::virtio::queue::{Buffer, Completion, Gatherer, MAX_QUEUE_SIZE, RingError};

/// Most queues of a device: `queues_per_thread` has a bit for each in 64-bit masks.
pub const MAX_QUEUES: u16 = 64;

/// The cache mode of a driver that has not negotiated FLUSH (VIRTIO 1.2 §5.2.6.2).
static WRITE_THROUGH: CacheMode = CacheMode::write_through();

/// The back-end of one front-end, from its first message until it leaves; the next front-end gets a new one.
///
/// [`VhostUserDaemon`](vhost_user_backend::VhostUserDaemon) calls it from one thread a queue and one for messages.
#[derive(Debug)]
pub struct Stock<D: Disk> {
    device: Arc<Device<D>>,
    cache: CacheMode,
    /// The driver has acknowledged `VIRTIO_BLK_F_FLUSH`.
    can_flush: AtomicBool,
    /// A ring has run.
    has_run: AtomicBool,
    states: Box<[Mutex<QueueState>]>,
    log_limit: LogLimit,
}

/// What the thread of a queue works with. It holds the lock for a batch at a time; others take it only when the guest's
/// memory or the cache mode changes, or counters are read.
#[derive(Debug)]
struct QueueState {
    /// The crate's mapping of guest memory, in which the ring lies.
    guest: Arc<GuestMemoryMmap>,
    /// Our own mapping of the same memory, for the data of requests: faults in it are contained.
    gatherer: Gatherer,
    counters: Counters,
    /// Room for a request that takes long.
    sliced: SlicedRequest,
}

/// Why a queue cannot be served any further.
#[derive(Debug, thiserror::Error)]
enum QueueError {
    #[error(transparent)]
    Chain(#[from] RingError),
    #[error(transparent)]
    Queue(#[from] virtio_queue::Error),
}

impl<D: Disk> Stock<D> {
    /// A front-end's view of `device`, of which it gets at most [`MAX_QUEUES`] queues.
    ///
    /// # Errors
    /// As [`fault::install`], which it calls.
    pub fn new(device: Arc<Device<D>>) -> io::Result<Self> {
        fault::install()?;
        let without_memory = || QueueState {
            guest: Arc::default(),
            gatherer: Gatherer::new(Arc::default()),
            counters: Counters::default(),
            sliced: SlicedRequest::default(),
        };
        let queues = device.queues().min(MAX_QUEUES);
        Ok(Self {
            cache: CacheMode::unknown(device.disk().initial_writeback()),
            can_flush: AtomicBool::new(false),
            has_run: AtomicBool::new(false),
            states: (0..queues).map(|_| Mutex::new(without_memory())).collect(),
            log_limit: LogLimit::default(),
            device,
        })
    }

    /// What its rings have done so far.
    pub fn counters(&self) -> Counters {
        let mut sum = Counters::default();
        self.states.iter().for_each(|state| sum.add(&lock(state).counters));
        sum
    }

    fn cache(&self) -> &CacheMode {
        if self.can_flush.load(Ordering::Acquire) { &self.cache } else { &WRITE_THROUGH }
    }

    /// Executes what is available, at most as many chains as the ring has entries. Returns whether more has come meanwhile.
    fn serve(&self, vring: &mut VringState, state: &mut QueueState) -> Result<bool, QueueError> {
        let QueueState { guest, gatherer, counters, sliced } = state;
        let (guest, ring) = (&**guest, vring.get_queue_mut());
        ring.disable_notification(guest)?;
        // Every request that has left this thread is in the used ring, so its index says where to go on, whatever base the
        // front-end has sent.
        let used = ring.next_used();
        ring.set_next_avail(used);
        for _ in 0..ring.size() {
            let Some(chain) = ring.iter(guest)?.next() else { break };
            let completion = self.execute(chain, gatherer, counters, sliced)?;
            // A fence for each: `add_used` publishes each request by itself.
            self.device.fence();
            ring.add_used(guest, completion.head(), completion.written_bytes())?;
        }
        let calls = ring.next_used() != used && ring.needs_notification(guest)?;
        let has_more = ring.enable_notification(guest)?;
        if calls && let Err(error) = vring.signal_used_queue() {
            self.warn(Cause::Channel, "cannot call the driver", &error);
        }
        Ok(has_more)
    }

    fn execute(
        &self,
        chain: DescriptorChain<&GuestMemoryMmap>,
        gatherer: &mut Gatherer,
        counters: &mut Counters,
        sliced: &mut SlicedRequest,
    ) -> Result<Completion, QueueError> {
        let (head, mut is_cut) = (chain.head_index(), false);
        let buffers = chain.map(|descriptor| {
            // The iterator ends where it cannot go on, as if the chain ended there.
            is_cut = descriptor.has_next();
            Buffer {
                address: descriptor.addr().raw_value(),
                len_bytes: descriptor.len(),
                is_writable: descriptor.is_write_only(),
            }
        });
        let chain = gatherer.gather(head, buffers)?;
        if is_cut {
            return Err(RingError::EndlessChain.into());
        }
        let mut answer = self.device.execute(chain, self.cache(), counters, sliced)?;
        loop {
            answer = match answer {
                Progress::Completed(completion) => return Ok(completion),
                Progress::Held(held) => return Ok(self.device.settle(held, self.flush(), counters)?),
                // Slices need not end the turn here: no other ring waits for this thread.
                Progress::Sliced => {
                    let next = self.device.next_slice(sliced, self.cache(), counters)?;
                    next.unwrap_or(Progress::Sliced)
                }
            };
        }
    }

    /// Flushes everything so far, and waits for it. Returns whether it has succeeded.
    fn flush(&self) -> bool {
        self.device.fence();
        let waker = Waker::from(Arc::new(Unpark(thread::current())));
        let ticket = self.device.begin_flush(&waker, &Counters::default());
        loop {
            if let Some(has_flushed) = self.device.poll_flush(ticket) {
                return has_flushed;
            }
            thread::park();
        }
    }

    #[cold]
    fn warn(&self, cause: Cause, what: &str, error: &dyn fmt::Display) {
        if let Some(suppressed) = self.log_limit.admit(cause) {
            tracing::warn!(disk = self.device.identity().name, %error, suppressed, "{what}");
        }
    }
}

/// Wakes the thread that waits for a flush.
struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

fn lock(state: &Mutex<QueueState>) -> MutexGuard<'_, QueueState> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Our own mapping of the regions, for the data of requests.
fn table_of(guest: &GuestMemoryMmap) -> Result<MemoryTable, MemoryError> {
    let specs = guest.iter().map(|region| {
        let guest_start = region.start_addr().raw_value();
        let place = region.file_offset().ok_or(MemoryError::NotFound(guest_start, region.len()))?;
        let file = place
            .file()
            .try_clone()
            .map_err(|error| MemoryError::Shared(guest_start, SharedError::Stat(error)))?;
        // Only ring addresses are in the front-end's address space, and the crate translates those.
        let user_start = 0;
        Ok(RegionSpec {
            guest_start,
            len_bytes: region.len(),
            user_start,
            file_offset: place.start(),
            file,
            charge: None,
        })
    });
    MemoryTable::map(specs.collect::<Result<_, _>>()?)
}

impl<D: Disk> VhostUserBackend for Stock<D> {
    type Bitmap = ();
    type Vring = VringRwLock;

    fn num_queues(&self) -> usize {
        self.states.len()
    }

    fn max_queue_size(&self) -> usize {
        usize::from(MAX_QUEUE_SIZE)
    }

    fn features(&self) -> u64 {
        self.device.features() & !features::RING_PACKED | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits()
    }

    fn acked_features(&self, acknowledged: u64) {
        self.can_flush.store(acknowledged & features::FLUSH != 0, Ordering::Release);
    }

    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::REPLY_ACK
            | VhostUserProtocolFeatures::CONFIG
            | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS
    }

    /// Nothing to do: the crate tells its queues by itself.
    fn set_event_idx(&self, _enabled: bool) {}

    fn get_config(&self, offset: u32, size: u32) -> Vec<u8> {
        let writeback = self.cache.show_writeback(!self.has_run.load(Ordering::Acquire));
        let queues = u16::try_from(self.states.len()).unwrap_or(MAX_QUEUES);
        let space = ConfigSpace { queues, ..self.device.config_space(writeback) };
        space.read(offset, usize::try_from(size).unwrap_or(0))
    }

    fn set_config(&self, offset: u32, bytes: &[u8]) -> io::Result<()> {
        let (WRITEBACK_OFFSET, [writeback @ (0 | 1)]) = (offset, bytes) else {
            return Err(io::Error::other("only the writeback byte of the configuration can be written"));
        };
        // With all locks taken no request is under way; and what was acknowledged before the switch persists first.
        let _quiet: Vec<_> = self.states.iter().map(lock).collect();
        self.cache.set_writeback(*writeback == 1);
        self.device.disk().flush().map_err(io::Error::other)
    }

    fn update_memory(&self, memory: GuestMemoryAtomic<GuestMemoryMmap>) -> io::Result<()> {
        let guest = memory.memory().into_inner();
        let table = Arc::new(table_of(&guest).map_err(io::Error::other)?);
        for state in &self.states {
            let mut state = lock(state);
            state.guest = guest.clone();
            state.gatherer = Gatherer::new(table.clone());
        }
        Ok(())
    }

    /// A thread for each queue, so that none waits for a flush of another.
    fn queues_per_thread(&self) -> Vec<u64> {
        (0..self.states.len()).map(|queue| 1 << queue).collect()
    }

    fn exit_event(&self, _thread: usize) -> Option<(EventConsumer, EventNotifier)> {
        new_event_consumer_and_notifier(EventFlag::NONBLOCK).ok()
    }

    fn handle_event(
        &self,
        event: u16,
        _events: EventSet,
        vrings: &[VringRwLock],
        thread: usize,
    ) -> io::Result<()> {
        let (Some(vring), Some(state)) = (vrings.get(usize::from(event)), self.states.get(thread)) else {
            return Ok(());
        };
        self.has_run.store(true, Ordering::Release);
        loop {
            // The lock is held for a batch: messages about the ring wait until it is finished.
            let mut vring: RwLockWriteGuard<'_, VringState> = vring.get_mut();
            if !vring.is_enabled() || !vring.get_queue().ready() {
                return Ok(());
            }
            let mut state = lock(state);
            match self.serve(&mut vring, &mut state) {
                Ok(true) => {}
                Ok(false) => return Ok(()),
                Err(broken) => {
                    // The ring stops, and the front-end may start it anew; an error returned from here would end the thread.
                    vring.get_queue_mut().set_ready(false);
                    state.counters.broken_rings += 1;
                    self.warn(Cause::RingBroken, "a ring is broken", &broken);
                    return Ok(());
                }
            }
        }
    }
}
