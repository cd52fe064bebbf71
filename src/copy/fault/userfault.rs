//! Guest memory that is not there *yet*: the guest has moved here before its pages have (postcopy migration).
//!
//! Whoever touches such a page sleeps in the kernel until the front-end, which reads of it from a
//! [`Userfault`] (`userfaultfd(2)`), has brought it. Two more things end the sleep: nobody waits any more
//! ([`WatchedRange::cease_waiting`]), and the page is one of zeroes as in any memory; or the range is given up
//! ([`WatchedRange::give_up`]), and the access fails as one to memory that is lost. The second is what becomes of a
//! front-end that has left: a request that waited for its data must not write zeroes in place of them.

use std::io;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};

use rustix::fs::MemfdFlags;
use rustix::io::Errno;
use rustix::ioctl::{Opcode, Setter, Updater, ioctl, opcode};
use rustix::mm::UserfaultfdFlags;

use super::ranges::WatchedRange;
use crate::copy::can_read;

/// Group of the ioctls, and version of the interface (`linux/userfaultfd.h`).
const UFFDIO: u8 = 0xaa;
const UFFD_API: u64 = 0xaa;

/// Features that need not be asked for: the kernel says that it has them.
const MISSING_HUGETLBFS: u64 = 1 << 4;
const MISSING_SHMEM: u64 = 1 << 5;

/// Only accesses of the program's own instructions wait; the kernel's, in a system call, fail at once.
const USER_MODE_ONLY: UserfaultfdFlags = UserfaultfdFlags::from_bits_retain(1);

/// Faults of pages that are missing.
const MODE_MISSING: u64 = 1;

/// `struct uffdio_api`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct Api {
    api: u64,
    features: u64,
    ioctls: u64,
}

/// `struct uffdio_range`; bytes.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct Range {
    start: u64,
    len: u64,
}

/// `struct uffdio_register`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct Register {
    range: Range,
    mode: u64,
    ioctls: u64,
}

const API: Opcode = opcode::read_write::<Api>(UFFDIO, 0x3f);
const REGISTER: Opcode = opcode::read_write::<Register>(UFFDIO, 0x00);
const UNREGISTER: Opcode = opcode::read::<Range>(UFFDIO, 0x01);
const WAKE: Opcode = opcode::read::<Range>(UFFDIO, 0x02);
/// What a front-end hears of missing pages by.
#[derive(Debug)]
pub struct Userfault {
    fd: OwnedFd,
    /// A file without a byte, to be mapped in place of memory that is given up: there is no time then to be refused a
    /// descriptor.
    nothing: OwnedFd,
}

impl Userfault {
    /// One of whose pages nobody waits yet.
    ///
    /// # Errors
    /// The kernel has none, or not for shared memory, or does not allow it; or no descriptor is left.
    pub fn open() -> io::Result<Self> {
        let fd = create()?;
        let mut api = Api { api: UFFD_API, features: 0, ioctls: 0 };
        // SAFETY: F6: the opcode's structure.
        let update = unsafe { Updater::<API, _>::new(&mut api) };
        // SAFETY: F6: it writes to that structure and nowhere else.
        unsafe { ioctl(&fd, update) }?;
        let needed = MISSING_SHMEM | MISSING_HUGETLBFS;
        if api.features & needed != needed {
            let missing =
                "the kernel's userfaultfd knows no shared memory (it has to be Linux 4.11 or newer)";
            return Err(io::Error::new(io::ErrorKind::Unsupported, missing));
        }
        let nothing = rustix::fs::memfd_create("given-up", MemfdFlags::CLOEXEC)?;
        Ok(Self { fd, nothing })
    }

    fn wake(&self, range: Range) -> io::Result<()> {
        // SAFETY: F6: the opcode's structure.
        let set = unsafe { Setter::<WAKE, _>::new(range) };
        // SAFETY: F6: a thread that is woken touches its page again: at worst it sleeps again.
        Ok(unsafe { ioctl(&self.fd, set) }?)
    }
}

impl AsFd for Userfault {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// For the program's own faults, which takes no privilege. The kernel's own would make it wait in the midst of a write, with
/// the file locked. Kernels before 5.11 make no difference.
fn create() -> io::Result<OwnedFd> {
    let flags = UserfaultfdFlags::CLOEXEC | UserfaultfdFlags::NONBLOCK;
    // SAFETY: F6: a descriptor alone has no effect on memory; see `WatchedRange::wait_for_pages`.
    match unsafe { rustix::mm::userfaultfd(flags | USER_MODE_ONLY) } {
        // SAFETY: F6: a descriptor alone has no effect on memory.
        Err(Errno::INVAL) => Ok(unsafe { rustix::mm::userfaultfd(flags) }?),
        made => Ok(made?),
    }
}

impl WatchedRange {
    /// From now on whoever touches a page of it that is missing waits for it. Nobody may have touched it before. To
    /// say it again does no harm.
    ///
    /// # Errors
    /// The memory is of a kind that cannot be waited for: neither shared memory nor huge pages.
    pub fn wait_for_pages(&self, userfault: &Userfault) -> io::Result<()> {
        let mut register = Register { range: self.pages(), mode: MODE_MISSING, ioctls: 0 };
        // SAFETY: F6: the opcode's structure.
        let update = unsafe { Updater::<REGISTER, _>::new(&mut register) };
        // SAFETY: F6: accesses to the range take longer then; what they find is as good as without.
        Ok(unsafe { ioctl(&userfault.fd, update) }?)
    }

    /// All pages have come: one that has not is a page of zeroes from now on, also for those who wait for it.
    ///
    /// # Errors
    /// It was not waited for.
    pub fn cease_waiting(&self, userfault: &Userfault) -> io::Result<()> {
        let range = self.pages();
        // SAFETY: F6: the opcode's structure.
        let set = unsafe { Setter::<UNREGISTER, _>::new(range) };
        // SAFETY: F6: pages that are missing are filled as in any mapping of the file.
        unsafe { ioctl(&userfault.fd, set) }?;
        // The kernel wakes before it ends the waiting, and page faults since 6.7 can come in between: they would wait for ever.
        userfault.wake(range)
    }

    /// Nobody brings its pages any more: from now on all of it is lost, and who waits is woken and told so.
    ///
    /// # Errors
    /// The kernel has no memory for it: they wait on.
    pub fn give_up(&self, userfault: &Userfault) -> io::Result<()> {
        let range = self.pages();
        let (start, len) = (usize::try_from(range.start), usize::try_from(range.len));
        let (Ok(start), Ok(len)) = (start, len) else { return Ok(()) };
        let access = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_SHARED | libc::MAP_FIXED | libc::MAP_NORESERVE;
        let nothing = userfault.nothing.as_raw_fd();
        // SAFETY: F3: whole pages of a registered range. Behind the new mapping is nothing: an access is a SIGBUS, as after
        // its file was truncated, and is contained as that is.
        let mapped =
            unsafe { libc::mmap(std::ptr::without_provenance_mut(start), len, access, flags, nothing, 0) };
        if mapped == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        userfault.wake(range)
    }

    /// Reads from each page of a part of it, and so waits until they are there. False when one is lost, or given up.
    pub fn touch(&self, offset: usize, len: usize) -> bool {
        let (start, range_len) = self.bounds();
        let page = rustix::param::page_size();
        let end = offset.saturating_add(len).min(range_len);
        let mut at = offset;
        while at < end {
            let address = std::ptr::without_provenance(start.saturating_add(at));
            // SAFETY: F3: in the registered range.
            if !unsafe { can_read(address) } {
                return false;
            }
            at = (at / page).saturating_add(1).saturating_mul(page);
        }
        true
    }

    /// Its whole pages.
    fn pages(&self) -> Range {
        let (start, len) = self.bounds();
        Range { start: start as u64, len: len.next_multiple_of(self.page_bytes()) as u64 }
    }
}

#[cfg(test)]
mod tests;
