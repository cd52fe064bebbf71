//! The routines for every CPU: ordinary loads and stores, as the compiler likes them.
//!
//! They are what the others are compared with, and what is used where there are no others. A fault in them is
//! not mended: on such a CPU a truncated file or a bad cell ends the process.

#![allow(unsafe_code)]

/// Copies any number of bytes, and prefetches nothing.
///
/// # Safety
/// - `src` must be valid for reads and `dst` for writes of `len` bytes.
/// - The two ranges must not overlap.
pub(super) unsafe extern "C" fn copy(dst: *mut u8, src: *const u8, len: usize, _next: *const u8) -> usize {
    // SAFETY: C2: passed on as it is. Others may change these bytes meanwhile: the copy is then some mixture of old and
    // new, which is what a disk promises for a buffer in use.
    unsafe { dst.copy_from_nonoverlapping(src, len) };
    0
}

/// Stores any number of zero bytes; the source is ignored.
///
/// # Safety
/// `dst` must be valid for writes of `len` bytes.
pub(super) unsafe extern "C" fn zero(dst: *mut u8, _src: *const u8, len: usize, _next: *const u8) -> usize {
    // SAFETY: C2: passed on as it is.
    unsafe { dst.write_bytes(0, len) };
    0
}

/// Flushes nothing: there is no portable way to. [`Engine::flushes_lines`](super::Engine::flushes_lines) says
/// so.
///
/// # Safety
/// None; it has the type of those that have.
#[cfg_attr(target_arch = "x86_64", allow(dead_code, reason = "every x86_64 can flush lines"))]
pub(super) unsafe extern "C" fn flush(_dst: *mut u8, _src: *const u8, _len: usize) -> usize {
    0
}
