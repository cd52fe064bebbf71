//! Tests of files behind the page cache.

use std::os::unix::fs::FileExt;

use super::*;
use crate::copy::testing::{Memory, pattern};
use crate::disk::BackingKind;

const LEN: usize = 64 * 4096 + 512;

fn geometry() -> Geometry {
    Geometry { capacity_bytes: LEN as u64, block_bytes: 512, read_only: false }
}

fn disk_of(file: File, bytes: &[u8]) -> FileDisk {
    file.write_all_at(bytes, 0).unwrap();
    FileDisk::new(file, geometry()).unwrap()
}

/// On a file system with holes and zero ranges, where there is one.
#[allow(clippy::print_stderr)]
fn disk(bytes: &[u8]) -> FileDisk {
    let file = tempfile::tempfile_in(env!("CARGO_MANIFEST_DIR")).unwrap();
    let kind = BackingKind::of(&rustix::fs::fstatfs(&file).unwrap());
    if kind.is_written_through_mapping() {
        eprintln!("note: not on an ordinary file system but on {kind}");
    }
    disk_of(file, bytes)
}

fn image(disk: &FileDisk) -> Vec<u8> {
    let mut bytes = vec![0; LEN];
    disk.file.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

#[test]
fn writes_reach_the_file_and_reads_of_the_mapping() {
    let disk = disk(&pattern(LEN, 0));
    let before = Memory::new(&[0; 5000]);
    disk.read(777, before.segments(), PrefetchHint::NONE).unwrap();
    assert_eq!(before.bytes(), pattern(LEN, 0)[777..5777]);
    let guest = Memory::new(&pattern(5000, 9)).cut(0, &[1000, 0, 4000], 0);
    disk.write(777, guest.segments(), PrefetchHint::NONE).unwrap();
    disk.read(777, before.segments(), PrefetchHint::NONE).unwrap();
    assert_eq!(before.bytes(), guest.bytes());
    disk.fence();
    disk.flush().unwrap();
    let mut expected = pattern(LEN, 0);
    expected[777..5777].copy_from_slice(&guest.bytes());
    assert!(image(&disk) == expected);
    assert_eq!((disk.durability(), disk.geometry()), (Durability::Page, geometry()));
}

/// Edges anywhere, on a file system that can zero ranges and on tmpfs, which cannot.
#[test]
fn write_zeroes_zeroes_exactly_the_range() {
    let before: Vec<u8> = pattern(LEN, 1).into_iter().map(|byte| byte | 1).collect();
    let ranges = [(0, 0), (0, LEN), (512, 512), (4096, 8192), (4000, 4200), (1, 70_001), (LEN - 513, 513)];
    for (start, len) in ranges {
        for unmap in [false, true] {
            for on_tmpfs in [false, true] {
                let disk = match on_tmpfs {
                    true => disk_of(tempfile::tempfile_in("/dev/shm").unwrap(), &before),
                    false => disk(&before),
                };
                disk.write_zeroes(start as u64, len as u64, unmap).unwrap();
                let mut expected = before.clone();
                expected[start..start + len].fill(0);
                assert!(image(&disk) == expected, "{start}+{len} unmap {unmap} tmpfs {on_tmpfs}");
                let back = Memory::new(&[9; 512]);
                disk.read(start.min(LEN - 512) as u64, back.segments(), PrefetchHint::NONE).unwrap();
                let at = start.min(LEN - 512);
                assert_eq!(back.bytes(), expected[at..at + 512], "through the mapping");
                assert_eq!(disk.file.metadata().unwrap().len(), LEN as u64);
            }
        }
    }
}

#[test]
fn discard_gives_space_back() {
    let disk = disk(&pattern(LEN, 1));
    disk.flush().unwrap(); // delayed allocation has no blocks before
    let blocks = disk.file.metadata().unwrap().blocks();
    disk.discard(0, 0).unwrap();
    disk.discard(8192, 32 * 4096).unwrap();
    assert_eq!(blocks - disk.file.metadata().unwrap().blocks(), 32 * 8);
    let mut expected = pattern(LEN, 1);
    expected[8192..8192 + 32 * 4096].fill(0);
    assert!(image(&disk) == expected);
}

#[test]
fn what_was_taken_out_of_the_page_cache_is_not_read_at_once() {
    let disk = disk(&pattern(LEN, 1));
    disk.flush().unwrap();
    let room = Memory::new(&[0; 4096]);
    let try_read = |at| disk.try_read(at, room.segments(), PrefetchHint::NONE);
    let changes: [fn(&FileDisk); 3] = [
        |disk| disk.discard(4096, 128 << 10).unwrap(),
        |disk| assert!(disk.write_zeroes(4096, 128 << 10, true).is_ok()),
        |disk| assert!(disk.write_zeroes(4096, 128 << 10, false).is_ok()),
    ];
    for change in changes {
        // All of it is there again, and known to be.
        image(&disk);
        disk.begin_turn();
        assert!(try_read(8192) && try_read(128 << 10));
        change(&disk);
        assert!(!try_read(8192) && !try_read(128 << 10), "to read it is to wait for media");
        assert!(try_read(0) && try_read(200 << 10), "the rest is there");
    }
}

/// guest/soak: "GlusterFS, nodes in turn" shows what this is for.
#[test]
fn of_a_file_that_others_may_have_changed_nothing_is_kept() {
    let disk = disk(&pattern(LEN, 1));
    disk.flush().unwrap();
    let room = Memory::new(&[0; 4096]);
    let try_read = |disk: &FileDisk| disk.try_read(8192, room.segments(), PrefetchHint::NONE);
    for has_server in [false, true] {
        let disk = FileDisk { has_server, ..disk_of(disk.file.try_clone().unwrap(), &[]) };
        image(&disk);
        disk.begin_turn();
        assert!(try_read(&disk));
        disk.forget_cached();
        assert_eq!(try_read(&disk), !has_server, "{has_server}");
        disk.read(8192, room.segments(), PrefetchHint::NONE).unwrap();
        assert_eq!(room.bytes(), pattern(LEN, 1)[8192..8192 + 4096]);
    }
}

#[test]
fn nothing_outside_is_touched_and_the_file_never_grows() {
    let disk = disk(&pattern(LEN, 1));
    let guest = Memory::new(&[0; 512]);
    for offset in [LEN as u64 - 511, LEN as u64, u64::MAX - 511, u64::MAX] {
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
    assert!(image(&disk) == pattern(LEN, 1));
    assert_eq!(disk.file.metadata().unwrap().len(), LEN as u64);
}

#[test]
fn a_read_only_disk_refuses_every_change() {
    let file = tempfile::tempfile().unwrap();
    file.write_all_at(&pattern(LEN, 1), 0).unwrap();
    let disk = FileDisk::new(file, Geometry { read_only: true, ..geometry() }).unwrap();
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
    assert!(image(&disk) == pattern(LEN, 1));
    disk.flush().unwrap();
}

#[test]
fn a_failed_write_names_its_call_and_range() {
    let disk = disk(&pattern(LEN, 1));
    let named = tempfile::NamedTempFile::new().unwrap();
    let disk = FileDisk { file: Arc::new(File::open(named.path()).unwrap().into()), ..disk };
    let error = disk.write(0, Memory::new(&[0; 512]).segments(), PrefetchHint::NONE).unwrap_err();
    assert_eq!(error.to_string(), "pwritev of 512 bytes at offset 0: Bad file descriptor (os error 9)");
}

#[test]
fn a_flush_is_answered_at_once_when_nothing_was_written() {
    let disk = disk(&pattern(LEN, 1));
    assert!(disk.initial_writeback());
    assert!(disk.try_flush().is_none(), "a process before may have left something");
    let guest = Memory::new(&pattern(512, 2));
    let changes: [&dyn Fn() -> Result<(), DiskError>; 4] = [
        &|| disk.write(0, guest.segments(), PrefetchHint::NONE),
        &|| disk.discard(0, 4096),
        &|| disk.write_zeroes(0, 512, false).map(drop),
        &|| disk.write_zeroes(0, 4096, true).map(drop),
    ];
    for (index, change) in changes.into_iter().enumerate() {
        disk.flush().unwrap();
        assert!(matches!(disk.try_flush(), Some(Ok(()))), "{index}");
        disk.read(0, guest.segments(), PrefetchHint::NONE).unwrap();
        assert!(matches!(disk.try_flush(), Some(Ok(()))), "a read changes nothing");
        change().unwrap();
        assert!(disk.try_flush().is_none(), "{index}");
    }
}

#[test]
fn ignored_discards_keep_bytes_and_space() {
    let file = tempfile::tempfile_in(env!("CARGO_MANIFEST_DIR")).unwrap();
    file.write_all_at(&pattern(LEN, 1), 0).unwrap();
    let disk = FileDisk::over(Arc::new(file.into()), geometry(), false).unwrap();
    disk.flush().unwrap();
    let blocks = disk.file.metadata().unwrap().blocks();
    disk.discard(0, 8192).unwrap();
    assert!(image(&disk) == pattern(LEN, 1));
    disk.write_zeroes(0, 8192, true).unwrap();
    assert!(image(&disk)[..8192] == [0; 8192]);
    assert!(disk.file.metadata().unwrap().blocks() >= blocks);
}

/// Where the file system keeps what was written in memory, there is nothing to be told of.
#[test]
#[allow(clippy::print_stderr)]
fn what_was_announced_is_read_once_it_is_there_and_not_before() {
    let disk = disk(&pattern(LEN, 1));
    assert!(disk.can_announce(4096) && !disk.can_announce(READ_AHEAD_BYTES + 1));
    disk.flush().unwrap();
    rustix::fs::fadvise(&**disk.file, 0, None, Advice::DontNeed).unwrap();
    let room = Memory::new(&[0; 4096]);
    if disk.read_announced(8192, room.segments()) {
        eprintln!("skipped: this file system keeps what was written in memory");
        return;
    }
    disk.announce(8192, 4096);
    while !disk.read_announced(8192, room.segments()) {
        std::thread::yield_now();
    }
    assert_eq!(room.bytes(), pattern(LEN, 1)[8192..8192 + 4096]);
    assert!(!disk.read_announced(LEN as u64 - 4096, room.segments()), "the end is read as always");
    assert!(!disk.read_announced(u64::MAX - 4095, room.segments()));
}
