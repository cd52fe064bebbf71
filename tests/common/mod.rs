//! What the black-box tests share: the daemon as a process, and the peers that talk to it.

#![allow(dead_code, unreachable_pub, reason = "each test file uses its own part")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
#![allow(clippy::cast_possible_truncation, clippy::print_stderr, clippy::single_range_in_vec_init)]

pub mod daemon;
pub mod driver;
pub mod ext4;
pub mod folder;
pub mod frontend;
pub mod guarded;
pub mod host;
pub mod killer;
pub mod messages;
pub mod metrics;
pub mod process;
pub mod random;
pub mod steps;
pub mod strace;
pub mod user_mode;
pub mod wait;

use std::io::Write as _;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::fs::MemfdFlags;
use vm_memory::{FileOffset, MmapRegion};

pub use random::{Random, pattern};
pub use wait::{PATIENCE, is_readable, wait_for, wait_long_for, wait_readable};

/// Bytes of a mebibyte.
pub const MIB: u64 = 1 << 20;

/// The unit of the `sector` field of requests, whatever the block size.
pub const SECTOR_BYTES: usize = 512;

/// Memory that can be given to a back-end: a mapped memfd.
pub fn shared_memory(bytes: usize) -> MmapRegion {
    let file = std::fs::File::from(rustix::fs::memfd_create("guest", MemfdFlags::CLOEXEC).unwrap());
    file.set_len(bytes as u64).unwrap();
    MmapRegion::from_file(FileOffset::new(file, 0), bytes).unwrap()
}

/// Descriptors, threads and mappings of a process, once nothing changes any more.
pub fn at_rest(process: process::Process) -> [usize; 3] {
    let now = || [process.fds(), process.threads(), process.all_mappings()];
    wait_for("all comes to rest", || {
        let before = now();
        std::thread::sleep(Duration::from_secs(1));
        (now() == before).then_some(before)
    })
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
