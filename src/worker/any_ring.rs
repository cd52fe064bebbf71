//! A ring of either format: which one is asked once a batch, not once a request.

use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::task::Waker;

use super::ring::{Ring, RingKey, RingParts, Served};
use crate::disk::Disk;
use crate::log::LogLimit;
use crate::virtio::blk::{Counters, Device};
use crate::virtio::queue::{PackedQueue, RingError, RingKind, RingLog, SplitQueue, Virtqueue};

/// A started ring of either format.
#[derive(Debug)]
pub enum AnyRing<D: Disk> {
    /// VIRTIO 1.2 §2.7.
    Split(Box<Ring<D, SplitQueue>>),
    /// VIRTIO 1.2 §2.8.
    Packed(Box<Ring<D, PackedQueue>>),
}

macro_rules! either {
    ($any:expr, $ring:ident => $answer:expr) => {
        match $any {
            Self::Split($ring) => $answer,
            Self::Packed($ring) => $answer,
        }
    };
}

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
        either!(self, ring => ring.key())
    }

    /// As [`Ring::kick`].
    pub fn kick(&self) -> BorrowedFd<'_> {
        either!(self, ring => ring.kick())
    }

    /// As [`Ring::is_broken`].
    #[inline]
    pub fn is_broken(&self) -> bool {
        either!(self, ring => ring.is_broken())
    }

    /// As [`Ring::base`].
    pub fn base(&self) -> u32 {
        either!(self, ring => ring.base())
    }

    /// As [`Ring::log_to`].
    pub fn log_to(&mut self, log: RingLog) {
        either!(self, ring => ring.log_to(log));
    }

    /// As [`Ring::device`].
    pub fn device(&self) -> &Arc<Device<D>> {
        either!(self, ring => ring.device())
    }

    /// As [`Ring::counters`].
    pub fn counters(&self) -> &Counters {
        either!(self, ring => ring.counters())
    }

    /// As [`Ring::has_work`].
    #[inline]
    pub fn has_work(&self) -> bool {
        either!(self, ring => ring.has_work())
    }

    /// As [`Ring::arm`].
    #[inline]
    pub fn arm(&mut self) -> bool {
        either!(self, ring => ring.arm())
    }

    /// As [`Ring::serve`].
    #[inline]
    pub fn serve(&mut self, waker: &Waker) -> Served {
        either!(self, ring => ring.serve(waker))
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
