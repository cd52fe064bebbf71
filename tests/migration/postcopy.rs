//! A guest that runs before its memory has come: the test is the front-end that brings pages when they are wanted.

use std::fs::File;
use std::os::unix::fs::FileExt;

use super::moved::{DISK_BYTES, Moved, content, daemon, sectors, with_options};
use crate::common::daemon::{Daemon, Place};
use crate::common::frontend::message::GET_VRING_BASE;
use crate::common::frontend::pages::{PAGE, can_wait};
use crate::common::frontend::request::{OK, Request};
use crate::common::frontend::ring::Ring;
use crate::common::frontend::{Options, SPANS, Session, settle};
use crate::common::process::Process;
use crate::common::{SECTOR_BYTES, pattern, wait_for};

/// The sector that requests of these tests write to.
const TARGET: u64 = 4096;

/// A guest that has moved to a daemon of its own; none where nobody may wait for pages.
fn moved() -> Option<(Daemon, Moved)> {
    can_wait().then(|| {
        let daemon = daemon(Place::Tmpfs).start();
        let moved = Moved::new(&daemon, 0);
        (daemon, moved)
    })
}

/// A write that waits for its data, which is in a page of its own.
fn waiting_write(moved: &mut Moved, ring: &mut Ring) {
    waiting(moved, ring, &Request::write(TARGET, &[0x11; PAGE as usize]));
}

fn waiting(moved: &mut Moved, ring: &mut Ring, request: &Request) {
    ring.submit(request);
    moved.session.start(ring, 0).unwrap();
    let data = ring.buffers(0).data;
    moved.serve_until_wanted(data);
}

#[test]
fn requests_are_done_when_the_pages_they_need_have_come() {
    if !can_wait() {
        return;
    }
    for (place, options) in Place::ALL.into_iter().zip(Options::both_kinds()) {
        let daemon = daemon(place).start();
        let mut moved = Moved::with(&daemon, options);
        let mut ring = moved.ring(0);
        let written = pattern(1, 3 * PAGE as usize);
        let requests =
            [Request::write(TARGET, &written), Request::read(8, 2 * PAGE as u32), Request::flush()];
        for request in &requests {
            ring.submit(request);
        }
        moved.session.start(&ring, 0).unwrap();
        moved.serve(&mut ring, 3);
        for address in [ring.descriptors, ring.buffers(0).header, ring.buffers(0).data + 2 * PAGE] {
            assert!(moved.has(address), "{address:#x} was not missing: {:x?}", moved.pages.brought());
        }

        moved.end(&mut ring);
        let answers: Vec<_> = requests.iter().map(|it| (it, ring.next_used().unwrap())).collect();
        let answers: Vec<_> = answers.into_iter().map(|(it, used)| ring.answer(it, used)).collect();
        assert!(answers.iter().all(|answer| answer.status == OK), "{answers:?}");
        assert!(answers[1].data == sectors(&content(), 8, 2 * PAGE as usize));
        let mut image = vec![0; written.len()];
        let file = File::open(daemon.image(0)).unwrap();
        file.read_exact_at(&mut image, TARGET * SECTOR_BYTES as u64).unwrap();
        assert!(image == written);

        // It goes on, and what has never come is not waited for any more.
        assert!(ring.run(&Request::read(TARGET, 4096)).data == written[..4096]);
        assert_eq!(ring.read_to(8, SPANS[1].guest_start, 4096), OK);
        assert!(moved.session.memory.read(SPANS[1].guest_start, 4096) == sectors(&content(), 8, 4096));
        daemon.stop();
    }
}

/// The front-end serves pages and says something at the same time, and has its answer however many are missing.
#[test]
fn what_rings_consist_of_is_waited_for_by_nobody_who_answers() {
    let Some((_daemon, mut moved)) = moved() else { return };
    let mut rings = [moved.ring(0), moved.ring(1)];
    for ring in &mut rings {
        ring.submit(&Request::write(TARGET, &[3; 512]));
        moved.session.start(ring, 0).unwrap();
    }
    let wanted = moved.pages.wanted();
    moved.session.config(0, 60).unwrap();
    moved.session.enable(&rings[0], false).unwrap();
    moved.session.enable(&rings[0], true).unwrap();
    moved.session.set_events(&rings[0]).unwrap();
    assert_eq!(moved.session.stop(&rings[1]), 0);
    moved.pages.bring(wanted);
    moved.serve(&mut rings[0], 1);
    // The other one was stopped before anything of it had come.
    assert!(!moved.has(rings[1].buffers(0).data));
    moved.pages.bring(rings[1].used / PAGE * PAGE);
    assert_eq!(moved.session.memory.load_u16(rings[1].used + 2), 0);
}

/// A copy that waits for a page keeps its thread in the kernel, which cannot say that it is slow: others do.
#[test]
fn a_request_that_waits_for_its_page_is_named_meanwhile() {
    if !can_wait() {
        return;
    }
    let daemon = with_options(Place::Tmpfs, ",slow-ms=200").start();
    let mut moved = Moved::new(&daemon, 0);
    let mut ring = moved.ring(0);
    waiting_write(&mut moved, &mut ring);
    let lines = |is_done: bool| {
        let log = daemon.log();
        let done = format!("done={is_done}");
        let is_such = |line: &&str| line.contains("a request is slow") && line.contains(&done);
        log.lines().filter(is_such).map(ToOwned::to_owned).collect::<Vec<_>>()
    };
    let named = wait_for("it is named", || lines(false).pop());
    let place = format!("ring=0 operation=\"write\" offset={} bytes={PAGE}", TARGET * SECTOR_BYTES as u64);
    assert!(named.contains(&place) && named.contains("waited_for=\"media\""), "{named}");
    moved.pages.bring(ring.buffers(0).data);
    moved.serve(&mut ring, 1);
    let named = wait_for("its end is named", || lines(true).pop());
    assert!(named.contains(&place), "{named}");
    assert_eq!(lines(false).len(), 1, "once");
    moved.end(&mut ring);
    daemon.stop();
}

#[test]
fn a_ring_that_waits_holds_no_other_up() {
    if !can_wait() {
        return;
    }
    let daemon = with_options(Place::Tmpfs, ",readonly=on").arg("--workers").arg("1").start();
    let mut moved = Moved::new(&daemon, 0);
    let (mut first, mut second) = (moved.ring(0), moved.ring(1));
    waiting(&mut moved, &mut first, &Request::read(TARGET, PAGE as u32));

    second.submit(&Request::read(8, 512));
    moved.session.start(&second, 0).unwrap();
    moved.serve(&mut second, 1);

    let other = Session::connect(&daemon.socket(0));
    let mut ring = other.ring(0, 64);
    for sector in 0..8 {
        assert_eq!(ring.run(&Request::read(sector, 512)).status, OK, "another guest");
    }
    assert!(!moved.has(first.buffers(0).data));
    moved.pages.bring(first.buffers(0).data);
    moved.serve(&mut first, 1);
    // They are other workers' again, all of them one's.
    moved.end(&mut first);
    assert_eq!(first.wait().head, 0);
    assert_eq!(first.run(&Request::read(8, 512)).status, OK);
    assert_eq!(ring.run(&Request::read(8, 512)).status, OK);
}

/// Whoever tells all front-ends that a disk has grown does not wait for one whose guest waits.
#[test]
fn disks_grow_while_a_guest_waits() {
    let Some((daemon, mut moved)) = moved() else { return };
    let mut ring = moved.ring(0);
    waiting_write(&mut moved, &mut ring);
    assert!(moved.session.wire.send(GET_VRING_BASE, 1, &[0; 8], &[]));
    settle();

    let other = Session::connect(&daemon.socket(0));
    File::options().write(true).open(daemon.image(0)).unwrap().set_len(2 * DISK_BYTES).unwrap();
    daemon.wait_for_log("the disk has grown");
    let grown = (2 * DISK_BYTES / SECTOR_BYTES as u64).to_le_bytes();
    wait_for("the other front-end sees it", || (other.config(0, 8).unwrap() == grown).then_some(()));
    let data = ring.buffers(0).data;
    moved.pages.bring(data);
    assert_eq!(
        moved.session.wire.receive().unwrap().payload,
        [0, 0, 0, 0, 1, 0, 0, 0],
        "where the ring stopped"
    );
}

/// How a front-end ends while a worker waits for a page, and what it still holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Death {
    /// All is closed at once.
    Killed,
    /// Somebody else has its userfaultfd.
    Survived,
    /// It has asked for something that only the waiting worker can give.
    Asking,
}

#[test]
fn a_front_end_that_dies_writes_nothing_that_its_guest_did_not() {
    if !can_wait() {
        return;
    }
    for place in Place::ALL {
        let daemon = daemon(place).start();
        for (death, packed) in [(Death::Killed, false), (Death::Survived, true), (Death::Asking, false)] {
            println!("{place:?} {death:?}");
            let mut moved = Moved::with(&daemon, Options { packed, ..Options::default() });
            let mut ring = moved.ring(0);
            waiting_write(&mut moved, &mut ring);
            let Moved { session, pages, .. } = moved;
            if death == Death::Asking {
                assert!(session.wire.send(GET_VRING_BASE, 1, &[0; 8], &[]));
                settle();
            }
            let survivor = (death != Death::Killed).then_some(pages);
            drop(session);
            // The next one's rings run only when the first one's have stopped.
            let session = Session::connect(&daemon.socket(0));
            let mut ring = session.ring(0, 64);
            let read = ring.run(&Request::read(TARGET, PAGE as u32));
            assert_eq!(read.status, OK);
            assert!(
                read.data == sectors(&content(), TARGET, PAGE as usize),
                "neither zeroes nor anything else"
            );
            // Until it has ended nobody else may come before its memory.
            let sessions = || Process(daemon.pid()).threads_named("session-").len();
            wait_for("the first one's session has ended", || (sessions() == 1).then_some(()));
            drop(survivor);
        }
        daemon.stop();
    }
}

#[test]
fn a_daemon_that_is_told_to_stop_does_not_wait_for_pages() {
    let Some((daemon, mut moved)) = moved() else { return };
    let mut ring = moved.ring(0);
    waiting_write(&mut moved, &mut ring);
    let setup = daemon.stop();
    assert!(std::fs::read(setup.image(0)).unwrap() == content());
    // Nothing was said to the guest that was not so.
    assert_eq!(moved.session.memory.load_u16(ring.used + 2), 0);
}
