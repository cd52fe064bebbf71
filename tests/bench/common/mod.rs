//! What the benchmarks share: bytes of a file, a random sequence, medians; and a guest in this process.

#![allow(dead_code, unreachable_pub, unsafe_code, reason = "each file uses its own part")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
#![allow(clippy::cast_possible_truncation)]

pub mod guest;

use std::fs::File;
use std::os::fd::AsRawFd as _;
use std::ptr::null_mut;

const SMALL_BYTES: usize = 4 << 10;
const HUGE_BYTES: usize = 2 << 20;

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

/// As [`map`], where huge pages of the file can be mapped as such.
pub fn map_huge(file: &File, bytes: usize) -> *mut u8 {
    map_beside(file, bytes, 0)
}

/// As [`map`], where even huge pages of the file are mapped as small ones.
pub fn map_small(file: &File, bytes: usize) -> *mut u8 {
    map_beside(file, bytes, SMALL_BYTES)
}

/// At so many bytes behind an address that is good for huge pages.
fn map_beside(file: &File, bytes: usize, behind: usize) -> *mut u8 {
    let (access, any) = (libc::PROT_NONE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
    // SAFETY: the kernel chooses an address that is free.
    let room = unsafe { libc::mmap(null_mut(), bytes + 2 * HUGE_BYTES, access, any, -1, 0) };
    assert_ne!(room, libc::MAP_FAILED);
    let start = room.wrapping_byte_add(room.cast::<u8>().align_offset(HUGE_BYTES) + behind);
    let (access, there) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_FIXED);
    // SAFETY: inside of what was reserved above.
    let base = unsafe { libc::mmap(start, bytes, access, there, file.as_raw_fd(), 0) };
    assert_eq!(base, start);
    // SAFETY: our own mapping.
    unsafe { libc::madvise(base, bytes, libc::MADV_POPULATE_WRITE) };
    base.cast()
}

/// Bytes of a file in memory, as a disk's and a guest's are: no two words are the same. Zeroes would not do: some CPUs
/// copy them 1.6 times as fast.
pub fn noise(file: &File, bytes: usize) -> *mut u8 {
    let base = map(file, bytes, true);
    fill(base, bytes);
    base
}

/// Overwrites a mapping with noise.
pub fn fill(base: *mut u8, bytes: usize) {
    let mut random = Random(bytes as u64);
    for at in (0..bytes).step_by(size_of::<u64>()) {
        // SAFETY: the caller's mapping is as long as that, and page-aligned; no reference leads into it.
        unsafe { base.wrapping_add(at).cast::<u64>().write(random.word()) };
    }
}

/// SplitMix64.
#[derive(Debug)]
pub struct Random(pub u64);

impl Random {
    pub fn below(&mut self, limit: usize) -> usize {
        (self.word() % limit as u64) as usize
    }

    pub fn word(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}

/// First quartile, median and third quartile.
pub fn quartiles(numbers: impl Iterator<Item = f64>) -> [f64; 3] {
    let mut numbers: Vec<f64> = numbers.collect();
    numbers.sort_by(f64::total_cmp);
    [1, 2, 3].map(|quarter| numbers[(numbers.len() - 1) * quarter / 4])
}
