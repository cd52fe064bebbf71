//! Virtqueues over host pointers.
//!
//! A ring is driven by one thread, in order, and a request is finished when it leaves that thread: the ring
//! alone says what has been done, by its used index or by its used descriptors, and a ring started anew begins
//! there ([decision D2](crate#decisions)).
//!
//! The life of a batch:
//!
//! ```text
//! park_kicks ─▶ { take_contiguous ─▶ { ContiguousChain ─▶ … ─▶ Completion ─▶ complete }*  ─▶ fence ─▶ publish ─▶ call?
//!                 or pop     ─▶   Chain ─▶ … ─▶ Completion ─▶ complete }*
//!                                                                          arm_kicks ─▶ more?
//! ```
//!
//! Everything a guest writes is read once and checked where it is read.
//!
//! What `unsafe` here relies on, besides what `MemoryTable` states:
//!
//! - **Q1**: the three areas of a ring are mapped, aligned and as long as its size needs, from `start` until it is dropped:
//!   `layout::area` has found them, and the ring's owner drops it before its table ([`Virtqueue::start`]).
//! - **Q2**: a ring, a batch and what is held of a chain are used by one thread at a time: each has one owner, and none is `Sync`.
//! - **Q3**: what a driver may change at the same time is accessed atomically, or read or written once, volatile.
//! - **Q4**: what a chain names, its segments and its status byte, was found by the ring's translator, whose table is
//!   borrowed or held as long as the chain is there.
//! - **Q5**: segments of a chain that is gone are not read: the next one overwrites them.

mod chain;
mod chain_builder;
mod contiguous;
mod descriptor;
mod error;
mod gather;
mod held;
mod layout;
mod log;
mod notify;
mod packed;
mod split;

#[cfg(test)]
mod tests;

pub use chain::{Chain, Completion, Flaw, Head, Header, HeldStatus, Status, StatusByte};
pub use contiguous::{Batch, Bounds, ContiguousChain, Next};
pub use error::RingError;
pub use gather::{Buffer, Gatherer};
pub use held::HeldSegments;
pub use layout::{RingAddresses, RingKind, RingLayout};
pub use log::RingLog;
pub use packed::PackedQueue;
pub use split::SplitQueue;

use crate::copy::PrefetchHint;
pub use crate::limits::bounds::{MAX_CHAIN, MAX_QUEUE_SIZE};
use crate::virtio::memory::{MemoryTable, Translator};

/// Where a ring stands: in a split ring the indices of VIRTIO 1.2 §2.7, which count chains and wrap at 2^16, in a packed ring
/// places of the ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Indices {
    /// Entries of the ring.
    pub size: u16,
    /// What the driver has made available, as far as it says: a packed ring has no such index.
    pub available: Option<u16>,
    /// What was taken of that.
    pub taken: u16,
    /// What is finished, and stands in the ring.
    pub used: u16,
    /// What the driver was shown of that.
    pub shown: u16,
}

/// A ring that the data path can drive, split or packed.
pub trait Virtqueue: Sized {
    /// Starts a ring where the one before it has stopped. It must be dropped before `memory` is.
    ///
    /// # Errors
    /// The size is not allowed, or an area is not mapped or not aligned.
    fn start(layout: &RingLayout, memory: &MemoryTable) -> Result<Self, RingError>;

    /// Takes the next chains of the common shape that the driver has made available, as many as are there one after
    /// the other within the bounds. Each header is handed to `prefetch`; one for which that returns `None` is the last
    /// taken, as it has to be executed before more is read. To be called when the batch is empty. Returns what follows.
    ///
    /// # Errors
    /// As [`pop`](Self::pop).
    fn take_contiguous(
        &mut self,
        batch: &mut Batch,
        bounds: Bounds,
        prefetch: impl Fn(&Header) -> Option<PrefetchHint>,
    ) -> Result<Next, RingError>;

    /// Takes the next chain that the driver has made available, of any shape. The chain borrows the ring: it must
    /// become a [`Completion`] before the next one is taken.
    ///
    /// # Errors
    /// [`RingError`]: the driver broke the ring's rules so that there is no way to go on with it.
    fn pop<'a>(&'a mut self, memory: &'a mut Translator) -> Result<Option<Chain<'a>>, RingError>;

    /// The header of a chain that is to be popped later, `ahead` chains after the next one: a guess at what
    /// it will ask, of which nothing has been checked and which will be read again.
    fn peek(&mut self, ahead: u16, memory: &mut Translator) -> Option<Header>;

    /// Whether the driver has made chains available that are not taken yet, or broken the ring's rules about
    /// it: [`pop`](Self::pop) will tell.
    fn has_available(&self) -> bool;

    /// Whether more chains than so many are available, as far as that can be told without reading them.
    fn has_more_than(&self, chains: u16) -> bool;

    /// Stores a finished chain. The driver does not see it before [`publish`](Self::publish).
    fn complete(&mut self, completion: Completion);

    /// Publishes everything completed to the driver: with one store of the used index, or in a packed ring with one store a
    /// chain, in order. Returns whether the driver wants to be called.
    fn publish(&mut self) -> bool;

    /// Asks the driver not to kick while the ring is polled anyway.
    fn park_kicks(&mut self);

    /// Asks the driver to kick again. Returns whether chains arrived meanwhile, for which no kick will come.
    fn arm_kicks(&mut self) -> bool;

    /// Marks what the ring itself has written to guest memory: what has been completed and not published, and the indices and
    /// flags that are written again and again. To be called before and after each publish, and after arming.
    fn log(&self, log: &RingLog);

    /// Marks all that it, or a back-end before it, may ever have written to guest memory itself.
    fn log_all(&self, log: &RingLog);

    /// Where a ring started anew goes on, which is what was published, in the form of `GET_VRING_BASE`: the used
    /// index, or in a packed ring two positions of 16 bits.
    fn base(&self) -> u32;

    /// Where it stands, for whoever looks at it.
    fn indices(&self) -> Indices;
}
