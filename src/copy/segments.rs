//! Lists of guest memory ranges, as host addresses.

use std::marker::PhantomData;

/// A run of host-mapped bytes that another process may change at any time.
///
/// It has the layout of `struct iovec`, so that a list of them goes to `pwritev` as it is.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct Segment {
    ptr: *mut u8,
    len: usize,
}

impl Segment {
    /// A segment of no bytes.
    pub const EMPTY: Self = Self { ptr: std::ptr::null_mut(), len: 0 };

    /// Describes `len` bytes at `ptr`. Nothing is dereferenced: that needs a [`Segments`].
    #[inline]
    pub const fn new(ptr: *mut u8, len: usize) -> Self {
        Self { ptr, len }
    }

    /// First byte's host address.
    #[inline]
    pub const fn ptr(&self) -> *mut u8 {
        self.ptr
    }

    /// Length in bytes.
    #[inline]
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Whether there are no bytes in it.
    #[inline]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Drops the first `bytes` (at most all of them).
    #[inline]
    pub fn advance(&mut self, bytes: usize) {
        let bytes = bytes.min(self.len);
        self.ptr = self.ptr.wrapping_add(bytes);
        self.len -= bytes;
    }

    /// Keeps the first `bytes` only (at most what there is).
    #[inline]
    pub fn truncate(&mut self, bytes: usize) {
        self.len = self.len.min(bytes);
    }
}

/// Segments whose bytes are mapped, readable and writable for as long as `'a`.
#[derive(Debug, Clone, Copy)]
pub struct Segments<'a> {
    list: &'a [Segment],
    total_bytes: usize,
    mapped: PhantomData<&'a [u8]>,
}

impl<'a> Segments<'a> {
    /// Vouches for `list`.
    ///
    /// # Safety
    /// - Every segment must lie in memory that stays mapped, readable and writable, for `'a`.
    /// - No Rust reference to these bytes may exist during `'a`: others write to them.
    #[allow(unsafe_code)]
    #[inline]
    pub unsafe fn new(list: &'a [Segment]) -> Self {
        let total_bytes = list.iter().fold(0_usize, |sum, segment| sum.saturating_add(segment.len));
        Self { list, total_bytes, mapped: PhantomData }
    }

    /// Vouches for `list`, whose lengths have been summed up already.
    ///
    /// # Safety
    /// As [`new`](Self::new), and `total_bytes` must be their sum.
    #[allow(unsafe_code)]
    #[inline]
    pub const unsafe fn with_total(list: &'a [Segment], total_bytes: usize) -> Self {
        Self { list, total_bytes, mapped: PhantomData }
    }

    /// No bytes at all.
    pub const fn empty() -> Self {
        Self { list: &[], total_bytes: 0, mapped: PhantomData }
    }

    /// The segments in order.
    #[inline]
    pub const fn as_slice(&self) -> &'a [Segment] {
        self.list
    }

    /// Sum of the lengths, in bytes; saturates (guest memory is smaller).
    #[inline]
    pub const fn total_bytes(&self) -> usize {
        self.total_bytes
    }

    /// The parts of the segments that lie in one page of something that they are copied to or from at `offset`, each with its own
    /// offset there.
    pub fn in_pages(self, offset: u64, page_bytes: u64) -> impl Iterator<Item = (u64, PagePart<'a>)> {
        let page_bytes = page_bytes.max(1);
        let (mut at, mut list, mut rest) = (offset, self.list.iter(), Segment::EMPTY);
        std::iter::from_fn(move || {
            while rest.is_empty() {
                rest = *list.next()?;
            }
            let mut part = rest;
            part.truncate(usize::try_from(page_bytes - at % page_bytes).unwrap_or(usize::MAX));
            rest.advance(part.len());
            let start = at;
            at = at.saturating_add(part.len() as u64);
            Some((start, PagePart { segment: [part], mapped: PhantomData }))
        })
    }
}

/// A part of [`Segments`] that is in one piece.
#[derive(Debug)]
pub struct PagePart<'a> {
    segment: [Segment; 1],
    mapped: PhantomData<&'a [u8]>,
}

impl PagePart<'_> {
    /// As segments.
    #[allow(unsafe_code)]
    pub fn segments(&self) -> Segments<'_> {
        // SAFETY: C1: a part of what somebody has vouched for, for at least as long.
        unsafe { Segments::new(&self.segment) }
    }
}

/// Has something copy to or from `bytes`, which nobody else reaches meanwhile.
#[allow(unsafe_code)]
pub fn with_bytes<R>(bytes: &mut [u8], work: impl FnOnce(Segments<'_>) -> R) -> R {
    let list = [Segment::new(bytes.as_mut_ptr(), bytes.len())];
    // SAFETY: C1: they are borrowed for as long as the segments are there, and the reference is not used meanwhile.
    work(unsafe { Segments::new(&list) })
}

#[cfg(test)]
mod tests {
    use crate::copy::load_slice;
    use crate::copy::testing::{Memory, pattern};

    /// Every byte is in one part, in order, and no part crosses a page.
    #[test]
    fn parts_in_pages_are_the_whole() {
        let memory = Memory::new(&pattern(10_100, 1)).cut(0, &[1, 4096, 0, 5000, 903], 7);
        let mut all = vec![0; 10_000];
        assert_eq!(load_slice(memory.segments(), &mut all), all.len());
        for offset in [0, 1, 511, 4095, 4096, 123_456] {
            let (mut at, mut found) = (offset, Vec::new());
            for (start, part) in memory.segments().in_pages(offset, 4096) {
                let len = part.segments().total_bytes();
                assert_eq!(start, at);
                assert!(len != 0 && start / 4096 == (start + len as u64 - 1) / 4096, "{start}: {len}");
                let mut bytes = vec![0; len];
                assert_eq!(load_slice(part.segments(), &mut bytes), len);
                found.extend(bytes);
                at += len as u64;
            }
            assert!(found == all, "{offset}");
        }
    }
}
