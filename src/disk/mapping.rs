//! A file's bytes as memory of this process.

#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use rustix::mm::{MapFlags, ProtFlags};

use super::DiskError;
use crate::copy::fault::WatchedRange;
use crate::copy::{self, Persist, Segments};

/// The first bytes of a file, shared with everyone who has it open.
///
/// Its memory is reached through the methods only, by offset and checked: no pointer leaves.
#[derive(Debug)]
pub struct Mapping {
    /// Dropped before the memory is unmapped; none when too many are watched, which only costs comfort.
    watch: Option<WatchedRange>,
    /// Asked when a copy fell short: why?
    file: File,
    base: *mut u8,
    len: usize,
    /// What `munmap` is told: on hugetlbfs whole huge pages, which may be more than `len`.
    mapped_bytes: usize,
    read_only: bool,
    persist: Persist,
}

// SAFETY: the mapping belongs to the process, not to the thread that made it.
unsafe impl Send for Mapping {}

// SAFETY: through a shared reference its bytes are only copied to and from, by raw pointer, which any number
// of threads may do at once (they race as they would on any disk); nothing else of it changes.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps the first `len_bytes` of `file`, which must have that many and be open for reading, and for
    /// writing too unless `read_only`.
    ///
    /// # Errors
    /// The error of `mmap`; `InvalidInput` when there is nothing to map or the file is shorter.
    pub fn new(file: &File, len_bytes: u64, read_only: bool) -> io::Result<Self> {
        let metadata = file.metadata()?;
        if len_bytes == 0 || len_bytes > metadata.len() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("a file of {} bytes does not have {len_bytes} bytes to map", metadata.len()),
            ));
        }
        let too_large = || io::Error::from(io::ErrorKind::FileTooLarge);
        let len = usize::try_from(len_bytes).map_err(|_| too_large())?;
        let unit = usize::try_from(metadata.blksize().max(1)).map_err(|_| too_large())?;
        let mapped_bytes = len.checked_next_multiple_of(unit).ok_or_else(too_large)?;
        let access = if read_only { ProtFlags::READ } else { ProtFlags::READ | ProtFlags::WRITE };
        let flags = MapFlags::SHARED | MapFlags::NORESERVE;
        // SAFETY: the kernel chooses an address that is free, so that nothing of this process is replaced.
        let base = unsafe { rustix::mm::mmap(std::ptr::null_mut(), mapped_bytes, access, flags, file, 0) }?;
        let base = base.cast::<u8>();
        let watch = WatchedRange::media(base, mapped_bytes);
        let persist = Persist::Lines;
        Ok(Self { watch, file: file.try_clone()?, base, len, mapped_bytes, read_only, persist })
    }

    /// Says what writes have to do; without, every line is on its way to the media when they return.
    #[must_use]
    pub const fn persisting(mut self, persist: Persist) -> Self {
        self.persist = persist;
        self
    }

    /// Length in bytes.
    #[inline]
    pub const fn len_bytes(&self) -> u64 {
        self.len as u64
    }

    /// Fills `into` with the bytes at `offset`.
    ///
    /// # Errors
    /// [`DiskError::OutOfRange`], or [`DiskError::Io`] when the memory could not be read.
    #[inline]
    pub fn read(&self, offset: u64, into: Segments<'_>) -> Result<(), DiskError> {
        let src = self.at(offset, into.total_bytes())?;
        // SAFETY: `at` has checked that as many bytes are mapped there, and they are until `self` is
        // dropped; no reference to them exists and no pointer has left, so `into` is elsewhere.
        let left = unsafe { copy::copy_to_segments(src, into) };
        self.complete("reading the mapping", src, into.total_bytes(), left)
    }

    /// Stores `from` at `offset`.
    ///
    /// # Errors
    /// As [`read`](Self::read), and [`DiskError::ReadOnly`].
    #[inline]
    pub fn write(&self, offset: u64, from: Segments<'_>) -> Result<(), DiskError> {
        let dst = self.writable_at(offset, from.total_bytes())?;
        // SAFETY: `writable_at` has checked that as many bytes are mapped there for writing, and they are
        // until `self` is dropped; no reference to them exists and no pointer has left, so `from` is
        // elsewhere.
        let left = unsafe { copy::copy_from_segments(dst, from, self.persist) };
        self.complete("writing the mapping", dst, from.total_bytes(), left)
    }

    /// Stores `len` zero bytes at `offset`.
    ///
    /// # Errors
    /// As [`write`](Self::write).
    #[inline]
    pub fn zero(&self, offset: u64, len: u64) -> Result<(), DiskError> {
        let len = usize::try_from(len).map_err(|_| DiskError::OutOfRange)?;
        let dst = self.writable_at(offset, len)?;
        // SAFETY: `writable_at` has checked that `len` bytes are mapped there for writing, and they are until
        // `self` is dropped; no reference to them exists.
        let left = unsafe { copy::zero(dst, len, self.persist) };
        self.complete("zeroing the mapping", dst, len, left)
    }

    /// Whether `len` bytes at `offset` are inside.
    ///
    /// # Errors
    /// [`DiskError::OutOfRange`] when they are not.
    #[inline]
    pub fn check(&self, offset: u64, len: u64) -> Result<(), DiskError> {
        match offset.checked_add(len) {
            Some(end) if end <= self.len as u64 => Ok(()),
            _ => Err(DiskError::OutOfRange),
        }
    }

    /// An error unless every byte was copied.
    #[inline]
    fn complete(
        &self,
        operation: &'static str,
        start: *const u8,
        len: usize,
        bytes_left: usize,
    ) -> Result<(), DiskError> {
        if bytes_left == 0 {
            return Ok(());
        }
        let faulted_at = start.wrapping_add(len.saturating_sub(bytes_left));
        Err(DiskError::Io { operation, source: io::Error::other(self.loss(faulted_at)) })
    }

    /// Why a copy ended before the byte at `address`, which is inside.
    #[cold]
    fn loss(&self, address: *const u8) -> Loss {
        let file = path_of(&self.file);
        // SAFETY: the caller took the address from a range that `at` had checked.
        if unsafe { copy::can_read(address) } {
            return Loss::GuestMemory;
        }
        let offset = (address.addr() - self.base.addr()) as u64;
        match self.file.metadata().map(|metadata| metadata.len()) {
            Ok(file_bytes) if file_bytes <= offset => {
                Loss::Truncated { file, file_bytes, len_bytes: self.len as u64 }
            }
            _ if has_no_space(&self.file) => Loss::Full { file, offset },
            _ => Loss::Media { file, offset },
        }
    }

    /// The address of `len` bytes at `offset`, which are inside.
    #[inline]
    fn at(&self, offset: u64, len: usize) -> Result<*mut u8, DiskError> {
        self.check(offset, len as u64)?;
        let offset = usize::try_from(offset).map_err(|_| DiskError::OutOfRange)?;
        Ok(self.base.wrapping_add(offset))
    }

    /// As [`at`](Self::at), and the bytes may be written.
    #[inline]
    fn writable_at(&self, offset: u64, len: usize) -> Result<*mut u8, DiskError> {
        if self.read_only {
            return Err(DiskError::ReadOnly);
        }
        self.at(offset, len)
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        drop(self.watch.take());
        // SAFETY: `new` has mapped exactly this range, nothing else unmaps it, and whoever used it had
        // borrowed `self`.
        let unmapped = unsafe { rustix::mm::munmap(self.base.cast(), self.mapped_bytes) };
        debug_assert!(unmapped.is_ok(), "munmap: {unmapped:?}");
    }
}

/// What was not there when it was to be copied.
#[derive(Debug, thiserror::Error)]
enum Loss {
    #[error("guest memory is lost (its file was truncated, or a page of it went bad)")]
    GuestMemory,
    #[error(
        "{}: the file was truncated to {file_bytes} bytes while {len_bytes} are served; make it as long again \
         and restore what is missing", file.display()
    )]
    Truncated { file: PathBuf, file_bytes: u64, len_bytes: u64 },
    #[error(
        "{}: no space is left on its file system for the hole at byte {offset}; free some, or preallocate",
        file.display()
    )]
    Full { file: PathBuf, offset: u64 },
    #[error("{}: the media failed at byte {offset}", file.display())]
    Media { file: PathBuf, offset: u64 },
}

/// The path of an open file, as the kernel knows it now.
fn path_of(file: &File) -> PathBuf {
    let link = format!("/proc/self/fd/{}", file.as_raw_fd());
    std::fs::read_link(&link).unwrap_or_else(|_| link.into())
}

fn has_no_space(file: &File) -> bool {
    rustix::fs::fstatfs(file).is_ok_and(|statfs| statfs.f_blocks > 0 && statfs.f_bfree == 0)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use proptest::prelude::*;

    use super::*;
    use crate::copy::testing::{Memory, pattern};

    fn file(bytes: &[u8]) -> File {
        let file = tempfile::tempfile_in("/dev/shm").unwrap();
        file.write_all_at(bytes, 0).unwrap();
        file
    }

    const LEN: usize = 10_000;

    proptest! {
        /// Any offset and length, inside or not: right bytes or `OutOfRange`, and never anything else.
        #[test]
        fn bounds_are_exact(
            offset in prop_oneof![0..LEN as u64 + 20, LEN as u64 - 5..LEN as u64 + 5, u64::MAX - 20..=u64::MAX],
            lens in prop::collection::vec(0..LEN / 3, 0..5),
        ) {
            let before = pattern(LEN, 3);
            let file = file(&before);
            // The file goes on behind the mapping: nothing there may change.
            file.set_len(LEN as u64 + 4096).unwrap();
            let mapping = Mapping::new(&file, LEN as u64, false).unwrap();
            let total: usize = lens.iter().sum();
            let guest_bytes = pattern(total, 200);
            let guest = Memory::new(&guest_bytes).cut(0, &lens, 0);
            let inside = usize::try_from(offset).ok()
                .and_then(|at| before.get(at..at.checked_add(total)?).map(|bytes| (at, bytes.to_vec())));

            let mut image = before.clone();
            let wrote = mapping.write(offset, guest.segments());
            let (read_into, zeroed);
            match &inside {
                Some((at, bytes)) => {
                    wrote.unwrap();
                    image[*at..at + total].copy_from_slice(&guest_bytes);
                    let now = image_of(&file);
                    prop_assert_eq!(&now[..LEN], &image[..]);
                    prop_assert!(now[LEN..].iter().all(|byte| *byte == 0));
                    file.write_all_at(bytes, offset).unwrap();
                    read_into = bytes.clone();
                    image[*at..at + total].fill(0);
                    zeroed = Ok(());
                }
                None => {
                    prop_assert!(matches!(wrote, Err(DiskError::OutOfRange)));
                    read_into = guest_bytes;
                    zeroed = Err(());
                }
            }
            let read = mapping.read(offset, guest.segments());
            prop_assert_eq!(read.is_ok(), inside.is_some());
            prop_assert_eq!(guest.bytes(), read_into);
            prop_assert_eq!(mapping.zero(offset, total as u64).map_err(|_| ()), zeroed);
            let now = image_of(&file);
            prop_assert_eq!(&now[..LEN], &image[..]);
        }
    }

    fn image_of(file: &File) -> Vec<u8> {
        let mut bytes = vec![0; LEN + 4096];
        file.read_exact_at(&mut bytes, 0).unwrap();
        bytes
    }

    #[test]
    fn a_read_only_mapping_refuses_writes() {
        let file = file(&pattern(4096, 1));
        let mapping = Mapping::new(&file, 4096, true).unwrap();
        let guest = Memory::new(&[0; 512]);
        assert!(matches!(mapping.write(0, guest.segments()), Err(DiskError::ReadOnly)));
        assert!(matches!(mapping.zero(0, 512), Err(DiskError::ReadOnly)));
        mapping.read(0, guest.segments()).unwrap();
        assert_eq!(guest.bytes(), pattern(512, 1));
    }

    #[test]
    fn nothing_and_more_than_the_file_cannot_be_mapped() {
        let file = file(&[1; 1000]);
        for len in [0, 1001, u64::MAX] {
            let error = Mapping::new(&file, len, false).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{len}");
        }
        assert_eq!(Mapping::new(&file, 1000, false).unwrap().len_bytes(), 1000);
    }

    #[test]
    fn dropping_it_unmaps_it() {
        let mapped = || {
            let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
            maps.lines().filter(|line| line.contains("unmapped-by-drop")).count()
        };
        let memfd = rustix::fs::memfd_create("unmapped-by-drop", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        let file = File::from(memfd);
        file.set_len(3 * 4096).unwrap();
        let mapping = Mapping::new(&file, 4096 + 512, false).unwrap();
        assert_eq!(mapped(), 1);
        drop(mapping);
        assert_eq!(mapped(), 0);
    }

    /// A part of a huge page: the whole one has to be unmapped (`Drop` asserts that it was).
    #[test]
    #[allow(clippy::print_stderr)]
    fn huge_pages_are_mapped_and_unmapped_whole() {
        let flags = rustix::fs::MemfdFlags::CLOEXEC | rustix::fs::MemfdFlags::HUGETLB;
        let Ok(memfd) = rustix::fs::memfd_create("huge", flags) else {
            eprintln!("skipped: no huge memfd here");
            return;
        };
        let file = File::from(memfd);
        file.set_len(file.metadata().unwrap().blksize() * 2).unwrap();
        drop(Mapping::new(&file, 4096, false).unwrap());
    }
}
