//! What a ring is made of, and whether it has room for its driver's requests.

use std::fs::File;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use super::hold_ups::HoldUps;
use super::notifier::Notifier;
use crate::disk::Disk;
use crate::log::Cause;
use crate::throttle::Share;
use crate::virtio::blk::{CacheMode, Counters, Device};
use crate::virtio::memory::MemoryTable;
use crate::virtio::queue::{Batch, RingLayout, RingLog, Virtqueue};

/// So many requests that were taken at once are published before others are taken, so that driver and worker work at the
/// same time: at depth 32 each would else wait for the other a third of the time. Fewer are not worth another call.
pub(super) const MANY_REQUESTS: u16 = 8;

/// As many requests as keep a worker busy while a driver wakes up. Where no more wait behind those that were taken, the
/// driver is called when half of these are done.
pub(super) const WAKE_UP_REQUESTS: u16 = 16;

/// Which ring: unique in the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RingKey {
    /// The front-end's session.
    pub session: u64,
    /// The ring's index in it.
    pub index: u16,
}

/// What a ring is made of.
#[derive(Debug)]
pub struct RingParts<D: Disk> {
    /// Which one it is.
    pub key: RingKey,
    /// Size, addresses, features.
    pub layout: RingLayout,
    /// The front-end's memory.
    pub memory: Arc<MemoryTable>,
    /// The device behind it.
    pub device: Arc<Device<D>>,
    /// The session's cache mode.
    pub cache: Arc<CacheMode>,
    /// Readable when the driver has made chains available.
    pub kick: Arc<File>,
    /// Signalled after completions, if the driver wants it.
    pub call: Option<Arc<Notifier>>,
    /// Signalled when the ring is broken.
    pub err: Option<Arc<Notifier>>,
    /// The front-end's connection, which is shut down when its memory is lost.
    pub connection: Option<Arc<UnixStream>>,
    /// Those of its disk.
    pub hold_ups: Arc<HoldUps>,
}

/// What a turn needs of a ring.
#[derive(Debug)]
pub(super) struct RingSide<'a, D: Disk, Q: Virtqueue> {
    pub(super) queue: &'a mut Q,
    pub(super) batch: &'a mut Batch,
    pub(super) is_contiguous: &'a mut bool,
    pub(super) device: &'a Device<D>,
    pub(super) cache: &'a CacheMode,
    pub(super) counters: &'a mut Counters,
    pub(super) log: &'a mut Option<Box<RingLog>>,
    pub(super) call: &'a Option<Arc<Notifier>>,
    pub(super) limit: &'a mut Option<Box<Share>>,
}

/// How a turn of a ring ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Served {
    /// It is empty, or broken. Before it is left alone, [`arm`](super::Ring::arm) it.
    Idle,
    /// There may be more to do.
    More,
    /// It waits for a flush; the waker will say when to serve it again.
    Held,
    /// It has begun what its worker is to do as soon as it can. There may be more to do.
    Begun,
}

/// Says that the driver may form requests that its ring has no room for: it would wait for ever, without a word.
#[cold]
pub(super) fn warn_of_small_ring<D: Disk>(device: &Device<D>, key: &RingKey, layout: &RingLayout) {
    if let Some(suppressed) = device.log_limit().admit(Cause::RingSmall) {
        let (disk, ring, size) = (&device.identity().name, key.index, layout.size);
        let seg_max = size.saturating_sub(2).max(1);
        tracing::warn!(
            disk,
            ring,
            size,
            suppressed,
            "a ring is smaller than the requests that are announced, and its driver uses no indirect descriptors; if it \
             stalls, use seg-max={seg_max}"
        );
    }
}

/// What became of the next chain.
pub(super) enum Popped {
    /// There is none.
    Nothing,
    /// It is done, and was to move so many bytes.
    Done(u64),
    /// It is a flush that takes time, or a request that is done in slices.
    Waits,
}
