//! What a ring has done: plain numbers, owned by the thread that owns the ring.

/// Counts since the ring was started; the control plane adds them up when it takes the ring back.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    // What is counted together is not side by side: compilers would do it with one wide addition, and take longer to
    // build it.
    /// Read requests that succeeded.
    pub reads: u64,
    /// Write requests that succeeded.
    pub writes: u64,
    /// Bytes given to the guest.
    pub read_bytes: u64,
    /// Bytes taken from the guest.
    pub written_bytes: u64,
    /// Bytes that the guest has asked to be zeroes, in requests that succeeded.
    pub zeroed_bytes: u64,
    /// Flushes that succeeded.
    pub flushes: u64,
    /// Bytes that the media took, for these and for zeroes: endurance is spent on them.
    pub media_written_bytes: u64,
    /// Other requests that succeeded: GET_ID, DISCARD, WRITE_ZEROES.
    pub others: u64,
    /// Requests answered with IOERR or UNSUPP.
    pub failures: u64,
    /// Rings broken by a driver's mistake.
    pub broken_rings: u64,
    /// Reads and writes that the kernel has done by itself, while no thread waited for them.
    pub direct: u64,
    /// How often a ring was held by a limit, with requests in it.
    pub throttled: u64,
    /// For how long, in nanoseconds.
    pub throttled_ns: u64,
}

/// What a request has done, to be counted once it is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// So many bytes were given to the guest.
    Read(u64),
    /// So many bytes were taken from it, and so many did the media take for them.
    Written {
        /// The guest's.
        bytes: u64,
        /// The media's.
        media_bytes: u64,
    },
    /// Ranges were zeroed.
    Zeroed {
        /// Their bytes.
        bytes: u64,
        /// What the media took for it.
        media_bytes: u64,
    },
    /// Everything before was made to persist.
    Flushed,
    /// Something else.
    Other,
    /// Nothing: the request failed.
    Failed,
}

impl Counters {
    /// Counts a request.
    #[inline]
    pub const fn count(&mut self, effect: Effect) {
        match effect {
            Effect::Read(bytes) => {
                self.reads = self.reads.wrapping_add(1);
                self.read_bytes = self.read_bytes.wrapping_add(bytes);
            }
            Effect::Written { bytes, media_bytes } => {
                self.writes = self.writes.wrapping_add(1);
                self.written_bytes = self.written_bytes.wrapping_add(bytes);
                self.media_written_bytes = self.media_written_bytes.wrapping_add(media_bytes);
            }
            Effect::Zeroed { bytes, media_bytes } => {
                self.others = self.others.wrapping_add(1);
                self.zeroed_bytes = self.zeroed_bytes.wrapping_add(bytes);
                self.media_written_bytes = self.media_written_bytes.wrapping_add(media_bytes);
            }
            Effect::Flushed => self.flushes = self.flushes.wrapping_add(1),
            Effect::Other => self.others = self.others.wrapping_add(1),
            Effect::Failed => self.failures = self.failures.wrapping_add(1),
        }
    }

    /// Adds `other`.
    pub fn add(&mut self, other: &Self) {
        self.merge(other, u64::wrapping_add);
    }

    /// Takes those of `other` that are higher.
    pub fn raise_to(&mut self, other: &Self) {
        self.merge(other, u64::max);
    }

    fn merge(&mut self, other: &Self, with: impl Fn(u64, u64) -> u64) {
        self.reads = with(self.reads, other.reads);
        self.read_bytes = with(self.read_bytes, other.read_bytes);
        self.writes = with(self.writes, other.writes);
        self.written_bytes = with(self.written_bytes, other.written_bytes);
        self.zeroed_bytes = with(self.zeroed_bytes, other.zeroed_bytes);
        self.media_written_bytes = with(self.media_written_bytes, other.media_written_bytes);
        self.flushes = with(self.flushes, other.flushes);
        self.others = with(self.others, other.others);
        self.failures = with(self.failures, other.failures);
        self.broken_rings = with(self.broken_rings, other.broken_rings);
        self.direct = with(self.direct, other.direct);
        self.throttled = with(self.throttled, other.throttled);
        self.throttled_ns = with(self.throttled_ns, other.throttled_ns);
    }
}

/// What the rings of a disk have done, by their index: of all its front-ends together.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RingCounters(Vec<Counters>);

impl RingCounters {
    /// Adds what a ring has done.
    pub fn add(&mut self, ring: u16, counters: &Counters) {
        self.of(usize::from(ring)).add(counters);
    }

    /// Adds `other`.
    pub fn add_all(&mut self, other: &Self) {
        other.0.iter().enumerate().for_each(|(ring, counters)| self.of(ring).add(counters));
    }

    /// Takes those of `other` that are higher.
    pub fn raise_to(&mut self, other: &Self) {
        other.0.iter().enumerate().for_each(|(ring, counters)| self.of(ring).raise_to(counters));
    }

    /// What all of them have done.
    pub fn sum(&self) -> Counters {
        let mut sum = Counters::default();
        self.0.iter().for_each(|counters| sum.add(counters));
        sum
    }

    /// The rings that have done something.
    pub fn all(&self) -> impl Iterator<Item = (usize, &Counters)> {
        self.0.iter().enumerate().filter(|(_, counters)| **counters != Counters::default())
    }

    /// Those of a ring, for which there is room from now on.
    fn of(&mut self, ring: usize) -> &mut Counters {
        if ring >= self.0.len() {
            self.0.resize(ring.saturating_add(1), Counters::default());
        }
        #[allow(clippy::indexing_slicing)] // there is room for it
        &mut self.0[ring]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rings_are_told_apart_and_added_up() {
        let reads = |reads| Counters { reads, ..Counters::default() };
        let mut rings = RingCounters::default();
        rings.add(3, &reads(2));
        rings.add(0, &reads(1));
        rings.add(3, &reads(4));
        assert_eq!(rings.all().map(|(ring, it)| (ring, it.reads)).collect::<Vec<_>>(), [(0, 1), (3, 6)]);
        assert_eq!(rings.sum(), reads(7));
        let mut seen = RingCounters::default();
        seen.add(3, &reads(9));
        seen.add(4, &reads(1));
        seen.raise_to(&rings);
        assert_eq!(
            seen.all().map(|(ring, it)| (ring, it.reads)).collect::<Vec<_>>(),
            [(0, 1), (3, 9), (4, 1)]
        );
    }

    #[test]
    fn what_is_lower_does_not_lower_it() {
        let seen = Counters { reads: 5, writes: 1, ..Counters::default() };
        let mut counters = seen;
        counters.raise_to(&Counters { reads: 3, writes: 2, broken_rings: 1, ..Counters::default() });
        assert_eq!(counters, Counters { writes: 2, broken_rings: 1, ..seen });
    }
}
