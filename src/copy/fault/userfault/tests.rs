#![allow(clippy::print_stderr, reason = "whoever runs the tests is told what is skipped")]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::mm::{MapFlags, ProtFlags};

use super::*;
use crate::copy::fault;

const PAGE: usize = 4096;
const PAGES: usize = 4;

/// `struct uffdio_copy`.
#[repr(C)]
struct Copy {
    to: u64,
    from: u64,
    len: u64,
    mode: u64,
    copied: i64,
}

const COPY: Opcode = opcode::read_write::<Copy>(UFFDIO, 0x03);

/// Shared memory without a page, whose pages are waited for.
struct Memory {
    start: *mut u8,
    range: Arc<WatchedRange>,
    userfault: Arc<Userfault>,
    file: OwnedFd,
}

impl Memory {
    /// None where this is not permitted, which is said then.
    fn new() -> Option<Self> {
        fault::install().unwrap();
        let userfault = match Userfault::open() {
            Ok(userfault) => Arc::new(userfault),
            Err(error) => {
                eprintln!("skipped: no userfaultfd here: {error}");
                return None;
            }
        };
        let file = rustix::fs::memfd_create("guest", MemfdFlags::CLOEXEC).unwrap();
        rustix::fs::ftruncate(&file, (PAGES * PAGE) as u64).unwrap();
        let (access, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED);
        // SAFETY: at an address of the kernel's choice; it stays mapped for the rest of the process.
        let start = unsafe { rustix::mm::mmap(std::ptr::null_mut(), PAGES * PAGE, access, flags, &file, 0) };
        let start = start.unwrap().cast();
        let range = Arc::new(WatchedRange::guest(start, PAGES * PAGE, PAGE, 0).unwrap());
        range.wait_for_pages(&userfault).unwrap();
        Some(Self { start, range, userfault, file })
    }

    /// A thread that touches bytes, once it is known to wait at one of them.
    fn touch(&self, offset: usize, len: usize) -> JoinHandle<bool> {
        let range = Arc::clone(&self.range);
        let thread = std::thread::spawn(move || range.touch(offset, len));
        assert_eq!(self.next_fault(), self.start.addr() + offset / PAGE * PAGE);
        thread
    }

    /// The address of the next page that somebody waits for.
    fn next_fault(&self) -> usize {
        let limit = Timespec::try_from(Duration::from_secs(60)).unwrap();
        let ready = poll(&mut [PollFd::new(&*self.userfault, PollFlags::IN)], Some(&limit)).unwrap();
        assert_eq!(ready, 1, "nobody waits for a page");
        let mut message = [0_u8; 32];
        assert_eq!(rustix::io::read(&*self.userfault, &mut message).unwrap(), 32);
        assert_eq!(message[0], 0x12, "a page fault");
        let address = usize::from_ne_bytes(message[16..24].try_into().unwrap());
        address - address % PAGE
    }

    /// Brings a page.
    fn bring(&self, page: usize) {
        let content = [7_u8; PAGE];
        let (to, from) = (self.start.addr() + page * PAGE, content.as_ptr().addr());
        let mut copy = Copy { to: to as u64, from: from as u64, len: PAGE as u64, mode: 0, copied: 0 };
        // SAFETY: the opcode's structure.
        let update = unsafe { Updater::<COPY, _>::new(&mut copy) };
        // SAFETY: into a page that is missing, to which no reference exists.
        unsafe { ioctl(&self.userfault.fd, update) }.unwrap();
    }

    /// All pages are missing again.
    fn drop_pages(&self) {
        let file = &self.file;
        rustix::fs::ftruncate(file, 0).unwrap();
        rustix::fs::ftruncate(file, (PAGES * PAGE) as u64).unwrap();
    }

    fn byte(&self, offset: usize) -> u8 {
        // SAFETY: mapped; another thread that writes there is not running.
        unsafe { self.start.wrapping_add(offset).read_volatile() }
    }
}

#[test]
fn who_touches_a_missing_page_waits_until_it_has_come() {
    let Some(memory) = Memory::new() else { return };
    memory.bring(0);
    let waits = memory.touch(PAGE + 100, 2 * PAGE);
    memory.bring(1);
    assert_eq!(memory.next_fault(), memory.start.addr() + 2 * PAGE);
    assert!(!waits.is_finished());
    memory.bring(2);
    assert_eq!(memory.next_fault(), memory.start.addr() + 3 * PAGE);
    assert!(!waits.is_finished());
    memory.bring(3);
    assert!(waits.join().unwrap());
    assert_eq!(memory.byte(3 * PAGE), 7);
    assert!(!memory.range.has_faulted());
}

#[test]
fn who_waits_for_memory_that_is_given_up_is_told_so() {
    let Some(memory) = Memory::new() else { return };
    memory.bring(0);
    let waiting = [1, 2, 3].map(|page| memory.touch(page * PAGE, 1));
    memory.range.give_up(&memory.userfault).unwrap();
    for thread in waiting {
        assert!(!thread.join().unwrap(), "it must not read zeroes");
    }
    assert!(!memory.range.touch(0, 1), "what had come is not the guest's any more either");
    assert_eq!(memory.byte(0), 0, "outside of the routines zeroes are put in place");
    assert!(memory.range.has_faulted());
}

#[test]
fn what_has_not_come_in_the_end_are_zeroes() {
    let Some(memory) = Memory::new() else { return };
    let waits = memory.touch(2 * PAGE, 1);
    memory.range.cease_waiting(&memory.userfault).unwrap();
    assert!(waits.join().unwrap());
    assert_eq!((memory.byte(2 * PAGE), memory.byte(0)), (0, 0));
    assert!(!memory.range.has_faulted());
}

#[test]
fn memory_of_other_kinds_is_refused() {
    let Some(memory) = Memory::new() else { return };
    let file = tempfile::tempfile_in(env!("CARGO_MANIFEST_DIR")).unwrap();
    file.set_len(PAGE as u64).unwrap();
    let (access, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED);
    // SAFETY: a new mapping where the kernel chooses.
    let start = unsafe { rustix::mm::mmap(std::ptr::null_mut(), PAGE, access, flags, &file, 0) }.unwrap();
    let range = WatchedRange::guest(start.cast(), PAGE, PAGE, 0).unwrap();
    assert!(range.wait_for_pages(&memory.userfault).is_err());
}

/// Linux 6.18 wakes those who wait before it ends the waiting, and who takes a page fault by the lock of its mapping alone
/// (since 6.7) can begin to wait in between. Found by the fuzzer of postcopy migrations.
#[test]
fn who_begins_to_wait_as_waiting_ceases_goes_on() {
    let Some(memory) = Memory::new() else { return };
    for round in 0..1000_u32 {
        memory.range.wait_for_pages(&memory.userfault).unwrap();
        let is_about_to = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let toucher = scope.spawn(|| {
                is_about_to.store(true, Ordering::Release);
                memory.range.touch(0, PAGES * PAGE)
            });
            while !is_about_to.load(Ordering::Acquire) {
                std::hint::spin_loop();
            }
            (0..round % 400).for_each(|_| std::hint::spin_loop());
            memory.range.cease_waiting(&memory.userfault).unwrap();
            let since = Instant::now();
            while !toucher.is_finished() && since.elapsed() < Duration::from_secs(60) {
                std::thread::yield_now();
            }
            let is_waiting = !toucher.is_finished();
            if is_waiting {
                memory.userfault.wake(memory.range.pages()).unwrap();
            }
            assert!(toucher.join().unwrap());
            assert!(!is_waiting, "it waits for a page that nobody brings, in round {round}");
        });
        memory.drop_pages();
    }
}
