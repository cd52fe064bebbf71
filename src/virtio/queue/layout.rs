//! What a ring is started with.

use super::descriptor::DESCRIPTOR_BYTES;
use super::error::RingError;
use crate::limits::bounds::MAX_QUEUE_SIZE;
use crate::virtio::memory::MemoryTable;

/// Size of an event suppression structure of a packed ring in bytes.
pub(super) const EVENT_BYTES: u64 = 4;

/// Which of the two formats of a ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RingKind {
    /// VIRTIO 1.2 §2.7.
    Split,
    /// VIRTIO 1.2 §2.8: `VIRTIO_F_RING_PACKED` is negotiated.
    Packed,
}

impl RingKind {
    /// A ring's size, checked (VIRTIO 1.2 §2.7, §2.8.10.1).
    ///
    /// # Errors
    /// [`RingError::Size`].
    pub fn check_size(self, size: u32) -> Result<u16, RingError> {
        let is_allowed = |size: &u16| match self {
            Self::Split => size.is_power_of_two(),
            Self::Packed => *size > 0,
        };
        let checked = u16::try_from(size).ok().filter(|size| *size <= MAX_QUEUE_SIZE);
        checked.filter(is_allowed).ok_or(RingError::Size(size))
    }
}

/// Where the three areas are, in the front-end's own addresses (`SET_VRING_ADDR`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RingAddresses {
    /// Descriptor table, or ring.
    pub descriptors: u64,
    /// Available ring, or event suppression: written by the driver.
    pub available: u64,
    /// Used ring, or event suppression: written by us.
    pub used: u64,
}

/// What a ring is started with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RingLayout {
    /// Its format.
    pub kind: RingKind,
    /// Number of descriptors.
    pub size: u32,
    /// Where it is.
    pub addresses: RingAddresses,
    /// `SET_VRING_BASE`. It is used for a packed ring only, and only where the ring itself does not say where it goes on.
    pub base: u32,
    /// `VIRTIO_F_EVENT_IDX` is negotiated.
    pub event_idx: bool,
    /// `VIRTIO_F_INDIRECT_DESC` is negotiated.
    pub indirect: bool,
}

impl RingLayout {
    /// Address and length in bytes of its three areas, in the order of [`RingAddresses`].
    pub fn areas(&self) -> [(u64, u64); 3] {
        let RingAddresses { descriptors, available, used } = self.addresses;
        let slots = u64::from(self.size);
        let event_bytes = if self.event_idx { 2 } else { 0 };
        let (available_bytes, used_bytes) = match self.kind {
            RingKind::Split => (4 + slots * 2 + event_bytes, 4 + slots * 8 + event_bytes),
            RingKind::Packed => (EVENT_BYTES, EVENT_BYTES),
        };
        [(descriptors, slots * u64::from(DESCRIPTOR_BYTES)), (available, available_bytes), (used, used_bytes)]
    }
}

/// Host address of one of a ring's areas.
pub(super) fn area(
    memory: &MemoryTable,
    name: &'static str,
    (address, len_bytes): (u64, u64),
    align: usize,
) -> Result<*mut u8, RingError> {
    let host = memory.resolve_user(address, len_bytes).ok_or(RingError::Unmapped(name))?;
    if host.addr() % align == 0 { Ok(host) } else { Err(RingError::Misaligned(name)) }
}
