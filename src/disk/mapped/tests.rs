use std::os::unix::fs::FileExt;

use proptest::prelude::*;

use super::*;
use crate::copy::testing::{Memory, announce_bad_page, pattern};
use crate::disk::media::sysfs::testing::Tree;

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
    disk.write(777, guest.segments(), PrefetchHint::NONE).unwrap();
    disk.fence();
    disk.flush().unwrap();
    let back = Memory::new(&[0; 5000]);
    disk.read(777, back.segments(), PrefetchHint::NONE).unwrap();
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
        let media_bytes = disk.write_zeroes(start as u64, len as u64, unmap).unwrap();
        let mut expected = before;
        expected[start..start + len].fill(0);
        prop_assert!(image(&disk) == expected);
        let pages = whole_units(start as u64..(start + len) as u64, disk.punch_bytes);
        let freed = pages.filter(|_| unmap).map_or(0, |pages| pages.end - pages.start);
        prop_assert_eq!(allocated - allocated_bytes(&disk), freed);
        let lines_bytes = disk.media_written_bytes(start as u64, len as u64);
        prop_assert_eq!(media_bytes, lines_bytes - freed, "what is not given back is zeroed by whole lines");
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
            disk.read(offset, guest.segments(), PrefetchHint::NONE),
            disk.write(offset, guest.segments(), PrefetchHint::NONE),
            disk.discard(offset, 512),
            disk.write_zeroes(offset, 512, false).map(drop),
            disk.write_zeroes(offset, 512, true).map(drop),
        ];
        for result in refused {
            assert!(matches!(result, Err(DiskError::OutOfRange { .. })), "{offset}: {result:?}");
        }
    }
    disk.read(len, Segments::empty(), PrefetchHint::NONE).unwrap();
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
        disk.write(0, guest.segments(), PrefetchHint::NONE),
        disk.discard(0, 4096),
        disk.write_zeroes(0, 4096, false).map(drop),
        disk.write_zeroes(0, 4096, true).map(drop),
    ];
    for result in refused {
        assert!(matches!(result, Err(DiskError::ReadOnly { .. })), "{result:?}");
    }
    disk.read(0, guest.segments(), PrefetchHint::NONE).unwrap();
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

/// A disk like one on a DAX file system, whose files can be punched and written down.
fn dax_disk(bytes: &[u8], folder: &str, unmaps: bool, bad: &[Range<u64>]) -> MappedDisk {
    let file_system = crate::disk::FileSystem::of(&rustix::fs::statfs(folder).unwrap());
    let kind = BackingKind::DaxFile { file_system };
    let mut media = Media::testing(kind, Durability::Page, vec![]);
    media.bad_blocks = bad.to_vec();
    let file = tempfile::tempfile_in(folder).unwrap();
    file.write_all_at(bytes, 0).unwrap();
    let geometry = Geometry { capacity_bytes: bytes.len() as u64, block_bytes: 512, read_only: false };
    MappedDisk::over(Arc::new(file.into()), geometry, &media, unmaps, vec![]).unwrap()
}

fn dirty(disk: &MappedDisk) -> Dirty {
    let Persistence::Pages { dirty, .. } = &disk.persistence else { panic!("{disk:?}") };
    dirty.take()
}

/// DAX without MAP_SYNC: what was written is known until it is synced.
#[test]
fn pages_are_synced_where_they_were_written() {
    let disk = dax_disk(&pattern(LEN, 1), env!("CARGO_MANIFEST_DIR"), false, &[]);
    assert!(disk.initial_writeback() && disk.durability() == Durability::Page);
    assert!(disk.try_flush().is_none(), "a process before may have left something");
    assert!(!disk.flushes_by_fence());
    disk.flush().unwrap();
    assert!(matches!(disk.try_flush(), Some(Ok(()))));
    let guest = Memory::new(&pattern(512, 9));
    disk.write(512, guest.segments(), PrefetchHint::NONE).unwrap();
    disk.write_zeroes(20_480, 512, false).unwrap();
    assert_eq!(dirty(&disk), Dirty::Runs(vec![0..4096, 20_480..24_576]));
    disk.write(512, guest.segments(), PrefetchHint::NONE).unwrap();
    assert!(disk.try_flush().is_none());
    disk.flush().unwrap();
    assert!(matches!(disk.try_flush(), Some(Ok(()))));
    assert_eq!(dirty(&disk), Dirty::Runs(vec![]));
    disk.discard(0, LEN as u64).unwrap();
    assert!(matches!(disk.try_flush(), Some(Ok(()))), "ignored on DAX");
}

/// Only whole huge pages are given back, and only when that was asked for.
#[test]
fn dax_keeps_its_huge_pages() {
    const MIB: u64 = 1 << 20;
    let before = vec![7; 9 << 20];
    for (unmaps, freed) in [(false, 0), (true, 4 * MIB)] {
        let disk = dax_disk(&before, "/dev/shm", unmaps, &[]);
        assert_eq!(disk.discard_alignment_bytes(), 2 * MIB);
        let allocated = allocated_bytes(&disk);
        disk.discard(MIB, 6 * MIB).unwrap();
        assert_eq!(allocated - allocated_bytes(&disk), freed);
        let mut expected = before.clone();
        if freed != 0 {
            expected[2 << 20..6 << 20].fill(0);
            assert_eq!(dirty(&disk), Dirty::Many);
        }
        disk.write_zeroes(6 * MIB, 2 * MIB, true).unwrap();
        assert_eq!(allocated - allocated_bytes(&disk), freed, "2 MiB are zeroed in place");
        expected[6 << 20..8 << 20].fill(0);
        disk.write_zeroes(MIB - 512, 3 * MIB + 512, true).unwrap();
        expected[(1 << 20) - 512..4 << 20].fill(0);
        let mut bytes = vec![0; before.len()];
        disk.file.read_exact_at(&mut bytes, 0).unwrap();
        assert!(bytes == expected, "{unmaps}");
    }
}

/// Ranges known from the start; the last page of the disk is only a part of a page.
#[test]
fn known_bad_pages_are_mended_by_a_write_that_covers_them() {
    let end = LEN as u64;
    let bad = [4096..8192, end - 512..end + 3584];
    let disk = dax_disk(&pattern(LEN, 1), "/dev/shm", false, &bad);
    assert_eq!(disk.bad_blocks(), bad);
    let guest = Memory::new(&pattern(512, 5));
    for offset in [4096, 7680, end - 512] {
        assert!(disk.read(offset, guest.segments(), PrefetchHint::NONE).is_err(), "{offset}");
    }
    disk.read(0, guest.segments(), PrefetchHint::NONE).unwrap();
    assert!(disk.write(4096, guest.segments(), PrefetchHint::NONE).is_err());
    disk.write(end - 512, guest.segments(), PrefetchHint::NONE).unwrap();
    disk.write(3584, Memory::new(&pattern(5120, 6)).segments(), PrefetchHint::NONE).unwrap();
    assert!(disk.bad_blocks().is_empty());
    let mut expected = pattern(LEN, 1);
    expected[3584..8704].copy_from_slice(&pattern(5120, 6));
    let back = Memory::new(&vec![0; LEN]);
    disk.read(0, back.segments(), PrefetchHint::NONE).unwrap();
    expected[LEN - 512..].copy_from_slice(&guest.bytes());
    assert!(back.bytes() == expected);
}

/// The kernel says that a page is bad before a request has met it.
#[test]
fn an_announced_page_fails_until_it_is_written_as_a_whole() {
    crate::copy::fault::install().unwrap();
    let disk = disk(&pattern(LEN, 1));
    let guest = Memory::new(&pattern(512, 5));
    disk.read(8192, guest.segments(), PrefetchHint::NONE).unwrap();
    announce_bad_page(disk.mapping.address() + 8192 + 100);
    // Behind the disk's end, where there is nothing.
    announce_bad_page(disk.mapping.address() + LEN + 4096);
    assert_eq!(disk.update_bad_blocks(), [8192..12_288]);
    assert!(disk.update_bad_blocks().is_empty(), "no news");
    for (offset, is_good) in [(7680, true), (8192, false), (11_776, false), (12_288, true)] {
        assert_eq!(disk.read(offset, guest.segments(), PrefetchHint::NONE).is_ok(), is_good, "{offset}");
    }
    assert!(disk.write(8192, guest.segments(), PrefetchHint::NONE).is_err());
    disk.write(8192, Memory::new(&pattern(4096, 6)).segments(), PrefetchHint::NONE).unwrap();
    disk.read(8192, guest.segments(), PrefetchHint::NONE).unwrap();
    assert_eq!(guest.bytes(), pattern(4096, 6)[..512]);
    announce_bad_page(disk.mapping.address() + 8192);
    assert_eq!(disk.update_bad_blocks(), [8192..12_288], "a second time");
}

/// What the list has is bad, whoever has added it; and that a write has repaired it, the list must agree.
#[test]
fn a_list_that_grows_is_believed_and_a_repair_that_it_does_not_know_is_not() {
    let tree = Tree::new();
    let region = "devices/bus/region0";
    tree.device("char", "252:0", &format!("{region}/dax0.0"))
        .file(&format!("{region}/resource"), "0x100000000")
        .file(&format!("{region}/dax0.0/resource"), "0x100000000")
        .file(&format!("{region}/dax0.0/size"), "65536")
        .file(&format!("{region}/badblocks"), "");
    let device = tree.sysfs().character(rustix::fs::makedev(252, 0)).unwrap();
    let region_node = device.child("..").unwrap();
    // Its offsets are those of the file, which cannot be put elsewhere: whatever is tried, it stays listed.
    let bad = BadMedia::with_list(BadBlockList::of_device_dax(&device, &region_node));
    let disk = MappedDisk { bad, ..disk(&pattern(LEN, 1)) };
    assert!(disk.update_bad_blocks().is_empty());
    tree.file(&format!("{region}/badblocks"), "16 8\n");
    assert_eq!(disk.update_bad_blocks(), [8192..12_288]);
    let page = Memory::new(&pattern(4096, 5));
    assert!(disk.read(8192, page.segments(), PrefetchHint::NONE).is_err());
    assert!(disk.write(8192, page.segments(), PrefetchHint::NONE).is_err(), "still listed");
    assert!(disk.read(8192, page.segments(), PrefetchHint::NONE).is_err());
    tree.file(&format!("{region}/badblocks"), "");
    disk.write(8192, page.segments(), PrefetchHint::NONE).unwrap();
    disk.read(8192, page.segments(), PrefetchHint::NONE).unwrap();
}

/// There is nothing to punch on device DAX: only the operator can repair it.
#[test]
fn a_device_is_not_mended() {
    let disk = MappedDisk { kind: BackingKind::DeviceDax, ..disk(&pattern(LEN, 1)) };
    disk.add_bad_page(5000);
    let page = Memory::new(&pattern(4096, 5));
    assert!(disk.write(4096, page.segments(), PrefetchHint::NONE).is_err());
    disk.write(8192, page.segments(), PrefetchHint::NONE).unwrap();
    assert_eq!(disk.bad_blocks(), [4096..8192]);
}

#[test]
fn a_deep_flush_writes_to_the_region() {
    let attribute = tempfile::NamedTempFile::new().unwrap();
    let files = vec![attribute.reopen().unwrap()];
    let persistence = Persistence::Deep { syncs: Syncs::new("deep flush", false), files };
    let disk = MappedDisk { persistence, durability: Durability::CacheLine, ..disk(&pattern(LEN, 1)) };
    assert!(!disk.flushes_by_fence());
    assert!(disk.initial_writeback(), "guests shall send FLUSH");
    disk.flush().unwrap();
    assert_eq!(std::fs::read(attribute.path()).unwrap(), b"", "nothing was written");
    disk.write(0, Memory::new(&[1; 512]).segments(), PrefetchHint::NONE).unwrap();
    assert!(disk.try_flush().is_none());
    disk.flush().unwrap();
    assert_eq!(std::fs::read(attribute.path()).unwrap(), b"1");
    assert!(matches!(disk.try_flush(), Some(Ok(()))));
}

/// What is called durable is mapped with MAP_SYNC or not at all; flushes are answered by a fence.
#[test]
fn durable_media_are_synchronous() {
    for durability in [Durability::CacheLine, Durability::Byte] {
        let media = Media::testing(BackingKind::DeviceDax, durability, vec![]);
        let file = tempfile::tempfile_in("/dev/shm").unwrap();
        file.set_len(LEN as u64).unwrap();
        let error = MappedDisk::over(Arc::new(file.into()), geometry(), &media, false, vec![]);
        assert_eq!(error.unwrap_err().raw_os_error(), Some(libc::EOPNOTSUPP), "tmpfs has no MAP_SYNC");
        let disk = MappedDisk { durability, ..disk(&pattern(LEN, 1)) };
        assert!(!disk.initial_writeback() && matches!(disk.try_flush(), Some(Ok(()))));
        assert!(disk.flushes_by_fence());
    }
}
