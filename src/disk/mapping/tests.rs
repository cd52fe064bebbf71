//! Tests of `mapping`.

use std::os::unix::fs::FileExt;

use proptest::prelude::*;

use super::*;
use crate::copy::testing::{Memory, pattern};

fn file(bytes: &[u8]) -> File {
    let file = tempfile::tempfile_in("/dev/shm").unwrap();
    file.write_all_at(bytes, 0).unwrap();
    file
}

const LEN: usize = 10_000;

proptest! {
    /// Any offset and length, inside or not: right bytes or `OutOfRange`, and never anything else.
    #[test]
    fn bounds_are_exact(
        offset in prop_oneof![0..LEN as u64 + 20, LEN as u64 - 5..LEN as u64 + 5, u64::MAX - 20..=u64::MAX],
        lens in prop::collection::vec(0..LEN / 3, 0..5),
    ) {
        let before = pattern(LEN, 3);
        let file = file(&before);
        // The file goes on behind the mapping: nothing there may change.
        file.set_len(LEN as u64 + 4096).unwrap();
        let mapping = Mapping::new(&file, LEN as u64, false).unwrap();
        let total: usize = lens.iter().sum();
        let guest_bytes = pattern(total, 200);
        let guest = Memory::new(&guest_bytes).cut(0, &lens, 0);
        let inside = usize::try_from(offset).ok()
            .and_then(|at| before.get(at..at.checked_add(total)?).map(|bytes| (at, bytes.to_vec())));

        let mut image = before.clone();
        let wrote = mapping.write(offset, guest.segments(), PrefetchHint::NONE);
        let (read_into, zeroed);
        match &inside {
            Some((at, bytes)) => {
                wrote.unwrap();
                image[*at..at + total].copy_from_slice(&guest_bytes);
                let now = image_of(&file);
                prop_assert_eq!(&now[..LEN], &image[..]);
                prop_assert!(now[LEN..].iter().all(|byte| *byte == 0));
                file.write_all_at(bytes, offset).unwrap();
                read_into = bytes.clone();
                image[*at..at + total].fill(0);
                zeroed = Ok(());
            }
            None => {
                let is_refused = matches!(wrote, Err(DiskError::OutOfRange { .. }));
                prop_assert!(is_refused);
                read_into = guest_bytes;
                zeroed = Err(());
            }
        }
        let read = mapping.read(offset, guest.segments(), PrefetchHint::NONE);
        prop_assert_eq!(read.is_ok(), inside.is_some());
        prop_assert_eq!(guest.bytes(), read_into);
        prop_assert_eq!(mapping.zero(offset, total as u64).map_err(|_| ()), zeroed);
        let now = image_of(&file);
        prop_assert_eq!(&now[..LEN], &image[..]);
    }
}

fn image_of(file: &File) -> Vec<u8> {
    let mut bytes = vec![0; LEN + 4096];
    file.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

#[test]
fn a_read_only_mapping_refuses_writes() {
    let file = file(&pattern(4096, 1));
    let mapping = Mapping::new(&file, 4096, true).unwrap();
    let guest = Memory::new(&[0; 512]);
    assert!(matches!(
        mapping.write(0, guest.segments(), PrefetchHint::NONE),
        Err(DiskError::ReadOnly { .. })
    ));
    assert!(matches!(mapping.zero(0, 512), Err(DiskError::ReadOnly { .. })));
    let outside = mapping.check(mapping.len_bytes() - 1, 2).unwrap_err().to_string();
    let len = mapping.len_bytes();
    let words = format!("2 bytes at offset {} are not inside the disk, which has {len}", len - 1);
    assert_eq!(outside, words);
    mapping.read(0, guest.segments(), PrefetchHint::NONE).unwrap();
    assert_eq!(guest.bytes(), pattern(512, 1));
}

#[test]
fn it_begins_where_a_huge_page_can() {
    let file = file(&[1; 10_000]);
    for len in [1, 4096, 9_999] {
        let mapping = Mapping::new(&file, len, false).unwrap();
        assert_eq!(mapping.address() % HUGE_PAGE_BYTES, 0);
        mapping.sync(0..len).unwrap();
        // A file system that refuses the advice is as good as one that takes it.
        let _ = mapping.advise_huge_pages();
    }
    assert!(Mapping::new(&file, 1, false).is_ok());
}

/// Populating gives holes their space and changes no byte; outside of the file it is an error.
#[test]
fn populating_fills_holes() {
    use std::os::unix::fs::MetadataExt;
    let file = file(&pattern(4096, 1));
    file.set_len(1 << 20).unwrap();
    let mapping = Mapping::new(&file, 1 << 20, false).unwrap();
    mapping.populate(0..0).unwrap();
    mapping.populate(5000..20_000).unwrap();
    assert_eq!(file.metadata().unwrap().blocks() * 512, 20_480, "and the pages of the range only");
    mapping.populate(0..u64::MAX).unwrap();
    assert_eq!(file.metadata().unwrap().blocks() * 512, 1 << 20);
    let guest = Memory::new(&[0; 8192]);
    mapping.read(0, guest.segments(), PrefetchHint::NONE).unwrap();
    assert_eq!(guest.bytes(), [pattern(4096, 1), vec![0; 4096]].concat());
    file.set_len(4096).unwrap();
    assert!(mapping.populate(0..1 << 20).is_err());
}

#[test]
fn nothing_and_more_than_the_file_cannot_be_mapped() {
    let file = file(&[1; 1000]);
    for len in [0, 1001, u64::MAX] {
        let error = Mapping::new(&file, len, false).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{len}");
    }
    assert_eq!(Mapping::new(&file, 1000, false).unwrap().len_bytes(), 1000);
}

#[test]
fn dropping_it_unmaps_it() {
    let mapped = || {
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        maps.lines().filter(|line| line.contains("unmapped-by-drop")).count()
    };
    let memfd = rustix::fs::memfd_create("unmapped-by-drop", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    let file = File::from(memfd);
    file.set_len(3 * 4096).unwrap();
    let mapping = Mapping::new(&file, 4096 + 512, false).unwrap();
    assert_eq!(mapped(), 1);
    drop(mapping);
    assert_eq!(mapped(), 0);
}

/// A part of a huge page: the whole one has to be unmapped (`Drop` asserts that it was).
#[test]
#[allow(clippy::print_stderr)]
fn huge_pages_are_mapped_and_unmapped_whole() {
    let flags = rustix::fs::MemfdFlags::CLOEXEC | rustix::fs::MemfdFlags::HUGETLB;
    let Ok(memfd) = rustix::fs::memfd_create("huge", flags) else {
        eprintln!("skipped: no huge memfd here");
        return;
    };
    let file = File::from(memfd);
    file.set_len(file.metadata().unwrap().blksize() * 2).unwrap();
    drop(Mapping::new(&file, 4096, false).unwrap());
}

/// Its place comes before its length: who looks in between finds all that was there, and nothing behind it.
#[test]
fn what_it_grows_by_is_not_there_before_it_is_mapped() {
    let content = pattern(32 << 20, 6);
    let file = file(&content);
    let mapping = Mapping::new(&file, 3 << 20, false).unwrap();
    let before = mapping.address();
    let grown = failpoint::stops_at(Point::NewLength, 0, || mapping.grow(32 << 20));
    assert!(grown.is_none());
    assert_ne!(mapping.address(), before, "it has moved");
    assert_eq!(mapping.len_bytes(), 3 << 20);
    let guest = Memory::new(&[0; 8192]);
    mapping.read((3 << 20) - 8192, guest.segments(), PrefetchHint::NONE).unwrap();
    assert!(guest.bytes() == content[(3 << 20) - 8192..3 << 20]);
    assert!(matches!(
        mapping.read((3 << 20) - 4096, guest.segments(), PrefetchHint::NONE),
        Err(DiskError::OutOfRange { .. })
    ));
}

/// Whoever reads meanwhile finds what was there before, and nothing behind it too early.
#[test]
fn it_grows_in_place_and_elsewhere_while_it_is_read() {
    let content = pattern(32 << 20, 5);
    let file = file(&content);
    let mapping = Mapping::new(&file, 3 << 20, false).unwrap();
    let sizes = [(3 << 20) + 512, 5 << 20, 5 << 20, 1 << 20, 13 << 20, 32 << 20];
    let grow = || {
        sizes.map(|bytes| {
            let before = mapping.len_bytes();
            mapping.grow(bytes).unwrap();
            assert_eq!(mapping.len_bytes(), before.max(bytes));
            mapping.address()
        })
    };
    let addresses = std::thread::scope(|scope| {
        let growing = scope.spawn(grow);
        let guest = Memory::new(&[0; 8192]);
        while !growing.is_finished() {
            let len = mapping.len_bytes();
            for offset in [0, len - 8192] {
                mapping.read(offset, guest.segments(), PrefetchHint::NONE).unwrap();
                let at = usize::try_from(offset).unwrap();
                assert!(guest.bytes() == content[at..at + 8192], "at {offset} of {len}");
            }
        }
        growing.join().unwrap()
    });
    assert!(addresses[..4].iter().all(|it| *it == addresses[0]), "there was room");
    assert_ne!(addresses[3], addresses[4]);
    assert!(addresses.iter().all(|it| it.is_multiple_of(HUGE_PAGE_BYTES)));
    let guest = Memory::new(&pattern(512, 77));
    mapping.write((32 << 20) - 512, guest.segments(), PrefetchHint::NONE).unwrap();
    let mut stored = vec![0; 512];
    file.read_exact_at(&mut stored, (32 << 20) - 512).unwrap();
    assert_eq!(stored, pattern(512, 77));
    assert!(matches!(
        mapping.read(32 << 20, guest.segments(), PrefetchHint::NONE),
        Err(DiskError::OutOfRange { .. })
    ));
}

/// Nothing faults where only a part of the last page was cut off: the length is asked for.
#[test]
fn a_file_cut_inside_its_last_page_has_lost_that_part() {
    let bytes = pattern(LEN, 3);
    let file = file(&bytes);
    let mapping = Mapping::new(&file, LEN as u64, false).unwrap();
    let piece = |len| Memory::new(&pattern(len, 9));
    let (end, cut) = (LEN as u64, LEN as u64 - 512);
    file.set_len(cut).unwrap();
    for (offset, len) in [(cut, 512), (cut, 1), (cut - 1, 2), (end - 1, 1), (0, LEN)] {
        let errors = [
            mapping.read(offset, piece(len).segments(), PrefetchHint::NONE),
            mapping.write(offset, piece(len).segments(), PrefetchHint::NONE),
            mapping.zero(offset, len as u64),
            mapping.check_end(offset, len as u64),
        ];
        for error in errors {
            let text = error.unwrap_err().to_string();
            assert!(text.contains("the file was truncated to 9488 bytes while 10000 are served"), "{text}");
        }
    }
    for (offset, len) in [(cut - 512, 512), (cut, 0), (0, 4096)] {
        mapping.read(offset, piece(len).segments(), PrefetchHint::NONE).unwrap();
        mapping.check_end(offset, len as u64).unwrap();
    }
    assert!(matches!(
        mapping.read(end, piece(1).segments(), PrefetchHint::NONE),
        Err(DiskError::OutOfRange { .. })
    ));
    file.set_len(end).unwrap();
    mapping.write(cut, piece(512).segments(), PrefetchHint::NONE).unwrap();
    let back = piece(512);
    mapping.read(cut, back.segments(), PrefetchHint::NONE).unwrap();
    assert_eq!(back.bytes(), pattern(512, 9));
    // In the part that it has grown by, too.
    file.set_len(5 * 4096 + 512).unwrap();
    mapping.grow(5 * 4096 + 512).unwrap();
    mapping.read(cut, piece(1024).segments(), PrefetchHint::NONE).unwrap();
    file.set_len(5 * 4096).unwrap();
    assert!(mapping.read(5 * 4096, piece(512).segments(), PrefetchHint::NONE).is_err());
    mapping.read(4 * 4096, piece(4096).segments(), PrefetchHint::NONE).unwrap();
}
