//! What may be on the media after so much of a log.

use std::collections::BTreeMap;

use crate::copy::recording::{Event, LINE_BYTES, Logged, UNIT_BYTES, Via};

/// What the media takes as a whole or not at all.
pub(super) type Unit = [u8; UNIT_BYTES];

/// How far a store has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// Waits for a flush of its line, unless the line happens to be evicted.
    Cached,
    /// A fence makes it certain.
    OnItsWay,
}

/// A store that may or may not be there yet.
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
    certain: Vec<Unit>,
    /// Stores since what is certain, in order, by the number of their unit. None is empty.
    pending: BTreeMap<usize, Vec<Pending>>,
}

impl Media {
    /// Media on which `bytes` are certain.
    pub(super) fn new(bytes: &[u8]) -> Self {
        let certain = bytes.as_chunks::<UNIT_BYTES>().0.to_vec();
        Self { certain, pending: BTreeMap::new() }
    }

    /// What is there for certain, or was at last.
    pub(super) fn certain(&self) -> &[Unit] {
        &self.certain
    }

    /// What a reader finds while the power is on.
    pub(super) fn visible(&self) -> Vec<u8> {
        let mut units = self.certain.clone();
        for (unit, stores) in &self.pending {
            units[*unit] = stores[stores.len() - 1].value;
        }
        units.into_flattened()
    }

    /// Each unit that may be this or that, and all it may be; first what is certain.
    pub(super) fn free(&self) -> Vec<(usize, Vec<Unit>)> {
        let units = self.pending.iter().map(|(unit, stores)| (*unit, self.values(*unit, stores)));
        units.filter(|(_, values)| values.len() > 1).collect()
    }

    fn values(&self, unit: usize, stores: &[Pending]) -> Vec<Unit> {
        let mut before = self.certain[unit];
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
                units.into_iter().for_each(|unit| self.settle(cpu, unit));
            }
            Event::Seen(_) => {}
        }
    }

    fn store(&mut self, cpu: usize, at: usize, bytes: &[u8], via: Via) {
        let (is_by_bytes, stage) = match via {
            Via::Cache => (false, Stage::Cached),
            Via::CacheBytes => (true, Stage::Cached),
            Via::Stream => (false, Stage::OnItsWay),
        };
        for unit in at / UNIT_BYTES..(at + bytes.len()).div_ceil(UNIT_BYTES) {
            let stores = self.pending.entry(unit).or_default();
            let mut value = stores.last().map_or(self.certain[unit], |store| store.value);
            for (offset, byte) in (unit * UNIT_BYTES..).zip(&mut value) {
                if let Some(stored) = offset.checked_sub(at).and_then(|index| bytes.get(index)) {
                    *byte = *stored;
                }
            }
            stores.push(Pending { value, is_by_bytes, stage, cpu });
        }
    }

    fn flush(&mut self, cpu: usize, unit: usize, is_ordered: bool) {
        let Some(stores) = self.pending.get_mut(&unit) else { return };
        let mut flushed = 0;
        for (number, store) in (1..).zip(stores.iter_mut()) {
            if store.cpu == cpu && store.stage == Stage::Cached {
                store.stage = Stage::OnItsWay;
                flushed = number;
            }
        }
        if is_ordered {
            self.make_certain(unit, flushed);
        }
    }

    /// A fence of this CPU.
    fn settle(&mut self, cpu: usize, unit: usize) {
        let stores = &self.pending[&unit];
        let last = stores.iter().rposition(|store| store.cpu == cpu && store.stage == Stage::OnItsWay);
        self.make_certain(unit, last.map_or(0, |last| last + 1));
    }

    /// The first `count` stores to a unit are there, each overwritten by the next.
    fn make_certain(&mut self, unit: usize, count: usize) {
        let Some(stores) = self.pending.get_mut(&unit) else { return };
        if let Some(last) = stores.drain(..count).next_back() {
            self.certain[unit] = last.value;
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

    fn free_after(events: &[(usize, Event)]) -> Vec<Unit> {
        let mut media = Media::new(&[0; 128]);
        for (cpu, event) in events {
            media.apply(&Logged { cpu: *cpu, event: event.clone() });
        }
        let free = media.free();
        assert!(free.len() <= 1 && free.iter().all(|(unit, _)| *unit == 8), "{free:?}");
        free.into_iter().next().map_or(vec![media.certain()[8]], |(_, values)| values)
    }

    const fn flush(is_ordered: bool) -> Event {
        Event::FlushLine { at: 64, is_ordered }
    }

    /// The rules of the media, one by one: they are what everything else stands on.
    #[test]
    fn a_store_is_certain_exactly_when_the_cpu_says_so() {
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
            assert_eq!(free_after(&events), values, "{events:?}");
        }
        // The last one stored may be there before the one in the middle was, but never the first again.
        let three = [cached, store(2, Via::Cache), (0, flush(false)), store(3, Via::Cache), fence];
        assert_eq!(free_after(&three), [[2; UNIT_BYTES], [3; UNIT_BYTES]]);
    }

    #[test]
    fn a_store_by_bytes_may_end_after_any_of_them() {
        let bytes = (0, Event::Store { at: 65, bytes: vec![7, 8], via: Via::CacheBytes });
        let unit = |a, b| [0, a, b, 0, 0, 0, 0, 0];
        assert_eq!(free_after(&[bytes]), [unit(0, 0), unit(7, 0), unit(7, 8)]);
    }
}
