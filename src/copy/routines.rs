//! The routines over lists of segments: whole lines by the engine, what is left over by small moves.

#![allow(unsafe_code)]

use super::Segments;
use super::engine::{Engine, Stores};
use super::line::{LINE_BYTES, LineKernel};
#[cfg(not(target_arch = "x86_64"))]
use super::portable;
use super::transfer::{Load, Persist, Store};
#[cfg(target_arch = "x86_64")]
use super::x86_64::kernels;

/// What is stored into the media.
#[derive(Clone, Copy)]
enum Payload {
    Source,
    Zeroes,
}

impl Engine {
    /// Fills guest memory from the media; returns how many bytes were not copied, from where the first fault was.
    ///
    /// Meanwhile it prefetches what is needed next: further bytes of the media, and then as many at `next`.
    #[must_use = "bytes that were not copied are an I/O error"]
    #[inline(always)]
    pub fn load(&self, load: Load<'_>, next: PrefetchHint) -> usize {
        let Load { src, into } = load;
        if let [segment] = into.as_slice() {
            // SAFETY: C2: `src`, which is as long as the segment. C1: the segment. They do not overlap.
            return unsafe { self.move_bytes(segment.ptr(), src, segment.len(), next) };
        }
        let (start, end) = (src, src.wrapping_add(into.total_bytes()));
        let mut src = src;
        for segment in into.as_slice() {
            let behind = src.wrapping_add(segment.len());
            let next = if behind == end { next } else { PrefetchHint::new(behind) };
            // SAFETY: C2: `src`: the segments before this one used up exactly what it was advanced by. C1: the segment.
            let left = unsafe { self.move_bytes(segment.ptr(), src, segment.len(), next) };
            if left != 0 {
                return left + bytes_after(into, src.addr() - start.addr() + segment.len());
            }
            src = behind;
        }
        0
    }

    /// Stores guest memory into the media; returns how many bytes were not copied, from where the first fault was.
    ///
    /// Meanwhile it prefetches what is needed next, as [`load`](Self::load) does.
    #[must_use = "bytes that were not copied are an I/O error"]
    #[inline(always)]
    pub fn store(&self, store: Store<'_>, persist: Persist, next: PrefetchHint) -> usize {
        let Store { dst, from } = store;
        if let [segment] = from.as_slice() {
            // SAFETY: C2: `dst`, which is as long as the segment. C1: the segment. They do not overlap.
            return unsafe {
                self.by_lines(dst, segment.ptr(), segment.len(), persist, Payload::Source, next)
            };
        }
        let start = dst;
        let mut dst = dst;
        for (number, segment) in from.as_slice().iter().enumerate() {
            let next =
                from.as_slice().get(number + 1).map_or(next, |segment| PrefetchHint::new(segment.ptr()));
            // SAFETY: C2: `dst`: the segments before this one used up exactly what it was advanced by. C1: the segment.
            let left =
                unsafe { self.by_lines(dst, segment.ptr(), segment.len(), persist, Payload::Source, next) };
            if left != 0 {
                return left + bytes_after(from, dst.addr() - start.addr() + segment.len());
            }
            dst = dst.wrapping_add(segment.len());
        }
        0
    }

    /// Stores `len` zero bytes at `dst`; returns how many were not stored.
    ///
    /// # Safety
    /// `dst` must be mapped for writes of `len` bytes, and no Rust reference to them may exist.
    #[must_use = "bytes that were not stored are an I/O error"]
    #[inline]
    pub unsafe fn zero(&self, dst: *mut u8, len: usize, persist: Persist) -> usize {
        // SAFETY: C2: `dst`; neither routine reads a source.
        unsafe { self.by_lines(dst, std::ptr::null(), len, persist, Payload::Zeroes, PrefetchHint::NONE) }
    }

    /// Copies by ordinary moves.
    #[inline]
    unsafe fn move_bytes(&self, dst: *mut u8, src: *const u8, len: usize, next: PrefetchHint) -> usize {
        if len.is_multiple_of(LINE_BYTES) {
            // SAFETY: C2: `len` bytes on both sides, whole lines.
            return unsafe { (self.copy)(dst, src, len, next.0) };
        }
        // SAFETY: C2: passed on as it is.
        unsafe { self.move_odd(dst, src, len, next) }
    }

    /// As [`move_bytes`](Self::move_bytes), of a length that is no multiple of a line's.
    #[cold]
    #[inline(never)]
    unsafe fn move_odd(&self, dst: *mut u8, src: *const u8, len: usize, next: PrefetchHint) -> usize {
        let odd = len % LINE_BYTES;
        let body = len - odd;
        // SAFETY: C2: the first `body` of `len` bytes.
        let left = unsafe { (self.copy)(dst, src, body, next.0) };
        if left != 0 {
            return left + odd;
        }
        // SAFETY: C2: the last `odd` of `len` bytes.
        unsafe { copy_small(dst.wrapping_add(body), src.wrapping_add(body), odd) }
    }

    /// Does whole lines of `dst` by the engine's routine, and what is before and behind them by small stores.
    #[inline]
    unsafe fn by_lines(
        &self,
        dst: *mut u8,
        src: *const u8,
        len: usize,
        persist: Persist,
        payload: Payload,
        next: PrefetchHint,
    ) -> usize {
        if (dst.addr() | len) & self.odd_mask == 0 {
            // SAFETY: C2: `len` bytes, which are whole lines of `dst`.
            return unsafe { self.lines(payload)(dst, src, len, next.0) };
        }
        // SAFETY: C2: passed on as it is.
        unsafe { self.by_parts(dst, src, len, persist, payload, next) }
    }

    /// As [`by_lines`](Self::by_lines), with partial lines, or stores that need every line flushed.
    #[cold]
    #[inline(never)]
    unsafe fn by_parts(
        &self,
        dst: *mut u8,
        src: *const u8,
        len: usize,
        persist: Persist,
        payload: Payload,
        next: PrefetchHint,
    ) -> usize {
        let head = (dst.addr().wrapping_neg() % LINE_BYTES).min(len);
        let tail = (len - head) % LINE_BYTES;
        let body = len - head - tail;
        let flush_body = self.stores() == Stores::Portable;
        let mut at = 0;
        for (part, is_lines) in [(head, false), (body, true), (tail, false)] {
            if part == 0 {
                continue;
            }
            let (to, from) = (dst.wrapping_add(at), src.wrapping_add(at));
            let left = match (is_lines, payload) {
                // SAFETY: C2: a part of the range, which is whole lines of `dst`.
                (true, _) => unsafe { self.lines(payload)(to, from, part, next.0) },
                // SAFETY: C2: a part of the range, shorter than a line.
                (false, Payload::Source) => unsafe { copy_small(to, from, part) },
                // SAFETY: C2: a part of the range, shorter than a line.
                (false, Payload::Zeroes) => unsafe { fill_small(to, from, part) },
            };
            if left != 0 {
                return left + (len - at - part);
            }
            let unflushed = persist == Persist::Lines && (flush_body || !is_lines);
            // SAFETY: C2: a part of the range.
            if unflushed && unsafe { self.flush_lines(to, part) } != 0 {
                return len - at;
            }
            at += part;
        }
        0
    }

    /// The routine for whole lines.
    #[inline]
    const fn lines(&self, payload: Payload) -> LineKernel {
        match payload {
            Payload::Source => self.stream,
            Payload::Zeroes => self.zero,
        }
    }

    /// Writes back every line that `len` bytes at `dst` touch; returns other than 0 if it cannot.
    #[inline]
    unsafe fn flush_lines(&self, dst: *mut u8, len: usize) -> usize {
        let before = dst.addr() % LINE_BYTES;
        let bytes = (before + len).next_multiple_of(LINE_BYTES);
        // SAFETY: C2: the lines hold bytes of the range; the rest of a line is in the same page.
        unsafe { (self.flush)(dst.wrapping_sub(before), std::ptr::null(), bytes) }
    }
}

/// Stores `len` zero bytes at `dst`, by the engine of the process; see [`Engine::zero`].
///
/// # Safety
/// As there.
#[must_use = "bytes that were not stored are an I/O error"]
#[inline]
pub unsafe fn zero(dst: *mut u8, len: usize, persist: Persist) -> usize {
    // SAFETY: C2: passed on as it is.
    unsafe { Engine::get().zero(dst, len, persist) }
}

/// Whether the byte at `address` can be read: after a short copy, which side of it was at fault, and before a write
/// by system call, whether the file is still there.
///
/// # Safety
/// It must be mapped. (The file behind the mapping may have been truncated: that is the question.)
#[inline]
pub unsafe fn can_read(address: *const u8) -> bool {
    let mut byte = 0;
    // SAFETY: C2: one byte; `byte` is one.
    unsafe { copy_small(&raw mut byte, address, 1) == 0 }
}

/// Touches each page of the segments, so that all of them are there when this returns, or lost.
///
/// In a postcopy migration a page may be missing, and the kernel does not wait for one when it copies itself; nor should
/// anybody wait who has locked what other guests' requests need.
pub fn touch(segments: Segments<'_>) {
    const PAGE_BYTES: usize = 4096;
    for segment in segments.as_slice() {
        let mut at = 0;
        while at < segment.len() {
            let address = segment.ptr().wrapping_add(at);
            // SAFETY: C1: a byte of the segment.
            if !unsafe { can_read(address) } {
                // Whoever needs it will be told.
                return;
            }
            at += PAGE_BYTES - address.addr() % PAGE_BYTES;
        }
    }
}

/// Stores `bytes` into the segments, first come first; returns how many were stored, which is all of them
/// unless the segments are shorter or not there any more.
#[inline]
pub fn store_slice(into: Segments<'_>, bytes: &[u8]) -> usize {
    let mut rest = bytes;
    for segment in into.as_slice() {
        let (now, later) = rest.split_at(segment.len().min(rest.len()));
        // SAFETY: C1: the segment, of which `now` is at most as long; no reference leads to its bytes, so `now` is
        // elsewhere.
        let left = unsafe { copy_any(segment.ptr(), now.as_ptr(), now.len()) };
        if left != 0 {
            return bytes.len() - later.len() - left;
        }
        rest = later;
    }
    bytes.len() - rest.len()
}

/// Fills `bytes` from the segments; returns how many were filled, which is all of them unless the segments
/// are shorter or not there any more. Nothing is read twice.
#[inline]
pub fn load_slice(from: Segments<'_>, bytes: &mut [u8]) -> usize {
    let len = bytes.len();
    let mut rest = bytes;
    for segment in from.as_slice() {
        let split = segment.len().min(rest.len());
        let (now, later) = rest.split_at_mut(split);
        // SAFETY: C1: the segment, of which `now` is at most as long; no reference leads to its bytes, so `now` is
        // elsewhere.
        let left = unsafe { copy_any(now.as_mut_ptr(), segment.ptr(), now.len()) };
        if left != 0 {
            return len - later.len() - left;
        }
        rest = later;
    }
    len - rest.len()
}

/// Two words in the order of this CPU, each read once; `None` if they cannot be read.
///
/// # Safety
/// Their 16 bytes must be mapped, and no Rust reference may claim that others leave them alone. (The file behind the
/// mapping may have been truncated: then the result says so.)
#[inline]
pub unsafe fn load_words(src: *const u8) -> Option<[u64; 2]> {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: C2: passed on as it is.
    return unsafe { kernels::load16(src) };
    #[cfg(not(target_arch = "x86_64"))]
    {
        let mut words = [0_u64; 2];
        // SAFETY: C2: 16 bytes, and there is room for them.
        let left = unsafe { copy_small(words.as_mut_ptr().cast(), src, 16) };
        (left == 0).then_some(words)
    }
}

/// Stores one byte. Returns whether it could be.
///
/// # Safety
/// It must be mapped for writes, and no Rust reference to it may exist. (The file behind the mapping may have been truncated:
/// then the result says so.)
#[must_use = "a byte that was not stored is an error"]
#[inline]
pub unsafe fn store_byte(dst: *mut u8, byte: u8) -> bool {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: C2: passed on as it is.
    return unsafe { kernels::store1(dst, byte) };
    #[cfg(not(target_arch = "x86_64"))]
    // SAFETY: C2: one byte.
    return unsafe { copy_small(dst, &raw const byte, 1) } == 0;
}

/// Where something lies that will be needed soon, if that is known. It is only ever prefetched, which never faults (Intel
/// SDM volume 2, PREFETCHh): any address will do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PrefetchHint(*const u8);

impl PrefetchHint {
    /// It is not known.
    pub const NONE: Self = Self(std::ptr::null());

    /// At this address.
    #[inline]
    pub const fn new(address: *const u8) -> Self {
        Self(address)
    }

    /// Prefetches its first cache line.
    ///
    /// What that saves is above all the page walk, of which a CPU does several at once if they are prefetched one right
    /// after the other, and only one if each is behind a copy. `cargo bench --bench ring -- random cold deep`, which
    /// has the ratio of a bare loop over the same copies to the ring, went from 0.90 to 1.28 for reads of 4 KiB when
    /// the ring prefetched 16 requests at once, from 0.38 to 0.65 at 512 bytes, and from 0.9 to 1.6 for writes; more
    /// lines of each gained nothing, and nor did one request at a time.
    #[inline]
    pub fn prefetch(self) {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: C4: SSE is part of x86_64, and a prefetch of an address that is not there does nothing.
        unsafe {
            std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(self.0.cast());
        }
    }
}

/// Orders every store of this CPU so far, non-temporal ones included, before every later one.
#[inline]
pub fn store_fence() {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: C4: SSE is part of x86_64.
    unsafe {
        std::arch::x86_64::_mm_sfence();
    }
    #[cfg(not(target_arch = "x86_64"))]
    std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
    #[cfg(test)]
    super::recording::fenced();
}

/// Orders every store of this CPU so far, non-temporal ones and line flushes included, before every later load
/// and store, on this CPU and as seen by others: what [`store_fence`] does, and full.
#[inline]
pub fn full_fence() {
    // On x86_64 this is `mfence` or a locked instruction, each of which empties the write-combining buffers.
    std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
    #[cfg(test)]
    super::recording::fenced();
}

/// Copies a header, a status byte or a little more: no engine is needed for that.
#[inline]
unsafe fn copy_any(dst: *mut u8, src: *const u8, len: usize) -> usize {
    #[cfg(target_arch = "x86_64")]
    if len > LINE_BYTES {
        // SAFETY: C2: passed on as it is.
        return unsafe { kernels::copy_rep(dst, src, len) };
    }
    // SAFETY: C2: passed on as it is, at most a line.
    unsafe { copy_small(dst, src, len) }
}

/// Copies at most a line.
#[inline]
unsafe fn copy_small(dst: *mut u8, src: *const u8, len: usize) -> usize {
    // SAFETY: C2: passed on as it is.
    #[cfg(target_arch = "x86_64")]
    let left = unsafe { kernels::copy_small(dst, src, len) };
    // SAFETY: C2: passed on as it is.
    #[cfg(not(target_arch = "x86_64"))]
    let left = unsafe { portable::copy(dst, src, len, src) };
    #[cfg(test)]
    super::recording::stored_small(dst, len - left);
    left
}

/// Zeroes at most a line; the source is ignored.
#[inline]
unsafe fn fill_small(dst: *mut u8, src: *const u8, len: usize) -> usize {
    // SAFETY: C2: passed on as it is.
    #[cfg(target_arch = "x86_64")]
    let left = unsafe { kernels::fill(dst, src, len) };
    // SAFETY: C2: passed on as it is.
    #[cfg(not(target_arch = "x86_64"))]
    let left = unsafe { portable::zero(dst, src, len, src) };
    #[cfg(test)]
    super::recording::stored_small(dst, len - left);
    left
}

/// How many bytes the segments have behind the first so many.
#[cold]
fn bytes_after(segments: Segments<'_>, bytes: usize) -> usize {
    segments.total_bytes().saturating_sub(bytes)
}
