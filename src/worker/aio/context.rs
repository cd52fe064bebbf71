//! A context of Linux AIO: operations that were submitted, and a ring of those that have ended.

#![allow(unsafe_code)]

use std::io;
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicU32, Ordering};

/// `IOCB_CMD_PREAD`, `_PWRITE`, `_PREADV`, `_PWRITEV` (`linux/aio_abi.h`).
pub(super) const PREAD: u16 = 0;
pub(super) const PWRITE: u16 = 1;
pub(super) const PREADV: u16 = 7;
pub(super) const PWRITEV: u16 = 8;

/// `IOCB_FLAG_RESFD`: the end is signalled to an eventfd, and to nothing else.
const RESFD: u32 = 1;

/// How the kernel marks a ring of completions that user space may read.
const RING_MAGIC: u32 = 0xa10a_10a1;

/// `struct iocb` of little- and big-endian machines alike, but for `key` and `rw_flags`, whose order differs: the flags are always
/// the upper half of both.
#[repr(C, align(8))]
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Operation {
    pub(super) data: u64,
    key_and_rw_flags: u64,
    pub(super) opcode: u16,
    priority: i16,
    fd: RawFd,
    pub(super) buffer: u64,
    pub(super) len: u64,
    pub(super) offset: i64,
    reserved: u64,
    flags: u32,
    signalled: RawFd,
}
const _: () = assert!(size_of::<Operation>() == 64);

impl Operation {
    /// One whose end is signalled to this eventfd.
    pub(super) fn signalling(opcode: u16, fd: RawFd, event: RawFd) -> Self {
        Self { opcode, fd, flags: RESFD, signalled: event, ..Self::default() }
    }

    /// It fails rather than to wait, as `preadv2(2)` with these flags does.
    pub(super) const fn with_flags(self, rw_flags: libc::c_int) -> Self {
        Self { key_and_rw_flags: (rw_flags.cast_unsigned() as u64) << 32, ..self }
    }
}

/// The head of `struct aio_ring`, which the kernel maps where the context's number says.
#[repr(C)]
struct Completions {
    id: u32,
    count: u32,
    head: AtomicU32,
    tail: AtomicU32,
    magic: u32,
    compatible: u32,
    incompatible: u32,
    header_bytes: u32,
}
const _: () = assert!(size_of::<Completions>() == 32);

/// `struct io_event`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(super) struct Ended {
    /// That of the operation.
    pub(super) data: u64,
    operation: u64,
    /// How many bytes, or what is wrong.
    pub(super) result: i64,
    second_result: i64,
}

/// A context.
///
/// - **A1**: its number, and the ring of completions that is mapped there, are good from `io_setup` until `io_destroy` in the drop.
/// - **A2**: what an operation reads or writes stays as it is until it has ended; whoever submits it sees to that. The operation
///   itself, and its list of segments, are done with when `io_submit` returns.
/// - **A3**: what has ended is consumed by one thread at a time.
#[derive(Debug)]
pub(super) struct Context {
    /// Its number, which is also where its ring of completions is.
    id: usize,
    /// Places in that ring.
    count: u32,
}

impl Context {
    /// One with room for so many operations.
    ///
    /// # Errors
    /// The kernel has no AIO, or no room for a context (`fs.aio-max-nr`), or its ring is of a kind that we do not know.
    pub(super) fn new(room: u32) -> io::Result<Self> {
        let mut id: usize = 0;
        // SAFETY: A1: the kernel writes the number to a place that is ours.
        if unsafe { libc::syscall(libc::SYS_io_setup, libc::c_long::from(room), &raw mut id) } != 0 {
            return Err(io::Error::last_os_error());
        }
        let mut context = Self { id, count: 0 };
        let Completions { magic, incompatible, count, header_bytes, .. } = context.completions();
        if (*magic, *incompatible, *header_bytes as usize) != (RING_MAGIC, 0, size_of::<Completions>()) {
            return Err(io::Error::other("its ring of completions is of another kind"));
        }
        context.count = *count;
        Ok(context)
    }

    fn completions(&self) -> &Completions {
        let place: *const Completions = std::ptr::with_exposed_provenance(self.id);
        // SAFETY: A1: page-aligned and longer than that. What the kernel changes in it is atomic.
        unsafe { &*place }
    }

    /// Begins operations, from the first on; returns how many.
    ///
    /// # Errors
    /// What is wrong with the first one.
    ///
    /// # Safety
    /// Each leads to an operation; A2.
    #[inline]
    pub(super) unsafe fn submit(&self, operations: &mut [*mut Operation]) -> io::Result<usize> {
        let (count, list) = (operations.len(), operations.as_mut_ptr());
        // SAFETY: A2: the caller sees to it; the list has so many.
        let begun = unsafe { libc::syscall(libc::SYS_io_submit, self.id, count, list) };
        usize::try_from(begun).map_err(|_| io::Error::last_os_error())
    }

    /// Whether some have ended. Costs two loads.
    #[inline]
    pub(super) fn has_ended(&self) -> bool {
        let ring = self.completions();
        ring.head.load(Ordering::Relaxed) != ring.tail.load(Ordering::Acquire)
    }

    /// The next one that has ended.
    ///
    /// # Safety
    /// A3: nobody else consumes meanwhile.
    pub(super) unsafe fn next_ended(&self) -> Option<Ended> {
        let ring = self.completions();
        let head = ring.head.load(Ordering::Relaxed);
        if head == ring.tail.load(Ordering::Acquire) || head >= self.count {
            return None;
        }
        let offset = size_of::<Completions>() + head as usize * size_of::<Ended>();
        let place: *const Ended = std::ptr::with_exposed_provenance(self.id + offset);
        // SAFETY: A1: the ring has `count` places behind its head. A3: the kernel has written this one before the tail, and writes
        // it anew once it is consumed.
        let ended = unsafe { place.read() };
        ring.head.store((head + 1) % self.count.max(1), Ordering::Release);
        Some(ended)
    }

    /// Consumes all that have ended.
    #[inline]
    pub(super) fn forget_ended(&mut self) {
        let ring = self.completions();
        ring.head.store(ring.tail.load(Ordering::Acquire), Ordering::Release);
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: A1: nothing uses its ring any more.
        unsafe { libc::syscall(libc::SYS_io_destroy, self.id) };
    }
}
