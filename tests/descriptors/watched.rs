//! Front-ends that have what a worker does for them take milliseconds inside the kernel: descriptors that very many wait for, and
//! memory that is taken away while it is used. Their disk has workers of its own then.

use std::fs::File;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::fs::FallocateFlags;
use rustix::mm::{MapFlags, ProtFlags};

use super::calls::{RING, run_untold};
use super::{blocking_event, bystander, often_called, two_disks};
use crate::common::daemon::{Daemon, Place, Setup};
use vhost::VhostBackend as _;

use crate::common::frontend::Session;
use crate::common::frontend::load::Load;
use crate::common::frontend::message::{SET_VRING_CALL, SET_VRING_ERR, SET_VRING_KICK};
use crate::common::frontend::request::{OK, Request};
use crate::common::frontend::settle;
use crate::common::frontend::wire::Verdict;
use crate::common::process::Process;
use crate::common::wait::Ends;
use crate::common::{SECTOR_BYTES, is_readable, metrics, pattern, wait_long_for, wait_readable};

/// As many as an ordinary limit of open files allows.
const COPIES: usize = 400;
const EPOLLS: usize = 150;

/// Requests, each of which is called for.
const REQUESTS: usize = 20;

/// What the log says when a disk has workers of its own.
const APART: &str = "a front-end holds up its worker";

/// An eventfd, and those who wait for it.
struct Watched {
    event: OwnedFd,
    _watchers: Vec<OwnedFd>,
}

fn watched(epolls: usize) -> Watched {
    let event = blocking_event();
    let mut watchers: Vec<OwnedFd> = (0..COPIES).map(|_| event.try_clone().unwrap()).collect();
    for _ in 0..epolls {
        let epoll = epoll::create(CreateFlags::CLOEXEC).unwrap();
        for copy in watchers.iter().take(COPIES) {
            let flags = EventFlags::IN | EventFlags::ET;
            epoll::add(&epoll, copy, EventData::new_u64(0), flags).unwrap();
        }
        watchers.push(epoll);
    }
    Watched { event, _watchers: watchers }
}

/// Requests of a front-end of the first disk, one after the other, until the call for each has come.
fn serve_one(daemon: &Daemon, watched: &Watched) {
    let session = often_called(daemon);
    let mut ring = session.ring(0, 64);
    for message in [SET_VRING_CALL, SET_VRING_ERR] {
        assert_eq!(session.wire.tell(message, &RING, &[watched.event.as_fd()]), Verdict::Ack);
    }
    for _ in 0..REQUESTS {
        run_untold(&mut ring);
        wait_readable("the call comes", &watched.event);
        rustix::io::read(&watched.event, &mut [0; 8]).unwrap();
    }
    ring.break_it();
    wait_readable("the error comes", &watched.event);
    settle();
}

/// How often others were held up.
fn hold_ups(daemon: &Daemon) -> f64 {
    metrics::read(&daemon.metrics_socket())["hold_ups_total{disk=\"disk0\"}"]
}

fn is_apart(daemon: &Daemon) -> bool {
    daemon.log().contains(APART)
}

/// The niceness of each worker and the CPUs it may run on, by its number.
fn workers(daemon: &Daemon) -> Vec<(i64, String)> {
    let mut threads = Process(daemon.pid()).threads_named("worker-");
    threads.sort_unstable();
    let of = |thread| {
        let task = format!("/proc/{}/task/{thread}", daemon.pid());
        let stat = std::fs::read_to_string(format!("{task}/stat")).unwrap();
        let (_, fields) = stat.rsplit_once(") ").unwrap();
        let nice = fields.split(' ').nth(16).unwrap().parse().unwrap();
        let status = std::fs::read_to_string(format!("{task}/status")).unwrap();
        let cpus = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:\t")).unwrap();
        (nice, cpus.to_owned())
    };
    threads.into_iter().map(of).collect()
}

/// The disk has its own worker. Returns how often others were held up before.
fn check_apart(daemon: &Daemon) -> f64 {
    wait_long_for("it has a worker", || (workers(daemon).len() == 2).then_some(()));
    let nice = |number: usize| workers(daemon)[number].0;
    wait_long_for("that is behind the other", || (nice(1) == nice(0).max(10)).then_some(()));
    let hold_ups = hold_ups(daemon);
    assert!(hold_ups >= 3.0, "one look may be wrong: {hold_ups}");
    hold_ups
}

#[test]
fn a_disk_whose_calls_take_long_has_workers_of_its_own() {
    // Whose worker is pinned: the disk's own is not.
    let own = std::fs::read_to_string("/proc/self/status").unwrap();
    let all = own.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:\t")).unwrap();
    let first = all.split(['-', ',']).next().unwrap();
    let setup = Setup::new(Place::Tmpfs).disk("size=16M").disk("size=16M").arg("--workers=1");
    let daemon = setup.arg(&format!("--cpus={first}")).with_metrics().start();
    let (_bystander, load) = bystander(&daemon);
    let watched = watched(EPOLLS);
    serve_one(&daemon, &watched);
    daemon.wait_for_log(APART);
    let before = check_apart(&daemon);
    let of_process = std::fs::read_to_string(format!("/proc/{}/status", daemon.pid())).unwrap();
    let cpus: Vec<_> = workers(&daemon).into_iter().map(|(_, cpus)| cpus).collect();
    assert!(
        cpus[0] == first && of_process.contains(&format!("Cpus_allowed_list:\t{}\n", cpus[1])),
        "{cpus:?}"
    );
    load.wait_for_progress();
    // Whoever comes next is known.
    (0..3).for_each(|_| serve_one(&daemon, &watched));
    assert_eq!(check_apart(&daemon), before, "nobody else waits any more");
    assert_eq!(Process(daemon.pid()).threads_named("apart-disk0").len(), 1);
    load.wait_for_progress();
    load.stop();
    daemon.stop();
}

/// No descriptor is left for a worker of its own: it goes on with the one that it has until there is.
#[test]
fn a_disk_that_can_have_no_worker_of_its_own_keeps_the_one_it_has() {
    let daemon = two_disks();
    let (_bystander, load) = bystander(&daemon);
    let session = often_called(&daemon);
    let mut ring = session.ring(0, 64);
    let watched = watched(EPOLLS);
    assert_eq!(session.wire.tell(SET_VRING_CALL, &RING, &[watched.event.as_fd()]), Verdict::Ack);
    run_untold(&mut ring);
    Process(daemon.pid()).opens_nothing(|| {
        wait_long_for("a worker is missed", || {
            run_untold(&mut ring);
            daemon.log().contains("cannot start a worker: another one serves").then_some(())
        });
        (0..REQUESTS).for_each(|_| run_untold(&mut ring));
        load.wait_for_progress();
        assert_eq!(workers(&daemon).len(), 1);
    });
    check_apart(&daemon);
    run_untold(&mut ring);
    load.wait_for_progress();
    load.stop();
    daemon.stop();
}

/// Each takes less than a millisecond.
#[test]
fn calls_that_take_some_time_each_are_added_up() {
    let daemon = two_disks();
    let (_bystander, load) = bystander(&daemon);
    let session = often_called(&daemon);
    let mut ring = session.ring(0, 64);
    let watched = watched(4);
    assert_eq!(session.wire.tell(SET_VRING_CALL, &RING, &[watched.event.as_fd()]), Verdict::Ack);
    wait_long_for("the disk has workers of its own", || {
        run_untold(&mut ring);
        is_apart(&daemon).then_some(())
    });
    load.wait_for_progress();
    run_untold(&mut ring);
    load.stop();
    daemon.stop();
}

/// Once another one is in its place it is the front-end's own again, however long its calls take.
#[test]
fn a_descriptor_that_was_replaced_is_not_signalled_any_more() {
    let daemon = two_disks();
    let session = often_called(&daemon);
    let mut ring = session.ring(0, 64);
    let (watched, other) = (watched(EPOLLS), blocking_event());
    let hand_over = |event: &OwnedFd| {
        assert_eq!(session.wire.tell(SET_VRING_CALL, &RING, &[event.as_fd()]), Verdict::Ack)
    };
    for _ in 0..12 {
        hand_over(&watched.event);
        run_untold(&mut ring);
        hand_over(&other);
        wait_readable("it was called", &watched.event);
        rustix::io::read(&watched.event, &mut [0; 8]).unwrap();
        run_untold(&mut ring);
        wait_readable("the other one is called", &other);
        settle();
        assert!(!is_readable(&watched.event, Duration::ZERO), "the first one is not");
    }
    daemon.stop();
}

/// Whoever begins or ends to wait for it waits for the lock that is held while all are woken.
#[test]
fn a_disk_whose_kicks_are_locked_for_long_has_workers_of_its_own() {
    let daemon = two_disks();
    let (_bystander, load) = bystander(&daemon);
    let session = often_called(&daemon);
    let mut ring = session.ring(0, 64);
    let (watched, is_over) = (watched(EPOLLS), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let ends = Ends(&is_over);
        scope.spawn(|| {
            while !is_over.load(Ordering::Relaxed) {
                rustix::io::write(&watched.event, &1_u64.to_ne_bytes()).unwrap();
            }
        });
        wait_long_for("the disk has workers of its own", || {
            let kick = [watched.event.as_fd()];
            assert_eq!(session.wire.tell(SET_VRING_KICK, &RING, &kick), Verdict::Ack);
            is_apart(&daemon).then_some(())
        });
        drop(ends);
    });
    let before = check_apart(&daemon);
    session.set_events(&ring.vring()).unwrap();
    run_untold(&mut ring);
    load.wait_for_progress();
    assert_eq!(hold_ups(&daemon), before, "nobody else waits any more");
    load.stop();
    daemon.stop();
}

/// Pages of guest memory, of which the first is mapped so often that to punch a hole there takes long: all mappings are looked at.
struct MappedOften {
    file: File,
    offset: u64,
    mappings: *mut std::ffi::c_void,
}

/// A process can have 65,530.
const MAPPINGS: usize = 60_000;
const PAGE_BYTES: usize = 4096;
const AREA_BYTES: u32 = 8 * PAGE_BYTES as u32;

#[allow(unsafe_code)]
impl MappedOften {
    fn new(session: &Session, page: u64) -> Self {
        let region = session.memory.announcement()[0];
        let offset = region.mmap_offset + (page - region.guest_phys_addr);
        let file: File = session.memory.fd().try_clone_to_owned().unwrap().into();
        let bytes = MAPPINGS * PAGE_BYTES;
        let (nothing, shared) = (std::ptr::null_mut(), MapFlags::SHARED);
        // SAFETY: memory of its own, which nobody touches; it stays where it is until the drop.
        let mappings = unsafe {
            rustix::mm::mmap_anonymous(nothing, bytes, ProtFlags::empty(), MapFlags::PRIVATE).unwrap()
        };
        for number in 0..MAPPINGS {
            let place = mappings.wrapping_byte_add(number * PAGE_BYTES);
            // SAFETY: in place of a page of that.
            let mapped = unsafe {
                rustix::mm::mmap(place, PAGE_BYTES, ProtFlags::READ, shared | MapFlags::FIXED, &file, offset)
            };
            mapped.unwrap();
        }
        Self { file, offset, mappings }
    }

    fn punch(&self) {
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        rustix::fs::fallocate(&self.file, flags, self.offset, AREA_BYTES.into()).unwrap();
    }
}

#[allow(unsafe_code)]
impl Drop for MappedOften {
    fn drop(&mut self) {
        // SAFETY: nobody has touched it.
        unsafe { rustix::mm::munmap(self.mappings, MAPPINGS * PAGE_BYTES).unwrap() };
    }
}

// SAFETY: the mappings are not touched.
#[allow(unsafe_code)]
unsafe impl Sync for MappedOften {}

/// Pages are taken away as fast as they are touched: a turn would last as long as that goes on. So it is ended, and done again where
/// it holds up nobody else.
#[test]
fn a_disk_whose_memory_is_taken_away_while_it_is_used_has_workers_of_its_own() {
    let daemon = two_disks();
    let (_bystander, load) = bystander(&daemon);
    let session = often_called(&daemon);
    let mut ring = session.ring(0, 64);
    let content = pattern(7, AREA_BYTES as usize);
    for (number, page) in content.chunks(PAGE_BYTES).enumerate() {
        let sector = (number * PAGE_BYTES / SECTOR_BYTES) as u64;
        assert_eq!(ring.run(&Request::write(sector, page)).status, OK);
    }
    let area = session.memory.allocate(AREA_BYTES.into(), PAGE_BYTES as u64);
    let (mapped, is_over) = (MappedOften::new(&session, area), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let ends = Ends(&is_over);
        // One punches as soon as the other one has.
        for _ in 0..2 {
            scope.spawn(|| {
                while !is_over.load(Ordering::Relaxed) {
                    mapped.punch();
                }
            });
        }
        let reads = scope.spawn(|| {
            while !is_over.load(Ordering::Relaxed) {
                assert_eq!(ring.read_to(0, area, AREA_BYTES), OK);
            }
        });
        wait_long_for("the disk has workers of its own", || {
            assert!(!reads.is_finished());
            is_apart(&daemon).then_some(())
        });
        wait_long_for("it has a worker", || (workers(&daemon).len() == 2).then_some(()));
        let before = hold_ups(&daemon);
        load.wait_for_progress();
        assert_eq!(hold_ups(&daemon), before, "nobody else waits any more");
        drop(ends);
    });
    assert_eq!(ring.read_to(0, area, AREA_BYTES), OK);
    assert!(session.memory.read(area, content.len()) == content, "what was ended is done to its end");
    load.wait_for_progress();
    load.stop();
    daemon.stop();
}

/// The rings of a front-end are given to other workers while all of their descriptors are replaced, again and again.
#[test]
fn descriptors_that_are_replaced_while_rings_move_lose_no_notification() {
    let daemon = two_disks();
    let (_bystander, load) = bystander(&daemon);
    let process = Process(daemon.pid());
    let session = often_called(&daemon);
    let busy = Load::start(session.ring(1, 64), 0);
    let mut ring = session.ring(0, 64);
    busy.wait_for_progress();
    let fds = process.fds();
    let watched = watched(EPOLLS);
    let vring = busy.vring.clone();
    let index = usize::from(vring.index);
    wait_long_for("the disk has workers of its own", || {
        assert_eq!(session.wire.tell(SET_VRING_CALL, &RING, &[watched.event.as_fd()]), Verdict::Ack);
        for _ in 0..100 {
            vring.kick.replace(|kick| session.ask(|control| control.set_vring_kick(index, kick)).unwrap());
            vring.call.replace(|call| session.ask(|control| control.set_vring_call(index, call)).unwrap());
            vring.err.replace(|err| session.ask(|control| control.set_vring_err(index, err)).unwrap());
        }
        run_untold(&mut ring);
        is_apart(&daemon).then_some(())
    });
    for _ in 0..300 {
        vring.kick.replace(|kick| session.ask(|control| control.set_vring_kick(index, kick)).unwrap());
        vring.call.replace(|call| session.ask(|control| control.set_vring_call(index, call)).unwrap());
    }
    check_apart(&daemon);
    busy.wait_for_progress();
    load.wait_for_progress();
    assert!(process.fds() <= fds + 8, "{} descriptors, and {fds} before", process.fds());
    session.stop(&busy.stop().vring());
    load.stop();
    daemon.stop();
}
