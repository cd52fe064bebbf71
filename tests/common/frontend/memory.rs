//! Guest memory, as a virtual machine monitor would have it: regions of one memfd.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::MemfdFlags;
use vhost::VhostUserMemoryRegionInfo;
use vm_memory::{Bytes, FileOffset, MmapRegion, VolatileMemory};

/// What canaries around guest memory are made of, and how much of it there is.
pub const CANARY: u8 = 0xc5;
/// Bytes before, between and behind the regions.
pub const CANARY_BYTES: u64 = 4096;

/// What distinguishes the monitor's own addresses, in which rings are announced, from guest addresses.
pub const USER_BASE: u64 = 0x6000_0000_0000;

/// A run of guest addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// First address.
    pub guest_start: u64,
    /// Length in bytes, whole pages.
    pub bytes: u64,
}

/// The regions of one memfd; clones share them.
#[derive(Debug, Clone)]
pub struct Memory(Arc<Regions>);

#[derive(Debug)]
struct Regions {
    list: Vec<Region>,
    /// First address of the first region that [`Memory::allocate`] has not given away.
    next: AtomicU64,
}

#[derive(Debug)]
struct Region {
    span: Span,
    mapping: MmapRegion,
}

impl Memory {
    /// Regions one behind the other in a memfd, so all but the first have an offset in it.
    pub fn new(spans: &[Span]) -> Self {
        Self::with_flags(spans, MemfdFlags::CLOEXEC, 0).unwrap()
    }

    /// The same with canaries around each region.
    pub fn between_canaries(spans: &[Span]) -> Self {
        let memory = Self::with_flags(spans, MemfdFlags::CLOEXEC, CANARY_BYTES).unwrap();
        for gap in memory.gaps() {
            rustix::io::pwrite(memory.fd(), &[CANARY; CANARY_BYTES as usize], gap).unwrap();
        }
        memory
    }

    /// Insists that nobody has written between the regions of a memory with canaries.
    pub fn assert_canaries(&self) {
        for gap in self.gaps() {
            let mut bytes = [0; CANARY_BYTES as usize];
            assert_eq!(rustix::io::pread(self.fd(), &mut bytes, gap), Ok(bytes.len()));
            assert!(bytes.iter().all(|byte| *byte == CANARY), "bytes beyond guest memory are written to");
        }
    }

    /// Where the canaries are in the file.
    fn gaps(&self) -> impl Iterator<Item = u64> {
        let place = |region: &Region| region.mapping.file_offset().unwrap().start();
        let first = self.0.list.iter().map(move |it| place(it) - CANARY_BYTES);
        let last = self.0.list.last().map(move |it| place(it) + it.span.bytes);
        first.chain(last)
    }

    /// Where this process has mapped the regions itself.
    pub fn own_mappings(&self) -> Vec<usize> {
        self.0.list.iter().map(|region| region.mapping.as_ptr().addr()).collect()
    }

    /// The same on huge pages of 2 MiB; an error if there are none left.
    pub fn on_huge_pages(spans: &[Span]) -> std::io::Result<Self> {
        Self::with_flags(spans, MemfdFlags::CLOEXEC | MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB, 0)
    }

    fn with_flags(spans: &[Span], flags: MemfdFlags, gap_bytes: u64) -> std::io::Result<Self> {
        let file = std::fs::File::from(rustix::fs::memfd_create("guest", flags)?);
        file.set_len(gap_bytes + spans.iter().map(|span| span.bytes + gap_bytes).sum::<u64>())?;
        let mut offset = gap_bytes;
        let list = spans.iter().map(|&span| {
            let place = FileOffset::new(file.try_clone().unwrap(), offset);
            offset += span.bytes + gap_bytes;
            let mapping = MmapRegion::from_file(place, span.bytes as usize);
            Ok(Region { span, mapping: mapping.map_err(std::io::Error::other)? })
        });
        let list: Vec<Region> = list.collect::<std::io::Result<_>>()?;
        let next = AtomicU64::new(list[0].span.guest_start);
        Ok(Self(Arc::new(Regions { list, next })))
    }

    /// The regions in the order they were made.
    pub fn spans(&self) -> Vec<Span> {
        self.0.list.iter().map(|region| region.span).collect()
    }

    /// The regions as they are announced.
    pub fn announcement(&self) -> Vec<VhostUserMemoryRegionInfo> {
        let announce = |region: &Region| {
            let place = region.mapping.file_offset().unwrap();
            VhostUserMemoryRegionInfo {
                guest_phys_addr: region.span.guest_start,
                memory_size: region.span.bytes,
                userspace_addr: USER_BASE + region.span.guest_start,
                mmap_offset: place.start(),
                mmap_handle: place.file().as_raw_fd(),
            }
        };
        self.0.list.iter().map(announce).collect()
    }

    /// The same as words of a message: their number, and the fields of each.
    pub fn table(&self) -> Vec<u64> {
        let regions = self.announcement();
        let fields = regions.iter().flat_map(|region| {
            [region.guest_phys_addr, region.memory_size, region.userspace_addr, region.mmap_offset]
        });
        std::iter::once(regions.len() as u64).chain(fields).collect()
    }

    /// The memfd behind the regions.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.0.list[0].mapping.file_offset().unwrap().file().as_fd()
    }

    /// Gives away a part of the first region, for good.
    pub fn allocate(&self, bytes: u64, alignment: u64) -> u64 {
        let take = |next: u64| Some(next.next_multiple_of(alignment) + bytes);
        let before = self.0.next.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).unwrap();
        let start = before.next_multiple_of(alignment);
        let Span { guest_start, bytes: size } = self.0.list[0].span;
        assert!(start + bytes <= guest_start + size, "guest memory is used up");
        start
    }

    /// Stores `bytes` at a guest address.
    pub fn write(&self, address: u64, bytes: &[u8]) {
        let (region, offset) = self.locate(address);
        region.as_volatile_slice().write_slice(bytes, offset).unwrap();
    }

    /// Loads `len` bytes from a guest address.
    pub fn read(&self, address: u64, len: usize) -> Vec<u8> {
        let (region, offset) = self.locate(address);
        let mut bytes = vec![0; len];
        region.as_volatile_slice().read_slice(&mut bytes, offset).unwrap();
        bytes
    }

    /// Fills `len` bytes at a guest address.
    pub fn fill(&self, address: u64, len: usize, byte: u8) {
        self.write(address, &vec![byte; len]);
    }

    /// Stores a little-endian word after everything stored before.
    pub fn store_u16(&self, address: u64, value: u16) {
        let (region, offset) = self.locate(address);
        region.as_volatile_slice().store(value.to_le(), offset, Ordering::SeqCst).unwrap();
    }

    /// Loads a little-endian word before everything loaded afterwards.
    pub fn load_u16(&self, address: u64) -> u16 {
        let (region, offset) = self.locate(address);
        u16::from_le(region.as_volatile_slice().load(offset, Ordering::SeqCst).unwrap())
    }

    fn locate(&self, address: u64) -> (&MmapRegion, usize) {
        let holds = |region: &&Region| {
            let Span { guest_start, bytes } = region.span;
            (guest_start..guest_start + bytes).contains(&address)
        };
        let region = self.0.list.iter().find(holds).unwrap();
        (&region.mapping, (address - region.span.guest_start) as usize)
    }
}
