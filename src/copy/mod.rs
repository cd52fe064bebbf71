//! How bytes move between guest memory and the media.
//!
//! Everything here works on host addresses. One side is a disk's mapping or file, the other a list of
//! [`Segments`] of guest memory. Both may be written by others at any time, so no Rust reference to their
//! bytes ever exists: only the routines of this module touch them, through raw pointers.
//!
//! And both may cease to be there: a file is truncated, a memory cell is bad, a file system is full. Once
//! [`fault::install`] was called, a routine that meets such a place returns how many bytes it did *not* copy
//! (on x86_64; elsewhere the process ends, as without it).
//!
//! The [`Engine`] is the set of routines that suits the CPU: non-temporal stores into the media, which spare
//! it the reads that ordinary ones begin with and need no flush behind them; ordinary moves into guest
//! memory, where the bytes are wanted next. Lines of the media that are written in part are stored
//! ordinarily and written back at once ([`Persist`]), so that one [`store_fence`] a batch makes all of it
//! durable.
//!
//! What `unsafe` here, and in those who call it, relies on:
//!
//! - **C1**: the bytes of [`Segments`] are mapped, readable and writable for its lifetime, and no Rust reference leads to
//!   them. Whoever calls [`Segments::new`] vouches for it; all routines rely on it.
//! - **C2**: a range that is handed to an unsafe routine is mapped for its whole length, no Rust reference claims that others
//!   leave it alone, and it does not overlap the other one. The caller vouches for it (`# Safety` says which ranges); the
//!   routine hands on the same range or a part of it. A file behind it may have been truncated: see [`fault`].
//! - **C3**: a routine in assembler touches the bytes of its ranges and the registers of its declaration, and no stack; its
//!   table of fix-ups consists of constants. `x86_64::kernels` sees to that.
//! - **C4**: an instruction runs only on a CPU that has it: every x86_64 has SSE2 and CPUID, the rest is asked for
//!   (`x86_64::cpu`) before an [`Engine`] is made of it.
//! - **C5**: a list of [`Segment`] is a list of `struct iovec`: `syscall` asserts it when it is compiled.

mod engine;
pub mod fault;
mod line;
mod portable;
#[cfg(test)]
pub(crate) mod recording;
mod routines;
mod segments;
mod syscall;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
mod transfer;
#[cfg(target_arch = "x86_64")]
#[allow(unsafe_code)]
mod x86_64;

pub(crate) use line::LINE_BYTES;

pub use engine::{Engine, EngineError, LineFlush, OVERRIDE, Stores};
pub use routines::{
    PrefetchHint, can_read, full_fence, load_slice, load_words, store_byte, store_fence, store_slice, touch,
    zero,
};
pub use segments::{PagePart, Segment, Segments, with_bytes};
pub use syscall::{pwritev_all, pwritev_zeroes, touch_lost};
pub use transfer::{Load, Persist, Store};
