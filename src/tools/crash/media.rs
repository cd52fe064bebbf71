//! What may be on the media after a part of a log, by the class of the media: what has persisted, and stores that may have.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use crate::copy::recording::{Event, LINE_BYTES, Logged, Synced, UNIT_BYTES, Via};

/// What the media takes as a whole or not at all: the unit of power-fail atomicity.
pub(super) type Unit = [u8; UNIT_BYTES];

/// What makes stores persist.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Class {
    /// A flush of their lines, and a fence; non-temporal ones only the fence.
    Lines,
    /// The same brings them as far as the memory controller's write pending queue, which loses them unless a deep flush
    /// that begins afterwards is over.
    Queues,
    /// A sync that begins after a fence, and is over.
    Pages,
    /// A fence, once their block has a place of its own. Every block is shared at first, and the file system does not keep
    /// `MAP_SYNC` for the copy that the first store makes: it is found after a sync, or when another block has got one
    /// (Linux syncs at every second such fault of XFS). Lines need no flush here: that is what the first class is for.
    Shared,
}

/// What files share, in these tests.
pub(super) const BLOCK_BYTES: usize = 1024;

/// How far a store has come (the first three are pmemcheck's words).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// Waits for a flush of its line, unless the line happens to be evicted.
    Dirty,
    /// Waits for a fence.
    Flushed,
    /// Waits for a sync that begins later than this event.
    Fenced(usize),
    /// Made by the file system: waits for a sync of everything that begins later than this event.
    ByFileSystem(usize),
}

/// A store that may or may not have persisted.
#[derive(Debug)]
struct Pending {
    /// The unit as it is with this store and all before it.
    value: Unit,
    /// One byte after the other, or all at once.
    is_by_bytes: bool,
    stage: Stage,
    cpu: usize,
}

/// The media, unit by unit.
#[derive(Debug)]
pub(super) struct Media {
    class: Class,
    persisted: Vec<Unit>,
    /// Stores since what has persisted, in order, by the number of their unit. No list is empty.
    pending: BTreeMap<usize, Vec<Pending>>,
    /// Events so far.
    events: usize,
    /// Syncs that run, each with its beginning, by their CPUs.
    syncs: BTreeMap<usize, (Synced, usize)>,
    blocks: Blocks,
}

/// Where shared blocks are that were stored into.
#[derive(Debug, Default)]
struct Blocks {
    /// Those whose copy may not be found, since which event.
    moved: BTreeMap<usize, usize>,
    /// Those that have a place of their own for certain.
    own: BTreeSet<usize>,
}

impl Blocks {
    /// Of these, those whose copies were made before an event: they are found from now on.
    fn settle(&mut self, blocks: Range<usize>, before: usize) -> Vec<usize> {
        let settled = self.moved.extract_if(blocks, |_, since| *since < before).map(|(block, _)| block);
        let settled: Vec<usize> = settled.collect();
        self.own.extend(&settled);
        settled
    }

    /// The file system has changed where it lies.
    fn forget(&mut self, block: usize) {
        self.moved.remove(&block);
        self.own.remove(&block);
    }
}

impl Media {
    /// Media on which `bytes` have persisted.
    pub(super) fn new(class: Class, bytes: &[u8]) -> Self {
        let persisted = bytes.as_chunks::<UNIT_BYTES>().0.to_vec();
        let (pending, syncs, blocks) = (BTreeMap::new(), BTreeMap::new(), Blocks::default());
        Self { class, persisted, pending, events: 0, syncs, blocks }
    }

    /// For each unit, what has persisted last.
    pub(super) fn persisted(&self) -> &[Unit] {
        &self.persisted
    }

    /// What a reader finds while the power is on.
    pub(super) fn visible(&self) -> Vec<u8> {
        let mut units = self.persisted.clone();
        for (unit, stores) in &self.pending {
            units[*unit] = stores[stores.len() - 1].value;
        }
        units.into_flattened()
    }

    /// Each unit that a crash may leave with one of several values, and these; the persisted one comes first.
    pub(super) fn ambiguous(&self) -> Vec<(usize, Vec<Unit>)> {
        let units = self.pending.iter().map(|(unit, stores)| (*unit, self.values(*unit, stores)));
        units.filter(|(_, values)| values.len() > 1).collect()
    }

    fn values(&self, unit: usize, stores: &[Pending]) -> Vec<Unit> {
        let mut before = self.persisted[unit];
        let mut values = vec![before];
        for store in stores {
            if store.is_by_bytes {
                mixtures(before, store.value, &mut values);
            }
            values.push(store.value);
            before = store.value;
        }
        let mut distinct = Vec::new();
        for value in values {
            if !distinct.contains(&value) {
                distinct.push(value);
            }
        }
        distinct
    }

    /// The next event of the log.
    pub(super) fn apply(&mut self, logged: &Logged) {
        self.events += 1;
        let cpu = logged.cpu;
        match &logged.event {
            Event::Store { at, bytes, via } => self.store(cpu, *at, bytes, *via),
            Event::FlushLine { at, is_ordered } => {
                for unit in at / UNIT_BYTES..(at + LINE_BYTES) / UNIT_BYTES {
                    self.flush(cpu, unit, *is_ordered);
                }
            }
            Event::Fence => {
                let units: Vec<usize> = self.pending.keys().copied().collect();
                units.into_iter().for_each(|unit| self.fence(cpu, unit, usize::MAX));
            }
            Event::SyncBegins(what) => {
                let before = self.syncs.insert(cpu, (*what, self.events));
                assert!(before.is_none(), "two syncs at once on one CPU");
            }
            Event::SyncEnds => {
                let Some((what, begin)) = self.syncs.remove(&cpu) else { return };
                self.sync(what, begin);
            }
            Event::Seen(_) => {}
        }
    }

    fn store(&mut self, cpu: usize, at: usize, bytes: &[u8], via: Via) {
        if self.class == Class::Shared {
            for block in at / BLOCK_BYTES..(at + bytes.len()).div_ceil(BLOCK_BYTES) {
                match via {
                    Via::File => self.blocks.forget(block),
                    Via::Cache | Via::CacheBytes | Via::Stream => self.copy(block),
                }
            }
        }
        let stage = match via {
            Via::File => Stage::ByFileSystem(self.events),
            Via::Stream => Stage::Flushed,
            Via::Cache | Via::CacheBytes if matches!(self.class, Class::Pages | Class::Shared) => {
                Stage::Flushed
            }
            Via::Cache | Via::CacheBytes => Stage::Dirty,
        };
        let end = at + bytes.len();
        for unit in at / UNIT_BYTES..end.div_ceil(UNIT_BYTES) {
            let stores = self.pending.entry(unit).or_default();
            let mut value = stores.last().map_or(self.persisted[unit], |store| store.value);
            let start = unit * UNIT_BYTES;
            for (offset, byte) in (start..).zip(&mut value) {
                if let Some(stored) = offset.checked_sub(at).and_then(|index| bytes.get(index)) {
                    *byte = *stored;
                }
            }
            let is_part = start < at || end < start + UNIT_BYTES;
            let is_by_bytes = via == Via::CacheBytes || (via == Via::File && is_part);
            stores.push(Pending { value, is_by_bytes, stage, cpu });
        }
    }

    /// A block is about to be stored into: unless it has a place of its own, it gets one, and others are found by now.
    fn copy(&mut self, block: usize) {
        if !self.blocks.own.contains(&block) && !self.blocks.moved.contains_key(&block) {
            self.found(0..usize::MAX, self.events);
            self.blocks.moved.insert(block, self.events);
        }
    }

    /// The copies of these blocks that were made before an event are found, with what was done to them.
    fn found(&mut self, blocks: Range<usize>, before: usize) {
        for block in self.blocks.settle(blocks, before) {
            for unit in block * BLOCK_BYTES / UNIT_BYTES..(block + 1) * BLOCK_BYTES / UNIT_BYTES {
                let stores = self.pending.get(&unit).map(Vec::as_slice).unwrap_or_default();
                let is_by_file_system = |store: &Pending| matches!(store.stage, Stage::ByFileSystem(_));
                let reach = stores.iter().position(is_by_file_system).unwrap_or(stores.len());
                let is_fenced = |store: &Pending| matches!(store.stage, Stage::Fenced(_));
                let done = stores[..reach].iter().rposition(is_fenced).map_or(0, |last| last + 1);
                self.persist(unit, done);
            }
        }
    }

    /// Whether a store to a unit persists as soon as a fence has been passed.
    fn persists_at_fence(&self, unit: usize) -> bool {
        match self.class {
            Class::Lines => true,
            Class::Shared => self.blocks.own.contains(&(unit * UNIT_BYTES / BLOCK_BYTES)),
            Class::Queues | Class::Pages => false,
        }
    }

    fn flush(&mut self, cpu: usize, unit: usize, is_ordered: bool) {
        let Some(stores) = self.pending.get_mut(&unit) else { return };
        let mut flushed = 0;
        for (number, store) in (1..).zip(stores.iter_mut()) {
            if store.cpu == cpu && store.stage == Stage::Dirty {
                store.stage = Stage::Flushed;
                flushed = number;
            }
        }
        if is_ordered {
            self.fence(cpu, unit, flushed);
        }
    }

    /// A fence for the first `count` stores of this CPU to a unit.
    fn fence(&mut self, cpu: usize, unit: usize, count: usize) {
        let Some(stores) = self.pending.get_mut(&unit) else { return };
        let mut fenced = 0;
        for (number, store) in (1..).zip(stores.iter_mut().take(count)) {
            if store.cpu == cpu && store.stage == Stage::Flushed {
                store.stage = Stage::Fenced(self.events);
                fenced = number;
            }
        }
        if self.persists_at_fence(unit) {
            self.persist(unit, fenced);
        }
    }

    /// A sync is over that began at this event.
    ///
    /// Stores behind something that the file system did are not covered by one of a range: what they are
    /// found by may be gone. Where lines or queues are what counts a page is there to stay before it can be
    /// stored into (`MAP_SYNC`).
    fn sync(&mut self, what: Synced, begin: usize) {
        match what {
            Synced::Everything => self.found(0..usize::MAX, begin),
            Synced::Range { start, end } => {
                let block = |at: u64| at as usize / BLOCK_BYTES;
                self.found(block(start)..block(end), begin);
            }
            Synced::Queues => {}
        }
        let units: Vec<usize> = self.pending.keys().copied().collect();
        for unit in units {
            let start = (unit * UNIT_BYTES) as u64;
            let is_in_range = match what {
                Synced::Range { start: first, end } => first <= start && start + UNIT_BYTES as u64 <= end,
                Synced::Everything | Synced::Queues => true,
            };
            let is_by_file_system = |stage: Stage| matches!(stage, Stage::ByFileSystem(_));
            let covers = |stage: Stage| match (self.class, what, stage) {
                (_, Synced::Everything, Stage::ByFileSystem(since)) => since < begin,
                (
                    Class::Pages | Class::Shared,
                    Synced::Everything | Synced::Range { .. },
                    Stage::Fenced(since),
                )
                | (Class::Queues, Synced::Queues, Stage::Fenced(since)) => since < begin,
                _ => false,
            };
            let stores = &self.pending[&unit];
            let reach = match what {
                Synced::Range { .. } => stores.iter().position(|store| is_by_file_system(store.stage)),
                Synced::Everything | Synced::Queues => None,
            };
            let reached = &stores[..reach.unwrap_or(stores.len())];
            let covered = reached.iter().rposition(|store| covers(store.stage)).map_or(0, |last| last + 1);
            if is_in_range {
                self.persist(unit, covered);
            }
        }
    }

    /// The first `count` stores to a unit have persisted, each overwritten by the next.
    fn persist(&mut self, unit: usize, count: usize) {
        let Some(stores) = self.pending.get_mut(&unit) else { return };
        if let Some(last) = stores.drain(..count).next_back() {
            self.persisted[unit] = last.value;
        }
        if stores.is_empty() {
            self.pending.remove(&unit);
        }
    }
}

/// Every unit of which some bytes have become the other's, the first ones first: small moves go upwards, and
/// stores into the cache keep their order.
fn mixtures(one: Unit, other: Unit, into: &mut Vec<Unit>) {
    let mut mixture = one;
    for (byte, new) in other.into_iter().enumerate() {
        mixture[byte] = new;
        into.push(mixture);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OLD: Unit = [0; UNIT_BYTES];

    fn ambiguous_after(events: &[(usize, Event)]) -> Vec<Unit> {
        ambiguous_of(Class::Lines, events)
    }

    fn ambiguous_of(class: Class, events: &[(usize, Event)]) -> Vec<Unit> {
        let mut media = Media::new(class, &[0; 128]);
        for (cpu, event) in events {
            media.apply(&Logged { cpu: *cpu, event: event.clone() });
        }
        let ambiguous = media.ambiguous();
        assert!(ambiguous.len() <= 1 && ambiguous.iter().all(|(unit, _)| *unit == 8), "{ambiguous:?}");
        ambiguous.into_iter().next().map_or(vec![media.persisted()[8]], |(_, values)| values)
    }

    const fn flush(is_ordered: bool) -> Event {
        Event::FlushLine { at: 64, is_ordered }
    }

    /// The rules of the media, one by one: they are what everything else stands on.
    #[test]
    fn a_store_has_persisted_exactly_when_the_cpu_says_so() {
        let store = |fill: u8, via| (0, Event::Store { at: 64, bytes: vec![fill; 8], via });
        let (cached, streamed) = (store(1, Via::Cache), store(1, Via::Stream));
        let new = [1; UNIT_BYTES];
        let fence = (0, Event::Fence);
        let cases = [
            (vec![cached.clone()], vec![OLD, new]),
            (vec![cached.clone(), fence.clone()], vec![OLD, new]),
            (vec![cached.clone(), (0, flush(false))], vec![OLD, new]),
            (vec![cached.clone(), (0, flush(false)), fence.clone()], vec![new]),
            (vec![(0, flush(false)), cached.clone(), fence.clone()], vec![OLD, new]),
            (vec![cached.clone(), (0, flush(true))], vec![new]),
            (vec![cached.clone(), (0, flush(false)), (1, Event::Fence)], vec![OLD, new]),
            (vec![streamed.clone()], vec![OLD, new]),
            (vec![streamed.clone(), (1, Event::Fence)], vec![OLD, new]),
            (vec![streamed.clone(), fence.clone()], vec![new]),
            (vec![streamed, store(2, Via::Cache), fence.clone()], vec![new, [2; UNIT_BYTES]]),
        ];
        for (events, values) in cases {
            assert_eq!(ambiguous_after(&events), values, "{events:?}");
        }
        // The last one stored may be there before the one in the middle was, but never the first again.
        let three = [cached, store(2, Via::Cache), (0, flush(false)), store(3, Via::Cache), fence];
        assert_eq!(ambiguous_after(&three), [[2; UNIT_BYTES], [3; UNIT_BYTES]]);
    }

    #[test]
    fn a_store_by_bytes_may_end_after_any_of_them() {
        let bytes = (0, Event::Store { at: 65, bytes: vec![7, 8], via: Via::CacheBytes });
        let unit = |a, b| [0, a, b, 0, 0, 0, 0, 0];
        assert_eq!(ambiguous_after(&[bytes]), [unit(0, 0), unit(7, 0), unit(7, 8)]);
    }

    /// Every way that a sync may miss a store.
    #[test]
    fn a_sync_covers_what_was_done_before_it_began() {
        const NEW: Unit = [1; UNIT_BYTES];
        let store = |via| (0, Event::Store { at: 64, bytes: vec![1; 8], via });
        let (streamed, filed, fence) = (store(Via::Stream), store(Via::File), (0, Event::Fence));
        let begins = |what| (1, Event::SyncBegins(what));
        let end = (1, Event::SyncEnds);
        let range = |start, end| begins(Synced::Range { start, end });
        let (here, all, queues) = (range(64, 72), begins(Synced::Everything), begins(Synced::Queues));
        let unsure = vec![OLD, NEW];
        let cases = [
            (Class::Pages, vec![&streamed, &fence], &unsure),
            (Class::Pages, vec![&streamed, &fence, &here], &unsure),
            (Class::Pages, vec![&streamed, &fence, &here, &end], &vec![NEW]),
            (Class::Pages, vec![&streamed, &fence, &all, &end], &vec![NEW]),
            (Class::Pages, vec![&streamed, &here, &fence, &end], &unsure),
            (Class::Pages, vec![&streamed, &here, &end, &fence], &unsure),
            (Class::Pages, vec![&here, &streamed, &fence, &end], &unsure),
            (Class::Pages, vec![&filed, &here, &end], &unsure),
            (Class::Pages, vec![&filed, &streamed, &fence, &here, &end], &unsure),
            (Class::Pages, vec![&filed, &all, &end], &vec![NEW]),
            (Class::Pages, vec![&all, &filed, &end], &unsure),
            (Class::Lines, vec![&filed, &fence], &unsure),
            (Class::Lines, vec![&filed, &all, &end], &vec![NEW]),
            (Class::Queues, vec![&streamed, &fence], &unsure),
            (Class::Queues, vec![&streamed, &fence, &all, &end], &unsure),
            (Class::Queues, vec![&streamed, &queues, &fence, &end], &unsure),
            (Class::Queues, vec![&streamed, &fence, &queues, &end], &vec![NEW]),
        ];
        for (class, events, values) in cases {
            let events: Vec<_> = events.into_iter().cloned().collect();
            assert_eq!(ambiguous_of(class, &events), *values, "{class:?} {events:?}");
        }
        for elsewhere in [range(0, 64), range(72, 128)] {
            let events = [streamed.clone(), fence.clone(), elsewhere, end.clone()];
            assert_eq!(ambiguous_of(Class::Pages, &events), unsure, "{events:?}");
        }
    }

    /// As was seen on XFS: the last copy is lost with what was stored into it, those before it are not.
    #[test]
    fn the_copy_of_a_shared_block_is_found_after_a_sync_or_the_next_copy() {
        let mut media = Media::new(Class::Shared, &[0; 3 * BLOCK_BYTES]);
        let mut ambiguous_after = |events: &[Event]| {
            events.iter().for_each(|event| media.apply(&Logged { cpu: 0, event: event.clone() }));
            media.ambiguous().into_iter().map(|(unit, _)| unit * UNIT_BYTES).collect::<Vec<_>>()
        };
        let store = |at| Event::Store { at, bytes: vec![1; 8], via: Via::Stream };
        let fenced = |at| [store(at), Event::Fence];
        let none: [usize; 0] = [];
        assert_eq!(ambiguous_after(&fenced(0)), [0]);
        assert_eq!(ambiguous_after(&fenced(64)), [0, 64], "the same block");
        assert_eq!(ambiguous_after(&fenced(BLOCK_BYTES)), [BLOCK_BYTES], "another one");
        assert_eq!(
            ambiguous_after(&fenced(128)),
            [BLOCK_BYTES],
            "which has made the first one's place known"
        );
        let range = |block: usize| Synced::Range {
            start: (block * BLOCK_BYTES) as u64,
            end: ((block + 1) * BLOCK_BYTES) as u64,
        };
        assert_eq!(ambiguous_after(&[Event::SyncBegins(range(0)), Event::SyncEnds]), [BLOCK_BYTES]);
        assert_eq!(ambiguous_after(&[Event::SyncBegins(range(1)), Event::SyncEnds]), none);
        assert_eq!(ambiguous_after(&fenced(BLOCK_BYTES + 8)), none);
        let begun =
            [Event::SyncBegins(Synced::Everything), store(2 * BLOCK_BYTES), Event::Fence, Event::SyncEnds];
        assert_eq!(ambiguous_after(&begun), [2 * BLOCK_BYTES], "a copy made while it ran");
    }
}
