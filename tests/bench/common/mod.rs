//! What the benchmarks share: bytes of a file, a random sequence, medians; and a guest in this process.

#![allow(dead_code, unreachable_pub, unsafe_code, reason = "each file uses its own part")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
#![allow(clippy::cast_possible_truncation)]

pub mod guest;

use std::fs::File;
use std::os::fd::AsRawFd as _;
use std::ptr::null_mut;

/// A file in memory.
pub fn memfd(bytes: usize) -> File {
    let file = File::from(rustix::fs::memfd_create("bench", rustix::fs::MemfdFlags::CLOEXEC).unwrap());
    file.set_len(bytes as u64).unwrap();
    file
}

/// The bytes of a file, for as long as the process lives.
pub fn map(file: &File, bytes: usize, populate: bool) -> *mut u8 {
    let access = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: the kernel chooses an address that is free.
    let base = unsafe { libc::mmap(null_mut(), bytes, access, libc::MAP_SHARED, file.as_raw_fd(), 0) };
    assert_ne!(base, libc::MAP_FAILED);
    if populate {
        // SAFETY: our own mapping.
        unsafe { libc::madvise(base, bytes, libc::MADV_POPULATE_WRITE) };
    }
    base.cast()
}

/// SplitMix64.
#[derive(Debug)]
pub struct Random(pub u64);

impl Random {
    pub fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) % limit as u64) as usize
    }
}

/// First quartile, median and third quartile.
pub fn quartiles(numbers: impl Iterator<Item = f64>) -> [f64; 3] {
    let mut numbers: Vec<f64> = numbers.collect();
    numbers.sort_by(f64::total_cmp);
    [1, 2, 3].map(|quarter| numbers[(numbers.len() - 1) * quarter / 4])
}
