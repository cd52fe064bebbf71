//! A copy between media and guest memory, checked and ready to be made.

#![allow(unsafe_code)]

use super::Segments;

/// What a write into the media has to do beyond the fence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Persist {
    /// Every line is on its way to the media when the routine returns, and there after the next
    /// [`store_fence`](super::store_fence): for media whose durability is that of the cache line.
    Lines,
    /// Lines may stay in the cache: for media whose caches survive, that are synchronised by system calls,
    /// or that keep nothing.
    FenceOnly,
}

/// A copy from the media into guest memory, which may be made at any time during `'a`.
#[derive(Debug, Clone, Copy)]
pub struct Load<'a> {
    pub(super) src: *const u8,
    pub(super) into: Segments<'a>,
}

impl<'a> Load<'a> {
    /// Vouches for the bytes at `src`, as many as there are in `into`.
    ///
    /// # Safety
    /// - They must be mapped for reads during `'a`, and no Rust reference may claim that others leave them alone. (The file
    ///   behind the mapping may have been truncated: then the copy says so.)
    /// - They must not overlap `into`.
    #[inline]
    pub const unsafe fn new(src: *const u8, into: Segments<'a>) -> Self {
        Self { src, into }
    }

    /// Address of the first byte on the media's side.
    #[inline]
    pub const fn address(&self) -> *const u8 {
        self.src
    }

    /// Length in bytes.
    #[inline]
    pub const fn total_bytes(&self) -> usize {
        self.into.total_bytes()
    }
}

/// A copy from guest memory into the media, which may be made at any time during `'a`.
#[derive(Debug, Clone, Copy)]
pub struct Store<'a> {
    pub(super) dst: *mut u8,
    pub(super) from: Segments<'a>,
}

impl<'a> Store<'a> {
    /// Vouches for the bytes at `dst`, as many as there are in `from`.
    ///
    /// # Safety
    /// - They must be mapped for writes during `'a`, and no Rust reference to them may exist. (The file behind the mapping
    ///   may have been truncated: then the copy says so.)
    /// - They must not overlap `from`.
    #[inline]
    pub const unsafe fn new(dst: *mut u8, from: Segments<'a>) -> Self {
        Self { dst, from }
    }

    /// Address of the first byte on the media's side.
    #[inline]
    pub const fn address(&self) -> *const u8 {
        self.dst
    }

    /// Length in bytes.
    #[inline]
    pub const fn total_bytes(&self) -> usize {
        self.from.total_bytes()
    }
}
