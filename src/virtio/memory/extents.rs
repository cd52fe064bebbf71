//! Where the bytes of a guest address are, with a cache, so that it costs the same however many regions there are.

use super::speculation::below;

/// Entries of the cache for each kind of buffer.
const BUCKETS: usize = 128;

/// Size of an [`Extent`] in bytes.
const EXTENT_BYTES: usize = 32;
const _: () = assert!(size_of::<Extent>() == EXTENT_BYTES);

/// A region as the data path reads it.
#[derive(Debug, Clone, Copy)]
#[repr(align(32))] // never in two cache lines
pub(super) struct Extent {
    pub(super) start: u64,
    pub(super) len_bytes: u64,
    pub(super) host: *mut u8,
}

impl Extent {
    const EMPTY: Self = Self { start: 0, len_bytes: 0, host: std::ptr::null_mut() };

    /// Host address of `address` and how many bytes follow it in this extent.
    #[inline]
    pub(super) fn at(&self, address: u64) -> Option<(*mut u8, u64)> {
        let offset = address.wrapping_sub(self.start);
        // A wrapped offset is larger than any length, so one comparison checks both ends.
        let left = self.len_bytes.checked_sub(offset).filter(|left| *left > 0)?;
        // Masked: searches among all regions are too rare for the cost of a mask to matter.
        let host = self.host.wrapping_add(usize::try_from(below(offset, self.len_bytes)).ok()?);
        Some((host, left))
    }

    /// Host address of `len_bytes` bytes (not none) at `address`, if all of them are in this extent.
    #[inline(always)]
    fn whole(&self, address: u64, len_bytes: u64) -> Option<*mut u8> {
        let offset = address.wrapping_sub(self.start);
        // As in `at`. No bytes are nowhere.
        let left = self.len_bytes.checked_sub(offset)?;
        if len_bytes.wrapping_sub(1) >= left {
            return None;
        }
        Some(self.host.wrapping_add(usize::try_from(offset).ok()?))
    }

    /// Its last address, which does not overflow: see `Region::map`.
    const fn last(&self) -> u64 {
        self.start.saturating_add(self.len_bytes.saturating_sub(1))
    }
}

/// The extents of a table, sorted by guest address, none over another.
#[derive(Debug, Default)]
pub(super) struct Extents {
    list: Box<[Extent]>,
}

impl Extents {
    pub(super) const fn new(list: Box<[Extent]>) -> Self {
        Self { list }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Extent> {
        self.list.iter()
    }

    /// The extent that an address is in, if it is in any.
    pub(super) fn find(&self, address: u64) -> Option<&Extent> {
        let after = self.list.partition_point(|extent| extent.start <= address);
        let extent = self.list.get(after.checked_sub(1)?)?;
        extent.at(address).map(|_| extent)
    }

    /// How many bits of an address count less than its bucket: what lies between the first and the last byte is in
    /// no more buckets than there are.
    fn bucket_bits(&self) -> u32 {
        let first = self.list.first().map_or(0, |extent| extent.start);
        let last = self.list.last().map_or(0, Extent::last);
        let fits = |bits: &u32| (last >> bits) - (first >> bits) < BUCKETS as u64;
        (EXTENT_BYTES.ilog2()..u64::BITS).find(fits).unwrap_or(u64::BITS - 1)
    }
}

/// What is at an address: those of one kind are often in one region of guest memory, and those of the other in another, so
/// each kind has a cache of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BufferKind {
    /// A request's header and status, or a table of descriptors.
    Request,
    /// Its data.
    Data,
}

/// For each bucket of addresses the extent that the last of them was in.
type Entries = [Extent; BUCKETS];

/// The extents that addresses were in: for each kind of buffer and each bucket of addresses the last one.
#[derive(Debug)]
pub(super) struct ExtentCache {
    /// An address without so many of its last bits is where its bucket is, in bytes.
    shift: u32,
    /// For [`BufferKind::Request`] and [`BufferKind::Data`]: side by side, so that one pointer leads to both.
    entries: Box<[Entries; 2]>,
}

impl ExtentCache {
    /// To begin with, each bucket has the longest of the extents in it: in most guests, that is the only one.
    pub(super) fn new(extents: &Extents) -> Self {
        let shift = extents.bucket_bits() - EXTENT_BYTES.ilog2();
        let mut entries = Box::new([[Extent::EMPTY; BUCKETS]; 2]);
        let [request, data] = &mut *entries;
        for extent in extents.iter() {
            for part in part(extent.start, shift)..=part(extent.last(), shift) {
                let place = request.get_mut(part % BUCKETS);
                if let Some(place) = place.filter(|place| place.len_bytes < extent.len_bytes) {
                    *place = *extent;
                }
            }
        }
        *data = *request;
        Self { shift, entries }
    }

    #[inline(always)]
    fn bucket(&self, address: u64) -> usize {
        part(address, self.shift) % BUCKETS
    }

    /// Host address of `len_bytes` bytes (not none) at a guest address, if the cache has it.
    #[inline(always)]
    pub(super) fn resolve(&self, kind: BufferKind, address: u64, len_bytes: u64) -> Option<*mut u8> {
        let [request, data] = &*self.entries;
        let known = match kind {
            BufferKind::Request => request,
            BufferKind::Data => data,
        };
        known.get(self.bucket(address))?.whole(address, len_bytes)
    }

    /// As [`resolve`](Self::resolve) after a miss: searches all extents, and caches the one it finds.
    #[cold]
    #[inline(never)]
    pub(super) fn fill(
        &mut self,
        kind: BufferKind,
        address: u64,
        len_bytes: u64,
        extents: &Extents,
    ) -> Option<*mut u8> {
        let found = *extents.find(address)?;
        let bucket = self.bucket(address);
        let [request, data] = &mut *self.entries;
        let known = match kind {
            BufferKind::Request => request,
            BufferKind::Data => data,
        };
        if let Some(place) = known.get_mut(bucket) {
            *place = found;
        }
        found.at(address).and_then(|(host, left)| (1..=left).contains(&len_bytes).then_some(host))
    }
}

/// Which part of memory an address is in, by number.
#[inline(always)]
fn part(address: u64, shift: u32) -> usize {
    usize::try_from(address >> shift).unwrap_or(0) / EXTENT_BYTES
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Of gaps and lengths, from some address on; the host address of each is its number's.
    fn extents(start: u64, parts: &[(u64, u64)]) -> Vec<Extent> {
        let mut next = start;
        let mut list = Vec::new();
        for (number, (gap, len_bytes)) in parts.iter().enumerate() {
            let Some(start) = next.checked_add(*gap) else { break };
            let Some(end) = start.checked_add(*len_bytes) else { break };
            let host = std::ptr::without_provenance_mut((number + 1) << 48);
            list.push(Extent { start, len_bytes: *len_bytes, host });
            next = end;
        }
        list
    }

    fn size() -> impl Strategy<Value = u64> {
        prop_oneof![1..5_u64, 1..100_000_u64, (0..46_u32).prop_map(|bits| 1 << bits)]
    }

    proptest! {
        /// The naive twin tries each extent.
        #[test]
        fn the_cache_finds_what_a_search_finds(
            start in prop_oneof![Just(0_u64), size(), any::<u64>()],
            parts in prop::collection::vec((prop_oneof![Just(0), size()], size()), 0..40),
            near in prop::collection::vec((0..40_usize, -3..3_i64, any::<bool>()), 1..40),
            wild in prop::collection::vec(any::<u64>(), 0..8),
            len_bytes in prop_oneof![Just(1), Just(0), 1..5_u64, any::<u64>()],
        ) {
            let list = extents(start, &parts);
            let extents = Extents::new(list.clone().into());
            let mut cache = ExtentCache::new(&extents);
            let near = near.into_iter().filter_map(|(number, by, is_end)| {
                let extent = list.get(number)?;
                let edge = if is_end { extent.last() } else { extent.start };
                Some(edge.wrapping_add_signed(by))
            });
            for address in near.chain(wild) {
                let holds = |it: &&Extent| {
                    let before = address.checked_sub(it.start).filter(|before| *before < it.len_bytes);
                    before.is_some_and(|before| len_bytes != 0 && it.len_bytes - before >= len_bytes)
                };
                let naive = list.iter().find(holds);
                let host = naive.map(|it| it.host.wrapping_add((address - it.start) as usize));
                let known = cache.resolve(BufferKind::Data, address, len_bytes);
                prop_assert!(known.is_none() || known == host);
                prop_assert_eq!(cache.fill(BufferKind::Data, address, len_bytes, &extents), host);
                let is_there = list.iter().any(|it| it.at(address).is_some());
                prop_assert_eq!(cache.resolve(BufferKind::Data, address, len_bytes), host.filter(|_| is_there));
                let of_another_kind = cache.resolve(BufferKind::Request, address, len_bytes);
                prop_assert!(of_another_kind.is_none() || of_another_kind == host);
            }
        }
    }

    /// As in a guest with a hole below 4 GiB.
    #[test]
    fn a_bucket_has_the_longest_region_before_any_address_of_it() {
        let extents = Extents::new(extents(0, &[(0, 3 << 30), (1 << 30, 13 << 30)]).into());
        let cache = ExtentCache::new(&extents);
        for address in [0, (3 << 30) - 1, 4 << 30, (17 << 30) - 1] {
            let host = extents.find(address).and_then(|extent| extent.at(address)).map(|(host, _)| host);
            assert!(host.is_some());
            assert_eq!(cache.resolve(BufferKind::Data, address, 1), host);
        }
    }

    /// At the start of the address space, as in a guest, or anywhere, as where a client's own addresses are used.
    #[test]
    fn as_many_regions_as_there_are_buckets_do_not_displace_each_other() {
        for start in [0, 0x7f01_2345_6000] {
            let list = extents(start, &vec![(1 << 20, 1 << 20); BUCKETS / 2]);
            let extents = Extents::new(list.clone().into());
            let mut cache = ExtentCache::new(&extents);
            for extent in &list {
                cache.fill(BufferKind::Request, extent.last(), 1, &extents).unwrap();
            }
            for extent in &list {
                let host = extent.host.wrapping_add(extent.len_bytes as usize - 1);
                assert_eq!(cache.resolve(BufferKind::Request, extent.last(), 1), Some(host));
            }
        }
    }
}
