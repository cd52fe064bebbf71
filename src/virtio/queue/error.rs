//! Why a ring cannot be started, or cannot go on.

use crate::limits::bounds::MAX_QUEUE_SIZE;

/// Why a ring cannot be started or cannot go on. Only a restart of that ring by the front-end mends it.
///
/// A ring goes on wherever the request can be answered, which takes a status byte: see [`Flaw`](super::Flaw) for what costs the
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
        "another back-end has used the ring beyond its base, slot {0}, and did not say how far; \
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
    /// Its front-end takes guest memory away while that is used: it is about to get a worker of its own, and goes on there.
    #[error(
        "guest memory is taken away while it is used; the ring is about to go on with a worker of its own"
    )]
    Interrupted,
    /// A page of the dirty log is not there any more, and so the marks in it: the migration cannot succeed.
    #[error("the dirty log is lost: its file was truncated, or a page of it went bad")]
    DirtyLogLost,
    /// The chain has no byte for the status, or one that is not mapped.
    #[error("a chain has no place for its status byte")]
    NoStatus,
}
