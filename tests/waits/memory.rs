//! Guest memory and the dirty log are changed while requests are under way: what the kernel still writes has a place, and once a
//! message is answered, it is as it says.

use std::fs::File;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::FileExt as _;

use rustix::fs::MemfdFlags;
use vhost::vhost_user::VhostUserFrontend as _;
use vhost::{VhostBackend as _, VhostUserDirtyLogRegion};

use crate::common::daemon::Daemon;
use crate::common::frontend::memory::{Memory, Span};
use crate::common::frontend::request::{IN, OK, Request, header};
use crate::common::frontend::ring::{Ring, WRITE};
use crate::common::frontend::{LOG_ALL, Options, Session, settle};
use crate::common::{MIB, wait_for};
use crate::fuse::{Media, Server, contents, with_disks};

/// Where the memory is that comes and goes.
const EXTRA: Span = Span { guest_start: 0x10_0000_0000, bytes: MIB };

const READS: u64 = 16;

const BYTES: u64 = 4096;

/// Begins reads of 4 KiB each to guest memory from `start` on. Returns the addresses of their statuses.
fn begin_reads(ring: &mut Ring, start: u64) -> Vec<u64> {
    let begin = |number: u64| {
        let frame = ring.buffers(number as usize);
        ring.memory.write(frame.header, &header(IN, super::place(number)));
        ring.memory.fill(frame.status, 1, 0xee);
        let data = (start + number * BYTES, BYTES as u32, WRITE);
        ring.prepare(number as u16 * 3, &[(frame.header, 16, 0), data, (frame.status, 1, WRITE)]);
        frame.status
    };
    let statuses = (0..READS).map(begin).collect();
    ring.make_available();
    ring.notify();
    statuses
}

fn expected(number: u64) -> Vec<u8> {
    let at = super::place(number) as usize * 512;
    contents()[at..at + BYTES as usize].to_vec()
}

/// REM_MEM_REG and SET_MEM_TABLE are answered when nothing is written to what was taken away, and not before.
#[test]
fn memory_is_taken_away_once_nothing_is_written_to_it_any_more() {
    for media in [Media::File, Media::Device] {
        with_disks(media, 0, |setup, server| {
            let daemon = setup.start();
            for (options, by_table) in Options::both_kinds().into_iter().zip([false, true]) {
                check_memory(&daemon, server, &options, by_table);
            }
            daemon.stop();
        });
    }
}

fn check_memory(daemon: &Daemon, server: &Server, options: &Options, by_table: bool) {
    let session = Session::connect_with(&daemon.socket(0), options);
    let extra = Memory::new(&[EXTRA]);
    let region = extra.announcement().remove(0);
    session.ask(|control| control.add_mem_region(&region)).unwrap();
    let mut ring = session.ring(0, 64);
    assert_eq!(ring.run(&Request::flush()).status, OK);
    server.forget();
    server.hang();
    let statuses = begin_reads(&mut ring, EXTRA.guest_start);
    settle();
    let all = std::thread::scope(|scope| {
        let takes_away = scope.spawn(|| {
            match by_table {
                false => session.ask(|control| control.remove_mem_region(&region)).unwrap(),
                true => session.share_memory(),
            }
            // Somebody else's from now on.
            let all: Vec<_> =
                (0..READS).map(|it| extra.read(EXTRA.guest_start + it * BYTES, BYTES as usize)).collect();
            extra.fill(EXTRA.guest_start, EXTRA.bytes as usize, 0x5a);
            all
        });
        settle();
        assert!(!takes_away.is_finished(), "it is answered while the kernel may write there");
        server.go_on();
        takes_away.join().unwrap()
    });
    for ((number, status), read) in (0..).zip(&statuses).zip(all) {
        let used = ring.wait();
        let status = ring.memory.read(*status, 1)[0];
        assert_eq!(used.head, number as u16 * 3);
        // One that was not begun before finds no memory.
        assert!(status != OK || read == expected(number), "read {number}");
    }
    settle();
    let after = extra.read(EXTRA.guest_start, EXTRA.bytes as usize);
    assert!(after.iter().all(|byte| *byte == 0x5a), "something was written afterwards");
    session.stop(&ring.vring());
}

/// A dirty log of all memory.
struct Log(File);

impl Log {
    const BYTES: u64 = (EXTRA.guest_start + EXTRA.bytes) / 4096 / 8;

    fn new() -> Self {
        let file = File::from(rustix::fs::memfd_create("log", MemfdFlags::CLOEXEC).unwrap());
        file.set_len(Self::BYTES).unwrap();
        Self(file)
    }

    fn announce(&self, session: &Session) {
        let (mmap_size, mmap_handle) = (Self::BYTES, self.0.as_raw_fd());
        let region = VhostUserDirtyLogRegion { mmap_size, mmap_offset: 0, mmap_handle };
        session.ask(|control| control.set_log_base(0, Some(region))).unwrap();
    }

    fn has(&self, address: u64) -> bool {
        let (page, mut byte) = (address / 4096, [0]);
        self.0.read_exact_at(&mut byte, page / 8).unwrap();
        byte[0] >> (page % 8) & 1 == 1
    }
}

/// The log is switched on, and replaced, while reads are under way: whatever is written after that is marked in the last one.
#[test]
fn a_log_that_comes_while_reads_are_under_way_has_what_they_write() {
    for (media, options) in [Media::File, Media::Device].into_iter().zip(Options::both_kinds()) {
        with_disks(media, 0, |setup, server| {
            let daemon = setup.start();
            check_log(&daemon, server, options);
            daemon.stop();
        });
    }
}

fn check_log(daemon: &Daemon, server: &Server, options: Options) {
    let options = Options { features: options.features & !LOG_ALL, ..options };
    let mut session = Session::connect_with(&daemon.socket(0), &options);
    let extra = Memory::new(&[EXTRA]);
    session.ask(|control| control.add_mem_region(&extra.announcement()[0])).unwrap();
    let mut ring = session.ring(0, 64);
    assert_eq!(ring.run(&Request::flush()).status, OK);
    server.forget();
    server.hang();
    let statuses = begin_reads(&mut ring, EXTRA.guest_start);
    settle();
    let (first, last) = (Log::new(), Log::new());
    let vring = ring.vring();
    // What was there when the last message was answered is not in the last log.
    let before = std::thread::scope(|scope| {
        let says = scope.spawn(|| {
            first.announce(&session);
            session.set_features(session.features | LOG_ALL);
            session.set_addresses_and_log(&vring, Some(vring.used)).unwrap();
            last.announce(&session);
            extra.read(EXTRA.guest_start, (READS * BYTES) as usize)
        });
        settle();
        server.go_on();
        says.join().unwrap()
    });
    let is_done = |ring: &Ring| statuses.iter().all(|status| ring.memory.read(*status, 1)[0] == OK);
    wait_for("the reads are done", || is_done(&ring).then_some(()));
    let heads: Vec<_> = statuses.iter().map(|_| ring.wait().head).collect();
    assert!(heads.iter().copied().eq((0..READS as u16).map(|it| it * 3)), "{heads:?}");
    for number in 0..READS {
        let (at, start) = ((number * BYTES) as usize, EXTRA.guest_start + number * BYTES);
        let read = extra.read(start, BYTES as usize);
        assert!(read == expected(number), "read {number}");
        let was_there = before[at..][..BYTES as usize] == read;
        assert!(was_there || last.has(start), "read {number} is not marked");
    }
    session.stop(&vring);
}
