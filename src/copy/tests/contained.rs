//! Where something is not there: the routine says so, to the byte, and the process goes on.

use std::fs::File;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU32, Ordering};

use super::super::fault::{self, WatchedRange};
use super::super::testing::pattern;
use super::super::{
    Engine, Load, Persist, PrefetchHint, Segment, Segments, Store, can_read, load_slice, store_slice,
};
use super::guarded::{Guarded, PAGE};
use super::mending;

/// How a copy goes, as one of the engine's routines.
#[derive(Debug, Clone, Copy)]
enum Way {
    Write(Persist),
    Read,
    Zero(Persist),
}

const WAYS: [Way; 5] = [
    Way::Write(Persist::Lines),
    Way::Write(Persist::FenceOnly),
    Way::Read,
    Way::Zero(Persist::Lines),
    Way::Zero(Persist::FenceOnly),
];

/// Copies `len` bytes; returns how many were not copied.
fn copy(engine: &Engine, way: Way, media: *mut u8, guest: *mut u8, len: usize) -> usize {
    let segment = [Segment::new(guest, len)];
    // SAFETY: the callers give ranges that are mapped; what is behind them may be gone.
    let segments = unsafe { Segments::new(&segment) };
    match way {
        Way::Write(persist) => {
            // SAFETY: the range and the segment are mapped, or were, and apart.
            let store = unsafe { Store::new(media, segments) };
            engine.store(store, persist, PrefetchHint::NONE)
        }
        Way::Read => {
            // SAFETY: the range and the segment are mapped, or were, and apart.
            let load = unsafe { Load::new(media, segments) };
            engine.load(load, PrefetchHint::NONE)
        }
        // SAFETY: the range and the segment are mapped, or were, and apart.
        Way::Zero(persist) => unsafe { engine.zero(media, len, persist) },
    }
}

/// What is in both memories before.
static PATTERNS: LazyLock<(Vec<u8>, Vec<u8>)> =
    LazyLock::new(|| (pattern(4 * PAGE, 1), pattern(4 * PAGE, 130)));

/// What is there of `len` bytes is copied, and exactly the rest is reported, wherever the border falls.
fn check(engine: &Engine, way: Way, lost_is_media: bool, there: usize, len: usize, other_at: usize) {
    let (lost, other) = (Guarded::of_file(4), Guarded::new(4));
    let (lost_bytes, other_bytes) = &*PATTERNS;
    lost.fill(lost_bytes);
    other.fill(other_bytes);
    lost.truncate(2);
    let at = 2 * PAGE - there;
    let (media, guest) = match lost_is_media {
        true => (lost.at(at), other.at(other_at)),
        false => (other.at(other_at), lost.at(at)),
    };
    let left = copy(engine, way, media, guest, len);
    let case = format!("{engine:?} {way:?} lost_is_media {lost_is_media}: {there} of {len} at {other_at}");
    assert_eq!(left, len - there, "{case}");
    let (mut lost_after, mut other_after) = (lost_bytes.clone(), other_bytes.clone());
    let (here, over_there) = (&mut lost_after[at..][..there], &mut other_after[other_at..][..there]);
    match (way, lost_is_media) {
        (Way::Zero(_), _) => here.fill(0),
        (Way::Write(_), true) | (Way::Read, false) => here.copy_from_slice(over_there),
        (Way::Write(_), false) | (Way::Read, true) => over_there.copy_from_slice(here),
    }
    assert!(lost.first(2 * PAGE) == lost_after[..2 * PAGE], "{case}");
    assert!(other.bytes() == other_after, "{case}");
}

#[test]
fn a_truncated_file_or_guest_is_exact_to_the_byte() {
    fault::install().unwrap();
    for engine in mending() {
        for way in WAYS {
            for lost_is_media in [true, false] {
                if matches!(way, Way::Zero(_)) && !lost_is_media {
                    continue;
                }
                // The border at every byte of a line's neighbourhood, and of whole turns of the loops.
                let there =
                    (0..=70).chain((1..=9).flat_map(|turn| [turn * 64 - 1, turn * 64, turn * 64 + 1]));
                for there in there {
                    check(&engine, way, lost_is_media, there, there + 1, 64);
                    check(&engine, way, lost_is_media, there, there + 700, 3);
                }
            }
        }
    }
}

/// Every offset of a page border in requests of the usual sizes and alignment.
#[test]
fn whole_sectors_over_every_border() {
    fault::install().unwrap();
    for engine in mending() {
        for way in WAYS {
            for there in (0..16).map(|sector| sector * 512) {
                if there < 4096 {
                    check(&engine, way, true, there, 4096, 0);
                }
                check(&engine, way, true, there, 8192, 512);
            }
        }
    }
}

/// As long as a copy must be to prefetch its own bytes.
#[test]
fn a_long_copy_is_exact_to_the_byte() {
    fault::install().unwrap();
    let (media, guest) = (Guarded::of_file(12), Guarded::new(12));
    guest.fill(&pattern(guest.len(), 77));
    media.truncate(11);
    for engine in mending() {
        for at in [0, 1, 4095] {
            for way in WAYS {
                let left = copy(&engine, way, media.at(at), guest.at(0), 11 * PAGE + 1);
                assert_eq!(left, at + 1, "{engine:?} {way:?}");
            }
        }
    }
}

#[test]
fn later_segments_are_reported_with_the_one_that_failed() {
    fault::install().unwrap();
    let (media, guest) = (Guarded::new(4), Guarded::of_file(4));
    guest.truncate(2);
    let list = [
        Segment::new(guest.at(0), 100),
        Segment::new(guest.at(2 * PAGE - 50), 60),
        Segment::EMPTY,
        Segment::new(guest.at(200), 1000),
    ];
    // SAFETY: all of it is mapped.
    let segments = unsafe { Segments::new(&list) };
    for engine in mending() {
        // SAFETY: all of it is mapped, and `media` is elsewhere.
        let left =
            engine.store(unsafe { Store::new(media.at(7), segments) }, Persist::Lines, PrefetchHint::NONE);
        assert_eq!(left, 1010);
        // SAFETY: all of it is mapped, and `media` is elsewhere.
        assert_eq!(engine.load(unsafe { Load::new(media.at(7), segments) }, PrefetchHint::NONE), 1010);
    }
    let mut slice = [0; 300];
    assert_eq!(load_slice(segments, &mut slice), 150);
    assert_eq!(store_slice(segments, &slice), 150);
    guest.truncate(0);
    assert_eq!(load_slice(segments, &mut slice), 0);
    for len in [1, 2, 5, 9, 16, 20, 40, 64, 100] {
        let list = [Segment::new(guest.at(0), len)];
        // SAFETY: mapped, though nothing is behind it.
        let segments = unsafe { Segments::new(&list) };
        assert_eq!(load_slice(segments, &mut slice), 0, "{len}");
        assert_eq!(store_slice(segments, &slice), 0, "{len}");
    }
}

#[test]
fn after_a_fault_the_memory_can_be_used_again() {
    fault::install().unwrap();
    let (media, guest) = (Guarded::of_file(2), Guarded::new(2));
    guest.fill(&pattern(guest.len(), 5));
    for engine in mending() {
        media.truncate(0);
        assert_eq!(copy(&engine, Way::Write(Persist::Lines), media.at(0), guest.at(0), 4096), 4096);
        // SAFETY: mapped.
        assert!(!unsafe { can_read(media.at(0)) });
        media.restore();
        assert_eq!(copy(&engine, Way::Write(Persist::Lines), media.at(0), guest.at(0), 4096), 0);
        // SAFETY: mapped.
        assert!(unsafe { can_read(media.at(0)) });
        assert_eq!(media.first(4096), guest.first(4096));
    }
}

/// Memory without any access is SIGSEGV, and so is an address that no memory can have: si_addr is 0 then.
#[test]
fn a_segmentation_fault_in_a_routine_is_mended() {
    fault::install().unwrap();
    let memory = Guarded::new(1);
    let nowhere = std::ptr::without_provenance_mut::<u8>(0x8000_0000_0000_0000);
    for engine in mending() {
        for way in WAYS {
            assert_eq!(copy(&engine, way, memory.at(PAGE), memory.at(0), 512), 512, "{engine:?} {way:?}");
            assert_eq!(copy(&engine, way, nowhere, memory.at(0), 512), 512, "{engine:?} {way:?}");
        }
    }
}

#[test]
fn a_full_tmpfs_is_a_short_copy() {
    fault::install().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let mount =
        |args: &[&str]| std::process::Command::new(args[0]).args(&args[1..]).arg(folder.path()).status();
    if !mount(&["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs"]).is_ok_and(|status| status.success()) {
        eprintln!("skipped: a tmpfs cannot be mounted here (not root?)");
        return;
    }
    let result = std::panic::catch_unwind(|| {
        // Sparse, and twice as large as the file system.
        let media =
            Guarded::over(File::create_new(folder.path().join("full")).unwrap_or_else(|_| unreachable!()), 1);
        drop(media);
        let file = File::options().read(true).write(true).open(folder.path().join("full")).unwrap();
        let media = Guarded::over(file, 512);
        let guest = Guarded::new(256);
        guest.fill(&pattern(guest.len(), 3));
        let engine = mending()[0];
        let way = Way::Write(Persist::FenceOnly);
        assert_eq!(copy(&engine, way, media.at(0), guest.at(0), 128 * PAGE), 0);
        let left = copy(&engine, way, media.at(128 * PAGE), guest.at(0), 256 * PAGE);
        assert_eq!(left % PAGE, 0, "all of the pages that there was room for");
        assert_eq!(256 * PAGE - left, 128 * PAGE, "1 MiB in all");
    });
    assert!(mount(&["umount", "-l"]).unwrap().success());
    result.unwrap();
}

/// A word of a ring, read outside the routines: zeroes are put in place of all of it, and the range knows.
#[test]
fn a_lost_ring_word_becomes_zero_and_is_counted() {
    fault::install().unwrap();
    let ring = Guarded::of_file(4);
    ring.fill(&vec![0xee; ring.len()]);
    let watch = WatchedRange::guest(ring.at(0), ring.len(), PAGE, 0).unwrap();
    let other = Guarded::of_file(1);
    let other_watch = WatchedRange::guest(other.at(0), other.len(), PAGE, 0).unwrap();
    ring.truncate(1);
    let losses = fault::losses();
    let word = |offset| {
        // SAFETY: aligned, mapped (or replaced) and only used as an atomic.
        unsafe { AtomicU32::from_ptr(ring.at(offset).cast()) }
    };
    assert_eq!(word(0).load(Ordering::Relaxed), 0xeeee_eeee);
    assert!(!watch.has_faulted());
    assert_eq!(word(PAGE + 8).load(Ordering::Relaxed), 0);
    assert!(watch.has_faulted() && fault::losses() > losses);
    word(PAGE + 8).store(7, Ordering::Relaxed);
    assert_eq!(word(PAGE + 8).load(Ordering::Relaxed), 7);
    // A store finds a page as well.
    word(3 * PAGE).store(9, Ordering::Relaxed);
    assert_eq!(word(3 * PAGE).load(Ordering::Relaxed), 9);
    assert!(!other_watch.has_faulted());
    // All of it is zeroes now, at once; what was in the file stays there.
    // SAFETY: mapped.
    assert!(unsafe { can_read(ring.at(2 * PAGE)) });
    assert_eq!(word(0).load(Ordering::Relaxed), 0);
    ring.restore();
    assert_eq!(ring.in_file(4), [0xee; 4]);
}

#[test]
fn many_threads_may_fault_at_once() {
    fault::install().unwrap();
    let rings = Guarded::of_file(64);
    let watch = WatchedRange::guest(rings.at(0), rings.len(), PAGE, 0).unwrap();
    let engines = mending();
    let barrier = std::sync::Barrier::new(8);
    let base = rings.at(0).expose_provenance();
    rings.truncate(0);
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let (engines, barrier) = (&engines, &barrier);
            scope.spawn(move || {
                let media = Guarded::of_file(4);
                let guest = Guarded::new(4);
                media.truncate(1);
                barrier.wait();
                for round in 0..500 {
                    let engine = &engines[round % engines.len()];
                    let way = WAYS[round % WAYS.len()];
                    assert_eq!(copy(engine, way, media.at(512), guest.at(0), 8192), 8192 - PAGE + 512);
                    // All of them on the same pages, in another order each.
                    let page = (round * (2 * thread + 1)) % 64;
                    let word = std::ptr::with_exposed_provenance_mut::<u32>(base + page * PAGE);
                    // SAFETY: aligned, mapped or replaced, used as an atomic only.
                    assert_eq!(unsafe { AtomicU32::from_ptr(word) }.load(Ordering::Relaxed), 0);
                }
            });
        }
    });
    assert!(watch.has_faulted());
}
