//! Where the device of a DAX file system is in memory.

use std::fs::File;
use std::os::unix::fs::MetadataExt as _;

use crate::disk::media::sysfs::Sysfs;

/// Where the first byte of its file system's device is in memory, up to a multiple of a huge page.
pub(in crate::disk) fn dax_base(file: &File, sysfs: &Sysfs) -> Option<u64> {
    let device = sysfs.block(file.metadata().ok()?.dev())?;
    // A partition begins so far behind its disk.
    let (disk, start_sector) = match device.number("start") {
        Some(start) => (device.child("..")?, start),
        None => (device, 0),
    };
    // Only root may know: persistent memory is aligned unless somebody has gone out of his way.
    let base = disk.number("device/resource").unwrap_or(0);
    Some(base.wrapping_add(start_sector.wrapping_mul(512)))
}
