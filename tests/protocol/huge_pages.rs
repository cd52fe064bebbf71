//! Regions and logs in huge pages, of any length: rounded to whole ones, and nothing is left of them.

use std::fs::File;
use std::os::fd::AsRawFd;

use rustix::fs::{FallocateFlags, MemfdFlags};
use vhost::vhost_user::VhostUserFrontend;
use vhost::{VhostBackend, VhostUserDirtyLogRegion, VhostUserMemoryRegionInfo};

use super::daemon;
use crate::common::MIB;
use crate::common::daemon::Daemon;
use crate::common::frontend::Session;
use crate::common::frontend::memory::USER_BASE;
use crate::common::host::HugePages;
use crate::common::process::Process;
use crate::common::wait_for;

const KIB: u64 = 1 << 10;
/// Where regions are added: behind everything that is there from the start.
const FREE: u64 = 0x10_0000_0000;

/// What regions are left of.
const NAME: &str = "of-huge-pages";

/// Two pages of 2 MiB that are there, and as many as are added to the pool for them.
fn two_pages() -> Option<(File, Option<HugePages>)> {
    let pages = HugePages::add(2);
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB;
    let file = rustix::fs::memfd_create(NAME, flags).and_then(|file| {
        rustix::fs::ftruncate(&file, 4 * MIB)?;
        rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, 4 * MIB)?;
        Ok(File::from(file))
    });
    match file {
        Ok(file) => Some((file, pages)),
        Err(error) => {
            println!("skipped: no huge pages (vm.nr_hugepages): {error}");
            None
        }
    }
}

fn region(file: &impl AsRawFd, bytes: u64, offset: u64) -> VhostUserMemoryRegionInfo {
    VhostUserMemoryRegionInfo {
        guest_phys_addr: FREE,
        memory_size: bytes,
        userspace_addr: USER_BASE + FREE,
        mmap_offset: offset,
        mmap_handle: file.as_raw_fd(),
    }
}

fn mapped(daemon: &Daemon) -> (usize, usize) {
    let process = Process(daemon.pid());
    (process.mappings(NAME), process.all_mappings())
}

#[test]
fn regions_of_any_length_leave_nothing_behind() {
    let Some((file, _pages)) = two_pages() else { return };
    let daemon = daemon("");
    let session = |round: u64| {
        let session = Session::connect(&daemon.socket(0));
        let lengths = [640 * KIB, 3 * MIB, 4 * KIB, 2 * MIB];
        let length = lengths[(round % 4) as usize];
        let added = region(&file, length, 0);
        session.ask(|control| control.add_mem_region(&added)).unwrap();
        assert_eq!(mapped(&daemon).0, 1, "{length} bytes");
        if round.is_multiple_of(2) {
            session.ask(|control| control.remove_mem_region(&added)).unwrap();
            assert_eq!(mapped(&daemon).0, 0, "{length} bytes are removed");
        }
        let table = [session.memory.announcement(), vec![added]].concat();
        session.ask(|control| control.set_mem_table(&table)).unwrap();
        assert_eq!(mapped(&daemon).0, 1, "{length} bytes of a table");
        let log =
            VhostUserDirtyLogRegion { mmap_size: length, mmap_offset: 0, mmap_handle: file.as_raw_fd() };
        session.ask(|control| control.set_log_base(0, Some(log))).unwrap();
        assert_eq!(mapped(&daemon).0, 2, "a log of {length} bytes");
        drop(session);
        wait_for("nothing is mapped", || (mapped(&daemon).0 == 0).then_some(()));
    };
    (0..4).for_each(session);
    let before = mapped(&daemon).1;
    (0..100).for_each(session);
    let after = mapped(&daemon).1;
    // Stacks of threads that have ended are kept for others.
    assert!(after <= before + 20, "{before} mappings before, {after} after 100 sessions");
    daemon.stop();
}

#[test]
fn what_does_not_begin_with_a_huge_page_is_refused_and_says_so() {
    let Some((file, _pages)) = two_pages() else { return };
    let daemon = daemon("");
    let session = Session::connect(&daemon.socket(0));
    for (bytes, offset) in [(4 * KIB, 4 * KIB), (2 * MIB, MIB)] {
        let refused = session.ask(|control| control.add_mem_region(&region(&file, bytes, offset)));
        assert!(refused.is_err(), "{bytes} bytes at {offset}");
    }
    daemon.wait_for_log("0x1000 is not a multiple of 0x200000, the size of its pages (huge pages)");
    let behind = region(&file, 2 * MIB + KIB, 2 * MIB);
    assert!(session.ask(|control| control.add_mem_region(&behind)).is_err());
    assert_eq!(mapped(&daemon).0, 0);
    daemon.stop();
}
