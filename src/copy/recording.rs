//! A recorder under the routines: what the media got, in the order of the program. For tests.
//!
//! It stands in for the four routines of an [`Engine`] and is told of the small moves and of the fence by the
//! functions that make them. The bytes are really moved, by the engine that is recorded; what is stored
//! elsewhere than into a disk's mapping is not noted.

#![allow(unsafe_code)]

use std::cell::RefCell;
use std::sync::OnceLock;

use super::engine::{Engine, LineFlush, Stores};
use super::fault;

/// Length of a cache line.
pub(crate) const LINE_BYTES: usize = 64;

/// Length of what the media takes as a whole or not at all.
pub(crate) const UNIT_BYTES: usize = 8;

/// How bytes were stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Via {
    /// The cache: on the media when evicted, or after a flush of the line and a fence.
    Cache,
    /// The cache, by moves that do not keep units together: byte after byte.
    CacheBytes,
    /// Non-temporally: on the media at any time, in any order, and for certain after a fence.
    Stream,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Event {
    /// Bytes at an offset of the media.
    Store { at: usize, bytes: Vec<u8>, via: Via },
    /// The line at this offset is written back: by the next fence, or at once if that is ordered by itself.
    FlushLine { at: usize, is_ordered: bool },
    /// All earlier stores and flushes of this CPU come before all later ones.
    Fence,
    /// What the test looks at is this now; it was something else before the event before.
    Seen(u64),
}

/// An event and the CPU it happened on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Logged {
    pub(crate) cpu: usize,
    pub(crate) event: Event,
}

/// What the engine is made to forget, to see whether anybody notices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Forgets {
    Nothing,
    LineFlushes,
    Fences,
}

struct Recorder {
    /// Really does the work.
    engine: &'static Engine,
    twin: &'static Engine,
    forgets: Forgets,
    cpu: usize,
    watch: Box<dyn Fn() -> u64>,
    seen: u64,
    log: Vec<Logged>,
}

thread_local! {
    static RECORDER: RefCell<Option<Recorder>> = const { RefCell::new(None) };
}

/// A recording on this thread; ends when dropped.
#[derive(Debug)]
pub(crate) struct Recording(());

impl Recording {
    /// Records what `engine`, number so and so of [`Engine::available`], does on this thread. `watch` is
    /// asked before each event: an acknowledgement is where somebody else sees it.
    pub(crate) fn start(engine: usize, forgets: Forgets, watch: Box<dyn Fn() -> u64>) -> Self {
        static ENGINES: OnceLock<Vec<(Engine, Engine)>> = OnceLock::new();
        let engines = ENGINES.get_or_init(|| {
            Engine::available().into_iter().map(|engine| (engine, twin_of(&engine))).collect()
        });
        let (engine, twin) = &engines[engine];
        let seen = watch();
        let log = Vec::new();
        RECORDER.set(Some(Recorder { engine, twin, forgets, cpu: 0, watch, seen, log }));
        Self(())
    }

    /// What is done from now on is done by another CPU.
    pub(crate) fn on_cpu(&self, cpu: usize) {
        RECORDER.with_borrow_mut(|recorder| recorder.as_mut().unwrap().cpu = cpu);
    }

    /// Asks the watch now, whatever happens next.
    pub(crate) fn look(&self) {
        RECORDER.with_borrow_mut(|recorder| recorder.as_mut().unwrap().look());
    }

    /// What was recorded.
    pub(crate) fn finish(self) -> Vec<Logged> {
        self.look();
        RECORDER.take().unwrap().log
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        RECORDER.set(None);
    }
}

impl Recorder {
    fn look(&mut self) {
        let now = (self.watch)();
        if now != self.seen {
            self.seen = now;
            self.log.push(Logged { cpu: self.cpu, event: Event::Seen(now) });
        }
    }

    fn note(&mut self, event: Event) {
        self.look();
        self.log.push(Logged { cpu: self.cpu, event });
    }

    /// How the routines for whole lines store.
    fn via(&self) -> Via {
        if self.engine.stores() == Stores::Portable { Via::Cache } else { Via::Stream }
    }
}

/// The engine that records, if somebody does on this thread.
pub(super) fn engine() -> Option<&'static Engine> {
    RECORDER.with_borrow(|recorder| recorder.as_ref().map(|recorder| recorder.twin))
}

/// Notes a fence.
pub(super) fn fenced() {
    RECORDER.with_borrow_mut(|recorder| {
        if let Some(recorder) = recorder.as_mut().filter(|recorder| recorder.forgets != Forgets::Fences) {
            recorder.note(Event::Fence);
        }
    });
}

/// Notes a store of less than a line, which is there already. Moves of 4 and of 2 bytes overlap in those that
/// are not made of whole units.
pub(super) fn stored_small(dst: *mut u8, len: usize) {
    let is_whole = (dst.addr() | len).is_multiple_of(UNIT_BYTES);
    stored(dst, len, |_| if is_whole { Via::Cache } else { Via::CacheBytes });
}

fn stored(dst: *mut u8, len: usize, via: impl Fn(&Recorder) -> Via) {
    RECORDER.with_borrow_mut(|recorder| {
        let Some(recorder) = recorder else { return };
        let Some(at) = fault::offset_in_media(dst.addr()).filter(|_| len != 0) else { return };
        let mut bytes = vec![0; len];
        // SAFETY: they were just stored by the caller, which is the only one that uses this media.
        unsafe { bytes.as_mut_ptr().copy_from_nonoverlapping(dst, len) };
        let via = via(recorder);
        recorder.note(Event::Store { at, bytes, via });
    });
}

fn recorded() -> &'static Engine {
    RECORDER.with_borrow(|recorder| recorder.as_ref().unwrap().engine)
}

/// The same engine, recorded.
fn twin_of(engine: &Engine) -> Engine {
    let mut twin = *engine;
    (twin.copy, twin.stream, twin.zero, twin.flush) = (copy, stream, zero, flush);
    twin.rep_from_bytes = usize::MAX;
    twin
}

unsafe extern "C" fn copy(dst: *mut u8, src: *const u8, len: usize) -> usize {
    // SAFETY: the caller's obligations.
    let left = unsafe { (recorded().copy)(dst, src, len) };
    stored(dst, len - left, |_| Via::Cache);
    left
}

unsafe extern "C" fn stream(dst: *mut u8, src: *const u8, len: usize) -> usize {
    // SAFETY: the caller's obligations.
    let left = unsafe { (recorded().stream)(dst, src, len) };
    stored(dst, len - left, Recorder::via);
    left
}

unsafe extern "C" fn zero(dst: *mut u8, src: *const u8, len: usize) -> usize {
    // SAFETY: the caller's obligations.
    let left = unsafe { (recorded().zero)(dst, src, len) };
    stored(dst, len - left, Recorder::via);
    left
}

unsafe extern "C" fn flush(dst: *mut u8, src: *const u8, len: usize) -> usize {
    // SAFETY: the caller's obligations.
    let left = unsafe { (recorded().flush)(dst, src, len) };
    RECORDER.with_borrow_mut(|recorder| {
        let recorder = recorder.as_mut().filter(|recorder| recorder.forgets != Forgets::LineFlushes);
        let (Some(recorder), Some(start)) = (recorder, fault::offset_in_media(dst.addr())) else { return };
        let is_ordered = recorder.engine.line_flush() == LineFlush::Clflush;
        for at in (start..start + len - left).step_by(LINE_BYTES) {
            recorder.note(Event::FlushLine { at, is_ordered });
        }
    });
    left
}
