//! A disk and guest memory that nobody can overrun without being noticed: a mebibyte that nobody may touch lies on both
//! sides of each, canaries lie around guest memory in its file, and a request that names bytes beyond the disk ends the process.

#![allow(unsafe_code)]

use std::fs::File;
use std::io::Write as _;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use super::frontend::memory::{CANARY, CANARY_BYTES};
use rustix::fs::MemfdFlags;
use rustix::mm::{MapFlags, ProtFlags, mmap, mmap_anonymous};
use vhost_user_pmem::copy::{self, Engine, Load, Persist, PrefetchHint, Segments, Store};
use vhost_user_pmem::disk::{Disk, DiskError, Durability, Geometry};

/// Nobody may touch so many bytes on either side.
const GUARD_BYTES: usize = 1 << 20;

/// What is tried, for the message that something was found.
pub static TRIED: Mutex<String> = Mutex::new(String::new());

/// Says what was found and ends the process: on whatever thread that is, nothing may go on.
pub fn found(what: &str) -> ! {
    let tried = TRIED.lock().map(|tried| tried.clone()).unwrap_or_default();
    // Not by a macro, whose output a test would keep to itself.
    let _ = writeln!(std::io::stderr(), "FOUND: {what} {tried}");
    std::process::abort()
}

/// Address space that nobody may touch.
fn reserve(bytes: usize) -> *mut u8 {
    // SAFETY: the kernel chooses a free address.
    let base = unsafe { mmap_anonymous(std::ptr::null_mut(), bytes, ProtFlags::empty(), MapFlags::PRIVATE) };
    base.unwrap().cast()
}

/// Maps a file between guards, for good.
fn map_between_guards(file: &File, bytes: usize) -> *mut u8 {
    let place = reserve(GUARD_BYTES + bytes + GUARD_BYTES).wrapping_add(GUARD_BYTES);
    let (access, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED | MapFlags::FIXED);
    // SAFETY: the middle of what was just reserved.
    unsafe { mmap(place.cast(), bytes, access, flags, file, 0) }.unwrap().cast()
}

/// A disk in memory. Whoever asks it for bytes beyond its end has found something.
#[derive(Debug)]
pub struct GuardedDisk {
    file: File,
    media: *mut u8,
    geometry: Geometry,
    /// Flushes take a system call, so that rings wait for them.
    pub flushes_slowly: AtomicBool,
}

// SAFETY: it is memory that stays mapped, of which no Rust reference is ever made.
unsafe impl Send for GuardedDisk {}
// SAFETY: what several do at once are raw copies of mapped memory.
unsafe impl Sync for GuardedDisk {}

impl GuardedDisk {
    /// Of zeroes.
    pub fn new(capacity_bytes: u64, read_only: bool) -> Self {
        let file = File::from(rustix::fs::memfd_create("disk", MemfdFlags::CLOEXEC).unwrap());
        file.set_len(capacity_bytes).unwrap();
        let media = map_between_guards(&file, usize::try_from(capacity_bytes).unwrap());
        let geometry = Geometry { capacity_bytes, block_bytes: 512, read_only };
        Self { file, media, geometry, flushes_slowly: AtomicBool::new(false) }
    }

    /// What is on it.
    pub const fn file(&self) -> &File {
        &self.file
    }

    /// The first of so many bytes at `offset`, which the caller of a disk has to have checked.
    fn place(&self, offset: u64, bytes: usize) -> *mut u8 {
        match offset.checked_add(bytes as u64) {
            Some(end) if end <= self.geometry.capacity_bytes => self.media.wrapping_add(offset as usize),
            _ => found(&format!("{bytes} bytes at {offset} of the disk were asked for")),
        }
    }

    fn change(&self, offset: u64, bytes: usize) -> *mut u8 {
        if self.geometry.read_only {
            found("a disk that is read only was to be written to");
        }
        self.place(offset, bytes)
    }

    /// The copies end early only where guest memory is gone.
    fn outcome(offset: u64, len: u64, left: usize) -> Result<(), DiskError> {
        if left == 0 {
            return Ok(());
        }
        let source = std::io::Error::from_raw_os_error(14); // EFAULT
        Err(DiskError::Io { operation: "copy", offset, len, source })
    }
}

impl Disk for GuardedDisk {
    fn geometry(&self) -> Geometry {
        self.geometry
    }

    fn unit_bytes(&self) -> u32 {
        512
    }

    fn durability(&self) -> Durability {
        Durability::Page
    }

    fn prefetch_hint(&self, offset: u64) -> PrefetchHint {
        let is_inside = offset < self.geometry.capacity_bytes;
        if is_inside {
            PrefetchHint::new(self.media.wrapping_add(offset as usize))
        } else {
            PrefetchHint::NONE
        }
    }

    fn read(&self, offset: u64, into: Segments<'_>, next: PrefetchHint) -> Result<(), DiskError> {
        let from = self.place(offset, into.total_bytes());
        // SAFETY: it is inside of the mapping, which is there for good.
        let load = unsafe { Load::new(from, into) };
        Self::outcome(offset, load.total_bytes() as u64, Engine::get().load(load, next))
    }

    fn write(&self, offset: u64, from: Segments<'_>, next: PrefetchHint) -> Result<(), DiskError> {
        let into = self.change(offset, from.total_bytes());
        // SAFETY: it is inside of the mapping, which is there for good.
        let store = unsafe { Store::new(into, from) };
        Self::outcome(
            offset,
            store.total_bytes() as u64,
            Engine::get().store(store, Persist::FenceOnly, next),
        )
    }

    fn try_flush(&self) -> Option<Result<(), DiskError>> {
        (!self.flushes_slowly.load(Ordering::Relaxed)).then_some(Ok(()))
    }

    fn flush(&self) -> Result<(), DiskError> {
        Ok(())
    }

    fn discard(&self, offset: u64, len: u64) -> Result<(), DiskError> {
        self.write_zeroes(offset, len, true).map(drop)
    }

    fn write_zeroes(&self, offset: u64, len: u64, _unmap: bool) -> Result<u64, DiskError> {
        let into = self.change(offset, usize::try_from(len).unwrap_or(usize::MAX));
        // SAFETY: it is inside of the mapping, which is there for good.
        Self::outcome(offset, len, unsafe { copy::zero(into, len as usize, Persist::FenceOnly) })
            .map(|()| len)
    }
}

/// A run of guest addresses, and where it is in the file.
#[derive(Debug, Clone, Copy)]
pub struct Part {
    /// First guest address.
    pub guest_start: u64,
    /// Whole pages.
    pub bytes: u64,
    /// Where it begins in the file.
    pub file_offset: u64,
}

/// Guest memory in a file with canaries around each region, and the guest's own view of all of the file.
#[derive(Debug, Clone)]
pub struct GuardedMemory {
    file: Arc<File>,
    bytes: u64,
    view: *mut u8,
    parts: Vec<Part>,
}

// SAFETY: as of the disk.
unsafe impl Send for GuardedMemory {}
// SAFETY: what several do at once are raw copies of mapped memory.
unsafe impl Sync for GuardedMemory {}

impl GuardedMemory {
    /// Regions of so many bytes, in whole pages, at these guest addresses.
    pub fn new(spans: &[(u64, u64)]) -> Self {
        let mut end = CANARY_BYTES;
        let part = |&(guest_start, bytes): &(u64, u64)| {
            let file_offset = end;
            end += bytes + CANARY_BYTES;
            Part { guest_start, bytes, file_offset }
        };
        let parts: Vec<Part> = spans.iter().map(part).collect();
        let file = File::from(rustix::fs::memfd_create("guest", MemfdFlags::CLOEXEC).unwrap());
        file.write_all_at(&vec![CANARY; end as usize], 0).unwrap();
        let view = map_between_guards(&file, end as usize);
        let memory = Self { file: Arc::new(file), bytes: end, view, parts };
        memory.clear();
        memory
    }

    /// The file.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Where this view of it begins.
    pub fn view(&self) -> usize {
        self.view.addr()
    }

    /// The regions.
    pub fn parts(&self) -> &[Part] {
        &self.parts
    }

    /// Zeroes all regions.
    pub fn clear(&self) {
        for part in &self.parts {
            let at = self.view.wrapping_add(part.file_offset as usize);
            // SAFETY: inside of the view, to which there are no references.
            unsafe { at.write_bytes(0, part.bytes as usize) };
        }
    }

    /// Where the guest has so many bytes, if they are in one region.
    pub fn host(&self, address: u64, bytes: u64) -> Option<*mut u8> {
        self.parts.iter().find_map(|part| {
            let offset = address.checked_sub(part.guest_start)?;
            let is_inside = offset.checked_add(bytes).is_some_and(|end| end <= part.bytes);
            is_inside.then(|| self.view.wrapping_add((part.file_offset + offset) as usize))
        })
    }

    /// Stores bytes, as far as there is memory for them in one region.
    pub fn write(&self, address: u64, bytes: &[u8]) {
        if let Some(at) = self.host(address, bytes.len() as u64) {
            // SAFETY: inside of the view; `bytes` are elsewhere.
            unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), at, bytes.len()) };
        }
    }

    /// Loads bytes, zeroes where there is no memory for them in one region.
    pub fn read(&self, address: u64, bytes: usize) -> Vec<u8> {
        let mut loaded = vec![0; bytes];
        if let Some(at) = self.host(address, bytes as u64) {
            // SAFETY: inside of the view; `loaded` is elsewhere.
            unsafe { std::ptr::copy_nonoverlapping(at, loaded.as_mut_ptr(), bytes) };
        }
        loaded
    }

    /// All that is in the file, canaries and all.
    pub fn snapshot(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.bytes as usize];
        // SAFETY: all of the view.
        unsafe { std::ptr::copy_nonoverlapping(self.view, bytes.as_mut_ptr(), bytes.len()) };
        bytes
    }

    /// Insists that nobody has written between the regions.
    pub fn assert_canaries(&self) {
        let mut start = 0;
        for part in &self.parts {
            self.assert_canary(start, part.file_offset);
            start = part.file_offset + part.bytes;
        }
        self.assert_canary(start, self.bytes);
    }

    fn assert_canary(&self, start: u64, end: u64) {
        for at in start..end {
            // SAFETY: inside of the view.
            if unsafe { self.view.wrapping_add(at as usize).read_volatile() } != CANARY {
                found(&format!(
                    "the byte at {at:#x} of the memory's file is written to, outside of guest memory"
                ));
            }
        }
    }
}

/// Puts guards before and behind what somebody else in this process has mapped of guest memory, wherever nothing is mapped there;
/// `own` are the starts of other mappings. Returns how many have a guard, or nothing accessible, on both sides.
pub fn guard_mappings(file: impl AsFd, own: &[usize]) -> usize {
    let inode = rustix::fs::fstat(file).unwrap().st_ino;
    let is_ours = |it: &&Mapping| it.inode == inode && !own.contains(&it.start);
    let place = |at: usize| {
        let flags = MapFlags::PRIVATE | MapFlags::FIXED_NOREPLACE;
        // SAFETY: it fails where something is mapped.
        let _ =
            unsafe { mmap_anonymous(std::ptr::without_provenance_mut(at), 4096, ProtFlags::empty(), flags) };
    };
    for Mapping { start, end, .. } in mappings().iter().filter(is_ours) {
        place(*end);
        place(start - 4096);
    }
    let all = mappings();
    let touches = |at: usize| all.iter().any(|it| it.is_accessible && (it.start..it.end).contains(&at));
    all.iter().filter(is_ours).filter(|it| !touches(it.end) && !touches(it.start - 1)).count()
}

struct Mapping {
    start: usize,
    end: usize,
    is_accessible: bool,
    inode: u64,
}

fn mappings() -> Vec<Mapping> {
    let text = std::fs::read_to_string("/proc/self/maps").unwrap();
    let mapping = |line: &str| {
        let (range, rest) = line.split_once(' ').unwrap();
        let (start, end) = range.split_once('-').unwrap();
        let [start, end] = [start, end].map(|it| usize::from_str_radix(it, 16).unwrap());
        let inode = rest.split_whitespace().nth(3).unwrap().parse().unwrap();
        Mapping { start, end, is_accessible: !rest.starts_with("---"), inode }
    };
    text.lines().map(mapping).collect()
}
