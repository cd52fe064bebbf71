//! What is written to an overlay, in a file of its own: it stays when the process ends, and what was flushed when the machine does.
//!
//! [`header`] has the file's format. Pages come first: what is written is at the offset at which it is read.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::sync::{Arc, LazyLock};

use rustix::fs::SeekFrom;

use super::pages::{PAGE_BYTES, Pages};
use super::upper::Upper;
use crate::copy::{PrefetchHint, Segments};
use crate::disk::error::failed;
use crate::disk::failure::IoFailure;
use crate::disk::lock::BackingFile;
use crate::disk::space::{self, ALLOCATE, KEEP_SIZE};
use crate::disk::{Disk, DiskError, Durability, FileDisk, FileLock, Geometry};
pub use header::BaseStamp;
use header::{Header, Layout};
use index::{Index, Store};

mod header;
mod index;

/// The run of the system, as the kernel numbers it; all zeroes where it does not say.
static BOOT: LazyLock<[u8; 16]> = LazyLock::new(|| {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let digits: Vec<u32> = text.chars().filter_map(|digit| digit.to_digit(16)).collect();
    let mut boot = [0; 16];
    for (byte, pair) in boot.iter_mut().zip(digits.as_chunks::<2>().0) {
        *byte = u8::try_from(pair[0] * 16 + pair[1]).unwrap_or(0);
    }
    boot
});

/// Asks the kernel what overlays need to know of it, before nothing may be looked up any more.
pub fn prepare() {
    LazyLock::force(&BOOT);
}

/// Why a file cannot be an overlay over a base.
#[derive(Debug, thiserror::Error)]
pub enum OverlayFileError {
    /// It is something else.
    #[error("it is not empty, and no overlay")]
    NotAnOverlay,
    /// Its format is not known here.
    #[error("it is an overlay of version {0}, and this is version 1")]
    OtherVersion(u32),
    /// It was made for a disk of another size.
    #[error("it was made for a disk of {was_bytes} bytes, and this has {is_bytes}")]
    OtherSize {
        /// Bytes of the disk that it was made for.
        was_bytes: u64,
        /// Bytes of the disk.
        is_bytes: u64,
    },
    /// The base is not as it was.
    #[error(
        "its base has changed since it was made: it had {} bytes and was written last at {} seconds, and now has {} and was at {}",
        was.parts().0, was.parts().1, is.parts().0, is.parts().1
    )]
    OtherBase {
        /// As it was.
        was: BaseStamp,
        /// As it is.
        is: BaseStamp,
    },
    /// It is not known whether a process that has written to it ran before the system was started.
    #[error("the kernel does not number its runs (/proc/sys/kernel/random/boot_id)")]
    UnknownRun,
    /// The system failed.
    #[error("{0}")]
    Io(#[from] io::Error),
}

impl Store for Arc<BackingFile> {
    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        self.read_exact_at(bytes, offset)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.write_all_at(bytes, offset)
    }

    fn allocate(&self, offset: u64, len: u64) -> io::Result<()> {
        // A file system that cannot preallocate finds out later.
        space::fallocate(self, KEEP_SIZE.union(ALLOCATE), offset, len).map(drop)
    }

    fn has_bytes(&self, offset: u64, len: u64) -> bool {
        let next = rustix::fs::seek(&***self, SeekFrom::Data(offset));
        next.is_ok_and(|next| next < offset.saturating_add(len))
    }

    fn len(&self) -> io::Result<u64> {
        self.metadata().map(|metadata| metadata.len())
    }

    fn sync(&self) -> io::Result<()> {
        space::sync_data(self)
    }
}

/// In a file, which stays.
#[derive(Debug)]
pub struct InFile<D = FileDisk, S = Arc<BackingFile>> {
    disk: D,
    index: Index<S>,
    file: Arc<BackingFile>,
    /// What it is worth, on what it lies on.
    durability: Durability,
    /// It was there before.
    has_past: bool,
    /// It is nobody else's as long as it is open.
    _lock: FileLock,
}

impl InFile {
    /// The length of the file of an overlay over a disk of so many bytes; none for more than a file can have.
    pub(in crate::disk) fn file_bytes(capacity_bytes: u64) -> Option<u64> {
        Layout::of(capacity_bytes).map(|layout| layout.len)
    }

    /// Whether a file is an overlay over this base, or of the right length and without any data.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub(in crate::disk) fn check(
        file: File,
        base: BaseStamp,
        capacity_bytes: u64,
    ) -> Result<(), OverlayFileError> {
        let layout =
            Layout::of(capacity_bytes).ok_or_else(|| io::Error::from(io::ErrorKind::FileTooLarge))?;
        let header = last_header(&Arc::new(BackingFile::from(file)), layout)?;
        header.map(|header| header.check(base, capacity_bytes)).transpose().map(drop)
    }

    /// Opens the file of an overlay, or makes one of a file of that length without any data; `lock` is held, and what is flushed is
    /// worth as much as `durability` says. Returns which pages were written as well.
    ///
    /// # Errors
    /// It is none, or of another base or size.
    pub(in crate::disk) fn open(
        file: Arc<BackingFile>,
        lock: FileLock,
        base: BaseStamp,
        geometry: Geometry,
        unmaps: bool,
        durability: Durability,
    ) -> Result<(Self, Pages), OverlayFileError> {
        if *BOOT == [0; 16] {
            return Err(OverlayFileError::UnknownRun);
        }
        let (index, pages, has_past) = load(Arc::clone(&file), base, geometry.capacity_bytes, *BOOT)?;
        let disk = FileDisk::over(Arc::clone(&file), geometry, unmaps)?;
        Ok((Self { disk, index, file, durability, has_past, _lock: lock }, pages))
    }
}

impl<D, S> InFile<D, S> {
    pub(in crate::disk) fn shared_file(&self) -> Arc<BackingFile> {
        Arc::clone(&self.file)
    }
}

/// What a file says was written, in this run of the system, and whether it was an overlay; it is made one if not.
fn load<S: Store>(
    store: S,
    base: BaseStamp,
    capacity_bytes: u64,
    boot: [u8; 16],
) -> Result<(Index<S>, Pages, bool), OverlayFileError> {
    let layout = Layout::of(capacity_bytes).ok_or_else(|| io::Error::from(io::ErrorKind::FileTooLarge))?;
    let header = match last_header(&store, layout)? {
        Some(header) => header.check(base, capacity_bytes)?,
        None => Header { number: 0, capacity_bytes, base, boot },
    };
    let pages = Pages::new(capacity_bytes);
    let index = Index::new(store, layout);
    let is_live = header.boot == boot;
    index.load(&pages, is_live)?;
    if header.number == 0 || !is_live {
        let next = Header { number: header.number.wrapping_add(1), boot, ..header };
        let [first, second] = layout.headers;
        let place = if next.number % 2 == 1 { first } else { second };
        index.store().write_at(&next.to_bytes(), place)?;
    }
    if header.number == 0 {
        index.store().sync()?;
    }
    Ok((index, pages, header.number != 0))
}

/// The header that counts; none of a file that nobody has written to.
fn last_header(store: &impl Store, layout: Layout) -> Result<Option<Header>, OverlayFileError> {
    let mut last: Option<Header> = None;
    for place in layout.headers {
        let mut bytes = [0; Header::LEN];
        match store.read_at(&mut bytes, place) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {}
            read => read?,
        }
        if let Some(header) = Header::of_bytes(&bytes).map_err(OverlayFileError::OtherVersion)? {
            last = last.filter(|last| last.number > header.number).or(Some(header));
        }
    }
    // Of the right length, and all holes: its making was begun.
    let is_new = || Ok::<_, io::Error>(store.len()? == layout.len && !store.has_bytes(0, layout.len));
    if last.is_none() && !is_new()? {
        return Err(OverlayFileError::NotAnOverlay);
    }
    Ok(last)
}

impl Header {
    /// Refuses that of another disk.
    fn check(self, base: BaseStamp, capacity_bytes: u64) -> Result<Self, OverlayFileError> {
        if self.capacity_bytes != capacity_bytes {
            let (was_bytes, is_bytes) = (self.capacity_bytes, capacity_bytes);
            return Err(OverlayFileError::OtherSize { was_bytes, is_bytes });
        }
        if self.base != base {
            return Err(OverlayFileError::OtherBase { was: self.base, is: base });
        }
        Ok(self)
    }
}

impl<D: Disk, S: Store> Upper for InFile<D, S> {
    type Pages = D;

    #[inline]
    fn disk(&self) -> &D {
        &self.disk
    }

    fn file(&self) -> &File {
        &self.file
    }

    fn durability(&self) -> Durability {
        self.durability
    }

    fn has_past(&self) -> bool {
        self.has_past
    }

    fn try_read(&self, offset: u64, into: Segments<'_>, next: PrefetchHint) -> bool {
        self.disk.try_read(offset, into, next)
    }

    fn writes_are_quick(&self) -> bool {
        self.disk.writes_are_quick()
    }

    fn note(&self, word: u64, states: u64) -> io::Result<()> {
        self.index.note(word, states)
    }

    fn change(&self, word: u64, set: impl FnOnce()) {
        self.index.change(word, set);
    }

    fn try_flush(&self) -> Option<Result<(), DiskError>> {
        if self.index.is_kept() { self.disk.try_flush() } else { None }
    }

    fn flush(&self, states: impl Fn(u64) -> u64) -> Result<(), DiskError> {
        self.index.keep(states, || self.disk.flush().map_err(KeepError::Pages)).map_err(|error| match error {
            KeepError::Pages(error) => error,
            KeepError::Index(error) => failed("keeping what was written in the overlay", 0, PAGE_BYTES)(
                IoFailure::of_error(self.file(), None, error),
            ),
        })
    }
}

/// What a flush could not keep.
enum KeepError {
    Pages(DiskError),
    Index(io::Error),
}

impl From<io::Error> for KeepError {
    fn from(error: io::Error) -> Self {
        Self::Index(error)
    }
}

#[cfg(test)]
mod tests;
