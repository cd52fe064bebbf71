//! Cache lines, and what the routines over them are called by.

/// Length of a cache line in bytes: the media is written in whole ones.
pub(crate) const LINE_BYTES: usize = 64;

/// A routine over a range: destination, source, length in bytes; returns the bytes not done.
pub(super) type Kernel = unsafe extern "C" fn(*mut u8, *const u8, usize) -> usize;

/// The same over whole lines; the last argument is what it prefetches behind them, which need not be mapped.
pub(super) type LineKernel = unsafe extern "C" fn(*mut u8, *const u8, usize, *const u8) -> usize;
