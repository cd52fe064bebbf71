//! Where everything is there: each routine does what a byte loop does, and touches nothing else.

use proptest::prelude::*;

use super::super::testing::{Memory, pattern};
use super::super::{Engine, Load, Persist, PrefetchHint, Segment, Segments, Store, load_slice, store_slice};
use super::guarded::{Guarded, PAGE};

const PERSIST: [Persist; 2] = [Persist::Lines, Persist::FenceOnly];

/// Lengths around every border that a routine knows, and some others.
fn lengths() -> impl Strategy<Value = usize> {
    prop_oneof![
        3 => 0..70_usize,
        2 => (1..5_usize, -2..3_isize).prop_map(|(lines, off)| (lines * 64).saturating_add_signed(off)),
        2 => (1..5_usize, -66..66_isize).prop_map(|(turns, off)| (turns * 256).saturating_add_signed(off)),
        1 => prop_oneof![1..3_usize, Just(8)].prop_flat_map(|pages| (Just(pages), -2..3_isize)).prop_map(|(pages, off)| (pages * PAGE).saturating_add_signed(off)),
    ]
}

/// Where a range lies in its memory: anywhere, or hard at one of the ends.
fn place(memory: usize, len: usize, start: usize, end: u8) -> usize {
    match end {
        0 => 0,
        1 => memory - len,
        _ => start.min(memory - len),
    }
}

/// What is prefetched need not be there.
fn anywhere(address: usize) -> PrefetchHint {
    PrefetchHint::new(std::ptr::without_provenance(address))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(120))]

    /// Every engine, both ways, over any alignment of both sides, with an abyss at either end of each.
    #[test]
    fn one_segment(
        len in lengths(), media_start in 0..PAGE, guest_start in 0..PAGE, ends in (0..4_u8, 0..4_u8), seed: u8, next: usize,
    ) {
        let next = anywhere(next);
        let (media, guest) = (Guarded::new(9), Guarded::new(9));
        let at = place(media.len(), len, media_start, ends.0);
        let guest_at = place(guest.len(), len, guest_start, ends.1);
        let (media_bytes, guest_bytes) = (pattern(media.len(), seed), pattern(guest.len(), seed ^ 0x55));
        let segment = [Segment::new(guest.at(guest_at), len)];
        // SAFETY: inside of `guest`, to which no reference exists.
        let segments = unsafe { Segments::new(&segment) };
        for engine in Engine::available() {
            // The naive twin: one byte after the other.
            let (mut to_media, mut to_guest, mut zeroed) = (media_bytes.clone(), guest_bytes.clone(), media_bytes.clone());
            for index in 0..len {
                to_media[at + index] = guest_bytes[guest_at + index];
                to_guest[guest_at + index] = media_bytes[at + index];
                zeroed[at + index] = 0;
            }
            for persist in PERSIST {
                media.fill(&media_bytes);
                guest.fill(&guest_bytes);
                // SAFETY: `len` bytes are mapped there, not those of `guest`, and no reference leads to them.
                let left = engine.store(unsafe { Store::new(media.at(at), segments) }, persist, next);
                prop_assert_eq!(left, 0);
                prop_assert!(media.bytes() == to_media, "write {:?} {:?}", engine, persist);
                prop_assert!(guest.bytes() == guest_bytes);
                media.fill(&media_bytes);
                // SAFETY: `len` bytes are mapped there, and no reference leads to them.
                let left = unsafe { engine.zero(media.at(at), len, persist) };
                prop_assert_eq!(left, 0);
                prop_assert!(media.bytes() == zeroed, "zero {:?} {:?}", engine, persist);
            }
            media.fill(&media_bytes);
            // SAFETY: `len` bytes are mapped there, not those of `guest`, and no reference leads to them.
            let left = engine.load(unsafe { Load::new(media.at(at), segments) }, next);
            prop_assert_eq!(left, 0);
            prop_assert!(guest.bytes() == to_guest, "read {:?}", engine);
            prop_assert!(media.bytes() == media_bytes);
        }
    }

    /// Lists of segments are one run of bytes on the media.
    #[test]
    fn many_segments(start in 0..70_usize, lens in prop::collection::vec(lengths(), 0..7), gap in 0..70_usize, seed: u8, next: usize) {
        let next = anywhere(next);
        let len: usize = lens.iter().sum();
        let media_bytes = pattern(start + len + 64, seed);
        let guest_bytes = pattern(gap + len + (lens.len() + 1) * 3 + 64, seed.wrapping_add(101));
        let (mut to_guest, mut to_media) = (guest_bytes.clone(), media_bytes.clone());
        let (mut at, mut media_at) = (gap, start);
        for piece in &lens {
            for _ in 0..*piece {
                to_guest[at] = media_bytes[media_at];
                to_media[media_at] = guest_bytes[at];
                at += 1;
                media_at += 1;
            }
            at += 3;
        }
        for engine in Engine::available() {
            for persist in PERSIST {
                let guest = Memory::new(&guest_bytes).cut(gap, &lens, 3);
                let media = Memory::new(&media_bytes);
                // SAFETY: `start + len` bytes are inside `media`, which is not `guest`; no reference to either
                // is alive.
                let left = engine.store(unsafe { Store::new(media.ptr().wrapping_add(start), guest.segments()) }, persist, next);
                prop_assert_eq!(left, 0);
                prop_assert!(media.bytes() == to_media, "{engine:?} {persist:?}");
                prop_assert!(guest.bytes() == guest_bytes);

                let media = Memory::new(&media_bytes);
                // SAFETY: `start + len` bytes are inside `media`, which is not `guest`; no reference to either is alive.
                let left = engine.load(unsafe { Load::new(media.ptr().wrapping_add(start), guest.segments()) }, next);
                prop_assert_eq!(left, 0);
                prop_assert!(guest.bytes() == to_guest, "{engine:?}");
                prop_assert!(media.bytes() == media_bytes);
            }
        }
    }

    #[test]
    fn slices_fill_the_first_bytes_and_no_others(
        start in 0..70_usize, lens in prop::collection::vec(0..80_usize, 0..6), len in 0..300_usize, seed: u8,
    ) {
        let total: usize = lens.iter().sum();
        let before = pattern(start + total + (lens.len() + 1) * 3 + 64, seed);
        let slice = pattern(len, seed.wrapping_add(77));
        let memory = Memory::new(&before).cut(start, &lens, 3);

        let mut expected = before.clone();
        let mut loaded_expected = slice.clone();
        let (mut done, mut at) = (0, start);
        for piece in &lens {
            for _ in 0..*piece {
                if done < len {
                    loaded_expected[done] = before[at];
                    expected[at] = slice[done];
                    done += 1;
                }
                at += 1;
            }
            at += 3;
        }

        let mut loaded = slice.clone();
        prop_assert_eq!(load_slice(memory.segments(), &mut loaded), len.min(total));
        prop_assert_eq!(loaded, loaded_expected);
        prop_assert_eq!(memory.bytes(), before);
        prop_assert_eq!(store_slice(memory.segments(), &slice), len.min(total));
        prop_assert_eq!(memory.bytes(), expected);
    }
}

/// Every length of a small copy, hard at both ends of both sides.
#[test]
fn small_copies_stay_inside() {
    let memory = Guarded::new(1);
    for len in 0..=130 {
        for at in [0, 1, PAGE - len, (PAGE - len).saturating_sub(1)] {
            let before = pattern(PAGE, 9);
            memory.fill(&before);
            let segment = [Segment::new(memory.at(at), len)];
            // SAFETY: inside of `memory`, to which no reference exists.
            let segments = unsafe { Segments::new(&segment) };
            let mut loaded = vec![0; len];
            assert_eq!(load_slice(segments, &mut loaded), len);
            assert_eq!(loaded, before[at..at + len], "{len} at {at}");
            let new = pattern(len, 200);
            assert_eq!(store_slice(segments, &new), len);
            let mut expected = before;
            expected[at..at + len].copy_from_slice(&new);
            assert!(memory.bytes() == expected, "{len} at {at}");
        }
    }
}

#[test]
fn no_segments_and_empty_segments_move_nothing() {
    let empty = [Segment::EMPTY, Segment::EMPTY];
    // SAFETY: there are no bytes in them.
    let empty = unsafe { Segments::new(&empty) };
    for (segments, engine) in [Segments::empty(), empty]
        .into_iter()
        .flat_map(|list| Engine::available().into_iter().map(move |engine| (list, engine)))
    {
        let mut slice = [7; 3];
        assert_eq!(store_slice(segments, &slice), 0);
        assert_eq!(load_slice(segments, &mut slice), 0);
        assert_eq!(slice, [7; 3]);
        let memory = Memory::new(&[9; 4]);
        // SAFETY: no bytes are touched.
        assert_eq!(engine.load(unsafe { Load::new(memory.ptr(), segments) }, PrefetchHint::NONE), 0);
        // SAFETY: no bytes are touched.
        let left =
            engine.store(unsafe { Store::new(memory.ptr(), segments) }, Persist::Lines, PrefetchHint::NONE);
        assert_eq!(left, 0);
        assert_eq!(memory.bytes(), [9; 4]);
    }
}
