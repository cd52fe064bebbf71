//! Copies with ordinary loads and stores.
//!
//! The routines answer how many bytes they did *not* copy. That is 0 today; it is the place where a fault
//! in the mapping or in guest memory will show, so callers treat anything else as an I/O error.

#![allow(unsafe_code)]

use super::{Segment, Segments};

/// Fills `into` with the bytes at `src`; answers how many were not copied.
///
/// # Safety
/// - `src` must be valid for reads of `into.total_bytes()` bytes, and no Rust reference may claim that
///   others leave them alone.
/// - These bytes must not overlap `into`.
#[must_use = "bytes that were not copied are an I/O error"]
#[inline]
pub unsafe fn copy_to_segments(src: *const u8, into: Segments<'_>) -> usize {
    let mut src = src;
    for (index, segment) in into.as_slice().iter().enumerate() {
        // SAFETY: the caller vouches for `src`, the segments before this one used up exactly what it was
        // advanced by; `Segments` vouches for the segment; the caller for the two not overlapping.
        let left = unsafe { copy(segment.ptr(), src, segment.len()) };
        if left != 0 {
            return left + bytes_after(into, index);
        }
        src = src.wrapping_add(segment.len());
    }
    0
}

/// Stores the bytes of `from` at `dst`; answers how many were not copied.
///
/// # Safety
/// - `dst` must be valid for writes of `from.total_bytes()` bytes, and no Rust reference to them may exist.
/// - These bytes must not overlap `from`.
#[must_use = "bytes that were not copied are an I/O error"]
#[inline]
pub unsafe fn copy_from_segments(dst: *mut u8, from: Segments<'_>) -> usize {
    let mut dst = dst;
    for (index, segment) in from.as_slice().iter().enumerate() {
        // SAFETY: the caller vouches for `dst`, the segments before this one used up exactly what it was
        // advanced by; `Segments` vouches for the segment; the caller for the two not overlapping.
        let left = unsafe { copy(dst, segment.ptr(), segment.len()) };
        if left != 0 {
            return left + bytes_after(from, index);
        }
        dst = dst.wrapping_add(segment.len());
    }
    0
}

/// Stores `len` zero bytes at `dst`; answers how many were not stored.
///
/// # Safety
/// `dst` must be valid for writes of `len` bytes, and no Rust reference to them may exist.
#[must_use = "bytes that were not stored are an I/O error"]
#[inline]
pub unsafe fn zero(dst: *mut u8, len: usize) -> usize {
    // SAFETY: the caller vouches for `len` bytes at `dst`.
    unsafe { dst.write_bytes(0, len) };
    0
}

/// Stores `bytes` into the segments, first come first; answers how many were stored, which is all of them
/// unless the segments are shorter.
#[inline]
pub fn store_slice(into: Segments<'_>, bytes: &[u8]) -> usize {
    let mut rest = bytes;
    for segment in into.as_slice() {
        let (now, later) = rest.split_at(segment.len().min(rest.len()));
        // SAFETY: `Segments` vouches for the segment, of which `now` is at most as long; no reference to
        // its bytes exists, so `now` is elsewhere.
        let left = unsafe { copy(segment.ptr(), now.as_ptr(), now.len()) };
        if left != 0 {
            return bytes.len() - later.len() - left;
        }
        rest = later;
    }
    bytes.len() - rest.len()
}

/// Fills `bytes` from the segments; answers how many were filled, which is all of them unless the segments
/// are shorter. Each byte of the segments is read once.
#[inline]
pub fn load_slice(from: Segments<'_>, bytes: &mut [u8]) -> usize {
    let len = bytes.len();
    let mut rest = bytes;
    for segment in from.as_slice() {
        let split = segment.len().min(rest.len());
        let (now, later) = rest.split_at_mut(split);
        // SAFETY: `Segments` vouches for the segment, of which `now` is at most as long; no reference to
        // its bytes exists, so `now` is elsewhere.
        let left = unsafe { copy(now.as_mut_ptr(), segment.ptr(), now.len()) };
        if left != 0 {
            return len - later.len() - left;
        }
        rest = later;
    }
    len - rest.len()
}

/// Orders every store of this CPU so far, non-temporal ones included, before every later one.
#[inline]
pub fn store_fence() {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: SSE is part of x86_64.
    unsafe {
        std::arch::x86_64::_mm_sfence();
    }
    #[cfg(not(target_arch = "x86_64"))]
    std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
}

/// The one copy routine: `len` bytes from `src` to `dst`; answers how many were not copied.
///
/// # Safety
/// - `src` must be valid for reads and `dst` for writes of `len` bytes.
/// - The two ranges must not overlap.
#[inline]
unsafe fn copy(dst: *mut u8, src: *const u8, len: usize) -> usize {
    // SAFETY: exactly the caller's obligations. Others may change these bytes meanwhile: the copy is then
    // some mixture of old and new, which is what a disk promises for a buffer in use.
    unsafe { dst.copy_from_nonoverlapping(src, len) };
    0
}

/// Sum of the lengths of the segments behind number `index`.
#[cold]
fn bytes_after(segments: Segments<'_>, index: usize) -> usize {
    segments.as_slice().iter().skip(index + 1).map(Segment::len).sum()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::copy::testing::{Memory, pattern};

    /// Where the copied bytes lie in their buffer, how long they are and how they are cut.
    fn shapes() -> impl Strategy<Value = (usize, Vec<usize>)> {
        let piece =
            prop_oneof![3 => 0..20_usize, 2 => 60..70_usize, 1 => 500..530_usize, 1 => 4090..4100_usize];
        (0..70_usize, prop::collection::vec(piece, 0..7))
    }

    proptest! {
        #[test]
        fn copies_are_what_a_byte_loop_does((start, lens) in shapes(), gap in 0..70_usize, seed: u8) {
            let len: usize = lens.iter().sum();
            let media_bytes = pattern(start + len + 64, seed);
            let guest_bytes = pattern(gap + len + (lens.len() + 1) * 3 + 64, seed.wrapping_add(101));

            // The naive twin: one byte after the other, over the same shape.
            let guest = Memory::new(&guest_bytes).cut(gap, &lens, 3);
            let (mut to_guest, mut to_media) = (guest_bytes.clone(), media_bytes.clone());
            let (mut at, mut media_at) = (gap, start);
            for piece in &lens {
                for _ in 0..*piece {
                    to_guest[at] = media_bytes[media_at];
                    to_media[media_at] = guest_bytes[at];
                    at += 1;
                    media_at += 1;
                }
                at += 3;
            }

            let media = Memory::new(&media_bytes);
            // SAFETY: `start + len` bytes are inside `media`, which is not `guest`; no reference to either
            // is alive.
            let left = unsafe { copy_from_segments(media.ptr().wrapping_add(start), guest.segments()) };
            prop_assert_eq!(left, 0);
            prop_assert_eq!(media.bytes(), to_media);
            prop_assert_eq!(guest.bytes(), guest_bytes);

            let media = Memory::new(&media_bytes);
            // SAFETY: as above.
            let left = unsafe { copy_to_segments(media.ptr().wrapping_add(start), guest.segments()) };
            prop_assert_eq!(left, 0);
            prop_assert_eq!(guest.bytes(), to_guest);
            prop_assert_eq!(media.bytes(), media_bytes);
        }

        #[test]
        fn zero_is_what_a_byte_loop_does(start in 0..70_usize, len in 0..9000_usize, seed: u8) {
            let memory = Memory::new(&pattern(start + len + 64, seed));
            let mut expected = memory.bytes();
            for byte in expected.iter_mut().skip(start).take(len) {
                *byte = 0;
            }
            // SAFETY: `start + len` bytes are inside `memory`, to which no reference is alive.
            let left = unsafe { zero(memory.ptr().wrapping_add(start), len) };
            prop_assert_eq!(left, 0);
            prop_assert_eq!(memory.bytes(), expected);
        }

        #[test]
        fn slices_fill_the_first_bytes_and_no_others((start, lens) in shapes(), len in 0..300_usize, seed: u8) {
            let total: usize = lens.iter().sum();
            let before = pattern(start + total + (lens.len() + 1) * 3 + 64, seed);
            let slice = pattern(len, seed.wrapping_add(77));
            let memory = Memory::new(&before).cut(start, &lens, 3);

            let mut expected = before.clone();
            let mut loaded_expected = slice.clone();
            let (mut done, mut at) = (0, start);
            for piece in &lens {
                for _ in 0..*piece {
                    if done < len {
                        loaded_expected[done] = before[at];
                        expected[at] = slice[done];
                        done += 1;
                    }
                    at += 1;
                }
                at += 3;
            }

            let mut loaded = slice.clone();
            prop_assert_eq!(load_slice(memory.segments(), &mut loaded), len.min(total));
            prop_assert_eq!(loaded, loaded_expected);
            prop_assert_eq!(memory.bytes(), before);
            prop_assert_eq!(store_slice(memory.segments(), &slice), len.min(total));
            prop_assert_eq!(memory.bytes(), expected);
        }
    }

    #[test]
    fn no_segments_and_empty_segments_move_nothing() {
        let empty = [Segment::EMPTY, Segment::EMPTY];
        // SAFETY: there are no bytes in them.
        let empty = unsafe { Segments::new(&empty) };
        for segments in [Segments::empty(), empty] {
            let mut slice = [7; 3];
            assert_eq!(store_slice(segments, &slice), 0);
            assert_eq!(load_slice(segments, &mut slice), 0);
            assert_eq!(slice, [7; 3]);
            let memory = Memory::new(&[9; 4]);
            // SAFETY: no bytes are touched.
            assert_eq!(unsafe { copy_to_segments(memory.ptr(), segments) }, 0);
            // SAFETY: no bytes are touched.
            assert_eq!(unsafe { copy_from_segments(memory.ptr(), segments) }, 0);
            assert_eq!(memory.bytes(), [9; 4]);
        }
    }

    #[test]
    fn bytes_after_counts_the_segments_behind() {
        let memory = Memory::new(&[0; 64]).cut(0, &[5, 7, 11], 0);
        assert_eq!(bytes_after(memory.segments(), 0), 18);
        assert_eq!(bytes_after(memory.segments(), 2), 0);
    }
}
