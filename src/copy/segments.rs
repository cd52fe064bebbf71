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
}
