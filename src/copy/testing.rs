//! For tests: memory that stands for a guest's, reached through segments, never through references; and files of memory.

#![allow(unsafe_code)]

use std::cell::Cell;
use std::fs::File;

use super::{Segment, Segments};

/// A file in memory of so many zero bytes.
pub(crate) fn memfd(name: &str, len_bytes: u64) -> File {
    let file = File::from(rustix::fs::memfd_create(name, rustix::fs::MemfdFlags::CLOEXEC).unwrap());
    file.set_len(len_bytes).unwrap();
    file
}

/// Bytes that differ from their neighbours, and from those of another seed.
pub(crate) fn pattern(len: usize, seed: u8) -> Vec<u8> {
    (0..len).map(|index| (index as u8).wrapping_mul(31).wrapping_add((index >> 8) as u8) ^ seed).collect()
}

/// Some bytes and a list of segments over them.
#[derive(Debug)]
pub(crate) struct Memory {
    bytes: Box<[Cell<u8>]>,
    list: Vec<Segment>,
}

impl Memory {
    /// A copy of `bytes`, as one segment.
    pub(crate) fn new(bytes: &[u8]) -> Self {
        let bytes: Box<[Cell<u8>]> = bytes.iter().copied().map(Cell::new).collect();
        let mut memory = Self { bytes, list: Vec::new() };
        memory.list = vec![Segment::new(memory.ptr(), memory.bytes.len())];
        memory
    }

    /// Cuts segments of these lengths, the first at `start`, with `gap` bytes between them.
    pub(crate) fn cut(mut self, start: usize, lens: &[usize], gap: usize) -> Self {
        self.list.clear();
        let mut at = start;
        for len in lens {
            assert!(at + len <= self.bytes.len(), "a segment would end outside");
            self.list.push(Segment::new(self.ptr().wrapping_add(at), *len));
            at += len + gap;
        }
        self
    }

    /// Address of the first byte.
    pub(crate) fn ptr(&self) -> *mut u8 {
        self.bytes.as_ptr().cast_mut().cast()
    }

    /// The segments.
    pub(crate) fn segments(&self) -> Segments<'_> {
        // SAFETY: `new` and `cut` made the segments inside of `bytes`, which lives as long as `self` and is
        // made of cells, so nobody holds a reference that forbids writing.
        unsafe { Segments::new(&self.list) }
    }

    /// What the bytes are now.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        self.bytes.iter().map(Cell::get).collect()
    }
}

/// As the kernel does when a page goes bad that nobody is reading.
pub(crate) fn announce_bad_page(address: usize) {
    // siginfo_t begins with three ints, and on 64-bit machines the address follows behind a fourth.
    let mut info = [0_usize; 16];
    info[0] = libc::SIGBUS as usize;
    info[1] = 5; // BUS_MCEERR_AO
    info[2] = address;
    let process = std::process::id();
    // SAFETY: no memory is involved.
    let thread = unsafe { libc::gettid() };
    // SAFETY: an information of the kernel's size, about this very thread.
    let sent =
        unsafe { libc::syscall(libc::SYS_rt_tgsigqueueinfo, process, thread, libc::SIGBUS, info.as_ptr()) };
    assert_eq!(sent, 0, "{}", std::io::Error::last_os_error());
}
