//! The memory table: replaced, grown and shrunk under rings that run, and refused without a loss.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

use rustix::fs::{FallocateFlags, MemfdFlags};
use vhost::vhost_user::VhostUserFrontend;
use vhost::{VhostBackend, VhostUserMemoryRegionInfo};

use super::{assert_works, daemon};
use crate::common::MIB;
use crate::common::frontend::load::{LOAD_SECTORS, Load};
use crate::common::frontend::memory::{Memory, Span, USER_BASE};
use crate::common::frontend::request::{IOERR, OK, Request};
use crate::common::frontend::ring::{NO_STATUS, Ring, WRITE};
use crate::common::frontend::{Options, SPANS, Session, assert_refused};
use crate::common::host::HugePages;
use crate::common::pattern;

const PAGE: u64 = 4096;
/// Where regions are added: behind everything that is there from the start.
const FREE: u64 = 0x10_0000_0000;

/// Most regions.
const SLOTS: u64 = 509;

/// One region in memory of its own.
fn region(guest_start: u64, bytes: u64) -> Memory {
    Memory::new(&[Span { guest_start, bytes }])
}

fn add(session: &Session, region: &VhostUserMemoryRegionInfo) -> vhost::Result<()> {
    session.ask(|control| control.add_mem_region(region)).map(|_| ())
}

fn remove(session: &Session, region: &VhostUserMemoryRegionInfo) -> vhost::Result<()> {
    session.ask(|control| control.remove_mem_region(region))
}

#[test]
fn slots_come_and_go_while_another_queue_works() {
    let daemon = daemon("");
    for session in Session::of_each_kind(&daemon.socket(0)) {
        let load = Load::start(session.ring(0, 256), LOAD_SECTORS);
        let mut ring = session.ring(1, 64);
        let content = pattern(1, 4096);
        assert_eq!(ring.run(&Request::write(0, &content)).status, OK);

        for round in 0..40 {
            let start = FREE + round * 2 * MIB;
            let extra = region(start, 2 * MIB);
            let info = extra.announcement().remove(0);
            let last_page = start + 2 * MIB - PAGE;
            assert_eq!(ring.read_to(0, last_page, 4096), IOERR, "not there yet");
            add(&session, &info).unwrap();
            assert_eq!(ring.read_to(0, last_page, 4096), OK);
            assert!(extra.read(last_page, 4096) == content);
            remove(&session, &info).unwrap();
            extra.fill(last_page, 4096, 0);
            assert_eq!(ring.read_to(0, last_page, 4096), IOERR, "not there any more");
            assert_eq!(extra.read(last_page, 4096), [0; 4096], "memory that was taken back is written to");
            load.wait_for_progress();
        }
        load.stop();
    }
}

/// From the answer on the region is the front-end's alone. It takes the pages away while rings are busy in them: whoever
/// touched one of them afterwards would find that out, and say so.
#[test]
fn a_slot_that_was_removed_is_not_touched_any_more() {
    for options in Options::both_kinds() {
        let daemon = daemon("");
        let session = Session::connect_with(&daemon.socket(0), &options);
        let mut rings = [session.ring(0, 256), session.ring(1, 256)];
        let content = pattern(1, 32 << 10);
        assert_eq!(rings[0].run(&Request::write(0, &content)).status, OK);
        for round in 0..60 {
            let extra = region(FREE, 2 * MIB);
            let info = extra.announcement().remove(0);
            add(&session, &info).unwrap();
            for ring in &mut rings {
                let frame = ring.buffers(0);
                ring.memory.write(frame.header, &Request::read(0, 32 << 10).header());
                let chains = ring.size / 4;
                for number in 0..chains {
                    let data = FREE + u64::from(number) * (32 << 10);
                    let status = frame.data + u64::from(number);
                    ring.memory.fill(status, 1, NO_STATUS);
                    ring.prepare(
                        number * 4,
                        &[(frame.header, 16, 0), (data, 32 << 10, WRITE), (status, 1, WRITE)],
                    );
                }
                ring.make_available();
                ring.kick.signal();
            }
            (0..round * 300).for_each(|_| std::hint::spin_loop());
            remove(&session, &info).unwrap();
            let before = extra.read(FREE, (2 * MIB) as usize);
            rustix::fs::ftruncate(extra.fd(), 0).unwrap();
            rustix::fs::ftruncate(extra.fd(), 2 * MIB).unwrap();
            for ring in &mut rings {
                let statuses = ring.buffers(0).data;
                for number in 0..ring.size / 4 {
                    assert_eq!(ring.wait().head, number * 4);
                    let status = ring.memory.read(statuses + u64::from(number), 1)[0];
                    assert!([OK, IOERR].contains(&status), "round {round}: {status}");
                    let data = &before[usize::from(number) * (32 << 10)..][..32 << 10];
                    assert!(status == IOERR || data == content, "round {round}: done, and not there");
                }
            }
            let after = extra.read(FREE, (2 * MIB) as usize);
            assert!(after.iter().all(|byte| *byte == 0), "round {round}: written to after the answer");
        }
        assert!(!daemon.log().contains("guest memory is lost"), "{}", daemon.log());
        rings.iter_mut().for_each(|ring| assert_works(ring, 0));
    }
}

#[test]
fn rings_can_live_in_a_slot_that_was_added() {
    let daemon = daemon("");
    for session in Session::of_each_kind(&daemon.socket(0)) {
        let extra = region(FREE, 16 * MIB);
        add(&session, &extra.announcement()[0]).unwrap();
        let mut ring = Ring::new(&extra, 3, 64, session.features);
        session.start(&ring, 0).unwrap();
        assert_works(&mut ring, 0);

        // Taken away under the ring: refused, or that ring breaks; the answer says which.
        let mut other = session.ring(0, 64);
        let removed = remove(&session, &extra.announcement()[0]);
        println!("removal: {removed:?}");
        ring.submit(&Request::read(0, 512));
        ring.kick.signal();
        assert_works(&mut other, 0);
        session.stop(&ring);
        if removed.is_ok() {
            add(&session, &extra.announcement()[0]).unwrap();
        }
        ring.reset();
        session.start(&ring, 0).unwrap();
        assert_works(&mut ring, 8);
        assert_works(&mut other, 8);
    }
}

#[test]
fn a_table_need_not_be_sorted() {
    let daemon = daemon("");
    let spans: Vec<Span> =
        [5, 1, 7, 0, 3, 6, 2, 4].map(|place| Span { guest_start: place * 64 * MIB, bytes: 32 * MIB }).into();
    let session = Session::connect_with(&daemon.socket(0), &Options { spans, ..Options::default() });
    let mut ring = session.ring(0, 64);
    assert_works(&mut ring, 0);
    let content = ring.run(&Request::read(0, 4096)).data;
    for Span { guest_start, bytes } in session.memory.spans().into_iter().skip(1) {
        for data in [guest_start, guest_start + bytes - PAGE] {
            assert_eq!(ring.read_to(0, data, 4096), OK, "{data:#x}");
            assert!(session.memory.read(data, 4096) == content);
        }
        assert_eq!(ring.read_to(0, guest_start + bytes - PAGE + 1, 4096), IOERR, "over the end");
        assert_eq!(ring.read_to(0, guest_start + bytes, 4096), IOERR, "in the gap");
    }
}

#[test]
fn a_buffer_may_run_from_one_region_into_its_neighbour() {
    let daemon = daemon("");
    let neighbours = [MIB, 33 * MIB].map(|start| Span { guest_start: start, bytes: 32 * MIB });
    let options = Options { spans: neighbours.to_vec(), ..Options::default() };
    let session = Session::connect_with(&daemon.socket(0), &options);
    let mut ring = session.ring(0, 64);
    assert_works(&mut ring, 0);
    let content = ring.run(&Request::read(0, 4096)).data;
    let border = 33 * MIB;
    assert_eq!(ring.read_to(0, border - 1000, 4096), OK);
    assert!(session.memory.read(border - 1000, 1000) == content[..1000]);
    assert!(session.memory.read(border, 3096) == content[1000..]);
}

#[test]
fn a_table_can_be_replaced_under_running_rings() {
    let daemon = daemon("");
    for session in Session::of_each_kind(&daemon.socket(0)) {
        let load = Load::start(session.ring(0, 256), LOAD_SECTORS);
        let mut ring = session.ring(1, 64);
        for round in 0..20 {
            let start = FREE + round * MIB;
            let extra = region(start, MIB);
            let table = [session.memory.announcement(), extra.announcement()].concat();
            session.ask(|control| control.set_mem_table(&table)).unwrap();
            assert_eq!(ring.read_to(0, start, 4096), OK);
            assert_eq!(ring.read_to(0, start - MIB, 4096), IOERR, "the table before is still in force");
            load.wait_for_progress();
        }
        load.stop();
    }
}

/// Monitors map what they like where they like: only guest addresses tell regions apart.
#[test]
fn regions_may_overlap_in_user_addresses() {
    let daemon = daemon("");
    let session = Session::connect(&daemon.socket(0));
    let extra = region(FREE, 2 * MIB);
    for user in [SPANS[0].guest_start, SPANS[1].guest_start, SPANS[0].guest_start + 4 * PAGE] {
        let mut info = extra.announcement().remove(0);
        info.userspace_addr = USER_BASE + user;
        add(&session, &info).unwrap();
        let mut ring = session.ring(0, 64);
        assert_works(&mut ring, 0);
        let content = ring.run(&Request::read(0, 4096)).data;
        assert_eq!(ring.read_to(0, FREE + MIB, 4096), OK);
        assert!(extra.read(FREE + MIB, 4096) == content);
        extra.fill(FREE + MIB, 4096, 0);
        remove(&session, &info).unwrap();
        assert_eq!(ring.read_to(0, FREE + MIB, 4096), IOERR, "not there any more");
        session.stop(&ring);
    }
}

#[test]
fn a_region_may_consist_of_huge_pages() {
    let _pages = HugePages::add(2);
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB;
    let allocated = rustix::fs::memfd_create("guest", flags).and_then(|file| {
        rustix::fs::ftruncate(&file, 4 * MIB)?;
        rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, 4 * MIB)?;
        Ok(File::from(file))
    });
    let file = match allocated {
        Ok(file) => file,
        Err(error) => return println!("skipped: no huge pages (vm.nr_hugepages): {error}"),
    };
    let daemon = daemon("");
    let session = Session::connect(&daemon.socket(0));
    let mut ring = session.ring(0, 64);
    assert_works(&mut ring, 0);
    let content = ring.run(&Request::read(0, 4096)).data;
    let info = VhostUserMemoryRegionInfo {
        guest_phys_addr: FREE,
        memory_size: 2 * MIB,
        userspace_addr: USER_BASE + FREE,
        mmap_offset: 2 * MIB,
        mmap_handle: file.as_raw_fd(),
    };
    add(&session, &info).unwrap();
    let last_page = 2 * MIB - PAGE;
    assert_eq!(ring.read_to(0, FREE + last_page, 4096), OK);
    assert_eq!(ring.read_to(0, FREE + last_page + PAGE, 4096), IOERR);
    let mut stored = vec![0; 4096];
    file.read_exact_at(&mut stored, 2 * MIB + last_page).unwrap();
    assert!(stored == content);
    remove(&session, &info).unwrap();
    assert_eq!(ring.read_to(0, FREE + last_page, 4096), IOERR, "not there any more");
}

#[test]
fn slots_of_strange_descriptors_are_refused() {
    let daemon = daemon("");
    let session = Session::connect(&daemon.socket(0));
    let mut ring = session.ring(0, 64);
    let good = region(FREE, MIB);
    let info = good.announcement()[0];
    let path = format!("/proc/self/fd/{}", info.mmap_handle);
    let read_only = File::open(path).unwrap();
    let folder = File::open("/").unwrap();
    let (pipe, _writer) = std::io::pipe().unwrap();
    let event = crate::common::frontend::event_fd::event();
    let (socket, _peer) = std::os::unix::net::UnixStream::pair().unwrap();
    let handles =
        [read_only.as_raw_fd(), folder.as_raw_fd(), pipe.as_raw_fd(), event.as_raw_fd(), socket.as_raw_fd()];
    for (mmap_handle, what) in handles.into_iter().zip(["read-only", "folder", "pipe", "event", "socket"]) {
        assert_refused(what, add(&session, &VhostUserMemoryRegionInfo { mmap_handle, ..info }));
        assert_works(&mut ring, 0);
    }
    add(&session, &info).unwrap();
}

#[test]
fn slots_that_are_not_there_cannot_be_removed() {
    let daemon = daemon("");
    let session = Session::connect(&daemon.socket(0));
    let mut ring = session.ring(0, 64);
    let there = session.memory.announcement()[1];
    let wrong = |change: &dyn Fn(&mut VhostUserMemoryRegionInfo)| {
        let mut region = there;
        change(&mut region);
        remove(&session, &region)
    };
    assert_refused("another start", wrong(&|region| region.guest_phys_addr += PAGE));
    assert_refused("another length", wrong(&|region| region.memory_size -= PAGE));
    assert_refused("another user address", wrong(&|region| region.userspace_addr += PAGE));
    assert_eq!(ring.read_to(0, there.guest_phys_addr, 512), OK);
    remove(&session, &there).unwrap();
    assert_refused("removed already", remove(&session, &there));
    assert_eq!(ring.read_to(0, there.guest_phys_addr, 512), IOERR);
    assert_works(&mut ring, 0);
}

#[test]
fn there_are_509_slots() {
    let daemon = daemon("");
    let session = Session::connect(&daemon.socket(0));
    let mut ring = session.ring(0, 64);
    let pages = Memory::new(&[Span { guest_start: FREE, bytes: 1024 * PAGE }]);
    let slot = |number: u64| VhostUserMemoryRegionInfo {
        guest_phys_addr: FREE + number * 2 * PAGE,
        memory_size: PAGE,
        userspace_addr: USER_BASE + FREE + number * 2 * PAGE,
        mmap_offset: number * PAGE,
        ..pages.announcement()[0]
    };
    let free = SLOTS - SPANS.len() as u64;
    for number in 0..free {
        add(&session, &slot(number)).unwrap();
    }
    assert_refused("one slot more", add(&session, &slot(free)));
    for number in [0, free / 2, free - 1] {
        assert_eq!(ring.read_to(0, FREE + number * 2 * PAGE, 4096), OK, "slot {number}");
        assert_eq!(ring.read_to(0, FREE + (number * 2 + 1) * PAGE, 4096), IOERR, "behind slot {number}");
    }
    assert_eq!(ring.read_to(0, FREE + free * 2 * PAGE, 512), IOERR);
    remove(&session, &slot(7)).unwrap();
    add(&session, &slot(free)).unwrap();
    assert_eq!(ring.read_to(0, FREE + free * 2 * PAGE, 512), OK);
    assert_works(&mut ring, 0);
}
