//! How a file is mapped.

use std::io;

use crate::copy::Persist;

/// Bytes of a huge page. Mappings begin at a multiple of it, so that one entry of the page tables can map as much.
pub(in crate::disk) const HUGE_PAGE_BYTES: usize = 2 << 20;

/// How a file is mapped.
#[derive(Debug, Clone, Copy)]
pub(in crate::disk) struct MapOptions {
    /// Bytes that are used.
    pub(in crate::disk) len_bytes: u64,
    /// Bytes that the mapping must be a multiple of.
    pub(in crate::disk) unit_bytes: u64,
    /// It is mapped for reading only.
    pub(in crate::disk) read_only: bool,
    /// It is mapped with `MAP_SYNC`: the file system writes down where a page lies before the page can be stored into.
    pub(in crate::disk) synchronous: bool,
    /// What a write does besides the fence of its batch.
    pub(in crate::disk) persist: Persist,
}

impl MapOptions {
    /// Bytes of address space for a mapping of `len` bytes: whole pages, on hugetlbfs huge ones.
    pub(super) fn whole_units(&self, len: usize) -> io::Result<usize> {
        len.checked_next_multiple_of(self.unit()?).ok_or_else(too_large)
    }

    /// The alignment of the first byte's address.
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
