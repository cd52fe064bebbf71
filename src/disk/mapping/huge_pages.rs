//! How much of a disk is mapped in huge pages: the fewer, the more its requests wait for address translations.
//!
//! For file systems in memory, `smaps` of the process that has a file mapped says so. For DAX it does not; there it follows
//! from where the bytes lie: what is aligned and in one piece is entered into the page tables as a huge page.

use std::collections::BTreeMap;
use std::fs::{File, Metadata};
use std::io::{BufRead, BufReader};
use std::ops::Range;
use std::os::unix::fs::MetadataExt as _;

use crate::disk::mapping::options::HUGE_PAGE_BYTES;
use crate::disk::media::address::dax_base;
use crate::disk::media::sysfs::Sysfs;
use crate::disk::sys::{self, FileExtent};

/// Bytes of a device-DAX device that are mapped in huge pages: all or none, since it is mapped in pages of its alignment only.
pub(in crate::disk) const fn of_device_dax(device_bytes: u64, unit_bytes: u64) -> u64 {
    if unit_bytes >= HUGE_PAGE_BYTES as u64 { device_bytes } else { 0 }
}

/// Bytes of a file on DAX that can be mapped in huge pages, by where its extents lie; none where that is not known.
pub(in crate::disk) fn of_dax_file(file: &File, sysfs: &Sysfs) -> Option<u64> {
    let base = dax_base(file, sysfs)?;
    Some(of_extents(&sys::extents(file).ok()?, base))
}

/// Bytes of whole huge pages in extents whose addresses count from `base`.
pub(in crate::disk) fn of_extents(extents: &[FileExtent], base: u64) -> u64 {
    const HUGE: u64 = HUGE_PAGE_BYTES as u64;
    let mut pieces: Vec<FileExtent> = Vec::new();
    for extent in extents {
        match pieces.last_mut() {
            Some(last)
                if last.logical.checked_add(last.len) == Some(extent.logical)
                    && last.physical.checked_add(last.len) == Some(extent.physical) =>
            {
                last.len = last.len.saturating_add(extent.len);
            }
            _ => pieces.push(extent.clone()),
        }
    }
    // The mapping begins at a multiple of a huge page.
    let is_aligned =
        |it: &&FileExtent| base.wrapping_add(it.physical).wrapping_sub(it.logical).is_multiple_of(HUGE);
    let whole = |it: &FileExtent| {
        let start = it.logical.next_multiple_of(HUGE);
        let end = it.logical.saturating_add(it.len) / HUGE * HUGE;
        end.saturating_sub(start)
    };
    pieces.iter().filter(is_aligned).map(whole).sum()
}

/// Bytes of a file that a process has mapped in huge pages; none where its `smaps` may not be read, or do not have the file.
pub(in crate::disk) fn in_process(pid: u32, file: &Metadata) -> Option<u64> {
    let smaps = File::open(format!("/proc/{pid}/smaps")).ok()?;
    of_file(BufReader::new(smaps), file.dev(), file.ino())
}

/// Sums the huge pages of a file's mappings.
fn of_file(smaps: impl BufRead, dev: u64, ino: u64) -> Option<u64> {
    let (dev, ino) =
        (format!("{:02x}:{:02x}", rustix::fs::major(dev), rustix::fs::minor(dev)), ino.to_string());
    let mut found = None;
    visit(smaps, |mapping, bytes| {
        let mut words = mapping.split_ascii_whitespace().skip(3);
        if words.next() == Some(&dev) && words.next() == Some(&ino) {
            found = Some(found.unwrap_or(0_u64).saturating_add(bytes));
        }
    });
    found
}

/// Sums the huge pages of the mappings that begin in each of the ranges, which do not overlap.
pub(in crate::disk) fn in_ranges(smaps: impl BufRead, ranges: &[Range<usize>]) -> Vec<u64> {
    let mut by_start: BTreeMap<usize, (usize, u64)> =
        ranges.iter().map(|range| (range.start, (range.end, 0))).collect();
    visit(smaps, |mapping, bytes| {
        let start = mapping.split_once('-').and_then(|(start, _)| usize::from_str_radix(start, 16).ok());
        if let Some(start) = start
            && let Some((_, (end, sum))) = by_start.range_mut(..=start).next_back()
            && start < *end
        {
            *sum = sum.saturating_add(bytes);
        }
    });
    ranges.iter().map(|range| by_start.get(&range.start).map_or(0, |(_, bytes)| *bytes)).collect()
}

/// Calls `each` with the first line of each mapping, and each number of bytes that it has on huge pages of some kind.
fn visit(smaps: impl BufRead, mut each: impl FnMut(&str, u64)) {
    let mut mapping = String::new();
    for line in smaps.lines().map_while(Result::ok) {
        let (name, rest) = line.split_once(':').unwrap_or((&line, ""));
        if matches!(name, "ShmemPmdMapped" | "FilePmdMapped" | "Shared_Hugetlb" | "Private_Hugetlb") {
            let kib = rest.trim().trim_end_matches(" kB").parse::<u64>();
            each(&mapping, kib.unwrap_or(0).saturating_mul(1024));
        } else if line.split_once('-').is_some_and(|(start, _)| usize::from_str_radix(start, 16).is_ok()) {
            mapping = line;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    const SMAPS: &str = "7f0000000000-7f0000200000 rw-s 00000000 00:1a 1 /dev/shm/a\n\
                         Size: 2048 kB\nShmemPmdMapped:    2048 kB\nShared_Hugetlb:   0 kB\n\
                         7f0000200000-7f0000400000 rw-s 00000000 00:1a 1 /dev/shm/a\nShmemPmdMapped: 1024 kB\n\
                         7f0000400000-7f0000600000 rw-s 00000000 00:1a 2 /b-7:ff\nShmemPmdMapped: 4096 kB\n\
                         7f0000600000-7f0000800000 rw-s 00000000 00:0f 1 /anon_hugepage\nShared_Hugetlb: 2048 kB\n";

    #[test]
    fn they_are_summed_over_the_parts_of_a_mapping() {
        let ranges = [
            0x7f00_0040_0000..0x7f00_0060_0000,
            0x7f00_0000_0000..0x7f00_0040_0000,
            0x7e00_0000_0000..0x7e00_0020_0000,
        ];
        assert_eq!(in_ranges(SMAPS.as_bytes(), &ranges), [4 * MIB, 3 * MIB, 0]);
    }

    #[test]
    fn a_file_is_found_by_its_device_and_number() {
        let of = |minor, ino| of_file(SMAPS.as_bytes(), rustix::fs::makedev(0, minor), ino);
        assert_eq!((of(0x1a, 1), of(0x1a, 2), of(0x0f, 1)), (Some(3 * MIB), Some(4 * MIB), Some(2 * MIB)));
        assert_eq!((of(0x1a, 3), of(0x1b, 1)), (None, None));
    }

    #[test]
    fn what_lies_aligned_and_in_one_piece_on_dax_can_be_huge() {
        let extent = |logical, physical, len| FileExtent { logical, physical, len };
        let of = |base, extents: &[FileExtent]| of_extents(extents, base) / MIB;
        let whole = [extent(0, 4 * MIB, 8 * MIB)];
        assert_eq!((of(0, &whole), of(1 << 32, &whole), of(4096, &whole)), (8, 8, 0));
        assert_eq!(of(0, &[extent(0, MIB, 8 * MIB)]), 0, "not aligned");
        assert_eq!(of(MIB, &[extent(0, MIB, 8 * MIB)]), 8, "aligned where the device begins");
        assert_eq!(of(0, &[extent(MIB, 5 * MIB, 8 * MIB)]), 6, "only whole ones");
        let pieces = [extent(0, 4 * MIB, MIB), extent(MIB, 5 * MIB, 3 * MIB), extent(4 * MIB, MIB, MIB)];
        assert_eq!(of(0, &pieces), 4, "in two pieces that meet");
        assert_eq!((of_device_dax(8 * MIB, 2 * MIB), of_device_dax(8 * MIB, 4096)), (8 * MIB, 0));
    }
}
