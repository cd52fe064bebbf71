//! What the black-box tests share: the daemon as a process, and the peers that talk to it.

#![allow(dead_code, unreachable_pub, reason = "each test file uses its own part")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
#![allow(clippy::cast_possible_truncation, clippy::print_stderr, clippy::single_range_in_vec_init)]

pub mod daemon;
pub mod driver;
pub mod ext4;
pub mod folder;
pub mod frontend;
pub mod host;
pub mod metrics;
pub mod process;
pub mod steps;
pub mod strace;

use std::io::Write as _;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::MemfdFlags;
use vm_memory::{FileOffset, MmapRegion};

/// How long a condition may take on a busy machine before the test gives up.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// The unit of the `sector` field of requests, whatever the block size.
pub const SECTOR_BYTES: usize = 512;

/// Waits until `condition` yields a value; panics with `what` when that takes longer than [`PATIENCE`].
pub fn wait_for<T>(what: &str, condition: impl FnMut() -> Option<T>) -> T {
    wait(PATIENCE, what, condition)
}

/// The same for what the kernel may put off for much longer on a busy machine.
pub fn wait_long_for<T>(what: &str, condition: impl FnMut() -> Option<T>) -> T {
    wait(4 * PATIENCE, what, condition)
}

fn wait<T>(patience: Duration, what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + patience;
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(Instant::now() < deadline, "waited {patience:?} in vain until {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Waits until `fd` is readable; panics with `what` when that takes longer than [`PATIENCE`].
pub fn wait_readable(what: &str, fd: &impl AsRawFd) {
    assert!(is_readable(fd, PATIENCE), "waited {PATIENCE:?} in vain until {what}");
}

/// True when `fd` is readable, or becomes so within `limit`.
pub fn is_readable(fd: &impl AsRawFd, limit: Duration) -> bool {
    // SAFETY: `fd` is borrowed for this call, so its owner keeps it open.
    #[allow(unsafe_code)]
    let fd = unsafe { BorrowedFd::borrow_raw(fd.as_raw_fd()) };
    let limit = Timespec::try_from(limit).unwrap();
    rustix::event::poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&limit)).unwrap() == 1
}

/// Memory that can be given to a back-end: a mapped memfd.
pub fn shared_memory(bytes: usize) -> MmapRegion {
    let file = std::fs::File::from(rustix::fs::memfd_create("guest", MemfdFlags::CLOEXEC).unwrap());
    file.set_len(bytes as u64).unwrap();
    MmapRegion::from_file(FileOffset::new(file, 0), bytes).unwrap()
}

/// `bytes` bytes that differ from one `seed` to the next and, mostly, from one place to the next.
pub fn pattern(seed: u64, bytes: usize) -> Vec<u8> {
    let mut random = Random::new(seed);
    let mut pattern = vec![0; bytes.next_multiple_of(8)];
    for word in pattern.chunks_exact_mut(8) {
        word.copy_from_slice(&random.next().to_le_bytes());
    }
    pattern.truncate(bytes);
    pattern
}

/// A reproducible random sequence (SplitMix64).
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// The sequence that belongs to `seed`.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next 64 bits.
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number less than `limit`.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    /// True once in `count` times.
    pub fn one_in(&mut self, count: u64) -> bool {
        self.below(count) == 0
    }

    /// One of `choices`.
    pub fn pick<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len() as u64) as usize]
    }
}

/// A pipe that waits at the next write; the reading end keeps it from being a closed one.
pub fn full_pipe() -> (OwnedFd, OwnedFd) {
    let (reader, mut writer) = std::io::pipe().unwrap();
    rustix::io::ioctl_fionbio(&writer, true).unwrap();
    while writer.write(&[0; 4096]).is_ok() {}
    while writer.write(&[0]).is_ok() {}
    rustix::io::ioctl_fionbio(&writer, false).unwrap();
    (reader.into(), writer.into())
}
