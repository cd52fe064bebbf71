//! Virtqueues over host pointers.
//!
//! A ring is driven by one thread, in order, and a request is finished when it leaves that thread: the ring
//! alone says what has been done, by its used index or by its used descriptors, and a ring started anew begins
//! there (`architecture.md`, D2).
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

mod chain;
mod chain_builder;
mod contiguous;
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
pub use gather::{Buffer, Gatherer};
pub use held::HeldSegments;
pub use layout::{RingAddresses, RingKind, RingLayout};
pub use log::RingLog;
pub use packed::PackedQueue;
pub use split::SplitQueue;

use crate::copy::PrefetchHint;
pub use crate::limits::bounds::{MAX_CHAIN, MAX_QUEUE_SIZE};
use crate::virtio::memory::{MemoryTable, Translator};

/// Room for the segments of one chain, and one more to see that there are too many. It is made once (D7), and does not
/// depend on the size of the ring.
const MAX_CHAIN_SEGMENTS: usize = MAX_CHAIN as usize + 1;

/// Segments of most chains: there may be thousands of rings, and the rest of their room is not touched.
const USUAL_CHAIN_SEGMENTS: usize = 192;

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

    /// Whether more chains than so many are available, as far as that can be told without a walk.
    fn has_more_than(&self, chains: u16) -> bool;

    /// Notes a finished chain in the ring. The driver does not see it before [`publish`](Self::publish).
    fn complete(&mut self, completion: Completion);

    /// Shows everything completed to the driver: with one store, or in a packed ring with one a chain, in order.
    /// Returns whether it wants to be called.
    fn publish(&mut self) -> bool;

    /// Asks the driver not to kick while the ring is looked at anyway.
    fn park_kicks(&mut self);

    /// Asks the driver to kick again. Returns whether chains arrived meanwhile, for which no kick will come.
    fn arm_kicks(&mut self) -> bool;

    /// Marks what it has written to guest memory itself: what has been completed and not published, and the words
    /// that are written over and over. To be called before and after each publish, and after arming.
    fn log(&self, log: &RingLog);

    /// Marks all that it, or a back-end before it, may ever have written to guest memory itself.
    fn log_all(&self, log: &RingLog);

    /// Where a ring started anew goes on, which is what was published, in the form of `GET_VRING_BASE`: the used
    /// index, or in a packed ring two positions of 16 bits.
    fn base(&self) -> u32;
}

/// Why a ring cannot be started or cannot go on. Only a restart of that ring by the front-end mends it.
///
/// A ring goes on wherever the request can be answered, which takes a status byte: see [`Flaw`] for what costs the
/// request only. To give a chain back without a status would be taken for a success by some drivers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RingError {
    /// More than [`MAX_QUEUE_SIZE`], none, or in a split ring not a power of two.
    #[error(
        "queue size {0} is not a power of two from 1 to {MAX_QUEUE_SIZE} (a packed ring needs no power of two)"
    )]
    Size(u32),
    /// A packed ring's base (`SET_VRING_BASE`).
    #[error("the base is slot {0} of a ring of {1}")]
    Base(u16, u16),
    /// A packed ring that another back-end has driven, and did not stop as it should.
    #[error(
        "the ring was used beyond slot {0}, its base, by another back-end that did not say how far it came; \
         restart the guest"
    )]
    StaleBase(u16),
    /// One of the three areas is not inside one memory region.
    #[error("the {0} lies outside guest memory, or in two regions")]
    Unmapped(&'static str),
    /// VIRTIO 1.2 §2.7: 16, 2 and 4 bytes.
    #[error("the {0} is not aligned")]
    Misaligned(&'static str),
    /// The driver cannot have made that many chains available.
    #[error("the available index is {0} ahead of a ring of {1}")]
    AvailIndex(u16, u16),
    /// A head or next index beyond the table.
    #[error("descriptor index {0} is beyond the table of {1}")]
    DescriptorIndex(u16, u16),
    /// A chain longer than its table: it must be a loop.
    #[error("the descriptor chain does not end")]
    EndlessChain,
    /// An indirect table that is not inside one region.
    #[error("an indirect table at {0:#x} lies outside guest memory, or in two regions")]
    IndirectUnmapped(u64),
    /// A page of guest memory is not there any more: the front-end has truncated it, or it went bad.
    #[error("guest memory is lost: its file was truncated, or a page of it went bad")]
    GuestMemoryLost,
    /// A page of the dirty log is not there any more, and so the marks in it: the migration cannot succeed.
    #[error("the dirty log is lost: its file was truncated, or a page of it went bad")]
    DirtyLogLost,
    /// The chain has no byte for the status, or one that is not mapped.
    #[error("a chain has no place for its status byte")]
    NoStatus,
}
