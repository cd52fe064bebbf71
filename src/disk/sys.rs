//! System calls that no crate wraps safely: reads into guest memory, and what block devices and file systems
//! are asked by ioctl.
//!
//! What `unsafe` here relies on, besides what [`copy`](crate::copy) states:
//!
//! - **K1**: what the kernel reads or writes is as large as the number of the call says, is ours alone, and lives until the
//!   call returns. Each function sees to that.
//! - **K2**: a descriptor is open while it, or its `File`, is borrowed.
//! - **K3**: a mapping that is made where the kernel finds room replaces nothing, and is ours alone until it is unmapped.

#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::mm::{MapFlags, ProtFlags};

use crate::copy::{self, Segment, Segments};

/// Segments given to one `preadv`: as many as an ordinary request has, fewer than `IOV_MAX` of Linux.
pub(super) const MAX_SEGMENTS: usize = 128;

/// `BLKDISCARD` of `linux/fs.h`.
const BLKDISCARD: libc::Ioctl = 0x1277;

/// `FS_IOC_FIEMAP` of `linux/fs.h`.
const FS_IOC_FIEMAP: libc::Ioctl = 0xC020_660B;

/// `XFS_IOC_FSGEOMETRY` of `xfs/xfs_fs.h`, since Linux 5.2.
const XFS_IOC_FSGEOMETRY: libc::Ioctl = 0x8100_587E;

/// Fills all of `into` with the bytes at `offset` of a file that was opened for direct I/O.
///
/// # Errors
/// The error of `preadv` (guest memory that is gone is `EFAULT`), `UnexpectedEof` at the file's end, also
/// when the kernel stopped at an odd place: direct I/O cannot go on there.
pub(super) fn preadv_all(fd: BorrowedFd<'_>, offset: u64, into: Segments<'_>) -> io::Result<()> {
    read_all(fd, offset, into).inspect_err(|error| copy::touch_lost(error, into))
}

fn read_all(fd: BorrowedFd<'_>, offset: u64, into: Segments<'_>) -> io::Result<()> {
    let mut offset = offset;
    for list in into.as_slice().chunks(MAX_SEGMENTS) {
        // What is left to be filled of each; the rest is empty.
        let mut left = [Segment::EMPTY; MAX_SEGMENTS];
        left.iter_mut().zip(list).for_each(|(left, segment)| *left = *segment);
        let mut rest = left.as_mut_slice();
        while let Some(first) = rest.iter().position(|segment| !segment.is_empty()) {
            rest = rest.get_mut(first..).unwrap_or_default();
            // SAFETY: C1: the list is made of parts of `into`.
            let mut read = match unsafe { preadv(fd, offset, rest, 0) } {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            offset = offset.saturating_add(read as u64);
            for segment in rest.iter_mut() {
                let now = read.min(segment.len());
                segment.advance(now);
                read -= now;
            }
        }
    }
    Ok(())
}

/// Fills `into` with the bytes at `offset` if that is possible without waiting for media, in one call. Returns whether it was;
/// if not, a part of it may be filled.
pub(super) fn preadv_nowait(fd: BorrowedFd<'_>, offset: u64, into: Segments<'_>) -> bool {
    // SAFETY: C1: the list is that of `into`.
    let read = unsafe { preadv(fd, offset, into.as_slice(), libc::RWF_NOWAIT) };
    read.is_ok_and(|read| read == into.total_bytes())
}

/// One `preadv2`; answers how many bytes were read.
///
/// # Safety
/// The bytes of every segment must be memory that may be written. (Where it is not there, the kernel answers
/// `EFAULT` or less than all.)
unsafe fn preadv(fd: BorrowedFd<'_>, offset: u64, list: &[Segment], flags: libc::c_int) -> io::Result<usize> {
    let offset = libc::off_t::try_from(offset).map_err(|_| io::Error::from_raw_os_error(libc::EFBIG))?;
    let count = libc::c_int::try_from(list.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: C2: the bytes. C5: `list` is `count` structures. K2: `fd` is borrowed.
    let read = unsafe { libc::preadv2(fd.as_raw_fd(), list.as_ptr().cast(), count, offset, flags) };
    usize::try_from(read).map_err(|_| io::Error::last_os_error())
}

/// Segments that are filled or read bit by bit, from the first to the last.
#[derive(Debug)]
pub(super) struct Cursor<'a> {
    /// The segment that has been begun, without what is done of it.
    begun: Segment,
    rest: std::slice::Iter<'a, Segment>,
}

impl<'a> Cursor<'a> {
    pub(super) fn new(of: Segments<'a>) -> Self {
        Self { begun: Segment::EMPTY, rest: of.as_slice().iter() }
    }

    /// Fills `bytes` from the segments; answers how many were filled.
    pub(super) fn load(&mut self, bytes: &mut [u8]) -> usize {
        let mut done = 0;
        while let Some(room) = bytes.get_mut(done..).filter(|room| !room.is_empty()) {
            let most = room.len();
            match self.with_piece(most, |piece| copy::load_slice(piece, room)) {
                0 => break,
                loaded => done += loaded,
            }
        }
        done
    }

    /// Stores `bytes` into the segments; answers how many were stored.
    pub(super) fn store(&mut self, bytes: &[u8]) -> usize {
        let mut done = 0;
        while let Some(rest) = bytes.get(done..).filter(|rest| !rest.is_empty()) {
            match self.with_piece(rest.len(), |piece| copy::store_slice(piece, rest)) {
                0 => break,
                stored => done += stored,
            }
        }
        done
    }

    /// Calls `with` for the next piece, of at most `max_bytes`, and goes on by as many bytes as it answers.
    fn with_piece(&mut self, max_bytes: usize, with: impl FnOnce(Segments<'_>) -> usize) -> usize {
        while self.begun.is_empty() {
            let Some(next) = self.rest.next() else { return 0 };
            self.begun = *next;
        }
        let mut piece = self.begun;
        piece.truncate(max_bytes);
        // SAFETY: C1: the piece is a part of a segment of what this was made of.
        let done = with(unsafe { Segments::new(std::slice::from_ref(&piece)) });
        self.begun.advance(done);
        done
    }
}

/// Tells a block device that these bytes are not needed; `false` when it does not want to know.
///
/// # Errors
/// The error of the ioctl.
pub(super) fn discard(device: &File, offset: u64, len: u64) -> io::Result<bool> {
    let range = [offset, len];
    // SAFETY: K1: two 64-bit numbers, which are only read. K2: the device is borrowed.
    let done = unsafe { libc::ioctl(device.as_raw_fd(), BLKDISCARD, range.as_ptr()) };
    if done == 0 {
        return Ok(true);
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::EOPNOTSUPP | libc::ENOTTY) => Ok(false),
        _ => Err(error),
    }
}

/// Locks bytes of a file for this open file description, shared or not at all; `false` when somebody's lock is in the way.
///
/// # Errors
/// The error of `fcntl(2)`; `EINVAL` is what kernels and file systems without such locks say.
pub(super) fn lock_bytes(file: &File, bytes: Range<u64>, lock: ByteLock) -> io::Result<bool> {
    let mut request = lock_request(bytes, lock.code())?;
    match fcntl_lock(file, libc::F_OFD_SETLK, &mut request) {
        Ok(()) => Ok(true),
        Err(error) if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EACCES)) => Ok(false),
        Err(error) => Err(error),
    }
}

/// The lock that keeps this open file description from having a byte to itself; none where nobody does.
///
/// # Errors
/// The error of `fcntl(2)`.
pub(super) fn conflicting_lock(file: &File, byte: u64) -> io::Result<Option<FoundLock>> {
    let mut request = lock_request(byte..byte.saturating_add(1), libc::F_WRLCK)?;
    fcntl_lock(file, libc::F_OFD_GETLK, &mut request)?;
    let is_free = libc::c_int::from(request.l_type) == libc::F_UNLCK;
    let is_shared = libc::c_int::from(request.l_type) == libc::F_RDLCK;
    let start = u64::try_from(request.l_start).unwrap_or(0);
    Ok((!is_free).then_some(FoundLock { start, is_shared }))
}

/// What to do with bytes of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ByteLock {
    /// As many as like may have them.
    Shared,
    /// Give them back.
    None,
}

impl ByteLock {
    const fn code(self) -> libc::c_int {
        match self {
            Self::Shared => libc::F_RDLCK,
            Self::None => libc::F_UNLCK,
        }
    }
}

/// A lock of somebody else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct FoundLock {
    /// Its first byte.
    pub(super) start: u64,
    /// Whether others may have one, too.
    pub(super) is_shared: bool,
}

fn lock_request(bytes: Range<u64>, kind: libc::c_int) -> io::Result<libc::flock> {
    let offset = |bytes| libc::off_t::try_from(bytes).map_err(|_| io::ErrorKind::InvalidInput);
    let short = |code| libc::c_short::try_from(code).map_err(|_| io::ErrorKind::InvalidInput);
    Ok(libc::flock {
        l_type: short(kind)?,
        l_whence: short(libc::SEEK_SET)?,
        l_start: offset(bytes.start)?,
        l_len: offset(bytes.end.saturating_sub(bytes.start))?,
        l_pid: 0,
    })
}

fn fcntl_lock(file: &File, command: libc::c_int, request: &mut libc::flock) -> io::Result<()> {
    loop {
        // SAFETY: K1: one `struct flock`. K2: the file is borrowed.
        if unsafe { libc::fcntl(file.as_raw_fd(), command, &raw mut *request) } == 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

/// `struct fiemap` with its array, of `linux/fiemap.h`.
#[repr(C)]
struct Fiemap {
    start: u64,
    length: u64,
    flags: u32,
    mapped_extents: u32,
    extent_count: u32,
    reserved: u32,
    extents: [FiemapExtent; FIEMAP_EXTENTS],
}

/// Extents asked for with one call.
const FIEMAP_EXTENTS: usize = 128;

#[repr(C)]
#[derive(Clone, Copy)]
struct FiemapExtent {
    logical: u64,
    physical: u64,
    length: u64,
    reserved64: [u64; 2],
    flags: u32,
    reserved: [u32; 3],
}

const FIEMAP_EXTENT_LAST: u32 = 1;
const FIEMAP_EXTENT_SHARED: u32 = 0x2000;
/// Its place is unknown, not on the device, or not in whole blocks: nothing can be said about it.
const FIEMAP_EXTENT_ELSEWHERE: u32 = 0x2 | 0x4 | 0x8 | 0x100;

const _: () = assert!(size_of::<FiemapExtent>() == 56);
const _: () = assert!(std::mem::offset_of!(Fiemap, extents) == 32);

/// A part of a file and where it lies on the file system's device, in bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct FileExtent {
    /// Offset in the file.
    pub(super) logical: u64,
    /// Offset on the device.
    pub(super) physical: u64,
    /// Length.
    pub(super) len: u64,
}

/// Where the parts of a file lie on its file system's device.
///
/// # Errors
/// The error of the ioctl: not every file system knows.
pub(super) fn extents(file: &File) -> io::Result<Vec<FileExtent>> {
    let mut found = Vec::new();
    for_each_extent(file, 0..u64::MAX, |extent| {
        if extent.flags & FIEMAP_EXTENT_ELSEWHERE == 0 {
            let FiemapExtent { logical, physical, length: len, .. } = *extent;
            found.push(FileExtent { logical, physical, len });
        }
    })?;
    Ok(found)
}

/// Bytes of a part of a file whose space is not for it alone: another file, or a snapshot, has it as well.
///
/// # Errors
/// The error of the ioctl: not every file system knows.
pub(super) fn shared_bytes(file: &File, part: Range<u64>) -> io::Result<u64> {
    let mut bytes = 0_u64;
    for_each_extent(file, part.clone(), |extent| {
        if extent.flags & FIEMAP_EXTENT_SHARED != 0 {
            let end = extent.logical.saturating_add(extent.length).min(part.end);
            bytes = bytes.saturating_add(end.saturating_sub(extent.logical.max(part.start)));
        }
    })?;
    Ok(bytes)
}

fn for_each_extent(file: &File, part: Range<u64>, mut with: impl FnMut(&FiemapExtent)) -> io::Result<()> {
    let none =
        FiemapExtent { logical: 0, physical: 0, length: 0, reserved64: [0; 2], flags: 0, reserved: [0; 3] };
    let mut start = part.start;
    while start < part.end {
        let mut map = Fiemap {
            start,
            length: part.end - start,
            flags: 0,
            mapped_extents: 0,
            extent_count: u32::try_from(FIEMAP_EXTENTS).unwrap_or(0),
            reserved: 0,
            extents: [none; FIEMAP_EXTENTS],
        };
        // SAFETY: K1: a `struct fiemap` and as many extents as `extent_count` says, all inside of `map`. K2: the file is
        // borrowed.
        if unsafe { libc::ioctl(file.as_raw_fd(), FS_IOC_FIEMAP, &raw mut map) } != 0 {
            return Err(io::Error::last_os_error());
        }
        let count = usize::try_from(map.mapped_extents).unwrap_or(0).min(FIEMAP_EXTENTS);
        let found = map.extents.get(..count).unwrap_or_default();
        found.iter().for_each(&mut with);
        start = match found.last() {
            Some(last) if last.flags & FIEMAP_EXTENT_LAST == 0 => last.logical.saturating_add(last.length),
            _ => part.end,
        };
    }
    Ok(())
}

/// `struct xfs_fsop_geom` of `xfs/xfs_fs.h`, of which this is read.
#[repr(C)]
struct XfsGeometry {
    sizes: [u32; 8],
    data_blocks: u64,
    realtime_blocks: u64,
    others: [u64; 4],
    units: [u32; 2],
    version: i32,
    flags: u32,
    rest: [u64; 20],
}

/// `XFS_FSOP_GEOM_FLAGS_REFLINK`: files may share blocks.
const XFS_GEOMETRY_REFLINK: u32 = 1 << 20;

const _: () = assert!(size_of::<XfsGeometry>() == 256);
const _: () = assert!(std::mem::offset_of!(XfsGeometry, flags) == 92);

/// What an XFS is made like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct XfsFeatures {
    /// Files may share blocks, now or later.
    pub(super) shares_blocks: bool,
    /// Some files lie on another device than the file system says.
    pub(super) has_realtime_device: bool,
}

/// Asks the XFS that a file is on.
///
/// # Errors
/// The error of the ioctl: another file system, or Linux before 5.2.
pub(super) fn xfs_features(file: &File) -> io::Result<XfsFeatures> {
    let mut geometry = XfsGeometry {
        sizes: [0; 8],
        data_blocks: 0,
        realtime_blocks: 0,
        others: [0; 4],
        units: [0; 2],
        version: 0,
        flags: 0,
        rest: [0; 20],
    };
    // SAFETY: K1: as many bytes as the number of the ioctl says, which is the size of `geometry`. K2: the file is borrowed.
    if unsafe { libc::ioctl(file.as_raw_fd(), XFS_IOC_FSGEOMETRY, &raw mut geometry) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(XfsFeatures {
        shares_blocks: geometry.flags & XFS_GEOMETRY_REFLINK != 0,
        has_realtime_device: geometry.realtime_blocks != 0,
    })
}

/// Whether this file can be mapped with `MAP_SYNC`. Nothing of it is touched.
pub(super) fn can_map_sync(file: &File) -> bool {
    let len = rustix::param::page_size();
    let flags = MapFlags::SHARED_VALIDATE | MapFlags::SYNC;
    // SAFETY: K3: the address is left to the kernel. K2: the file is borrowed.
    let mapped = unsafe { rustix::mm::mmap(std::ptr::null_mut(), len, ProtFlags::READ, flags, file, 0) };
    mapped.is_ok_and(|address| {
        // SAFETY: K3: this range was mapped just now.
        unsafe { rustix::mm::munmap(address, len) }.is_ok()
    })
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::os::unix::fs::FileExt;

    use super::*;
    use crate::copy::testing::{Memory, pattern};

    #[test]
    fn reads_fill_every_segment_in_order() {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&pattern(20_000, 3), 0).unwrap();
        let lens: Vec<usize> = (0..3000).map(|index| index % 11).collect();
        let total: usize = lens.iter().sum();
        let guest = Memory::new(&vec![0; total]).cut(0, &lens, 0);
        preadv_all(file.as_fd(), 777, guest.segments()).unwrap();
        assert!(guest.bytes() == pattern(20_000, 3)[777..777 + total]);
        preadv_all(file.as_fd(), u64::MAX, Segments::empty()).unwrap();
        let error = preadv_all(file.as_fd(), 10_000, guest.segments()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn a_cursor_goes_through_every_byte_once() {
        let bytes = pattern(1000, 7);
        let lens = [0, 300, 1, 0, 699];
        for step in [1, 7, 128, 300, 999, 2000] {
            let guest = Memory::new(&bytes).cut(0, &lens, 0);
            let (mut cursor, mut got) = (Cursor::new(guest.segments()), Vec::new());
            loop {
                let mut part = vec![0; step];
                let loaded = cursor.load(&mut part);
                got.extend_from_slice(&part[..loaded]);
                if loaded < step {
                    break;
                }
            }
            assert_eq!(got, bytes, "{step}");
            let blank = Memory::new(&[0; 1000]).cut(0, &lens, 0);
            let mut cursor = Cursor::new(blank.segments());
            let stored: usize = bytes.chunks(step).map(|part| cursor.store(part)).sum();
            assert_eq!((stored, cursor.store(&[1])), (1000, 0));
            assert_eq!(blank.bytes(), bytes, "{step}");
        }
    }

    #[test]
    fn memory_cannot_be_mapped_with_map_sync() {
        let file = tempfile::tempfile_in("/dev/shm").unwrap();
        file.set_len(1 << 20).unwrap();
        assert!(!can_map_sync(&file));
    }

    /// Where the file system knows, the extents of a file with a hole are its data and nothing else.
    #[test]
    #[allow(clippy::print_stderr)]
    fn extents_leave_holes_out() {
        let file = tempfile::tempfile_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        for index in 0..300 {
            file.write_all_at(&[1; 4096], index * 16384).unwrap();
        }
        file.sync_all().unwrap();
        let extents = match extents(&file) {
            Ok(extents) => extents,
            Err(error) => {
                eprintln!("skipped: this file system does not tell extents: {error}");
                return;
            }
        };
        let bytes: u64 = extents.iter().map(|extent| extent.len).sum();
        assert_eq!(bytes, 300 * 4096);
        assert!(extents.len() == 300 && extents.iter().all(|it| it.logical % 16384 == 0 && it.physical != 0));
    }
}
