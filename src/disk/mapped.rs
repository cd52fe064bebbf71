//! A disk whose bytes are memory: tmpfs, memfd, hugetlbfs.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;

use super::lock::BackingFile;
use super::space::{self, fallocate};
use super::{Disk, DiskError, Durability, Geometry, Mapping};
use crate::copy::{self, Persist, Segments};

/// A disk that is read and written by copies to and from its mapping.
///
/// Every page should have its space before: a store into a hole that cannot be filled is a `SIGBUS`.
#[derive(Debug)]
pub struct MappedDisk {
    mapping: Mapping,
    file: Arc<BackingFile>,
    geometry: Geometry,
    /// Bytes that a hole is made of: a page of the file system.
    punch_bytes: u64,
}

impl MappedDisk {
    /// Serves the first `capacity_bytes` of `file`, whose `flock(2)`, if any, ends with the disk.
    ///
    /// # Errors
    /// As [`Mapping::new`].
    pub fn new(file: File, geometry: Geometry) -> io::Result<Self> {
        Self::over(Arc::new(file.into()), geometry)
    }

    /// The same of a file that is shared with its lock.
    pub(super) fn over(file: Arc<BackingFile>, geometry: Geometry) -> io::Result<Self> {
        let mapping = Mapping::new(&file, geometry.capacity_bytes, geometry.read_only)?;
        // Nothing is kept when the power goes, however it is stored.
        let mapping = mapping.persisting(Persist::FenceOnly);
        let punch_bytes = file.metadata()?.blksize().max(1);
        Ok(Self { mapping, file, geometry, punch_bytes })
    }

    fn check_write(&self, offset: u64, len: u64) -> Result<(), DiskError> {
        if self.geometry.read_only {
            return Err(DiskError::ReadOnly);
        }
        self.mapping.check(offset, len)
    }

    fn punch(&self, range: Range<u64>) -> Result<bool, DiskError> {
        fallocate(&self.file, space::PUNCH, range.start, range.end - range.start)
            .map_err(|source| DiskError::Io { operation: "punching a hole", source })
    }
}

impl Disk for MappedDisk {
    #[inline]
    fn geometry(&self) -> Geometry {
        self.geometry
    }

    #[inline]
    fn durability(&self) -> Durability {
        Durability::Volatile
    }

    #[inline]
    fn read(&self, offset: u64, into: Segments<'_>) -> Result<(), DiskError> {
        self.mapping.read(offset, into)
    }

    #[inline]
    fn write(&self, offset: u64, from: Segments<'_>) -> Result<(), DiskError> {
        self.mapping.write(offset, from)
    }

    #[inline]
    fn fence(&self) {
        copy::store_fence();
    }

    /// Nothing outlives the machine here, so there is nothing more to do than to order the stores.
    #[inline]
    fn try_flush(&self) -> Option<Result<(), DiskError>> {
        Some(self.flush())
    }

    fn flush(&self) -> Result<(), DiskError> {
        self.fence();
        Ok(())
    }

    fn discard(&self, offset: u64, len: u64) -> Result<(), DiskError> {
        self.check_write(offset, len)?;
        // Only advice: a file system that has no holes keeps the bytes.
        self.punch(offset..offset + len).map(|_| ())
    }

    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> Result<(), DiskError> {
        self.check_write(offset, len)?;
        let end = offset + len;
        let Some(pages) = whole_units(offset..end, self.punch_bytes).filter(|_| unmap) else {
            return self.mapping.zero(offset, len);
        };
        if !self.punch(pages.clone())? {
            return self.mapping.zero(offset, len);
        }
        self.mapping.zero(offset, pages.start - offset)?;
        self.mapping.zero(pages.end, end - pages.end)
    }
}

/// The part of `range` that consists of whole units of `unit` bytes, if there is one.
fn whole_units(range: Range<u64>, unit: u64) -> Option<Range<u64>> {
    let start = range.start.checked_next_multiple_of(unit)?;
    let end = range.end - range.end % unit;
    (start < end).then_some(start..end)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use proptest::prelude::*;

    use super::*;
    use crate::copy::testing::{Memory, pattern};

    const LEN: usize = 16 * 4096 + 512;

    fn geometry() -> Geometry {
        Geometry { capacity_bytes: LEN as u64, block_bytes: 512, read_only: false }
    }

    fn disk(bytes: &[u8]) -> MappedDisk {
        let file = tempfile::tempfile_in("/dev/shm").unwrap();
        file.write_all_at(bytes, 0).unwrap();
        MappedDisk::new(file, geometry()).unwrap()
    }

    fn image(disk: &MappedDisk) -> Vec<u8> {
        let mut bytes = vec![0; LEN];
        disk.file.read_exact_at(&mut bytes, 0).unwrap();
        bytes
    }

    fn allocated_bytes(disk: &MappedDisk) -> u64 {
        disk.file.metadata().unwrap().blocks() * 512
    }

    #[test]
    fn reads_see_writes() {
        let disk = disk(&pattern(LEN, 0));
        let guest = Memory::new(&pattern(5000, 9)).cut(0, &[1000, 4000], 0);
        disk.write(777, guest.segments()).unwrap();
        disk.fence();
        disk.flush().unwrap();
        let back = Memory::new(&[0; 5000]);
        disk.read(777, back.segments()).unwrap();
        assert_eq!(back.bytes(), guest.bytes());
        let mut expected = pattern(LEN, 0);
        expected[777..5777].copy_from_slice(&guest.bytes());
        assert!(image(&disk) == expected);
        assert_eq!(disk.durability(), Durability::Volatile);
        assert_eq!(disk.geometry(), geometry());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        /// Whatever the edges are, exactly the range is zeroed; unmapped pages are given back, others kept.
        #[test]
        fn write_zeroes_zeroes_exactly_the_range(
            start in 0..LEN, len in prop_oneof![0..1000_usize, 0..LEN], unmap: bool,
        ) {
            let len = len.min(LEN - start);
            let before = pattern(LEN, 1).into_iter().map(|byte| byte | 1).collect::<Vec<_>>();
            let disk = disk(&before);
            let allocated = allocated_bytes(&disk);
            disk.write_zeroes(start as u64, len as u64, unmap).unwrap();
            let mut expected = before;
            expected[start..start + len].fill(0);
            prop_assert!(image(&disk) == expected);
            let pages = whole_units(start as u64..(start + len) as u64, disk.punch_bytes);
            let freed = pages.filter(|_| unmap).map_or(0, |pages| pages.end - pages.start);
            prop_assert_eq!(allocated - allocated_bytes(&disk), freed);
        }
    }

    #[test]
    fn discard_gives_space_back_and_keeps_the_rest() {
        let before = pattern(LEN, 1);
        let disk = disk(&before);
        let allocated = allocated_bytes(&disk);
        disk.discard(0, 0).unwrap();
        assert_eq!(allocated_bytes(&disk), allocated);
        disk.discard(4096, 8192).unwrap();
        assert_eq!(allocated - allocated_bytes(&disk), 8192);
        let mut expected = before;
        expected[4096..4096 + 8192].fill(0);
        assert!(image(&disk) == expected);
        assert_eq!(disk.file.metadata().unwrap().len(), LEN as u64);
    }

    #[test]
    fn nothing_outside_is_touched() {
        let disk = disk(&pattern(LEN, 1));
        let guest = Memory::new(&[0; 512]);
        let len = LEN as u64;
        for offset in [len - 511, len, u64::MAX - 511, u64::MAX] {
            let refused = [
                disk.read(offset, guest.segments()),
                disk.write(offset, guest.segments()),
                disk.discard(offset, 512),
                disk.write_zeroes(offset, 512, false),
                disk.write_zeroes(offset, 512, true),
            ];
            for result in refused {
                assert!(matches!(result, Err(DiskError::OutOfRange)), "{offset}: {result:?}");
            }
        }
        disk.read(len, Segments::empty()).unwrap();
        assert!(image(&disk) == pattern(LEN, 1));
    }

    #[test]
    fn a_read_only_disk_refuses_every_change() {
        let named = tempfile::NamedTempFile::new_in("/dev/shm").unwrap();
        named.as_file().write_all_at(&pattern(LEN, 1), 0).unwrap();
        let file = File::open(named.path()).unwrap();
        let disk = MappedDisk::new(file, Geometry { read_only: true, ..geometry() }).unwrap();
        let guest = Memory::new(&[0; 512]);
        let refused = [
            disk.write(0, guest.segments()),
            disk.discard(0, 4096),
            disk.write_zeroes(0, 4096, false),
            disk.write_zeroes(0, 4096, true),
        ];
        for result in refused {
            assert!(matches!(result, Err(DiskError::ReadOnly)), "{result:?}");
        }
        disk.read(0, guest.segments()).unwrap();
        assert_eq!(guest.bytes(), pattern(512, 1));
        disk.flush().unwrap();
    }

    #[test]
    fn whole_units_lie_inside() {
        assert_eq!(whole_units(0..4096, 4096), Some(0..4096));
        assert_eq!(whole_units(1..8191, 4096), None);
        assert_eq!(whole_units(1..8192, 4096), Some(4096..8192));
        assert_eq!(whole_units(5000..6000, 4096), None);
        assert_eq!(whole_units(u64::MAX - 5..u64::MAX, 4096), None);
    }
}
