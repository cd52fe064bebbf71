//! A guest that has moved here, and whose memory comes later.

use std::time::Duration;

use vhost::VhostBackend;
use vhost::vhost_user::VhostUserFrontend;
use vhost::vhost_user::message::FrontendReq;

use crate::common::daemon::{Daemon, Place, Setup};
use crate::common::frontend::memory::Memory;
use crate::common::frontend::pages::{PAGE, Pages};
use crate::common::frontend::ring::Ring;
use crate::common::frontend::{EVENT_IDX, Options, SPANS, Session};
use crate::common::{SECTOR_BYTES, pattern, wait_for};

/// Size of each disk.
pub(super) const DISK_BYTES: u64 = 16 << 20;

/// A disk of [`DISK_BYTES`] that is full of a pattern, and offers postcopy.
pub(super) fn daemon(place: Place) -> Setup {
    with_options(place, "")
}

/// As [`daemon`], with options of its own.
pub(super) fn with_options(place: Place, options: &str) -> Setup {
    let setup = Setup::new(place).disk(&format!("postcopy=on{options}"));
    std::fs::write(setup.image(0), content()).unwrap();
    setup
}

/// What is on each disk at first.
pub(super) fn content() -> Vec<u8> {
    pattern(7, DISK_BYTES as usize)
}

pub(super) fn sectors(content: &[u8], sector: u64, bytes: usize) -> &[u8] {
    let start = sector as usize * SECTOR_BYTES;
    &content[start..start + bytes]
}

/// A guest that has moved here and left its memory behind.
pub(super) struct Moved {
    pub(super) session: Session,
    pub(super) pages: Pages,
    pub(super) source: Memory,
}

impl Moved {
    /// Connects and says that postcopy is possible.
    pub(super) fn advised(daemon: &Daemon, disk: usize) -> Self {
        Self::advised_with(daemon, disk, Options::default())
    }

    fn advised_with(daemon: &Daemon, disk: usize, options: Options) -> Self {
        let source = Memory::new(&SPANS);
        let mut session = Session::open(&daemon.socket(disk), &SPANS);
        // Entries of the rings are not read before they have come.
        session.negotiate(&Options { features: !EVENT_IDX, ..options });
        let userfault = session.ask(|control| control.postcopy_advise()).unwrap();
        let pages = Pages::new(userfault, &source);
        Self { session, pages, source }
    }

    /// All up to where the back-end has said where memory is mapped.
    pub(super) fn announced(daemon: &Daemon, disk: usize) -> Self {
        Self::advised(daemon, disk).announce()
    }

    fn announce(self) -> Self {
        let mut moved = self;
        moved.session.ask(|control| control.postcopy_listen()).unwrap();
        let table = moved.session.memory.announcement();
        let bases = moved.session.ask(|control| control.set_mem_table(&table)).unwrap().unwrap();
        assert_eq!(bases.len(), table.len());
        for (region, base) in table.iter().zip(bases) {
            moved.pages.mapped(region.guest_phys_addr, region.memory_size, base);
        }
        moved
    }

    /// And the back-end knows that pages will be brought.
    pub(super) fn new(daemon: &Daemon, disk: usize) -> Self {
        let moved = Self::announced(daemon, disk);
        moved.acknowledge();
        moved
    }

    /// As [`Self::new`], with such rings.
    pub(super) fn with(daemon: &Daemon, options: Options) -> Self {
        let moved = Self::advised_with(daemon, 0, options).announce();
        moved.acknowledge();
        moved
    }

    pub(super) fn acknowledge(&self) {
        let acknowledge = FrontendReq::SET_MEM_TABLE;
        self.session.ask(|control| control.postcopy_ack_mem_regions(acknowledge)).unwrap();
    }

    /// A ring as the guest has left it.
    pub(super) fn ring(&self, index: u16) -> Ring {
        Ring::new(&self.source, index, 64, self.session.features)
    }

    /// Brings pages until a ring has done so many requests.
    pub(super) fn serve(&mut self, ring: &mut Ring, requests: u16) {
        wait_for("a ring has done its requests", || {
            while let Some(page) = self.pages.wanted_within(Duration::from_millis(2)) {
                self.pages.bring(page);
            }
            (self.done(ring) == requests).then_some(())
        });
    }

    /// How many requests a ring has done, as far as what says so has come.
    pub(super) fn done(&self, ring: &mut Ring) -> u16 {
        if !self.has(ring.descriptors) || !self.has(ring.used) {
            return 0;
        }
        let there = std::mem::replace(&mut ring.memory, self.session.memory.clone());
        let done = ring.used_index();
        ring.memory = there;
        done
    }

    /// Brings pages until `page` is wanted.
    pub(super) fn serve_until_wanted(&mut self, page: u64) {
        loop {
            let wanted = self.pages.wanted();
            if wanted == page {
                return;
            }
            self.pages.bring(wanted);
        }
    }

    /// Brings whatever is wanted until `is_done`, which reads only what has come.
    pub(super) fn serve_all(&mut self, is_done: impl Fn() -> bool) {
        self.pages.bring_until("all is done with the pages that are brought", is_done);
    }

    pub(super) fn has(&self, address: u64) -> bool {
        self.pages.brought().contains(&(address / PAGE * PAGE))
    }

    /// All that the guest has used of its memory is brought, and that is said. The ring is the one here then.
    pub(super) fn end(&mut self, ring: &mut Ring) {
        let start = SPANS[0].guest_start;
        let end = self.source.allocate(1, PAGE);
        self.pages.bring_all(start..end);
        self.session.ask(|control| control.postcopy_end()).unwrap();
        ring.memory = self.session.memory.clone();
    }
}
