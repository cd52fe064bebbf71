//! Descriptors in memory: their flags, and how one is read exactly once.

#![allow(unsafe_code)]

use super::error::RingError;

/// Descriptor flags (VIRTIO 1.2 §2.7.5): the chain goes on, the device writes, a table of descriptors.
pub(super) const NEXT: u16 = 1;
pub(super) const WRITE: u16 = 2;
pub(super) const INDIRECT: u16 = 4;

/// Size of a descriptor in bytes.
pub(super) const DESCRIPTOR_BYTES: u32 = 16;

/// How many whole descriptors an indirect table of so many bytes has; whether that is all that is in it, which it should
/// be (VIRTIO 1.2 §2.7.5.3).
///
/// # Errors
/// [`RingError::NoStatus`]: there is none, and so no place for a status.
pub(super) fn indirect_len(len_bytes: u32) -> Result<(u32, bool), RingError> {
    match len_bytes / DESCRIPTOR_BYTES {
        0 => Err(RingError::NoStatus),
        len => Ok((len, len_bytes.is_multiple_of(DESCRIPTOR_BYTES))),
    }
}

/// A value that need not be aligned.
#[derive(Clone, Copy)]
#[repr(C, packed)]
struct Unaligned<T>(T);

/// The two halves of a descriptor, each read once, wherever it lies.
///
/// # Safety
/// 16 bytes must be mapped at `at`. They need not be aligned: those of an indirect table are not always.
#[inline]
pub(super) unsafe fn read_halves(at: *const u8) -> [u64; 2] {
    let half = at.cast::<Unaligned<u64>>();
    // SAFETY: Q3: mapped, as the caller says, and read exactly once.
    let first = unsafe { half.read_volatile() };
    // SAFETY: Q3: mapped, as the caller says, and read exactly once.
    let second = unsafe { half.wrapping_add(1).read_volatile() };
    [u64::from_le(first.0), u64::from_le(second.0)]
}

/// Address, length in bytes, flags and next index of a split ring's descriptor, each read once, wherever it lies.
///
/// # Safety
/// As [`read_halves`].
#[inline(always)]
pub(super) unsafe fn read_split(at: *const u8) -> (u64, u32, [u16; 2]) {
    // SAFETY: Q3: mapped, as the caller says, and read exactly once.
    let address = unsafe { at.cast::<Unaligned<u64>>().read_volatile() };
    let words = at.wrapping_add(8).cast::<Unaligned<u32>>();
    // SAFETY: Q3: mapped, as the caller says, and read exactly once.
    let len_bytes = unsafe { words.read_volatile() };
    // SAFETY: Q3: mapped, as the caller says, and read exactly once.
    let rest = unsafe { words.wrapping_add(1).read_volatile() };
    let [f0, f1, n0, n1] = u32::from_le(rest.0).to_le_bytes();
    let flags_next = [u16::from_le_bytes([f0, f1]), u16::from_le_bytes([n0, n1])];
    (u64::from_le(address.0), u32::from_le(len_bytes.0), flags_next)
}
