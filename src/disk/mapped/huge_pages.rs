//! How much of each disk is mapped in huge pages by now.

use std::io::{BufReader, Seek as _};
use std::sync::PoisonError;

use super::MappedDisk;
use crate::disk::mapping::{huge_pages, smaps};
use crate::disk::{BackingKind, Disk as _, sys};

/// Counts them and notes them down with each disk. Those in memory are all counted in one walk through `smaps`.
pub(in crate::disk) fn count<'a>(disks: impl Iterator<Item = &'a MappedDisk>) {
    let mut in_memory = Vec::new();
    for disk in disks {
        match disk.kind() {
            BackingKind::DaxFile { .. } => disk.set_huge_bytes(of_dax_file(disk)),
            BackingKind::DeviceDax => {
                let (device_bytes, unit_bytes) =
                    (disk.geometry().capacity_bytes, disk.discard_alignment_bytes());
                disk.set_huge_bytes(Some(huge_pages::of_device_dax(device_bytes, unit_bytes)));
            }
            _ => {
                let start = disk.mapping().address();
                let len = usize::try_from(disk.geometry().capacity_bytes).unwrap_or(0);
                in_memory.push((start..start.saturating_add(len), disk));
            }
        }
    }
    if in_memory.is_empty() {
        return;
    }
    let Some(smaps) = smaps::own() else { return };
    let mut smaps = smaps.lock().unwrap_or_else(PoisonError::into_inner);
    if smaps.rewind().is_err() {
        return;
    }
    let ranges: Vec<_> = in_memory.iter().map(|(range, _)| range.clone()).collect();
    let counted = huge_pages::in_ranges(BufReader::new(&mut *smaps), &ranges);
    for ((_, disk), bytes) in in_memory.iter().zip(counted) {
        disk.set_huge_bytes(Some(bytes));
    }
}

fn of_dax_file(disk: &MappedDisk) -> Option<u64> {
    Some(huge_pages::of_extents(&sys::extents(disk.file()).ok()?, disk.dax_base()?))
}
