//! How bytes move between guest memory and the media.
//!
//! Everything here works on host addresses. One side is a disk's mapping or file, the other a list of
//! [`Segments`] of guest memory. Both may be written by others at any time, so no Rust reference to their
//! bytes ever exists: only the routines of this module touch them, through raw pointers.

mod plain;
mod segments;
mod syscall;
#[cfg(test)]
pub(crate) mod testing;

pub use plain::{copy_from_segments, copy_to_segments, load_slice, store_fence, store_slice, zero};
pub use segments::{Segment, Segments};
pub use syscall::{pwritev_all, pwritev_zeroes};
