//! Tests of `block`.

use std::os::unix::fs::OpenOptionsExt;

use super::*;
use crate::copy::testing::{Memory, pattern};
use crate::disk::BackingKind;

const LEN: usize = 2 << 20;

/// A file that takes direct I/O only stands for the device; a real one is in the tests of `disk_open`.
#[allow(clippy::print_stderr)]
fn disk(bytes: &[u8], unmaps: bool) -> Option<BlockDisk> {
    let named = tempfile::NamedTempFile::new_in(env!("CARGO_MANIFEST_DIR")).unwrap();
    named.as_file().write_all_at(bytes, 0).unwrap();
    named.as_file().sync_all().unwrap();
    let mut options = File::options();
    let file = match options.read(true).write(true).custom_flags(libc::O_DIRECT).open(named.path()) {
        Ok(file) => file,
        Err(error) => {
            eprintln!("skipped: no direct I/O on this file system: {error}");
            return None;
        }
    };
    let geometry = Geometry { capacity_bytes: LEN as u64, block_bytes: 512, read_only: false };
    let media = Media::testing(BackingKind::BlockDevice, Durability::Page, vec![]);
    let disk = BlockDisk::over(Arc::new(file.into()), geometry, &Media { unit_bytes: 512, ..media }, unmaps);
    Some(disk)
}

fn image(disk: &BlockDisk) -> Vec<u8> {
    let mut bounce = BounceBuffer::new(LEN, 512);
    let part = bounce.part(LEN as u64);
    disk.file.read_exact_at(part, 0).unwrap();
    part.to_vec()
}

/// Wherever the segments begin and end, by way of the buffer or straight.
#[test]
fn any_segments_are_read_and_written() {
    let Some(disk) = disk(&pattern(LEN, 1), true) else { return };
    let mut expected = pattern(LEN, 1);
    let room = Memory::new(&vec![0; LEN + 4096]);
    let start = room.ptr().addr().next_multiple_of(4096) - room.ptr().addr();
    drop(room);
    for (index, (start, lens, gap)) in [
        (start, vec![4096], 0),
        (start, vec![512, 1024, 512], 512),
        (start + 1, vec![4096], 0),
        (start, vec![700, 324], 3),
        (start + 7, vec![LEN - 512, 512], 11),
    ]
    .into_iter()
    .enumerate()
    {
        let total: usize = lens.iter().sum();
        let bytes = pattern(LEN + 8192, index as u8 + 2);
        let guest = Memory::new(&bytes).cut(start, &lens, gap);
        let offset = if total > LEN / 2 { 0 } else { 8192 * index + 512 };
        disk.write(offset as u64, guest.segments(), PrefetchHint::NONE).unwrap();
        let mut at = start;
        let mut wrote = Vec::new();
        for len in &lens {
            wrote.extend_from_slice(&bytes[at..at + len]);
            at += len + gap;
        }
        expected[offset..offset + total].copy_from_slice(&wrote);
        assert!(image(&disk) == expected, "{index}");
        let back = Memory::new(&vec![0; LEN + 8192]).cut(start, &lens, gap);
        disk.read(offset as u64, back.segments(), PrefetchHint::NONE).unwrap();
        let mut at = start;
        for len in &lens {
            assert!(back.bytes()[at..at + len] == bytes[at..at + len], "{index}");
            at += len + gap;
        }
        assert!(disk.try_flush().is_none());
        disk.flush().unwrap();
        assert!(matches!(disk.try_flush(), Some(Ok(()))));
    }
}

#[test]
fn zeroes_are_exact_and_discards_are_advice() {
    for unmaps in [true, false] {
        let before: Vec<u8> = pattern(LEN, 1).into_iter().map(|byte| byte | 1).collect();
        let Some(disk) = disk(&before, unmaps) else { return };
        let mut expected = before;
        for (start, len, unmap) in [(512, 512, false), (4096, 1 << 20, true), (LEN - 512, 512, true)] {
            disk.write_zeroes(start as u64, len as u64, unmap).unwrap();
            expected[start..start + len].fill(0);
            assert!(image(&disk) == expected, "{start}+{len}");
        }
        disk.discard(0, 512).unwrap();
        assert!(image(&disk)[512..] == expected[512..]);
    }
}

/// This process's memory as a device: nothing is at its first addresses, which cannot be read.
#[test]
fn a_page_that_cannot_be_read_is_known_until_it_is_read_or_written() {
    let memory = File::options().read(true).write(true).open("/proc/self/mem").unwrap();
    let geometry = Geometry { capacity_bytes: 1 << 47, block_bytes: 512, read_only: false };
    let media = Media::testing(BackingKind::BlockDevice, Durability::Page, vec![]);
    let large = BlockDisk::over(
        Arc::new(memory.try_clone().unwrap().into()),
        Geometry { block_bytes: 4096, ..geometry },
        &Media { unit_bytes: 4096, ..media.clone() },
        false,
    );
    assert_eq!(large.unit_bytes(), 4096, "a device takes nothing but its own blocks");
    let media = Media { unit_bytes: 512, ..media };
    let disk = BlockDisk::over(Arc::new(memory.into()), geometry, &media, false);
    assert_eq!(disk.unit_bytes(), 512);
    let piece = |len| Memory::new(&pattern(8192, 3)).cut(0, &[len], 0);
    let pages = Memory::new(&pattern(4 * 4096, 1));
    let good = (pages.ptr().addr() as u64).next_multiple_of(4096);
    disk.read(good, piece(8192).segments(), PrefetchHint::NONE).unwrap();
    assert!(disk.bad_blocks().is_empty());
    for len in [512, 8192] {
        let error = disk.read(8192 + 512, piece(len).segments(), PrefetchHint::NONE).unwrap_err();
        assert!(error.to_string().contains("or the way to it, failed at byte 8704 "), "{error}");
        assert_eq!(disk.bad_blocks(), [8192..12_288], "the page of the first byte, all of it");
    }
    disk.bad.add(good + 4096..good + 8192);
    let both = [8192..12_288, good + 4096..good + 8192];
    disk.read(good, piece(4096 + 512).segments(), PrefetchHint::NONE).unwrap();
    assert_eq!(disk.bad_blocks(), both, "only a part of it was read");
    disk.read(good, piece(8192).segments(), PrefetchHint::NONE).unwrap();
    assert_eq!(disk.bad_blocks(), both[..1]);
    disk.bad.add(good + 4096..good + 8192);
    disk.write(good + 4096, piece(4096).segments(), PrefetchHint::NONE).unwrap();
    assert_eq!(disk.bad_blocks(), both[..1]);
    assert_eq!(
        pages.bytes()[(good as usize - pages.ptr().addr()) + 4096..][..4096],
        pattern(8192, 3)[..4096]
    );
}

#[test]
fn a_longer_device_is_served_in_full() {
    let Some(disk) = disk(&pattern(LEN, 1), true) else { return };
    let guest = Memory::new(&[0; 4096]);
    let device = disk.file().try_clone().unwrap();
    device.set_len(2 * LEN as u64 + 100).unwrap();
    assert!(matches!(
        disk.read(LEN as u64, guest.segments(), PrefetchHint::NONE),
        Err(DiskError::OutOfRange { .. })
    ));
    assert_eq!(disk.rescan_size().unwrap(), 2 * LEN as u64);
    assert_eq!(disk.geometry().capacity_bytes, 2 * LEN as u64);
    disk.read(2 * LEN as u64 - 4096, guest.segments(), PrefetchHint::NONE).unwrap();
    device.set_len(LEN as u64).unwrap();
    assert!(matches!(disk.rescan_size(), Err(GrowError::Shrunk { .. })));
    assert_eq!(disk.geometry().capacity_bytes, 2 * LEN as u64);
}

#[test]
fn nothing_but_whole_blocks_inside() {
    let Some(disk) = disk(&pattern(LEN, 1), true) else { return };
    let guest = Memory::new(&[0; 512]);
    for offset in [LEN as u64, u64::MAX - 511] {
        assert!(matches!(
            disk.read(offset, guest.segments(), PrefetchHint::NONE),
            Err(DiskError::OutOfRange { .. })
        ));
        assert!(matches!(
            disk.write(offset, guest.segments(), PrefetchHint::NONE),
            Err(DiskError::OutOfRange { .. })
        ));
        assert!(matches!(disk.write_zeroes(offset, 512, false), Err(DiskError::OutOfRange { .. })));
        assert!(matches!(disk.discard(offset, 512), Err(DiskError::OutOfRange { .. })));
    }
    assert!(matches!(disk.write(1, guest.segments(), PrefetchHint::NONE), Err(DiskError::Io { .. })));
    let read_only = BlockDisk { geometry: Geometry { read_only: true, ..disk.geometry }, ..disk };
    assert!(matches!(
        read_only.write(0, guest.segments(), PrefetchHint::NONE),
        Err(DiskError::ReadOnly { .. })
    ));
    assert!(matches!(read_only.discard(0, 512), Err(DiskError::ReadOnly { .. })));
    assert!(image(&read_only) == pattern(LEN, 1));
}
