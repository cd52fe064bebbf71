//! A disk on a block device, past the page cache: `/dev/pmemN`, its partitions, BTT, any other.
//!
//! A mapping of a block device would be page cache, which for persistent memory is a second copy in DRAM.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::fs::SeekFrom;

use crate::copy::{self, PrefetchHint, Segments};
use crate::disk::durability::syncs::Syncs;
use crate::disk::error::{cannot, failed};
use crate::disk::failure::IoFailure;
use crate::disk::lock::BackingFile;
use crate::disk::media::bad_blocks::{BadBlockList, BadBlocks, PAGE_BYTES};
use crate::disk::ranges;
use crate::disk::space::growth::GrowthPolicy;
use crate::disk::space::{self, fallocate};
use crate::disk::sys::{self, Cursor, MAX_SEGMENTS};
use crate::disk::{DirectTransfer, Disk, DiskError, Durability, Geometry, GrowError, Media};
use bounce::BounceBuffer;

mod bounce;

/// Buffers for guest memory that the device cannot reach by itself, and so requests of that kind at a time.
const BOUNCES: usize = 4;

/// Bytes moved through a buffer at a time.
const BOUNCE_BYTES: usize = 256 << 10;

/// A disk on a block device that was opened with `O_DIRECT`.
///
/// Bytes go straight between the device and guest memory where the segments begin and end at multiples of
/// the device's logical block, as a guest's buffers do; otherwise through a buffer.
#[derive(Debug)]
pub struct BlockDisk {
    file: Arc<BackingFile>,
    /// With the size at the start.
    geometry: Geometry,
    capacity_bytes: AtomicU64,
    pub(super) growth: GrowthPolicy,
    durability: Durability,
    syncs: Syncs,
    /// Whether discards give space back.
    unmaps: bool,
    /// Where Linux lists what is bad, and what reads have run into besides. The device is asked all the same.
    bad_block_list: Option<BadBlockList>,
    bad: BadBlocks,
    /// What offsets, lengths and addresses must be multiples of.
    unit_bytes: usize,
    bounces: [Mutex<BounceBuffer>; BOUNCES],
    next_bounce: AtomicUsize,
}

impl BlockDisk {
    /// Serves a device that is shared with its lock. Its blocks are not larger than those of the disk.
    pub(super) fn over(file: Arc<BackingFile>, geometry: Geometry, media: &Media, unmaps: bool) -> Self {
        let unit_bytes = usize::try_from(media.unit_bytes).unwrap_or(4096).max(1);
        Self {
            file,
            geometry,
            capacity_bytes: AtomicU64::new(geometry.capacity_bytes),
            growth: GrowthPolicy::default(),
            durability: media.durability,
            // A process before this one may have left something in the device's cache.
            syncs: Syncs::new("fdatasync", !geometry.read_only),
            unmaps,
            bad_block_list: media.bad_block_list.clone(),
            bad: BadBlocks::default(),
            unit_bytes,
            bounces: std::array::from_fn(|_| Mutex::new(BounceBuffer::new(BOUNCE_BYTES, unit_bytes))),
            next_bounce: AtomicUsize::new(0),
        }
    }

    /// The ranges in bytes that Linux lists as bad now, and what reads have run into since they were last read
    /// or written well.
    pub(super) fn bad_blocks(&self) -> Vec<Range<u64>> {
        let listed = self.bad_block_list.as_ref().map(BadBlockList::of_device).unwrap_or_default();
        let mut ranges = self.bad.list();
        let listed = ranges::clip(&listed, &(0..self.geometry().capacity_bytes));
        listed.into_iter().for_each(|range| ranges::insert(&mut ranges, range));
        ranges
    }

    /// Finds the first page of a range that could not be read, and remembers it.
    #[cold]
    fn note_failure(&self, offset: u64, len: u64) {
        let end = offset.saturating_add(len);
        let mut at = offset;
        while at < end {
            let page_end = (at - at % PAGE_BYTES).saturating_add(PAGE_BYTES).min(end);
            let read = |at, part: &mut [u8]| self.pread(at, part);
            if self.in_parts(at, page_end - at, read).is_err() {
                self.bad.add(at..page_end);
                return;
            }
            at = page_end;
        }
    }

    /// What it is made of.
    pub(super) fn file(&self) -> &File {
        &self.file
    }

    pub(super) fn shared_file(&self) -> Arc<BackingFile> {
        Arc::clone(&self.file)
    }

    /// Nothing but whole blocks inside of the disk.
    fn check(&self, offset: u64, len: u64) -> Result<(), DiskError> {
        let (unit_bytes, capacity_bytes) =
            (self.unit_bytes as u64, self.capacity_bytes.load(Ordering::Relaxed));
        match offset.checked_add(len) {
            Some(end) if end <= capacity_bytes => {
                match offset.is_multiple_of(unit_bytes) && end.is_multiple_of(unit_bytes) {
                    true => Ok(()),
                    false => Err(failed("direct I/O", offset, len)(io::ErrorKind::InvalidInput.into())),
                }
            }
            _ => Err(DiskError::OutOfRange { offset, len, capacity_bytes }),
        }
    }

    fn check_write(&self, offset: u64, len: u64) -> Result<(), DiskError> {
        if self.geometry.read_only {
            return Err(DiskError::ReadOnly { offset, len });
        }
        self.check(offset, len)
    }

    /// Whether the device can reach these bytes itself.
    fn is_aligned(&self, segments: Segments<'_>) -> bool {
        let is_whole = |bytes: usize| bytes.is_multiple_of(self.unit_bytes);
        segments.as_slice().iter().all(|it| is_whole(it.ptr().addr()) && is_whole(it.len()))
    }

    /// A buffer: a free one, or the next in turn.
    fn bounce(&self) -> Option<MutexGuard<'_, BounceBuffer>> {
        let turn = self.next_bounce.fetch_add(1, Ordering::Relaxed) % BOUNCES;
        let free = self.bounces.iter().find_map(|bounce| bounce.try_lock().ok());
        free.or_else(|| Some(self.bounces.get(turn)?.lock().unwrap_or_else(PoisonError::into_inner)))
    }

    /// Calls `with` for each part of the range, with its offset and a buffer of its length.
    fn in_parts(
        &self,
        offset: u64,
        len: u64,
        mut with: impl FnMut(u64, &mut [u8]) -> Result<(), DiskError>,
    ) -> Result<(), DiskError> {
        let mut bounce = self.bounce().ok_or(DiskError::Unsupported)?;
        let mut done = 0;
        while done < len {
            let part = bounce.part(len - done);
            with(offset + done, part)?;
            done += part.len() as u64;
        }
        Ok(())
    }

    fn read_through_buffer(&self, offset: u64, into: Segments<'_>) -> Result<(), DiskError> {
        let mut cursor = Cursor::new(into);
        self.in_parts(offset, into.total_bytes() as u64, |at, part| {
            self.pread(at, part)?;
            check_copied(at, cursor.store(part), part.len())
        })
    }

    fn write_through_buffer(&self, offset: u64, from: Segments<'_>) -> Result<(), DiskError> {
        let mut cursor = Cursor::new(from);
        self.in_parts(offset, from.total_bytes() as u64, |at, part| {
            check_copied(at, cursor.load(part), part.len())?;
            self.write_part(at, part)
        })
    }

    fn pread(&self, offset: u64, part: &mut [u8]) -> Result<(), DiskError> {
        let len = part.len() as u64;
        self.file.read_exact_at(part, offset).map_err(failed("pread", offset, len))
    }

    fn write_part(&self, offset: u64, part: &[u8]) -> Result<(), DiskError> {
        self.file.write_all_at(part, offset).map_err(write_failed("pwrite", offset, part.len() as u64))?;
        #[cfg(test)]
        copy::recording::filed(offset, part);
        Ok(())
    }

    /// Serves a file that stands for a device, for the enumeration of crash states.
    #[cfg(test)]
    pub(crate) fn on_file(file: File, geometry: Geometry) -> Self {
        let media = Media::testing(crate::disk::BackingKind::BlockDevice, Durability::Page, vec![]);
        Self::over(Arc::new(file.into()), geometry, &Media { unit_bytes: 512, ..media }, true)
    }
}

/// For `map_err` of what changes a device: what the system says of one that was made read-only is about permissions.
fn write_failed(operation: &'static str, offset: u64, len: u64) -> impl Fn(io::Error) -> DiskError {
    const READ_ONLY: &str =
        "the device has been made read-only since it was opened; make it writable, or use readonly=on";
    move |source| match source.raw_os_error() {
        Some(libc::EPERM | libc::EROFS | libc::EACCES) => {
            failed(operation, offset, len)(io::Error::other(READ_ONLY))
        }
        _ => failed(operation, offset, len)(source),
    }
}

/// Guest memory that is gone ends a copy early.
fn check_copied(offset: u64, copied: usize, len: usize) -> Result<(), DiskError> {
    match copied == len {
        true => Ok(()),
        false => Err(failed("copying guest memory", offset, len as u64)(io::Error::from_raw_os_error(
            libc::EFAULT,
        ))),
    }
}

impl Disk for BlockDisk {
    #[inline]
    fn geometry(&self) -> Geometry {
        Geometry { capacity_bytes: self.capacity_bytes.load(Ordering::Relaxed), ..self.geometry }
    }

    fn rescan_size(&self) -> Result<u64, GrowError> {
        // The offset of the open file is nobody's business: all I/O names its own.
        let end = rustix::fs::seek(&**self.file, SeekFrom::End(0));
        let device_bytes = end.map_err(|errno| cannot("tell the size of the device")(errno.into()))?;
        let served = self.geometry();
        let target = self.growth.target(device_bytes, &served)?.unwrap_or(served.capacity_bytes);
        self.capacity_bytes.fetch_max(target, Ordering::Release);
        Ok(target)
    }

    /// The device's own block.
    fn unit_bytes(&self) -> u32 {
        u32::try_from(self.unit_bytes).unwrap_or(4096).min(self.geometry.block_bytes)
    }

    #[inline]
    fn durability(&self) -> Durability {
        self.durability
    }

    fn may_wait(&self) -> bool {
        true
    }

    fn has_direct(&self) -> bool {
        true
    }

    fn direct<'a>(&'a self, offset: u64, data: Segments<'a>, is_write: bool) -> Option<DirectTransfer<'a>> {
        let len = data.total_bytes() as u64;
        let check = if is_write { self.check_write(offset, len) } else { self.check(offset, len) };
        let is_possible = len != 0 && data.as_slice().len() <= MAX_SEGMENTS && self.is_aligned(data);
        let file = self.file.as_fd();
        (is_possible && check.is_ok()).then_some(DirectTransfer { file, offset, data, is_write })
    }

    fn transferred(&self, offset: u64, len: u64, is_write: bool) {
        self.bad.remove_good(offset, len);
        if is_write {
            self.syncs.wrote();
        }
    }

    fn read(&self, offset: u64, into: Segments<'_>, _next: PrefetchHint) -> Result<(), DiskError> {
        let len = into.total_bytes() as u64;
        self.check(offset, len)?;
        copy::touch(into);
        let read = match self.is_aligned(into) {
            true => sys::preadv_all(self.file.as_fd(), offset, into).map_err(failed("preadv", offset, len)),
            false => self.read_through_buffer(offset, into),
        };
        match &read {
            Ok(()) => self.bad.remove_good(offset, len),
            Err(error) if error.is_media_error() => self.note_failure(offset, len),
            Err(_) => {}
        }
        read.map_err(|error| IoFailure::explain(&self.file, offset, error))
    }

    fn write(&self, offset: u64, from: Segments<'_>, _next: PrefetchHint) -> Result<(), DiskError> {
        let len = from.total_bytes() as u64;
        self.check_write(offset, len)?;
        copy::touch(from);
        match self.is_aligned(from) {
            true => copy::pwritev_all(self.file.as_fd(), offset, from)
                .map_err(write_failed("pwritev", offset, len)),
            false => self.write_through_buffer(offset, from),
        }
        .map_err(|error| IoFailure::explain(&self.file, offset, error))?;
        self.bad.remove_good(offset, len);
        self.syncs.wrote();
        Ok(())
    }

    #[inline]
    fn try_flush(&self) -> Option<Result<(), DiskError>> {
        self.syncs.try_answer()
    }

    fn flush(&self) -> Result<(), DiskError> {
        self.syncs.sync(|| {
            space::sync_data(&self.file).map_err(|error| IoFailure::of_error(&self.file, None, error))
        })
    }

    fn discard(&self, offset: u64, len: u64) -> Result<(), DiskError> {
        self.check_write(offset, len)?;
        if self.unmaps && len != 0 {
            // Only advice: a device that cannot give space back keeps the bytes.
            sys::discard(&self.file, offset, len).map_err(write_failed("discarding", offset, len))?;
            self.syncs.wrote();
        }
        Ok(())
    }

    /// The device zeroes them itself if it can (`fallocate(2)` on a device is `BLKZEROOUT`).
    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> Result<u64, DiskError> {
        self.check_write(offset, len)?;
        let zero = |what| {
            fallocate(&self.file, what, offset, len).map_err(write_failed("zeroing a range", offset, len))
        };
        let is_noted = unmap && self.unmaps && zero(space::PUNCH)? || zero(space::ZERO)?;
        if !is_noted {
            self.in_parts(offset, len, |at, part| {
                part.fill(0);
                self.write_part(at, part)
            })?;
        }
        self.bad.remove_good(offset, len);
        self.syncs.wrote();
        Ok(if is_noted { 0 } else { len })
    }
}

#[cfg(test)]
mod tests;
