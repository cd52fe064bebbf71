//! Memory with nothing around it: a byte too far is a fault.

use std::fs::File;
use std::os::fd::AsRawFd as _;
#[cfg(target_arch = "x86_64")]
use std::os::unix::fs::FileExt as _;
use std::ptr::null_mut;

/// A page.
pub(super) const PAGE: usize = 4096;

/// Some pages between two that cannot be touched.
#[derive(Debug)]
pub(super) struct Guarded {
    base: *mut u8,
    pages: usize,
    file: Option<File>,
}

impl Guarded {
    /// Private memory.
    pub(super) fn new(pages: usize) -> Self {
        Self::map(pages, None)
    }

    /// A file of memory, which can be truncated.
    pub(super) fn of_file(pages: usize) -> Self {
        let memfd = rustix::fs::memfd_create("guarded", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        Self::over(File::from(memfd), pages)
    }

    /// This file, made as long as it has to be.
    pub(super) fn over(file: File, pages: usize) -> Self {
        file.set_len((pages * PAGE) as u64).unwrap();
        Self::map(pages, Some(file))
    }

    /// Address of a byte.
    pub(super) fn at(&self, offset: usize) -> *mut u8 {
        assert!(offset <= self.pages * PAGE);
        self.base.wrapping_add(PAGE + offset)
    }

    /// Bytes in it.
    pub(super) fn len(&self) -> usize {
        self.pages * PAGE
    }

    /// Writes all of it.
    pub(super) fn fill(&self, bytes: &[u8]) {
        assert_eq!(bytes.len(), self.len());
        // SAFETY: all of it is mapped for writing, and `bytes` is elsewhere.
        unsafe { self.at(0).copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
    }

    /// Reads all of it.
    pub(super) fn bytes(&self) -> Vec<u8> {
        self.first(self.len())
    }

    /// Reads the first bytes of it.
    pub(super) fn first(&self, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        // SAFETY: as much is mapped, and `bytes` is elsewhere.
        unsafe { bytes.as_mut_ptr().copy_from_nonoverlapping(self.at(0), len) };
        bytes
    }

    /// Takes the pages behind the first ones away.
    pub(super) fn truncate(&self, pages: usize) {
        self.file.as_ref().unwrap().set_len((pages * PAGE) as u64).unwrap();
    }

    /// Reads the first bytes of its file.
    #[cfg(target_arch = "x86_64")]
    pub(super) fn in_file(&self, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.file.as_ref().unwrap().read_exact_at(&mut bytes, 0).unwrap();
        bytes
    }

    /// Gives them back, as zeroes.
    #[cfg(target_arch = "x86_64")]
    pub(super) fn restore(&self) {
        self.truncate(self.pages);
    }

    fn map(pages: usize, file: Option<File>) -> Self {
        let total = (pages + 2) * PAGE;
        let anonymous = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        // SAFETY: the kernel chooses an address that is free.
        let base = unsafe { libc::mmap(null_mut(), total, libc::PROT_NONE, anonymous, -1, 0) };
        assert_ne!(base, libc::MAP_FAILED);
        let (flags, fd) = match &file {
            Some(file) => (libc::MAP_SHARED, file.as_raw_fd()),
            None => (anonymous, -1),
        };
        let access = libc::PROT_READ | libc::PROT_WRITE;
        let middle = base.wrapping_byte_add(PAGE);
        // SAFETY: inside of what was just mapped, which nobody uses yet.
        let mapped = unsafe { libc::mmap(middle, pages * PAGE, access, flags | libc::MAP_FIXED, fd, 0) };
        assert_eq!(mapped, middle);
        Self { base: base.cast(), pages, file }
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        // SAFETY: exactly what was mapped.
        unsafe { libc::munmap(self.base.cast(), (self.pages + 2) * PAGE) };
    }
}
