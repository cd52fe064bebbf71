//! A ring of either format: which one is asked once a batch, not once a request.

use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::task::Waker;
use std::time::Instant;

use super::direct::DirectTasks;
use super::hold_ups::HoldUps;
use super::ring::limited::renew_limits;
use super::ring::waiting::leave_quick;
use super::ring::{Ring, RingKey, RingParts};
use crate::disk::Disk;
use crate::log::LogLimit;
use crate::virtio::blk::{Counters, Device, RequestTask};
use crate::virtio::queue::{Indices, PackedQueue, RingError, RingKind, RingLog, SplitQueue, Virtqueue};

/// A started ring of either format.
#[derive(Debug)]
pub enum AnyRing<D: Disk> {
    /// VIRTIO 1.2 §2.7.
    Split(Box<Ring<D, SplitQueue>>),
    /// VIRTIO 1.2 §2.8.
    Packed(Box<Ring<D, PackedQueue>>),
}

/// The same of a ring of either format.
macro_rules! with_ring {
    ($any:expr, $ring:ident => $result:expr) => {
        match $any {
            AnyRing::Split($ring) => $result,
            AnyRing::Packed($ring) => $result,
        }
    };
}
pub(super) use with_ring;

impl<D: Disk> AnyRing<D> {
    /// Starts a ring as its layout says.
    ///
    /// # Errors
    /// As [`Ring::start`].
    pub fn start(parts: RingParts<D>, log_limit: Arc<LogLimit>) -> Result<Self, RingError> {
        Ok(match parts.layout.kind {
            RingKind::Split => Self::Split(start(parts, log_limit)?),
            RingKind::Packed => Self::Packed(start(parts, log_limit)?),
        })
    }

    /// As [`Ring::key`].
    pub fn key(&self) -> RingKey {
        with_ring!(self, ring => ring.key())
    }

    /// As [`Ring::kick`].
    pub fn kick(&self) -> BorrowedFd<'_> {
        with_ring!(self, ring => ring.kick())
    }

    /// As [`Ring::is_broken`].
    #[inline]
    pub fn is_broken(&self) -> bool {
        with_ring!(self, ring => ring.is_broken())
    }

    /// As [`Ring::base`].
    pub fn base(&self) -> u32 {
        with_ring!(self, ring => ring.base())
    }

    /// As [`Ring::log_to`].
    pub fn log_to(&mut self, log: RingLog) {
        with_ring!(self, ring => ring.log_to(log));
    }

    /// As [`Ring::device`].
    pub fn device(&self) -> &Arc<Device<D>> {
        with_ring!(self, ring => ring.device())
    }

    /// As [`Ring::hold_ups`].
    pub fn hold_ups(&self) -> &Arc<HoldUps> {
        with_ring!(self, ring => ring.hold_ups())
    }

    /// As [`Ring::counters`].
    pub fn counters(&self) -> &Counters {
        with_ring!(self, ring => ring.counters())
    }

    /// As [`Ring::standing`].
    pub(super) fn standing(&self) -> (Indices, usize, Option<&RingError>) {
        with_ring!(self, ring => ring.standing())
    }

    /// Which format it has.
    pub const fn kind(&self) -> RingKind {
        match self {
            Self::Split(_) => RingKind::Split,
            Self::Packed(_) => RingKind::Packed,
        }
    }

    /// As [`Ring::has_work`].
    #[inline]
    pub fn has_work(&self) -> bool {
        with_ring!(self, ring => ring.has_work())
    }

    /// As [`Ring::waits_for_media`].
    pub(super) fn waits_for_media(&self) -> bool {
        with_ring!(self, ring => ring.waits_for_media())
    }

    /// As [`Ring::is_timed`].
    pub(super) fn is_timed(&self) -> bool {
        with_ring!(self, ring => ring.is_timed())
    }

    /// As [`Ring::arm`].
    #[inline]
    pub fn arm(&mut self) -> bool {
        with_ring!(self, ring => ring.arm())
    }

    /// As [`leave_quick`].
    pub(super) fn leave_quick(&mut self, transfers: Option<Arc<DirectTasks<D>>>) {
        with_ring!(self, ring => leave_quick(ring, transfers));
    }

    /// As [`renew_limits`].
    pub(super) fn renew_limits(&mut self) {
        with_ring!(self, ring => renew_limits(ring));
    }

    /// As [`Ring::tell_slow`].
    pub(super) fn tell_slow(&mut self) {
        with_ring!(self, ring => ring.tell_slow());
    }

    /// As [`Ring::held_until`].
    pub(super) fn held_until(&self) -> Option<Instant> {
        with_ring!(self, ring => ring.held_until())
    }

    /// As [`Ring::resume`].
    pub(super) fn resume(&mut self) {
        with_ring!(self, ring => ring.resume());
    }

    /// As [`Ring::take_quick`].
    pub(super) fn take_quick(&mut self, out: &mut Vec<RequestTask<D>>) {
        with_ring!(self, ring => ring.take_quick(out));
    }

    /// As [`Ring::drain`].
    pub fn drain(&mut self, waker: &Waker) -> bool {
        with_ring!(self, ring => ring.drain(waker))
    }

    /// As [`Ring::serve`], for tests without a worker, which does this itself.
    #[cfg(test)]
    pub(crate) fn serve(&mut self, waker: &Waker) -> super::ring::Served {
        with_ring!(self, ring => ring.serve(waker))
    }
}

/// Not inlined: a ring is large, and the stack of each front-end's thread stays as deep as it ever was.
#[inline(never)]
fn start<D: Disk, Q: Virtqueue>(
    parts: RingParts<D>,
    log_limit: Arc<LogLimit>,
) -> Result<Box<Ring<D, Q>>, RingError> {
    Ring::start(parts, log_limit).map(Box::new)
}
