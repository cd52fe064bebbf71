//! Bad ranges: bytes of the media that cannot be read any more.
//!
//! Linux lists them in `badblocks` of a device and of a region, in sectors. A disk keeps a list of its own: it begins with
//! what Linux lists at the start, a read that fails adds its page, and a write of a whole page may repair that page and
//! take it off. A page that was repaired may go bad again.

use std::fs::File;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use crate::disk::KeptFile;
use crate::disk::media::sysfs::{Node, SECTOR_BYTES};
use crate::disk::ranges;
use crate::disk::sys::{self, FileExtent};
use crate::limits::bounds::MAX_BAD_BLOCKS;

/// Unit in which file systems and the kernel take pages out of use and repair them.
pub(in crate::disk) const PAGE_BYTES: u64 = 4096;

/// How Linux calls the list.
const LIST: &str = "badblocks";

/// Ranges in bytes of the disk, whole pages, in order.
#[derive(Debug, Default)]
pub(in crate::disk) struct BadBlocks {
    /// Whether there are any. Requests read `ranges` only then.
    any: AtomicBool,
    ranges: RwLock<Vec<Range<u64>>>,
}

impl BadBlocks {
    pub(in crate::disk) fn new(ranges: &[Range<u64>]) -> Self {
        let bad = Self::default();
        ranges.iter().for_each(|range| {
            bad.add(range.clone());
        });
        bad
    }

    /// Whether nothing is known to be bad.
    #[inline]
    pub(in crate::disk) fn is_empty(&self) -> bool {
        !self.any.load(Ordering::Relaxed)
    }

    /// Whether any byte of the range is known to be bad.
    #[inline]
    pub(in crate::disk) fn touch(&self, offset: u64, len: u64) -> bool {
        !self.is_empty() && !self.within(offset, len).is_empty()
    }

    /// The bad parts that the range touches, as whole pages.
    #[cold]
    pub(in crate::disk) fn within(&self, offset: u64, len: u64) -> Vec<Range<u64>> {
        if len == 0 {
            return Vec::new();
        }
        let end = offset.saturating_add(len).checked_next_multiple_of(PAGE_BYTES).unwrap_or(u64::MAX);
        let start = offset - offset % PAGE_BYTES;
        let ranges = self.ranges.read().unwrap_or_else(PoisonError::into_inner);
        let cut = ranges.iter().map(|it| it.start.max(start)..it.end.min(end));
        cut.filter(|range| range.start < range.end).collect()
    }

    /// The pages of this range are bad. Returns whether any of that was not known.
    pub(in crate::disk) fn add(&self, range: Range<u64>) -> bool {
        if range.is_empty() {
            return false;
        }
        let start = range.start - range.start % PAGE_BYTES;
        let end = range.end.checked_next_multiple_of(PAGE_BYTES).unwrap_or(u64::MAX);
        let mut ranges = self.ranges.write().unwrap_or_else(PoisonError::into_inner);
        let is_new = !ranges.iter().any(|it| it.start <= start && end <= it.end);
        if ranges.len() < MAX_BAD_BLOCKS {
            ranges::insert(&mut ranges, start..end);
        }
        self.any.store(true, Ordering::Release);
        is_new
    }

    /// The pages of this range, whole ones, were repaired.
    pub(in crate::disk) fn remove(&self, range: &Range<u64>) {
        let mut ranges = self.ranges.write().unwrap_or_else(PoisonError::into_inner);
        let rest =
            ranges.iter().flat_map(|it| [it.start..it.end.min(range.start), it.start.max(range.end)..it.end]);
        *ranges = rest.filter(|it| it.start < it.end).collect();
        self.any.store(!ranges.is_empty(), Ordering::Release);
    }

    /// The range was read or written as a whole: pages that are inside of it are not bad, or not any more.
    #[inline]
    pub(in crate::disk) fn remove_good(&self, offset: u64, len: u64) {
        if !self.is_empty() {
            self.remove_inside(offset, len);
        }
    }

    #[cold]
    fn remove_inside(&self, offset: u64, len: u64) {
        let end = offset.saturating_add(len);
        let Some(start) = offset.checked_next_multiple_of(PAGE_BYTES) else { return };
        let inside = start..end - end % PAGE_BYTES;
        if !inside.is_empty() && !self.within(inside.start, inside.end - inside.start).is_empty() {
            self.remove(&inside);
        }
    }

    /// All of them.
    pub(in crate::disk) fn list(&self) -> Vec<Range<u64>> {
        self.ranges.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// The ranges in bytes that `badblocks` of a device or region lists: lines of first sector and count.
fn parse(text: &str) -> Vec<Range<u64>> {
    let ranges = text.lines().filter_map(|line| {
        let mut numbers = line.split_ascii_whitespace().map(|word| word.parse::<u64>().ok());
        let (sector, count) = (numbers.next()??, numbers.next()??);
        Some(sector.checked_mul(SECTOR_BYTES)?..sector.checked_add(count)?.checked_mul(SECTOR_BYTES)?)
    });
    ranges.collect()
}

/// Linux's list of what is bad of a disk. Its files are opened with the disk, and read each time the list is asked for.
#[derive(Debug, Clone, Default)]
pub(in crate::disk) struct BadBlockList {
    /// None where there is no such list, or it may not be read.
    list: Option<KeptFile>,
    /// The same list, opened once more to wait for changes (`poll(2)`): a read of the same open file would clear the event.
    polled: Option<KeptFile>,
    /// Where the device is in what the list is of, in bytes; none for all of it.
    part: Option<Range<u64>>,
    /// The disk is a file on the device.
    is_of_file: bool,
}

impl BadBlockList {
    /// The list of a block device; of a partition, that of its disk.
    pub(in crate::disk) fn of_block_device(device: &Node) -> Self {
        let of_partition = device.number("start").zip(device.child(".."));
        let Some((start, disk)) = of_partition else {
            return Self { list: device.open(LIST).ok(), ..Self::default() };
        };
        let start = start.saturating_mul(SECTOR_BYTES);
        let len = device.number("size").unwrap_or(0).saturating_mul(SECTOR_BYTES);
        let part = Some(start..start.saturating_add(len));
        Self { list: disk.open(LIST).ok(), part, ..Self::default() }
    }

    /// The list of the device that the file system of a file is on.
    pub(in crate::disk) fn of_file(device: &Node) -> Self {
        let polled = device.open(LIST).ok().or_else(|| device.child("..")?.open(LIST).ok());
        Self { polled, is_of_file: true, ..Self::of_block_device(device) }
    }

    /// The list of the region that a device-DAX device is in, which has offsets in the region. Nothing is known to be bad where
    /// the addresses of the two may not be read (only root may).
    pub(in crate::disk) fn of_device_dax(device: &Node, region: &Node) -> Self {
        let offset = || device.number("resource")?.checked_sub(region.number("resource")?);
        let polled = region.open(LIST).ok();
        let Some(offset) = offset() else { return Self { polled, ..Self::default() } };
        let len = device.number("size").unwrap_or(0);
        let part = Some(offset..offset.saturating_add(len));
        Self { list: region.open(LIST).ok(), polled, part, is_of_file: false }
    }

    /// What is listed now, in bytes of the disk that is made of `file`.
    pub(in crate::disk) fn read(&self, file: &File) -> Vec<Range<u64>> {
        let ranges = self.of_device();
        match self.is_of_file && !ranges.is_empty() {
            // Of a file on several devices the extents do not say which: then reads find what is bad.
            true => of_file(&ranges, &sys::extents(file).unwrap_or_default()),
            false => ranges,
        }
    }

    /// As [`read`](Self::read) for a device, which needs no file.
    pub(in crate::disk) fn of_device(&self) -> Vec<Range<u64>> {
        let listed = self.list.as_ref().and_then(|list| list.text().ok());
        let listed = listed.map(|text| parse(&text)).unwrap_or_default();
        match &self.part {
            Some(part) => ranges::clip(&listed, part),
            None => listed,
        }
    }

    /// What to poll: an event (`poll(2)`) says that Linux has added to the list.
    pub(in crate::disk) fn to_poll(&self) -> Option<Arc<File>> {
        self.polled.as_ref().map(KeptFile::file)
    }
}

/// The bad ranges of a file, from those of the device that its file system is on.
fn of_file(device_ranges: &[Range<u64>], extents: &[FileExtent]) -> Vec<Range<u64>> {
    let parts = extents.iter().flat_map(|extent| {
        let window = extent.physical..extent.physical.saturating_add(extent.len);
        let parts = ranges::clip(device_ranges, &window).into_iter();
        parts.map(|it| it.start.saturating_add(extent.logical)..it.end.saturating_add(extent.logical))
    });
    let mut ranges = Vec::new();
    parts.for_each(|part| ranges::insert(&mut ranges, part));
    ranges
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;
    use crate::disk::media::region::testing::{NFIT, bus, pmem};
    use crate::disk::media::sysfs::testing::Tree;

    fn block(tree: &Tree, minor: u32) -> Node {
        tree.sysfs().block(rustix::fs::makedev(259, minor)).unwrap()
    }

    #[test]
    fn a_device_lists_sectors_and_a_partition_has_its_part() {
        let tree = Tree::new();
        bus(&tree, NFIT, "ACPI.NFIT", None);
        pmem(&tree, NFIT);
        let disk = format!("{NFIT}/region0/pfn0.1/block/pmem0");
        tree.file(&format!("{disk}/badblocks"), "8 8\n2040 16\nnonsense\n7 x\n18446744073709551615 2\n")
            .device("block", "259:1", &format!("{disk}/pmem0p1"))
            .file(&format!("{disk}/pmem0p1/start"), "2048")
            .file(&format!("{disk}/pmem0p1/size"), "2048");
        assert_eq!(
            BadBlockList::of_block_device(&block(&tree, 0)).of_device(),
            [4096..8192, 2040 * 512..2056 * 512]
        );
        assert_eq!(BadBlockList::of_block_device(&block(&tree, 1)).of_device(), [0..8 * 512]);
    }

    #[test]
    fn a_dax_device_has_a_window_on_its_region() {
        let tree = Tree::new();
        bus(&tree, NFIT, "ACPI.NFIT", None);
        let device = format!("{NFIT}/region0/dax0.1/dax0.0");
        tree.file(&format!("{NFIT}/region0/badblocks"), "0 8\n4100 1\n")
            .device("char", "252:0", &device)
            .file(&format!("{device}/size"), "4194304");
        let node = tree.sysfs().character(rustix::fs::makedev(252, 0)).unwrap();
        let region = node.ancestry().find(|node| node.name() == "region0").unwrap();
        assert!(
            BadBlockList::of_device_dax(&node, &region).of_device().is_empty(),
            "its address is not known"
        );
        tree.file(&format!("{device}/resource"), "0x100200000\n");
        assert_eq!(BadBlockList::of_device_dax(&node, &region).of_device(), [4 * 512..5 * 512]);
    }

    #[test]
    fn a_file_has_what_its_extents_lie_on() {
        let extent = |logical, physical, len| FileExtent { logical, physical, len };
        let extents = [extent(0, 1 << 20, 8192), extent(1 << 30, 1 << 16, 4096), extent(8192, 0, 4096)];
        let bad = [(1 << 20) + 4096..(1 << 20) + 16384, (1 << 16) + 512..(1 << 16) + 1024];
        assert_eq!(of_file(&bad, &extents), [4096..8192, (1 << 30) + 512..(1 << 30) + 1024]);
        assert!(of_file(&[], &extents).is_empty());
    }

    #[test]
    fn whole_pages_are_bad_and_repaired() {
        let bad = BadBlocks::new(&[]);
        assert!(bad.is_empty() && !bad.touch(0, u64::MAX));
        bad.add(5000..5001);
        assert!(bad.touch(8191, 1) && bad.touch(0, 4097) && !bad.touch(8192, 9) && !bad.touch(4096, 0));
        assert_eq!(bad.within(0, 1 << 30), [4096..8192]);
        bad.remove(&(4096..8192));
        assert!(bad.is_empty());
        bad.add(5000..5001);
        assert!(bad.touch(4096, 512), "again");
    }

    proptest! {
        /// A set of pages is the naive twin.
        #[test]
        fn they_are_a_set_of_pages(steps in prop::collection::vec((any::<bool>(), 0..30_u64, 1..6_u64), 0..20)) {
            let bad = BadBlocks::default();
            let mut pages = BTreeSet::new();
            for (adds, first, count) in steps {
                let range = first * PAGE_BYTES..(first + count) * PAGE_BYTES;
                if adds {
                    bad.add(range.start + 1..range.end);
                    pages.extend(first..first + count);
                } else {
                    bad.remove(&range);
                    pages.retain(|page| !(first..first + count).contains(page));
                }
                prop_assert_eq!(bad.is_empty(), pages.is_empty());
            }
            for page in 0..40 {
                prop_assert_eq!(bad.touch(page * PAGE_BYTES + 7, 1), pages.contains(&page));
            }
        }
    }
}
