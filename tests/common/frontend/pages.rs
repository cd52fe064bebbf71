//! Pages of a guest's memory that stay behind when it moves, and are brought when they are wanted: the part of a
//! front-end that a postcopy migration needs.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::io::Errno;
use rustix::ioctl::{Opcode, Setter, Updater, ioctl, opcode};
use rustix::mm::UserfaultfdFlags;

use super::memory::{Memory, Span};
use crate::common::{PATIENCE, is_readable};

/// Length of a page in bytes.
pub const PAGE: u64 = 4096;

/// `struct uffdio_copy`.
#[repr(C)]
struct Copy {
    to: u64,
    from: u64,
    bytes: u64,
    mode: u64,
    copied: i64,
}

/// `struct uffdio_range`.
#[repr(C)]
struct Range {
    start: u64,
    bytes: u64,
}

const COPY: Opcode = opcode::read_write::<Copy>(0xaa, 0x03);
const WAKE: Opcode = opcode::read::<Range>(0xaa, 0x02);

/// Whether this process, and so a daemon that it starts, may wait for pages; says so if not.
pub fn can_wait() -> bool {
    const USER_MODE_ONLY: u32 = 1;
    let flags = UserfaultfdFlags::CLOEXEC | UserfaultfdFlags::from_bits_retain(USER_MODE_ONLY);
    // SAFETY: a descriptor, which is closed at once.
    let made: Result<OwnedFd, Errno> = unsafe { rustix::mm::userfaultfd(flags) };
    if let Err(error) = &made {
        eprintln!("skipped: no userfaultfd here: {error}");
    }
    made.is_ok()
}

/// What a guest has left behind, and where the back-end wants it.
#[derive(Debug)]
pub struct Pages {
    /// The userfaultfd.
    pub userfault: File,
    /// The guest's memory where it was.
    source: Memory,
    /// First guest address of each region, its length, and where the back-end has mapped it.
    places: Vec<(u64, u64, u64)>,
    brought: Vec<u64>,
}

impl Pages {
    /// Nothing is mapped yet.
    pub fn new(userfault: File, source: &Memory) -> Self {
        Self { userfault, source: source.clone(), places: Vec::new(), brought: Vec::new() }
    }

    /// The back-end has mapped a region there.
    pub fn mapped(&mut self, guest_start: u64, bytes: u64, base: u64) {
        assert!(base != 0 && base.is_multiple_of(PAGE), "{base:#x}");
        self.places.push((guest_start, bytes, base));
    }

    /// All regions are about to be mapped elsewhere.
    pub fn forget_places(&mut self) {
        self.places.clear();
    }

    /// The guest address of the next page that is waited for, if one is within the limit.
    pub fn wanted_within(&self, limit: Duration) -> Option<u64> {
        let address = self.wanted_address_within(limit)?;
        let holds = |(_, bytes, base): &&(u64, u64, u64)| (*base..*base + *bytes).contains(&address);
        let (guest_start, _, base) = self.places.iter().find(holds).expect("an address in a region");
        Some((address - base + guest_start) / PAGE * PAGE)
    }

    /// The same as the back-end's own address.
    fn wanted_address_within(&self, limit: Duration) -> Option<u64> {
        if !is_readable(&self.userfault, limit) {
            return None;
        }
        let mut message = [0_u8; 32];
        if rustix::io::read(&self.userfault, &mut message) == Err(Errno::AGAIN) {
            return None;
        }
        assert_eq!(message[0], 0x12, "a page fault");
        Some(u64::from_ne_bytes(message[16..24].try_into().unwrap()))
    }

    /// Brings the next page that is waited for, if that is known and still mapped; false if none is within the limit.
    pub fn bring_any_within(&mut self, limit: Duration) -> bool {
        let Some(address) = self.wanted_address_within(limit) else { return false };
        let holds = |(_, bytes, base): &&(u64, u64, u64)| (*base..*base + *bytes).contains(&address);
        if let Some((guest_start, _, base)) = self.places.iter().find(holds) {
            let page = (address - base + guest_start) / PAGE * PAGE;
            // It may be that of a region which is gone by now, and whoever waited for it as well.
            let _ = self.try_bring(page);
        }
        true
    }

    /// The guest address of the next page that is waited for.
    pub fn wanted(&self) -> u64 {
        self.wanted_within(PATIENCE).expect("a page is waited for")
    }

    /// Brings a page.
    pub fn bring(&mut self, page: u64) {
        self.try_bring(page).unwrap_or_else(|error| panic!("page {page:#x}: {error}"));
    }

    /// Brings a page.
    ///
    /// # Errors
    /// Nothing is mapped there any more that could wait for it.
    pub fn try_bring(&mut self, page: u64) -> Result<(), Errno> {
        let is_there = |span: &Span| (span.guest_start..span.guest_start + span.bytes).contains(&page);
        if !self.source.spans().iter().any(is_there) {
            return Err(Errno::NOENT);
        }
        let bytes = self.source.read(page, PAGE as usize);
        let holds = |(start, bytes, _): &&(u64, u64, u64)| (*start..*start + *bytes).contains(&page);
        let (guest_start, _, base) = self.places.iter().find(holds).ok_or(Errno::NOENT)?;
        let to = page - guest_start + base;
        let mut copy = Copy { to, from: bytes.as_ptr().addr() as u64, bytes: PAGE, mode: 0, copied: 0 };
        // SAFETY: the opcode's structure.
        let update = unsafe { Updater::<COPY, _>::new(&mut copy) };
        // SAFETY: it reads `bytes` and writes to the back-end's memory.
        match unsafe { ioctl(&self.userfault, update) } {
            Ok(()) => self.brought.push(page),
            // It was there. Somebody may have begun to wait right before.
            Err(Errno::EXIST) => {
                // SAFETY: the opcode's structure.
                let wake = unsafe { Setter::<WAKE, _>::new(Range { start: to, bytes: PAGE }) };
                // SAFETY: it touches no memory.
                unsafe { ioctl(&self.userfault, wake) }?;
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Brings what is waited for until `is_done`.
    pub fn bring_until(&mut self, what: &str, mut is_done: impl FnMut() -> bool) {
        crate::common::wait_for(what, || {
            while let Some(page) = self.wanted_within(Duration::from_millis(2)) {
                self.bring(page);
            }
            is_done().then_some(())
        });
    }

    /// Brings a range of pages that nobody may have asked for.
    pub fn bring_all(&mut self, pages: std::ops::Range<u64>) {
        pages.step_by(PAGE as usize).for_each(|page| self.bring(page));
    }

    /// The pages that were missing and have been brought, in this order.
    pub fn brought(&self) -> &[u64] {
        &self.brought
    }
}
