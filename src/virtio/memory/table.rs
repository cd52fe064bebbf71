//! A front-end's memory: its regions, mapped, and where their addresses are.

#![allow(unsafe_code)]

use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::dirty_log::DirtyLog;
use super::extents::{BufferKind, Extent, ExtentCache, Extents};
use super::shared::{SharedError, SharedMapping};
use crate::copy::Segment;
use crate::copy::fault::{self, Userfault, WatchedRange};
use crate::limits::bounds::MAX_REGIONS;
use crate::limits::budget::Charge;

/// A region as a front-end describes it: unchecked numbers.
#[derive(Debug)]
pub struct RegionSpec {
    /// First guest-physical address.
    pub guest_start: u64,
    /// Length in bytes.
    pub len_bytes: u64,
    /// First address in the front-end's own address space; ring addresses are given in it.
    pub user_start: u64,
    /// Where in `file` the region begins, in bytes.
    pub file_offset: u64,
    /// The shared memory.
    pub file: File,
    /// What it takes of the disk's budget, for as long as it is mapped; none where nothing is counted.
    pub charge: Option<Charge>,
}

/// Why a region is refused. The table before it stays in force.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// An end address does not fit 64 bits, or there are no bytes.
    #[error("region at {0:#x}: its length is zero or runs over the end of the address space")]
    Overflow(u64),
    /// The part of the file cannot be mapped.
    #[error("region at {0:#x}: {1}")]
    Shared(u64, SharedError),
    /// Two regions claim the same guest address.
    #[error("region at {0:#x}: overlaps the region at {1:#x}")]
    Overlap(u64, u64),
    /// More than [`MAX_REGIONS`].
    #[error("more than {MAX_REGIONS} regions")]
    TooMany,
    /// Nothing to remove.
    #[error("no region of {1:#x} bytes at {0:#x}")]
    NotFound(u64, u64),
    /// In a postcopy migration only.
    #[error(
        "region at {0:#x}: pages of it that are missing cannot be waited for: {1}; the guest's memory has to be a \
         memfd, or on tmpfs or hugetlbfs"
    )]
    Unwaitable(u64, std::io::Error),
}

/// One mapped region; unmapped on drop.
#[derive(Debug)]
struct Region {
    guest_start: u64,
    len_bytes: u64,
    user_start: u64,
    memory: SharedMapping,
    _charge: Option<Charge>,
}

impl Region {
    fn map(spec: RegionSpec) -> Result<Self, MemoryError> {
        let RegionSpec { guest_start, len_bytes, user_start, file_offset, file, charge } = spec;
        let overflow = || MemoryError::Overflow(guest_start);
        if len_bytes == 0 {
            return Err(overflow());
        }
        guest_start.checked_add(len_bytes).ok_or_else(overflow)?;
        user_start.checked_add(len_bytes).ok_or_else(overflow)?;
        let memory = SharedMapping::map(&file, file_offset, len_bytes);
        let memory = memory.map_err(|error| MemoryError::Shared(guest_start, error))?;
        Ok(Self { guest_start, len_bytes, user_start, memory, _charge: charge })
    }

    const fn watch(&self) -> &WatchedRange {
        self.memory.watch()
    }

    /// Whether both claim some guest address; the sums cannot overflow, see [`Region::map`].
    fn overlaps(&self, other: &Self) -> bool {
        self.guest_start < other.guest_start.saturating_add(other.len_bytes)
            && other.guest_start < self.guest_start.saturating_add(self.len_bytes)
    }
}

/// All of a front-end's memory: an immutable snapshot, sorted by guest address.
///
/// - **M1**: an address that the table, or a [`Translator`] over it, answers lies in one of its regions for the whole length
///   asked for, and stays mapped, readable and writable until the table is dropped. `Region::map` sees to that, as the table
///   keeps its regions; rings, chains and copies rely on it. (A file may be truncated: see `copy::fault`.)
/// - **M2**: no Rust reference leads to guest memory but to atomics. Everybody who has an address keeps to it.
/// - **M3**: a table never changes, and follows none of its pointers.
#[derive(Debug, Default)]
pub struct MemoryTable {
    regions: Vec<Arc<Region>>,
    by_guest: Extents,
    by_user: Box<[Extent]>,
    /// Its pages come later.
    awaits_pages: AtomicBool,
}

// SAFETY: M3: the pointers are read here, and lead nowhere of this thread's own. M1: they are good on any.
unsafe impl Send for MemoryTable {}
// SAFETY: M3: what several threads read never changes.
unsafe impl Sync for MemoryTable {}

impl MemoryTable {
    /// Maps a whole table (`SET_MEM_TABLE`); the order of `specs` does not matter.
    ///
    /// # Errors
    /// The first region that is refused; nothing stays mapped then.
    pub fn map(specs: Vec<RegionSpec>) -> Result<Self, MemoryError> {
        let regions = specs.into_iter().map(|spec| Region::map(spec).map(Arc::new));
        Self::of(regions.collect::<Result<_, _>>()?)
    }

    /// This table and one region more (`ADD_MEM_REG`).
    ///
    /// # Errors
    /// Why the region is refused; this table stays as it is.
    pub fn with(&self, spec: RegionSpec) -> Result<Self, MemoryError> {
        let mut regions = self.regions.clone();
        regions.push(Arc::new(Region::map(spec)?));
        Self::of(regions)
    }

    /// This table without one region (`REM_MEM_REG`), named by all of its numbers.
    ///
    /// # Errors
    /// [`MemoryError::NotFound`].
    pub fn without(&self, guest_start: u64, len_bytes: u64, user_start: u64) -> Result<Self, MemoryError> {
        let is_it = |region: &Arc<Region>| {
            (region.guest_start, region.len_bytes, region.user_start) == (guest_start, len_bytes, user_start)
        };
        let mut regions = self.regions.clone();
        let position = regions.iter().position(is_it).ok_or(MemoryError::NotFound(guest_start, len_bytes))?;
        regions.remove(position);
        Self::of(regions)
    }

    /// How many regions there are.
    pub fn len(&self) -> usize {
        self.regions.len()
    }

    /// Whether there is no memory at all.
    pub fn is_empty(&self) -> bool {
        self.regions.is_empty()
    }

    /// Whether a page of it was lost: the file behind it is shorter than it was, or the page went bad. What
    /// is read there from then on are zeroes.
    pub fn has_lost_pages(&self) -> bool {
        self.regions.iter().any(|region| region.watch().has_faulted())
    }

    /// Host address of `len_bytes` bytes at an address of the front-end's own address space, if they lie in
    /// one region.
    pub fn resolve_user(&self, address: u64, len_bytes: u64) -> Option<*mut u8> {
        // Regions may overlap in these addresses, so the first one that holds it all serves.
        self.by_user.iter().find_map(|extent| match extent.at(address) {
            Some((host, left)) if left >= len_bytes => Some(host),
            _ => None,
        })
    }

    /// Whether a run of host addresses lies in one of its regions.
    pub(in crate::virtio) fn has(&self, segment: &Segment) -> bool {
        self.by_guest.iter().any(|extent| {
            let offset = segment.ptr().addr().checked_sub(extent.host.addr());
            let end = offset.and_then(|offset| offset.checked_add(segment.len()));
            end.is_some_and(|end| end as u64 <= extent.len_bytes)
        })
    }

    /// Guest-physical address of what is mapped at a host address.
    pub(in crate::virtio) fn guest_address(&self, host: *const u8) -> Option<u64> {
        self.by_guest.iter().find_map(|extent| {
            let offset = u64::try_from(host.addr().checked_sub(extent.host.addr())?).ok()?;
            (offset < extent.len_bytes).then(|| extent.start.wrapping_add(offset))
        })
    }

    /// Has accesses to missing pages wait until the front-end has brought them (userfaultfd(2)). To be called before any page
    /// is touched.
    ///
    /// # Errors
    /// [`MemoryError::Unwaitable`].
    pub fn wait_for_pages(&self, userfault: &Userfault) -> Result<(), MemoryError> {
        self.awaits_pages.store(true, Ordering::Release);
        for region in &self.regions {
            let waits = region.watch().wait_for_pages(userfault);
            waits.map_err(|error| MemoryError::Unwaitable(region.guest_start, error))?;
        }
        Ok(())
    }

    /// Whether its pages come later, and may be given up before.
    pub fn awaits_pages(&self) -> bool {
        self.awaits_pages.load(Ordering::Acquire)
    }

    /// All pages have come.
    pub fn cease_waiting(&self, userfault: &Userfault) {
        self.awaits_pages.store(false, Ordering::Release);
        for region in &self.regions {
            if let Err(error) = region.watch().cease_waiting(userfault) {
                tracing::debug!(region = region.guest_start, %error, "its pages were not waited for");
            }
        }
    }

    /// The front-end brings no more pages: all of the memory is lost, and threads that wait for a page are told so.
    pub fn give_up(&self, userfault: &Userfault) {
        for region in &self.regions {
            if let Err(error) = region.watch().give_up(userfault) {
                tracing::error!(region = region.guest_start, %error, "guest memory that is lost stays mapped");
            }
        }
    }

    /// Waits until `len_bytes` bytes at an address of the front-end's own address space are there; what is not in the
    /// table is not waited for. False when they are lost.
    pub fn touch_user(&self, address: u64, len_bytes: u64) -> bool {
        let mut regions = self.regions.iter();
        let found = regions.find_map(|region| {
            let offset = address.checked_sub(region.user_start)?;
            (offset.checked_add(len_bytes)? <= region.len_bytes).then_some((region, offset))
        });
        let Some((region, offset)) = found else { return true };
        match (usize::try_from(offset), usize::try_from(len_bytes)) {
            (Ok(offset), Ok(len)) => region.watch().touch(offset, len),
            _ => true,
        }
    }

    /// Where in this process the region is mapped that begins at a guest address.
    pub fn host_address(&self, guest_start: u64) -> Option<u64> {
        let extent = self.by_guest.iter().find(|extent| extent.start == guest_start)?;
        u64::try_from(extent.host.addr()).ok()
    }

    fn of(mut regions: Vec<Arc<Region>>) -> Result<Self, MemoryError> {
        if regions.len() > MAX_REGIONS {
            return Err(MemoryError::TooMany);
        }
        regions.sort_by_key(|region| region.guest_start);
        for (region, next) in regions.iter().zip(regions.iter().skip(1)) {
            if region.overlaps(next) {
                return Err(MemoryError::Overlap(next.guest_start, region.guest_start));
            }
        }
        let extents = |start: fn(&Region) -> u64| {
            let extent = |region: &Arc<Region>| Extent {
                start: start(region),
                len_bytes: region.len_bytes,
                host: region.memory.start(),
            };
            regions.iter().map(extent).collect()
        };
        let by_user = extents(|region| region.user_start);
        let by_guest = Extents::new(extents(|region| region.guest_start));
        Ok(Self { regions, by_guest, by_user, awaits_pages: AtomicBool::new(false) })
    }
}

/// A ring's view of its table: a cache of its extents, and whether any of it was lost.
#[derive(Debug)]
pub struct Translator {
    table: Arc<MemoryTable>,
    cache: ExtentCache,
    /// What is written there is marked in it.
    log: Option<Arc<DirtyLog>>,
    /// Losses in the whole process when the table and the log were last asked for their own.
    losses: u64,
}

// SAFETY: M3: the cache is made of copies of the table's extents, and used through `&mut` where it changes.
unsafe impl Send for Translator {}

impl Translator {
    /// A view of `table`, which stays mapped as long as the view lives.
    pub fn new(table: Arc<MemoryTable>) -> Self {
        // Whatever was lost before counts, too.
        Self { cache: ExtentCache::new(&table.by_guest), table, log: None, losses: 0 }
    }

    /// The table behind the view.
    #[inline]
    pub const fn table(&self) -> &Arc<MemoryTable> {
        &self.table
    }

    /// A log that is lost counts as memory that is, from now on.
    pub fn log_to(&mut self, log: Arc<DirtyLog>) {
        self.log = Some(log);
    }

    /// Whether a page of the table was lost, or of its log, so that a ring in it cannot be trusted, or what was read of it because a
    /// copy was [ended](fault::interruption). Cheap as long as none is lost anywhere.
    #[inline]
    pub fn is_lost(&mut self) -> bool {
        let losses = fault::losses();
        losses != self.losses && self.ask_for_losses(losses)
    }

    #[cold]
    fn ask_for_losses(&mut self, losses: u64) -> bool {
        let is_lost =
            self.table.has_lost_pages() || self.is_log_lost() || fault::interruption::is_interrupted();
        if !is_lost {
            self.losses = losses;
        }
        is_lost
    }

    /// Whether marks in the log were lost.
    pub fn is_log_lost(&self) -> bool {
        self.log.as_ref().is_some_and(|log| log.is_lost())
    }

    /// Host address of `len_bytes` bytes (not none) at a guest address, if they lie in one region.
    #[inline]
    pub fn resolve(&mut self, kind: BufferKind, address: u64, len_bytes: u64) -> Option<*mut u8> {
        match self.cache.resolve(kind, address, len_bytes) {
            Some(host) => Some(host),
            None => self.cache.fill(kind, address, len_bytes, &self.table.by_guest),
        }
    }

    /// As [`resolve`](Self::resolve); unless it `fills_cache`, only if the cache has the region.
    #[inline(always)]
    pub fn translate(
        &mut self,
        fills_cache: bool,
        kind: BufferKind,
        address: u64,
        len_bytes: u64,
    ) -> Option<*mut u8> {
        if fills_cache {
            self.resolve(kind, address, len_bytes)
        } else {
            self.cache.resolve(kind, address, len_bytes)
        }
    }

    /// Appends the host ranges of `len_bytes` bytes at a guest address: one in all but strange cases, more
    /// where they run over a region's end into the next.
    ///
    /// Returns how many there are, if all of it is mapped and fits into `out`.
    #[inline(never)]
    pub fn resolve_pieces(&self, address: u64, len_bytes: u32, out: &mut [Segment]) -> Option<usize> {
        let (mut address, mut missing) = (address, u64::from(len_bytes));
        let mut pieces = 0_usize;
        for piece in out {
            if missing == 0 {
                break;
            }
            let (host, left) = self.table.by_guest.find(address)?.at(address)?;
            let here = left.min(missing);
            *piece = Segment::new(host, usize::try_from(here).ok()?);
            pieces += 1;
            missing -= here;
            address = address.wrapping_add(here);
        }
        (missing == 0).then_some(pieces)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::copy::testing::memfd;

    const PAGE: u64 = 4096;

    fn file(len_bytes: u64) -> File {
        memfd("guest", len_bytes)
    }

    fn spec(guest_start: u64, len_bytes: u64, user_start: u64) -> RegionSpec {
        RegionSpec { guest_start, len_bytes, user_start, file_offset: 0, file: file(len_bytes), charge: None }
    }

    #[test]
    fn regions_are_found_in_any_order_and_up_to_their_last_byte() {
        let specs = vec![spec(8 * PAGE, PAGE, 0x7000_0000), spec(0, 2 * PAGE, 0x1000_0000)];
        let table = Arc::new(MemoryTable::map(specs).unwrap());
        let mut view = Translator::new(table.clone());
        let low = view.resolve(BufferKind::Data, 0, 2 * PAGE).unwrap();
        assert_eq!(view.resolve(BufferKind::Data, PAGE, PAGE), Some(low.wrapping_add(4096)));
        assert_eq!(view.resolve(BufferKind::Data, 2 * PAGE - 1, 2), None, "runs over the region's end");
        assert_eq!(view.resolve(BufferKind::Data, 2 * PAGE, 1), None, "hole");
        let high = view.resolve(BufferKind::Data, 8 * PAGE, PAGE).unwrap();
        assert_ne!(high, low);
        assert_eq!(view.resolve(BufferKind::Data, 9 * PAGE - 1, 1), Some(high.wrapping_add(4095)));
        assert_eq!(view.resolve(BufferKind::Data, 9 * PAGE, 1), None);
        assert_eq!(view.resolve(BufferKind::Data, u64::MAX, 1), None);
        assert_eq!(view.resolve(BufferKind::Data, 0, u64::MAX), None);
        assert_eq!(table.resolve_user(0x7000_0000, PAGE), Some(high));
        assert_eq!(table.resolve_user(0x7000_0001, PAGE), None);
    }

    #[test]
    fn ranges_run_on_into_the_next_region_but_not_into_a_hole() {
        let specs = vec![spec(0, PAGE, 0), spec(PAGE, PAGE, PAGE), spec(3 * PAGE, PAGE, 3 * PAGE)];
        let view = Translator::new(Arc::new(MemoryTable::map(specs).unwrap()));
        let mut out = [Segment::EMPTY; 2];
        assert_eq!(view.resolve_pieces(PAGE - 1, 2, &mut out), Some(2));
        assert_eq!(out.map(|piece| piece.len()), [1, 1]);
        assert_eq!(view.resolve_pieces(0, 8, &mut out), Some(1));
        assert_eq!(view.resolve_pieces(PAGE - 1, 2, &mut out[..1]), None, "there is no room");
        assert_eq!(view.resolve_pieces(2 * PAGE - 1, 2, &mut out), None, "a hole");
    }

    #[test]
    fn bad_regions_are_refused_with_the_reason() {
        let error = |specs| MemoryTable::map(specs).unwrap_err();
        assert!(matches!(error(vec![spec(0, 0, 0)]), MemoryError::Overflow(0)));
        assert!(matches!(error(vec![spec(u64::MAX - PAGE + 2, PAGE, 0)]), MemoryError::Overflow(_)));
        assert!(matches!(error(vec![spec(0, PAGE, u64::MAX)]), MemoryError::Overflow(_)));
        let huge = RegionSpec { file_offset: u64::MAX, ..spec(0, PAGE, 0) };
        assert!(matches!(error(vec![huge]), MemoryError::Shared(0, SharedError::Overflow(..))));
        let odd = RegionSpec { file_offset: 512, file: file(4 * PAGE), ..spec(0, PAGE, 0) };
        assert!(matches!(error(vec![odd]), MemoryError::Shared(0, SharedError::UnalignedOffset(512, PAGE))));
        let short = RegionSpec { file: file(PAGE), ..spec(0, 2 * PAGE, 0) };
        assert!(matches!(error(vec![short]), MemoryError::Shared(0, SharedError::ShortFile(PAGE, _))));
        let overlap = error(vec![spec(PAGE, PAGE, 0), spec(0, 2 * PAGE, PAGE)]);
        assert!(matches!(overlap, MemoryError::Overlap(PAGE, 0)));
        let many = (0..=MAX_REGIONS as u64).map(|i| spec(i * PAGE, PAGE, i * PAGE)).collect();
        assert!(matches!(error(many), MemoryError::TooMany));
    }

    #[test]
    fn a_removed_region_is_unmapped_with_the_last_table_that_names_it() {
        let named = rustix::fs::memfd_create("only-this-test", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        let named = File::from(named);
        named.set_len(PAGE).unwrap();
        let second = RegionSpec { file: named, ..spec(PAGE, PAGE, PAGE) };
        let both = Arc::new(MemoryTable::map(vec![spec(0, PAGE, 0), second]).unwrap());
        let one = both.without(PAGE, PAGE, PAGE).unwrap();
        assert!(matches!(both.without(PAGE, 2 * PAGE, PAGE), Err(MemoryError::NotFound(..))));
        let is_mapped = || std::fs::read_to_string("/proc/self/maps").unwrap().contains("only-this-test");
        assert_eq!(one.len(), 1);
        assert!(is_mapped());
        drop(both);
        assert!(!is_mapped());
        assert_eq!(one.with(spec(PAGE, PAGE, PAGE)).unwrap().len(), 2);
    }
}
