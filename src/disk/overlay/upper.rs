//! Where an overlay keeps what is written: in memory of this process, or in a file.

use std::fmt;
use std::fs::File;
use std::io;

use crate::copy::{PrefetchHint, Segments};
use crate::disk::{Disk, DiskError, Durability, MappedDisk};

/// What has the pages that were written, at their offsets, and remembers which these are.
pub trait Upper: fmt::Debug + Send + Sync + 'static {
    /// What it is written as. It has as many bytes as the overlay.
    type Pages: Disk;

    /// The same.
    fn disk(&self) -> &Self::Pages;

    /// Sparse; what it has of space is what was written.
    fn file(&self) -> &File;

    /// What a write that was flushed survives.
    fn durability(&self) -> Durability;

    /// Whether what was written before this process is there.
    fn has_past(&self) -> bool;

    /// As [`Disk::try_read`], of pages that were written.
    fn try_read(&self, offset: u64, into: Segments<'_>, next: PrefetchHint) -> bool;

    /// As [`Disk::writes_are_quick`].
    fn writes_are_quick(&self) -> bool;

    /// The states of the pages of a word are about to be these: whoever lays it over the base after this process finds them. The
    /// caller has the word's lock.
    ///
    /// # Errors
    /// They could not be noted.
    fn note(&self, word: u64, states: u64) -> io::Result<()>;

    /// Has the states of a word changed by `set`, so that a flush which begins afterwards keeps them.
    fn change(&self, word: u64, set: impl FnOnce());

    /// As [`Disk::try_flush`].
    fn try_flush(&self) -> Option<Result<(), DiskError>>;

    /// As [`Disk::flush`]; `states` are those of the pages of a word by now.
    ///
    /// # Errors
    /// It cannot be kept.
    fn flush(&self, states: impl Fn(u64) -> u64) -> Result<(), DiskError>;
}

/// In memory of this process, and gone with it.
#[derive(Debug)]
pub struct InMemory(pub(super) MappedDisk);

impl Upper for InMemory {
    type Pages = MappedDisk;

    #[inline]
    fn disk(&self) -> &MappedDisk {
        &self.0
    }

    fn file(&self) -> &File {
        self.0.file()
    }

    fn durability(&self) -> Durability {
        Durability::Volatile
    }

    fn has_past(&self) -> bool {
        false
    }

    fn try_read(&self, offset: u64, into: Segments<'_>, next: PrefetchHint) -> bool {
        self.0.read(offset, into, next).is_ok()
    }

    /// It is a copy into memory, unless the page has never been written to.
    fn writes_are_quick(&self) -> bool {
        true
    }

    fn note(&self, _word: u64, _states: u64) -> io::Result<()> {
        Ok(())
    }

    fn change(&self, _word: u64, set: impl FnOnce()) {
        set();
    }

    #[inline]
    fn try_flush(&self) -> Option<Result<(), DiskError>> {
        Some(Ok(()))
    }

    fn flush(&self, _states: impl Fn(u64) -> u64) -> Result<(), DiskError> {
        Ok(())
    }
}
