//! The memory of a packed ring: its descriptors, each in a slot, and the event suppression structures of driver and device
//! (VIRTIO 1.2 §2.8).

#![allow(unsafe_code)]

use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering};

use super::position::Position;
use crate::virtio::memory::MemoryTable;
use crate::virtio::queue::descriptor::DESCRIPTOR_BYTES;
use crate::virtio::queue::error::RingError;
use crate::virtio::queue::layout::{RingKind, RingLayout, area};

/// Descriptor flags (VIRTIO 1.2 §2.8.1).
pub(super) const AVAIL: u16 = 1 << 7;
pub(super) const USED: u16 = 1 << 15;

/// Marks the slots that we have used, by a bit that the specification gives no meaning: of a used
/// descriptor's flags drivers read the two above and WRITE, and they write all of them anew.
pub(super) const OURS: u16 = 1 << 14;

/// A descriptor, read once.
#[derive(Debug, Clone, Copy)]
pub(super) struct Descriptor {
    pub(super) address: u64,
    pub(super) len_bytes: u32,
    pub(super) id: u16,
    pub(super) flags: u16,
}

impl Descriptor {
    #[inline]
    pub(super) fn of([address, rest]: [u64; 2]) -> Self {
        let [l0, l1, l2, l3, i0, i1, f0, f1] = rest.to_le_bytes();
        let (id, flags) = (u16::from_le_bytes([i0, i1]), u16::from_le_bytes([f0, f1]));
        Self { address, len_bytes: u32::from_le_bytes([l0, l1, l2, l3]), id, flags }
    }
}

/// A packed ring's three areas. Its owner keeps their memory mapped as long as this lives.
#[derive(Debug)]
pub(super) struct Slots {
    ring: *mut u8,
    driver: *mut u8,
    device: *mut u8,
    size: u16,
}

// SAFETY: Q2: only the one thread that owns the ring uses the pointers. Q1: they are good on any.
unsafe impl Send for Slots {}

impl Slots {
    /// # Errors
    /// The size is not allowed, or an area is not mapped or not aligned.
    pub(super) fn new(layout: &RingLayout, memory: &MemoryTable) -> Result<Self, RingError> {
        let size = RingKind::Packed.check_size(layout.size)?;
        let [ring, driver, device] = layout.areas();
        Ok(Self {
            ring: area(memory, "descriptor ring", ring, 16)?,
            driver: area(memory, "driver area", driver, 4)?,
            device: area(memory, "device area", device, 4)?,
            size,
        })
    }

    /// Number of slots.
    #[inline]
    pub(super) const fn size(&self) -> u16 {
        self.size
    }

    /// Host address of the device's area.
    pub(super) const fn device_area(&self) -> *const u8 {
        self.device
    }

    #[inline]
    pub(super) fn slot(&self, slot: u16) -> *mut u8 {
        debug_assert!(slot < self.size);
        self.ring.wrapping_add(usize::from(slot) * DESCRIPTOR_BYTES as usize)
    }

    /// The flags of a slot.
    #[inline]
    pub(super) fn flags(&self, slot: u16) -> &AtomicU16 {
        let at = self.slot(slot).wrapping_add(14);
        // SAFETY: Q1: two bytes of a slot of the ring, aligned. Q3: an atomic.
        unsafe { AtomicU16::from_ptr(at.cast()) }
    }

    /// The half of a slot that length, id and flags share.
    #[inline]
    pub(super) fn second_half(&self, slot: u16) -> &AtomicU64 {
        let at = self.slot(slot).wrapping_add(8);
        // SAFETY: Q1: the second half of a slot of the ring, aligned. Q3: an atomic.
        unsafe { AtomicU64::from_ptr(at.cast()) }
    }

    /// Reads a slot: its flags first (acquire), then what the driver stored before them.
    #[inline]
    pub(super) fn read(&self, slot: u16) -> Descriptor {
        let second = u64::from_le(self.second_half(slot).load(Ordering::Acquire));
        // SAFETY: Q1: the first half of a slot of the ring, aligned. Q3: an atomic.
        let first = unsafe { AtomicU64::from_ptr(self.slot(slot).cast()) };
        Descriptor::of([u64::from_le(first.load(Ordering::Relaxed)), second])
    }

    /// Both words of the driver's area, in one load.
    #[inline]
    pub(super) fn driver_event(&self) -> [u16; 2] {
        // SAFETY: Q1: the driver's area, 4 bytes, aligned to 4. Q3: an atomic.
        let both = unsafe { AtomicU32::from_ptr(self.driver.cast()) };
        let [o0, o1, f0, f1] = u32::from_le(both.load(Ordering::Relaxed)).to_le_bytes();
        [u16::from_le_bytes([o0, o1]), u16::from_le_bytes([f0, f1])]
    }

    /// A word of the device's area: the offset, where our record is, or the flags.
    #[inline]
    pub(super) fn device_word(&self, offset: usize) -> &AtomicU16 {
        let at = self.device.wrapping_add(offset);
        // SAFETY: Q1: the device's area, 4 bytes, aligned to 4; `offset` is 0 or 2. Q3: an atomic.
        unsafe { AtomicU16::from_ptr(at.cast()) }
    }

    #[inline]
    pub(super) fn is_available(&self, at: Position) -> bool {
        let flags = u16::from_le(self.flags(at.slot).load(Ordering::Acquire));
        (flags & AVAIL != 0) == at.wrap && (flags & USED != 0) != at.wrap
    }

    /// Records in the device area that everything before this was used.
    #[inline]
    pub(super) fn record(&self, at: Position) {
        self.device_word(0).store(at.to_record(self.size).to_le(), Ordering::Release);
    }
}
