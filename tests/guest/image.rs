//! What the host sees of a disk: the file behind it.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

/// An image file, looked at while the daemon serves it.
#[derive(Debug)]
pub struct Image {
    path: PathBuf,
    file: File,
}

/// `struct cachestat_range` of Linux' `mman.h`.
#[repr(C)]
struct Range {
    offset_bytes: u64,
    len_bytes: u64,
}

/// `struct cachestat`: counts of pages.
#[repr(C)]
#[derive(Default)]
struct CacheStat {
    cache: u64,
    dirty: u64,
    writeback: u64,
    evicted: u64,
    recently_evicted: u64,
}

impl Image {
    pub fn open(path: PathBuf) -> Self {
        let file = File::open(&path).unwrap();
        Self { path, file }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn bytes(&self, offset: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.file.read_exact_at(&mut bytes, offset).unwrap();
        bytes
    }

    /// Panics unless these very bytes are at `offset`.
    pub fn assert_holds(&self, offset: u64, expected: &[u8]) {
        let found = self.bytes(offset, expected.len());
        let wrong = found.iter().zip(expected).position(|(found, expected)| found != expected);
        if let Some(at) = wrong {
            let (found, expected) = (found[at], expected[at]);
            panic!("{}: byte {} is {found:#x}, not {expected:#x}", self.path.display(), offset + at as u64);
        }
    }

    /// Space that the file takes on the host.
    pub fn allocated_bytes(&self) -> u64 {
        self.file.metadata().unwrap().blocks() * 512
    }

    /// Whether `part` is somewhere in the file, at a multiple of 4 KiB.
    pub fn contains_in_one_piece(&self, part: &[u8]) -> bool {
        let all = std::fs::read(&self.path).unwrap();
        (0..all.len()).step_by(4096).any(|at| all[at..].starts_with(part))
    }

    /// Pages of this range that are not yet on the medium; `None` where the kernel cannot tell (before 6.5).
    #[allow(unsafe_code)]
    pub fn unwritten_pages(&self, offset: u64, len: u64) -> Option<u64> {
        const CACHESTAT: libc::c_long = 451;
        let range = Range { offset_bytes: offset, len_bytes: len };
        let mut stat = CacheStat::default();
        let fd = self.file.as_raw_fd();
        // SAFETY: the descriptor is open, and both structures have the kernel's layout and live through the call.
        let result = unsafe { libc::syscall(CACHESTAT, fd, &raw const range, &raw mut stat, 0) };
        (result == 0).then_some(stat.dirty + stat.writeback)
    }
}
