//! The disks that a path can become, as one type.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::sync::Arc;

use rustix::fs::{FileType, fstat, ftruncate};

use crate::copy::{PrefetchHint, Segments};
use crate::disk::error::cannot;
use crate::disk::lock::BackingFile;
use crate::disk::mapped::huge_pages;
use crate::disk::mapped::populate::{Populated, populate};
use crate::disk::overlay::in_file::OverlayFileError;
use crate::disk::overlay::{InFile, Pages};
use crate::disk::space::growth::GrowthPolicy;
use crate::disk::{
    BackingKind, BlockDisk, DirectTransfer, Disk, DiskError, Durability, FileDisk, Geometry, GrowError,
    MappedDisk, Overlay,
};

/// The disks that a path can become, told apart without a virtual call.
#[derive(Debug)]
pub enum Backing {
    /// Written through its mapping.
    Mapped(MappedDisk),
    /// Written by system calls.
    File(FileDisk),
    /// Read and written past the page cache.
    Block(BlockDisk),
    /// A private disk over memory that others share.
    MappedOverlay(Box<Overlay<MappedDisk>>),
    /// A private disk over a file that others share.
    FileOverlay(Box<Overlay<FileDisk>>),
    /// As over memory, and what is written is kept in a file.
    KeptMappedOverlay(Box<Overlay<MappedDisk, InFile>>),
    /// As over a file, and what is written is kept in another one.
    KeptFileOverlay(Box<Overlay<FileDisk, InFile>>),
}

/// Calls the same method of whichever disk it is.
macro_rules! either {
    ($self:ident, $disk:ident => $call:expr) => {
        match $self {
            Self::Mapped($disk) => $call,
            Self::File($disk) => $call,
            Self::Block($disk) => $call,
            Self::MappedOverlay($disk) => $call,
            Self::FileOverlay($disk) => $call,
            Self::KeptMappedOverlay($disk) => $call,
            Self::KeptFileOverlay($disk) => $call,
        }
    };
}

/// As `either`, of what a private disk lies over.
macro_rules! below {
    ($self:ident, $disk:ident => $call:expr) => {
        match $self {
            Self::Mapped($disk) => $call,
            Self::File($disk) => $call,
            Self::Block($disk) => $call,
            Self::MappedOverlay(overlay) => below!(@ overlay.base(), $disk => $call),
            Self::FileOverlay(overlay) => below!(@ overlay.base(), $disk => $call),
            Self::KeptMappedOverlay(overlay) => below!(@ overlay.base(), $disk => $call),
            Self::KeptFileOverlay(overlay) => below!(@ overlay.base(), $disk => $call),
        }
    };
    (@ $base:expr, $disk:ident => $call:expr) => {{
        let $disk = $base;
        $call
    }};
}

impl Backing {
    /// The ranges in bytes that are known to be bad: by Linux's list, or because reads have run into them.
    pub fn bad_blocks(&self) -> Vec<Range<u64>> {
        below!(self, disk => disk.bad_blocks())
    }

    /// What is read as memory, if it is: of a private disk, the base.
    fn mapped(&self) -> Option<&MappedDisk> {
        match self {
            Self::Mapped(disk) => Some(disk),
            Self::MappedOverlay(overlay) => Some(overlay.base()),
            Self::KeptMappedOverlay(overlay) => Some(overlay.base()),
            Self::File(_) | Self::Block(_) | Self::FileOverlay(_) | Self::KeptFileOverlay(_) => None,
        }
    }

    /// Learns what the kernel has found to be bad by now, where reads must be kept from touching it. Returns what
    /// was news, in bytes of the disk.
    pub fn update_bad_blocks(&self) -> Vec<Range<u64>> {
        match self {
            Self::File(disk) => disk.forget_announced(),
            Self::FileOverlay(overlay) => overlay.base().forget_announced(),
            Self::KeptFileOverlay(overlay) => overlay.base().forget_announced(),
            // A device is asked with each request.
            Self::Mapped(_) | Self::MappedOverlay(_) | Self::KeptMappedOverlay(_) | Self::Block(_) => {}
        }
        self.mapped().map(MappedDisk::update_bad_blocks).unwrap_or_default()
    }

    /// The list in which Linux notes what is bad of mapped media, where there is one: `poll(2)` says when there is
    /// news in it.
    pub fn bad_block_list(&self) -> Option<Arc<File>> {
        self.mapped()?.bad_block_list()?.to_poll()
    }

    /// Bytes that are mapped in huge pages, when they were last [counted](super::count_huge_pages); none before, and where
    /// there is no mapping that it is read through as memory.
    pub fn huge_bytes(&self) -> Option<u64> {
        self.mapped()?.huge_bytes()
    }

    /// Enters the disk's mapping from this byte on into the page tables, until `should_stop`. None where that is no use:
    /// page cache and block devices.
    ///
    /// No hole is filled that the disk was to leave: call it only for disks that are not sparse. Bytes that a
    /// guest discards meanwhile may be given space again.
    pub fn populate(&self, from_bytes: u64, should_stop: impl Fn() -> bool) -> Option<Populated> {
        Some(populate(self.mapped()?, from_bytes, should_stop))
    }

    /// Bytes of persistent memory without data that Linux has zeroed to [populate](Backing::populate) the mapping: they cost
    /// endurance as writes do.
    pub fn populated_zero_bytes(&self) -> u64 {
        self.mapped().map_or(0, MappedDisk::populated_zero_bytes)
    }

    /// Whether it is read from persistent memory as the CPU reads memory.
    pub fn is_persistent_memory(&self) -> bool {
        let is_persistent =
            |disk: &MappedDisk| matches!(disk.kind(), BackingKind::DaxFile { .. } | BackingKind::DeviceDax);
        self.mapped().is_some_and(is_persistent)
    }

    /// Of a private disk: the bytes of memory, or of its file, that hold what was written, and the most that may.
    pub fn overlay_bytes(&self) -> Option<(u64, u64)> {
        match self {
            Self::MappedOverlay(overlay) => Some((overlay.resident_bytes(), overlay.max_bytes())),
            Self::FileOverlay(overlay) => Some((overlay.resident_bytes(), overlay.max_bytes())),
            Self::KeptMappedOverlay(overlay) => Some((overlay.resident_bytes(), overlay.max_bytes())),
            Self::KeptFileOverlay(overlay) => Some((overlay.resident_bytes(), overlay.max_bytes())),
            Self::Mapped(_) | Self::File(_) | Self::Block(_) => None,
        }
    }

    /// A private disk over this one, which has to be read-only.
    ///
    /// # Errors
    /// As [`Overlay::new`]; [`io::ErrorKind::Unsupported`] over a block device, and over another private disk.
    pub fn overlaid(self, max_bytes: u64, unmaps: bool) -> io::Result<Self> {
        match self {
            Self::Mapped(disk) => {
                Overlay::new(disk, max_bytes, unmaps).map(|it| Self::MappedOverlay(Box::new(it)))
            }
            Self::File(disk) => {
                Overlay::new(disk, max_bytes, unmaps).map(|it| Self::FileOverlay(Box::new(it)))
            }
            _ => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    /// Another private disk in memory over the same base, to which nothing was written.
    ///
    /// # Errors
    /// As [`Overlay::fork`]; [`io::ErrorKind::Unsupported`] of others.
    pub fn fork(&self) -> io::Result<Self> {
        match self {
            Self::MappedOverlay(overlay) => overlay.fork().map(|it| Self::MappedOverlay(Box::new(it))),
            Self::FileOverlay(overlay) => overlay.fork().map(|it| Self::FileOverlay(Box::new(it))),
            _ => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    /// The same with what is written in a file; `make` opens it, and tells which pages were written.
    ///
    /// # Errors
    /// Those of `make`; [`io::ErrorKind::Unsupported`] as above.
    pub(super) fn overlaid_by_file(
        self,
        max_bytes: u64,
        unmaps: bool,
        make: impl FnOnce() -> Result<(InFile, Pages), OverlayFileError>,
    ) -> Result<Self, OverlayFileError> {
        match self {
            Self::Mapped(disk) => {
                let (file, pages) = make()?;
                Ok(Self::KeptMappedOverlay(Box::new(Overlay::over(
                    Arc::new(disk),
                    file,
                    pages,
                    max_bytes,
                    unmaps,
                ))))
            }
            Self::File(disk) => {
                let (file, pages) = make()?;
                Ok(Self::KeptFileOverlay(Box::new(Overlay::over(
                    Arc::new(disk),
                    file,
                    pages,
                    max_bytes,
                    unmaps,
                ))))
            }
            _ => Err(io::Error::from(io::ErrorKind::Unsupported).into()),
        }
    }

    /// Serves so many bytes, after it has made a file as long that is shorter; a chosen size (`size=`) is this from now on.
    /// Returns what is served then.
    ///
    /// # Errors
    /// As [`Disk::rescan_size`], and where so many cannot be served. Nothing has changed then.
    pub fn grow_to(&self, to_bytes: u64) -> Result<u64, GrowError> {
        let file_bytes = self.check_growth(to_bytes)?;
        let file = self.file();
        let is_short = file_bytes.is_some_and(|file_bytes| file_bytes < to_bytes);
        if is_short {
            ftruncate(file, to_bytes).map_err(|errno| cannot("make the file longer")(errno.into()))?;
        }
        let growth = below!(self, disk => &disk.growth);
        let before = growth.has_limit().then(|| growth.set_limit(to_bytes));
        self.rescan_size().inspect_err(|_| {
            before.map(|before| growth.set_limit(before));
            let is_ours = || fstat(file).is_ok_and(|now| u64::try_from(now.st_size) == Ok(to_bytes));
            if is_short && is_ours() {
                // The first error is the one to report.
                let _ = file_bytes.map(|file_bytes| ftruncate(file, file_bytes));
            }
        })
    }

    /// Whether so many bytes can be served for all that is known before it is tried; nothing is changed. Returns the length of
    /// the file, if it is one.
    ///
    /// # Errors
    /// They are fewer than are served, no whole blocks, or would need a longer file that is only read.
    pub(crate) fn check_growth(&self, to_bytes: u64) -> Result<Option<u64>, GrowError> {
        let Geometry { capacity_bytes, block_bytes, read_only } = self.geometry();
        if to_bytes < capacity_bytes {
            return Err(GrowError::Smaller { wanted_bytes: to_bytes, served_bytes: capacity_bytes });
        }
        if self.overlay_bytes().is_some() && to_bytes > capacity_bytes {
            return Err(GrowError::Private);
        }
        if !to_bytes.is_multiple_of(u64::from(block_bytes)) {
            return Err(GrowError::NotBlocks { wanted_bytes: to_bytes, block_bytes });
        }
        let status = fstat(self.file()).map_err(|errno| cannot("examine the file")(errno.into()))?;
        let is_file = FileType::from_raw_mode(status.st_mode).is_file();
        let file_bytes = is_file.then(|| u64::try_from(status.st_size).unwrap_or(0));
        if read_only && file_bytes.is_some_and(|file_bytes| file_bytes < to_bytes) {
            return Err(GrowError::ReadOnly);
        }
        Ok(file_bytes)
    }

    /// The file or device, to be watched.
    pub fn file(&self) -> BorrowedFd<'_> {
        below!(self, disk => disk.file().as_fd())
    }

    /// The same, shared: it is open, and locked, as long as somebody has it.
    pub fn shared_file(&self) -> Arc<BackingFile> {
        below!(self, disk => disk.shared_file())
    }

    /// Where what front-ends know of the disk may be kept: a disk that is only read, and one in memory over a base, has no place.
    pub fn record_file(&self) -> Option<Arc<BackingFile>> {
        match self {
            Self::KeptMappedOverlay(overlay) => Some(overlay.upper().shared_file()),
            Self::KeptFileOverlay(overlay) => Some(overlay.upper().shared_file()),
            Self::MappedOverlay(_) | Self::FileOverlay(_) => None,
            _ if self.geometry().read_only => None,
            _ => Some(self.shared_file()),
        }
    }

    pub(super) fn set_growth(&mut self, growth: GrowthPolicy) {
        match self {
            Self::Mapped(disk) => disk.growth = growth,
            Self::File(disk) => disk.growth = growth,
            Self::Block(disk) => disk.growth = growth,
            // As its base has grown when it was laid over it.
            _ => {}
        }
    }
}

/// Counts for each disk how much of its mapping is in huge pages by now; [`Backing::huge_bytes`] says it from then on.
///
/// It may walk through the page tables of everything that is mapped: not to be asked for one disk after the other.
pub fn count_huge_pages<'a>(disks: impl IntoIterator<Item = &'a Backing>) {
    huge_pages::count(disks.into_iter().filter_map(Backing::mapped));
}

impl Disk for Backing {
    #[inline]
    fn geometry(&self) -> Geometry {
        either!(self, disk => disk.geometry())
    }

    fn rescan_size(&self) -> Result<u64, GrowError> {
        either!(self, disk => disk.rescan_size())
    }

    fn unit_bytes(&self) -> u32 {
        either!(self, disk => disk.unit_bytes())
    }

    #[inline]
    fn durability(&self) -> Durability {
        either!(self, disk => disk.durability())
    }

    fn initial_writeback(&self) -> bool {
        either!(self, disk => disk.initial_writeback())
    }

    fn discard_alignment_bytes(&self) -> u64 {
        either!(self, disk => disk.discard_alignment_bytes())
    }

    #[inline]
    fn media_written_bytes(&self, offset: u64, len: u64) -> u64 {
        either!(self, disk => disk.media_written_bytes(offset, len))
    }

    #[inline]
    fn prefetch_hint(&self, offset: u64) -> PrefetchHint {
        either!(self, disk => disk.prefetch_hint(offset))
    }

    #[inline]
    fn read(&self, offset: u64, into: Segments<'_>, next: PrefetchHint) -> Result<(), DiskError> {
        either!(self, disk => disk.read(offset, into, next))
    }

    #[inline]
    fn write(&self, offset: u64, from: Segments<'_>, next: PrefetchHint) -> Result<(), DiskError> {
        either!(self, disk => disk.write(offset, from, next))
    }

    fn may_wait(&self) -> bool {
        either!(self, disk => disk.may_wait())
    }

    fn changes_exclude_each_other(&self) -> bool {
        either!(self, disk => disk.changes_exclude_each_other())
    }

    fn writes_are_quick(&self) -> bool {
        either!(self, disk => disk.writes_are_quick())
    }

    fn has_direct(&self) -> bool {
        either!(self, disk => disk.has_direct())
    }

    fn direct<'a>(&'a self, offset: u64, data: Segments<'a>, is_write: bool) -> Option<DirectTransfer<'a>> {
        either!(self, disk => disk.direct(offset, data, is_write))
    }

    fn transferred(&self, offset: u64, len: u64, is_write: bool) {
        either!(self, disk => disk.transferred(offset, len, is_write));
    }

    #[inline]
    fn try_read(&self, offset: u64, into: Segments<'_>, next: PrefetchHint) -> bool {
        either!(self, disk => disk.try_read(offset, into, next))
    }

    fn can_announce(&self, len: u64) -> bool {
        either!(self, disk => disk.can_announce(len))
    }

    fn announce(&self, offset: u64, len: u64) {
        either!(self, disk => disk.announce(offset, len));
    }

    fn read_announced(&self, offset: u64, into: Segments<'_>) -> bool {
        either!(self, disk => disk.read_announced(offset, into))
    }

    fn forget_cached(&self) {
        either!(self, disk => disk.forget_cached());
    }

    fn begin_turn(&self) {
        either!(self, disk => disk.begin_turn());
    }

    fn ring_starts(&self, ring: u16, goes_on: bool, is_first: bool) -> bool {
        either!(self, disk => disk.ring_starts(ring, goes_on, is_first))
    }

    #[inline]
    fn fence(&self) {
        either!(self, disk => disk.fence());
    }

    fn flushes_by_fence(&self) -> bool {
        either!(self, disk => disk.flushes_by_fence())
    }

    #[inline]
    fn try_flush(&self) -> Option<Result<(), DiskError>> {
        either!(self, disk => disk.try_flush())
    }

    #[inline]
    fn flush(&self) -> Result<(), DiskError> {
        either!(self, disk => disk.flush())
    }

    #[inline]
    fn discard(&self, offset: u64, len: u64) -> Result<(), DiskError> {
        either!(self, disk => disk.discard(offset, len))
    }

    fn has_fast_zero(&self) -> bool {
        either!(self, disk => disk.has_fast_zero())
    }

    #[inline]
    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> Result<u64, DiskError> {
        either!(self, disk => disk.write_zeroes(offset, len, unmap))
    }
}
