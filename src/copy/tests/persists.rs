//! Every line that a write touches is on its way to the media when the routine returns: stored whole and
//! non-temporally, or flushed afterwards. Seen by standing in for the engine's routines.

use std::cell::RefCell;
use std::collections::BTreeSet;

use proptest::prelude::*;

use super::super::line::LineKernel;
use super::super::testing::pattern;
use super::super::{Engine, LineFlush, Persist, PrefetchHint, Segment, Segments, Store, Stores, portable};
use super::guarded::{Guarded, PAGE};

const LINE: usize = 64;

thread_local! {
    static STREAMED: RefCell<BTreeSet<usize>> = const { RefCell::new(BTreeSet::new()) };
    static FLUSHED: RefCell<BTreeSet<usize>> = const { RefCell::new(BTreeSet::new()) };
    /// What was at the destination when its line was flushed must be what is there at the end.
    static SEEN: RefCell<Vec<(usize, [u8; LINE])>> = const { RefCell::new(Vec::new()) };
}

fn lines(address: usize, len: usize) -> impl Iterator<Item = usize> {
    (address / LINE..(address + len).div_ceil(LINE)).filter(move |_| len != 0)
}

unsafe extern "C" fn stream(dst: *mut u8, src: *const u8, len: usize, next: *const u8) -> usize {
    assert!((dst.addr() | len).is_multiple_of(LINE), "only whole lines are streamed");
    STREAMED.with_borrow_mut(|streamed| streamed.extend(lines(dst.addr(), len)));
    // SAFETY: the caller's obligations.
    unsafe { portable::copy(dst, src, len, next) }
}

unsafe extern "C" fn flush(dst: *mut u8, _src: *const u8, len: usize) -> usize {
    assert!((dst.addr() | len).is_multiple_of(LINE), "lines are flushed from their start to their end");
    for line in lines(dst.addr(), len) {
        FLUSHED.with_borrow_mut(|flushed| flushed.insert(line));
        SEEN.with_borrow_mut(|seen| seen.push((line, read(line))));
    }
    0
}

fn read(line: usize) -> [u8; LINE] {
    let mut bytes = [0; LINE];
    let address = std::ptr::with_exposed_provenance::<u8>(line * LINE);
    // SAFETY: a line of the test's memory, which is there.
    unsafe { bytes.as_mut_ptr().copy_from_nonoverlapping(address, LINE) };
    bytes
}

proptest! {
    #[test]
    fn lines_are_streamed_whole_or_flushed(
        at in 0..200_usize, lens in prop::collection::vec(0..300_usize, 0..4), is_portable: bool,
    ) {
        let (media, guest) = (Guarded::new(1), Guarded::new(1));
        let base = media.at(0).expose_provenance();
        guest.fill(&pattern(PAGE, 44));
        let best = Engine::best();
        let portable = Engine::with(Stores::Portable, best.line_flush());
        let mut engine = if is_portable || best.stores() == Stores::Portable { portable.unwrap() } else { best };
        let is_portable = engine.stores() == Stores::Portable;
        let stand_in: LineKernel = if is_portable { portable::copy } else { stream };
        (engine.stream, engine.flush) = (stand_in, flush);
        let list: Vec<Segment> = lens.iter().map(|len| Segment::new(guest.at(0), *len)).collect();
        // SAFETY: inside of `guest`.
        let segments = unsafe { Segments::new(&list) };
        let touched: BTreeSet<usize> = lines(base + at, lens.iter().sum()).collect();
        for persist in [Persist::Lines, Persist::FenceOnly] {
            // SAFETY: inside of `media`.
            let left = engine.store(unsafe { Store::new(media.at(at), segments) }, persist, PrefetchHint::NONE);
            prop_assert_eq!(left, 0);
            let (streamed, flushed, seen) = (STREAMED.take(), FLUSHED.take(), SEEN.take());
            match persist {
                Persist::Lines => prop_assert_eq!(&streamed | &flushed, touched.clone()),
                Persist::FenceOnly => prop_assert!(flushed.is_empty()),
            }
            prop_assert!(is_portable == streamed.is_empty() || touched.len() <= 2 || lens.iter().all(|len| *len < 127));
            // The last flush of a line comes after the last store to it.
            for line in &flushed {
                let last = seen.iter().rev().find(|(at, _)| at == line).unwrap();
                prop_assert_eq!(last.1, read(*line));
            }
        }
    }
}

/// On every machine with a best engine there is a way to flush, or it says that there is none.
#[test]
fn an_engine_says_whether_it_flushes() {
    for engine in Engine::available() {
        assert_eq!(engine.flushes_lines(), engine.line_flush() != LineFlush::None);
        assert_eq!(engine.flushes_lines(), cfg!(target_arch = "x86_64"));
    }
}
