//! Where the device of a DAX file system is in memory.

use std::fs::File;
use std::os::unix::fs::MetadataExt as _;

use crate::disk::media::sysfs::{SECTOR_BYTES, Sysfs};

/// Physical address of the first byte of the device that the file's file system is on, or an address that differs from it by a
/// multiple of a huge page.
pub(in crate::disk) fn dax_base(file: &File, sysfs: &Sysfs) -> Option<u64> {
    let device = sysfs.block(file.metadata().ok()?.dev())?;
    // A partition begins this many sectors behind the start of its disk.
    let (disk, start_sector) = match device.number("start") {
        Some(start) => (device.child("..")?, start),
        None => (device, 0),
    };
    // Only root may read it. Persistent memory is aligned to huge pages, unless somebody has chosen otherwise.
    let base = disk.number("device/resource").unwrap_or(0);
    Some(base.wrapping_add(start_sector.wrapping_mul(SECTOR_BYTES)))
}
