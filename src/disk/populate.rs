//! Entering a mapping into the page tables before a guest needs it.
//!
//! A first touch costs a fault, and on DAX with `MAP_SYNC` a commit of the file system's journal. Nothing
//! waits for it: the disk is served meanwhile.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::ops::Range;

use rustix::fs::SeekFrom;

use super::{Backing, BackingKind, Disk, MappedDisk};

/// Bytes between two looks at whether it should stop.
const STEP_BYTES: u64 = 64 << 20;

/// Bytes populated at a time where a whole step failed.
const SMALL_STEP_BYTES: u64 = 2 << 20;

/// What came of it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Populated {
    /// Bytes that are in the page tables now.
    pub bytes: u64,
    /// Bytes that could not be entered: bad media, no space, or the kernel has no means (before 5.14).
    pub failed_bytes: u64,
}

impl Backing {
    /// Enters the disk's mapping into the page tables, until `should_stop`. None where that is no use: page
    /// cache and block devices.
    ///
    /// No hole is filled that the disk was to leave: call it only for disks that are not sparse. Bytes that a
    /// guest discards meanwhile may be given space again.
    pub fn populate(&self, should_stop: impl Fn() -> bool) -> Option<Populated> {
        match self {
            Self::Mapped(disk) => Some(populate(disk, should_stop)),
            Self::File(_) | Self::Block(_) => None,
        }
    }
}

fn populate(disk: &MappedDisk, should_stop: impl Fn() -> bool) -> Populated {
    let mut populated = Populated::default();
    let capacity_bytes = disk.geometry().capacity_bytes;
    let mut at = 0;
    while let Some(part) = next_part(disk, at..capacity_bytes) {
        if should_stop() {
            break;
        }
        let len = part.end - part.start;
        at = part.end;
        let failed_bytes = match disk.mapping().populate(part.clone()) {
            Ok(()) => {
                if disk.kind() == BackingKind::Tmpfs {
                    // Space was allocated before the kernel could know that huge pages are wanted. Without
                    // them it is slower, that is all.
                    let _ = disk.mapping().gather(part);
                }
                0
            }
            Err(_) => failed_bytes(disk, part),
        };
        populated.bytes += len - failed_bytes;
        populated.failed_bytes += failed_bytes;
    }
    populated
}

/// Populates what can be in smaller parts, and answers how much could not.
#[cold]
fn failed_bytes(disk: &MappedDisk, range: Range<u64>) -> u64 {
    let mut failed_bytes = 0;
    let mut at = range.start;
    while at < range.end {
        let end = range.end.min(at.saturating_add(SMALL_STEP_BYTES));
        if disk.mapping().populate(at..end).is_err() {
            failed_bytes += end - at;
        }
        at = end;
    }
    failed_bytes
}

/// The next part of `range` to be populated, at most a step. Reading a hole of tmpfs would fill it: a disk
/// that is only read, whose holes were not filled at the start, leaves them out.
fn next_part(disk: &MappedDisk, range: Range<u64>) -> Option<Range<u64>> {
    if range.is_empty() {
        return None;
    }
    let step = range.start..range.end.min(range.start.saturating_add(STEP_BYTES));
    if !disk.geometry().read_only || disk.kind() == BackingKind::DeviceDax {
        return Some(step);
    }
    // Offsets of the open file are nobody's business: all I/O names its own.
    let start = rustix::fs::seek(disk.file(), SeekFrom::Data(range.start)).ok()?;
    let end = rustix::fs::seek(disk.file(), SeekFrom::Hole(start)).ok()?;
    let part = start..end.min(range.end).min(start.saturating_add(STEP_BYTES));
    (!part.is_empty()).then_some(part)
}

/// Bytes of each disk's mapping on huge pages, as far as the kernel tells; it does not for DAX.
///
/// It walks through the page tables of everything that is mapped: not to be asked for one disk after the other.
pub fn huge_bytes<'a>(disks: impl IntoIterator<Item = &'a Backing>) -> Vec<Option<u64>> {
    let ranges: Vec<_> = disks.into_iter().map(told_range).collect();
    if ranges.iter().all(Option::is_none) {
        return vec![None; ranges.len()];
    }
    match File::open("/proc/self/smaps") {
        Ok(smaps) => huge_bytes_in(BufReader::new(smaps), &ranges),
        Err(_) => vec![None; ranges.len()],
    }
}

/// The addresses of a disk whose huge pages the kernel tells.
fn told_range(disk: &Backing) -> Option<Range<usize>> {
    let Backing::Mapped(disk) = disk else { return None };
    if !matches!(disk.kind(), BackingKind::Tmpfs | BackingKind::Hugetlbfs) {
        return None;
    }
    let start = disk.mapping().address();
    Some(start..start.checked_add(usize::try_from(disk.geometry().capacity_bytes).ok()?)?)
}

/// Sums the huge pages of the mappings that begin in each of the ranges.
fn huge_bytes_in(smaps: impl BufRead, ranges: &[Option<Range<usize>>]) -> Vec<Option<u64>> {
    let mut by_start: BTreeMap<usize, (usize, u64)> =
        ranges.iter().flatten().map(|range| (range.start, (range.end, 0))).collect();
    let mut at = None;
    for line in smaps.lines().map_while(Result::ok) {
        let (name, rest) = line.split_once(':').unwrap_or((&line, ""));
        let first = line.split_once('-').and_then(|(first, _)| usize::from_str_radix(first, 16).ok());
        if first.is_some() {
            at = first;
        } else if matches!(name, "ShmemPmdMapped" | "FilePmdMapped" | "Shared_Hugetlb" | "Private_Hugetlb")
            && let Some(at) = at
            && let Some((_, (end, bytes))) = by_start.range_mut(..=at).next_back()
            && at < *end
        {
            let kib = rest.trim().trim_end_matches(" kB").parse::<u64>();
            *bytes = bytes.saturating_add(kib.unwrap_or(0).saturating_mul(1024));
        }
    }
    let found = |range: &Range<usize>| by_start.get(&range.start).map(|(_, bytes)| *bytes);
    ranges.iter().map(|range| range.as_ref().and_then(found)).collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{FileExt, MetadataExt};

    use super::*;
    use crate::disk::{Geometry, LockMode, OpenOptions, open};

    #[test]
    fn a_disk_is_populated_step_by_step_until_told_to_stop() {
        let file = tempfile::tempfile_in("/dev/shm").unwrap();
        let capacity_bytes = 2 * STEP_BYTES + 4096;
        file.set_len(capacity_bytes).unwrap();
        let again = file.try_clone().unwrap();
        let geometry = Geometry { capacity_bytes, block_bytes: 512, read_only: false };
        let disk = Backing::Mapped(MappedDisk::new(file, geometry).unwrap());
        let steps = std::cell::Cell::new(0);
        let stop = || {
            steps.set(steps.get() + 1);
            steps.get() == 2
        };
        let populated = disk.populate(stop).unwrap();
        assert_eq!((populated.bytes, populated.failed_bytes), (STEP_BYTES, 0));
        assert_eq!(again.metadata().unwrap().blocks() * 512, STEP_BYTES);
        let populated = disk.populate(|| false).unwrap();
        assert_eq!(populated.bytes, capacity_bytes);
        let Backing::Mapped(mapped) = &disk else { unreachable!() };
        let huge_bytes = huge_bytes([&disk])[0].unwrap();
        match mapped.mapping().gather(0..STEP_BYTES) {
            Ok(()) => assert!(huge_bytes >= STEP_BYTES, "{huge_bytes} bytes on huge pages"),
            #[allow(clippy::print_stdout)]
            Err(error) => println!("skipped: no huge pages for tmpfs here ({error})"),
        }
    }

    #[test]
    fn holes_of_a_disk_that_is_only_read_stay() {
        let folder = tempfile::tempdir_in("/dev/shm").unwrap();
        let path = folder.path().join("a.img");
        let file = File::create_new(&path).unwrap();
        file.set_len(64 << 20).unwrap();
        file.write_all_at(&[1; 8192], 32 << 20).unwrap();
        let before = file.metadata().unwrap().blocks();
        let options = OpenOptions { read_only: true, lock: LockMode::Off, ..OpenOptions::new("db0") };
        let opened = open(&path, &options).unwrap();
        let populated = opened.disk.populate(|| false).unwrap();
        assert_eq!((populated.bytes, populated.failed_bytes), (8192, 0));
        assert_eq!(file.metadata().unwrap().blocks(), before);
    }

    #[test]
    fn a_file_cut_short_is_counted_as_failed() {
        let file = tempfile::tempfile_in("/dev/shm").unwrap();
        file.set_len(8 << 20).unwrap();
        let again = file.try_clone().unwrap();
        let geometry = Geometry { capacity_bytes: 8 << 20, block_bytes: 512, read_only: false };
        let disk = Backing::Mapped(MappedDisk::new(file, geometry).unwrap());
        again.set_len(3 << 20).unwrap();
        let populated = disk.populate(|| false).unwrap();
        assert_eq!((populated.bytes, populated.failed_bytes), (2 << 20, 6 << 20));
    }

    #[test]
    fn huge_pages_are_summed_over_the_parts_of_a_mapping() {
        let smaps = "7f0000000000-7f0000200000 rw-s 00000000 00:1 1 /dev/shm/a\n\
                     Size: 2048 kB\nShmemPmdMapped:    2048 kB\nShared_Hugetlb:   0 kB\n\
                     7f0000200000-7f0000400000 rw-s 00000000 00:1 1 /dev/shm/a\nShmemPmdMapped: 1024 kB\n\
                     7f0000400000-7f0000600000 rw-s 00000000 00:1 1 /b\nShmemPmdMapped: 4096 kB\n";
        let ranges = [
            None,
            Some(0x7f00_0040_0000..0x7f00_0060_0000),
            Some(0x7f00_0000_0000..0x7f00_0040_0000),
            Some(0x7e00_0000_0000..0x7e00_0020_0000),
        ];
        let found = huge_bytes_in(smaps.as_bytes(), &ranges);
        assert_eq!(found, [None, Some(4 << 20), Some(3 << 20), Some(0)]);
    }
}
