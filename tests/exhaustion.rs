//! One front-end takes all that the process can give: it is refused before the process would end, whoever comes is
//! answered, and all is as before when it is gone.

#![allow(missing_docs)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
#![allow(clippy::cast_possible_truncation, clippy::print_stderr)]

mod common;

use std::fs::File;
use std::os::fd::AsRawFd as _;

use rustix::fs::MemfdFlags;
use vhost::VhostUserMemoryRegionInfo;
use vhost::vhost_user::VhostUserFrontend as _;

use common::daemon::{Daemon, Place, Setup};
use common::frontend::load::Load;
use common::frontend::memory::{Span, USER_BASE};
use common::frontend::request::{OK, Request};
use common::frontend::{Options, Session};
use common::process::Process;
use common::wait_for;

const PAGE: u64 = 4096;

/// Where regions are added: behind everything that is there from the start.
const FREE: u64 = 1 << 40;

/// Most regions of a session.
const REGIONS: u64 = 509;

fn file(bytes: u64) -> File {
    let file = File::from(rustix::fs::memfd_create("greedy", MemfdFlags::CLOEXEC).unwrap());
    file.set_len(bytes).unwrap();
    file
}

fn add(session: &Session, file: &File, start: u64, bytes: u64) -> vhost::Result<()> {
    let region = VhostUserMemoryRegionInfo {
        guest_phys_addr: start,
        memory_size: bytes,
        userspace_addr: USER_BASE + start,
        mmap_offset: 0,
        mmap_handle: file.as_raw_fd(),
    };
    session.ask(|control| control.add_mem_region(&region)).map(|_| ())
}

/// Somebody who comes now gets the disk: that takes threads, memory of his own, and a ring.
fn assert_works(daemon: &mut Daemon, disk: usize) {
    for _ in 0..4 {
        let session = Session::connect(&daemon.socket(disk));
        let mut ring = session.ring(0, 64);
        assert_eq!(ring.run(&Request::write(0, &[7; 4096])).status, OK);
        assert_eq!(ring.run(&Request::flush()).status, OK);
        session.stop(&ring);
    }
    daemon.assert_alive();
}

/// Whoever comes now is answered, one beside the other: that takes threads.
fn assert_answers(daemon: &mut Daemon, disk: usize, count: usize) {
    let all: Vec<Session> = (0..count).map(|_| open(daemon, disk)).collect();
    daemon.assert_alive();
    drop(all);
}

/// A front-end that has shared no memory yet.
fn open(daemon: &Daemon, disk: usize) -> Session {
    let mut session = Session::open(&daemon.socket(disk), &[Span { guest_start: 0, bytes: PAGE }]);
    session.negotiate_protocol(&Options::default());
    session
}

/// As many regions as there can be, on as many connections as there can be, on all disks but the last one.
#[test]
fn mappings() {
    const DISKS: usize = 10;
    let setup = (0..=DISKS).fold(Setup::new(Place::Tmpfs), |setup, _| setup.disk("size=1M,queues=1"));
    let mut daemon = setup.start();
    let victim = Session::connect(&daemon.socket(DISKS));
    let load = Load::start(victim.ring(0, 64), 0);
    let before = Process(daemon.pid()).all_mappings();
    let file = file(PAGE);
    let (mut sessions, mut refused) = (Vec::new(), 0_u64);
    for disk in 0..DISKS {
        for _ in 0..15 {
            let session = open(&daemon, disk);
            let start = |number| FREE + number * 2 * PAGE;
            refused +=
                (0..REGIONS).find(|it| add(&session, &file, start(*it), PAGE).is_err()).map_or(0, |_| 1);
            sessions.push(session);
            if refused > 20 {
                break;
            }
        }
    }
    assert_ne!(refused, 0, "all were taken: {} mappings", Process(daemon.pid()).all_mappings());
    assert_answers(&mut daemon, DISKS, 8);
    load.wait_for_progress();
    drop(sessions);
    wait_for("nothing is left of them", || {
        (Process(daemon.pid()).all_mappings() < before + 500).then_some(())
    });
    assert_works(&mut daemon, 0);
    daemon.stop();
}

/// Regions of all sizes, until none fits any more.
#[test]
fn address_space() {
    let limited = ["prlimit", "--as=4294967296"];
    let setup = Setup::new(Place::Tmpfs).disk("size=1M,queues=1").disk("size=1M,queues=1");
    let mut daemon = setup.through(&limited).start();
    let greedy = Session::connect(&daemon.socket(0));
    let file = file(4 << 30);
    let (mut start, mut bytes, mut refused) = (FREE, 2_u64 << 30, 0);
    while bytes >= PAGE {
        if add(&greedy, &file, start, bytes).is_ok() {
            start += 2 * bytes;
        } else {
            refused += 1;
            bytes /= 2;
        }
    }
    assert_ne!(refused, 0);
    assert_answers(&mut daemon, 1, 1);
    drop(greedy);
    assert_works(&mut daemon, 0);
    daemon.stop();
}
