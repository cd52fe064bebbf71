//! A recorder under the routines, for tests: what the media got, in the order of the program.
//!
//! It stands in for the four routines of an [`Engine`] and is told of the small moves, of the fences and of
//! system calls by the functions that make them. The bytes are really moved, by the engine that is recorded;
//! what is stored elsewhere than into a disk's mapping or file is not noted.

#![allow(unsafe_code)]

use std::cell::RefCell;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};

use super::engine::{Engine, LineFlush, Stores};
pub(crate) use super::line::LINE_BYTES;
use super::{Segments, fault, load_slice};

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
    /// The file system, which writes bytes, zeroes them or gives their space back: on the media at any time,
    /// and for certain once everything was synced.
    File,
}

/// What a sync waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Synced {
    /// The bytes of the mapping from here to there (`msync`).
    Range { start: u64, end: u64 },
    /// All bytes of the file, and where they lie (`fdatasync`).
    Everything,
    /// The memory controller's write pending queues (a deep flush).
    Queues,
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
    /// A sync has begun; on one CPU there is one at a time.
    SyncBegins(Synced),
    /// It is over.
    SyncEnds,
    /// What a driver sees of its rings is this from now on; before the last event it was something else.
    Seen(u64),
}

/// An event and the CPU it happened on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Logged {
    pub(crate) cpu: usize,
    pub(crate) event: Event,
}

/// What the engine is made to leave out, to see whether that is noticed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Omit {
    Nothing,
    LineFlushes,
    Fences,
    Syncs,
}

/// The driver's side of a recording: it is asked before each event what a driver sees, and told of the event afterwards.
pub(crate) trait Watch: Send + Sync {
    /// What a driver sees of its rings. A request is acknowledged once that shows it.
    fn seen(&self) -> u64;

    /// This has happened on that CPU; other threads may be let go on now.
    fn happened(&self, cpu: usize, event: &Event);

    /// Whole lines are about to be copied, in either direction.
    fn copies(&self) {}
}

struct Recorder {
    /// Really does the work.
    engine: &'static Engine,
    twin: &'static Engine,
    omit: Omit,
    watch: Arc<dyn Watch>,
    seen: Mutex<u64>,
    log: Mutex<Vec<Logged>>,
}

/// The recorder of a thread, and the CPU it takes itself for.
type Attached = Option<(Arc<Recorder>, usize)>;

thread_local! {
    static RECORDER: RefCell<Attached> = const { RefCell::new(None) };
}

/// A recording.
#[derive(Clone)]
pub(crate) struct Recording(Arc<Recorder>);

/// A thread that takes part in a recording until this is dropped.
#[derive(Debug)]
pub(crate) struct OnCpu(());

impl Drop for OnCpu {
    fn drop(&mut self) {
        RECORDER.set(None);
    }
}

impl std::fmt::Debug for Recording {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Recording")
    }
}

impl Recording {
    /// Will record what `engine`, number so and so of [`Engine::available`], does on threads that take part.
    pub(crate) fn new(engine: usize, omit: Omit, watch: Arc<dyn Watch>) -> Self {
        static ENGINES: OnceLock<Vec<(Engine, Engine)>> = OnceLock::new();
        let engines = ENGINES.get_or_init(|| {
            Engine::available().into_iter().map(|engine| (engine, twin_of(&engine))).collect()
        });
        let (engine, twin) = &engines[engine];
        let seen = Mutex::new(watch.seen());
        Self(Arc::new(Recorder { engine, twin, omit, watch, seen, log: Mutex::default() }))
    }

    /// What this thread does from now on is done by this CPU.
    pub(crate) fn on_cpu(&self, cpu: usize) -> OnCpu {
        RECORDER.set(Some((self.0.clone(), cpu)));
        OnCpu(())
    }

    /// Asks what a driver sees now, without an event.
    pub(crate) fn observe(&self, cpu: usize) {
        self.0.observe(cpu);
    }

    /// What was recorded so far.
    pub(crate) fn log(&self) -> Vec<Logged> {
        self.0.log().clone()
    }
}

impl Recorder {
    fn log(&self) -> MutexGuard<'_, Vec<Logged>> {
        self.log.lock().unwrap()
    }

    fn observe(&self, cpu: usize) {
        let now = self.watch.seen();
        let mut seen = self.seen.lock().unwrap();
        if now != *seen {
            *seen = now;
            self.log().push(Logged { cpu, event: Event::Seen(now) });
        }
    }

    fn note(&self, cpu: usize, event: Event) {
        self.observe(cpu);
        self.log().push(Logged { cpu, event: event.clone() });
        // No lock is held: others may note something before this returns.
        self.watch.happened(cpu, &event);
    }

    /// How the routines for whole lines store.
    fn via(&self) -> Via {
        if self.engine.stores() == Stores::Portable { Via::Cache } else { Via::Stream }
    }
}

/// The recorder of this thread, if there is one.
fn recorder() -> Attached {
    RECORDER.with_borrow(Clone::clone)
}

/// The engine that records, if somebody does on this thread.
pub(super) fn engine() -> Option<&'static Engine> {
    RECORDER.with_borrow(|recorder| recorder.as_ref().map(|(recorder, _)| recorder.twin))
}

/// The CPU that this thread takes itself for.
pub(crate) fn cpu() -> Option<usize> {
    RECORDER.with_borrow(|recorder| recorder.as_ref().map(|(_, cpu)| *cpu))
}

/// Notes a fence.
pub(super) fn fenced() {
    let Some((recorder, cpu)) = recorder() else { return };
    if recorder.omit != Omit::Fences {
        recorder.note(cpu, Event::Fence);
    }
}

/// Notes what has been written to the file. The kernel copies piece by piece.
pub(super) fn wrote_file(at: u64, from: Segments<'_>) {
    let Some((recorder, cpu)) = recorder() else { return };
    let mut bytes = vec![0; from.total_bytes()];
    load_slice(from, &mut bytes);
    let (mut at, mut rest) = (usize::try_from(at).unwrap(), bytes.as_slice());
    for segment in from.as_slice() {
        let (piece, others) = rest.split_at(segment.len());
        recorder.note(cpu, Event::Store { at, bytes: piece.to_vec(), via: Via::File });
        (at, rest) = (at + piece.len(), others);
    }
}

/// Notes zeroes that the file has instead of what was there.
pub(crate) fn zeroed_file(at: u64, len: u64) {
    filed(at, &vec![0; usize::try_from(len).unwrap()]);
}

/// Notes what the file has instead of what was there.
pub(crate) fn filed(at: u64, bytes: &[u8]) {
    let Some((recorder, cpu)) = recorder() else { return };
    let (at, bytes) = (usize::try_from(at).unwrap(), bytes.to_vec());
    recorder.note(cpu, Event::Store { at, bytes, via: Via::File });
}

/// A sync that runs until this is dropped, and succeeds.
#[derive(Debug)]
#[must_use]
pub(crate) struct Syncing(());

impl Syncing {
    pub(crate) fn start(what: Synced) -> Self {
        note_sync(Event::SyncBegins(what));
        Self(())
    }
}

impl Drop for Syncing {
    fn drop(&mut self) {
        note_sync(Event::SyncEnds);
    }
}

fn note_sync(event: Event) {
    let Some((recorder, cpu)) = recorder() else { return };
    if recorder.omit != Omit::Syncs {
        recorder.note(cpu, event);
    }
}

/// Notes a store of less than a line, which is there already. Moves of 4 and of 2 bytes overlap in those that
/// are not made of whole units.
pub(super) fn stored_small(dst: *mut u8, len: usize) {
    let is_whole = (dst.addr() | len).is_multiple_of(UNIT_BYTES);
    stored(dst, len, |_| if is_whole { Via::Cache } else { Via::CacheBytes });
}

fn stored(dst: *mut u8, len: usize, via: impl Fn(&Recorder) -> Via) {
    let Some((recorder, cpu)) = recorder() else { return };
    let Some(at) = fault::offset_in_media(dst.addr()).filter(|_| len != 0) else { return };
    let mut bytes = vec![0; len];
    // SAFETY: C2: they were just stored by the caller, which is the only one that uses this media.
    unsafe { bytes.as_mut_ptr().copy_from_nonoverlapping(dst, len) };
    recorder.note(cpu, Event::Store { at, bytes, via: via(&recorder) });
}

fn recorded() -> &'static Engine {
    RECORDER.with_borrow(|recorder| recorder.as_ref().unwrap().0.engine)
}

fn watched(ask: impl FnOnce(&dyn Watch)) {
    if let Some((recorder, _)) = recorder() {
        ask(&*recorder.watch);
    }
}

/// The same engine, recorded.
fn twin_of(engine: &Engine) -> Engine {
    let mut twin = *engine;
    (twin.copy, twin.stream, twin.zero, twin.flush) = (copy, stream, zero, flush);
    twin
}

unsafe extern "C" fn copy(dst: *mut u8, src: *const u8, len: usize, next: *const u8) -> usize {
    watched(|watch| watch.copies());
    // SAFETY: C2: passed on as it is, to the engine that is recorded.
    let left = unsafe { (recorded().copy)(dst, src, len, next) };
    stored(dst, len - left, |_| Via::Cache);
    left
}

unsafe extern "C" fn stream(dst: *mut u8, src: *const u8, len: usize, next: *const u8) -> usize {
    watched(|watch| watch.copies());
    // SAFETY: C2: passed on as it is, to the engine that is recorded.
    let left = unsafe { (recorded().stream)(dst, src, len, next) };
    stored(dst, len - left, Recorder::via);
    left
}

unsafe extern "C" fn zero(dst: *mut u8, src: *const u8, len: usize, next: *const u8) -> usize {
    // SAFETY: C2: passed on as it is, to the engine that is recorded.
    let left = unsafe { (recorded().zero)(dst, src, len, next) };
    stored(dst, len - left, Recorder::via);
    left
}

unsafe extern "C" fn flush(dst: *mut u8, src: *const u8, len: usize) -> usize {
    // SAFETY: C2: passed on as it is, to the engine that is recorded.
    let left = unsafe { (recorded().flush)(dst, src, len) };
    let recorder = recorder().filter(|(recorder, _)| recorder.omit != Omit::LineFlushes);
    let (Some((recorder, cpu)), Some(start)) = (recorder, fault::offset_in_media(dst.addr())) else {
        return left;
    };
    let is_ordered = recorder.engine.line_flush() == LineFlush::Clflush;
    for at in (start..start + len - left).step_by(LINE_BYTES) {
        recorder.note(cpu, Event::FlushLine { at, is_ordered });
    }
    left
}
