//! How a file is mapped.

use std::io;

use crate::copy::Persist;

/// Mappings begin at a multiple of this: a page table entry can then stand for as much.
pub(in crate::disk) const HUGE_PAGE_BYTES: usize = 2 << 20;

/// How a file is mapped.
#[derive(Debug, Clone, Copy)]
pub(in crate::disk) struct MapOptions {
    /// Bytes that are used.
    pub(in crate::disk) len_bytes: u64,
    /// Bytes that the mapping must be a multiple of.
    pub(in crate::disk) unit_bytes: u64,
    /// Nothing is stored.
    pub(in crate::disk) read_only: bool,
    /// With `MAP_SYNC`: a page that can be written to is there to stay.
    pub(in crate::disk) synchronous: bool,
    /// How far a write must get by itself.
    pub(in crate::disk) persist: Persist,
}

impl MapOptions {
    /// What a mapping of `len` bytes takes: whole pages, on hugetlbfs huge ones.
    pub(super) fn whole_units(&self, len: usize) -> io::Result<usize> {
        len.checked_next_multiple_of(self.unit()?).ok_or_else(too_large)
    }

    /// What the address of the first byte is a multiple of.
    pub(super) fn align(&self) -> io::Result<usize> {
        Ok(self.unit()?.max(HUGE_PAGE_BYTES))
    }

    fn unit(&self) -> io::Result<usize> {
        Ok(usize::try_from(self.unit_bytes).map_err(|_| too_large())?.max(rustix::param::page_size()))
    }
}

pub(super) fn too_large() -> io::Error {
    io::ErrorKind::FileTooLarge.into()
}
