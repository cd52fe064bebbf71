//! Calls: they come, they never hold up a worker, and what others share of the descriptor stays as it was.

use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::mpsc;
use std::time::Duration;

use rustix::fs::OFlags;

use super::{blocking_event, bystander, fill, often_called, two_disks};
use crate::common::frontend::message::{SET_VRING_CALL, SET_VRING_ERR};
use crate::common::frontend::request::{OK, Request};
use crate::common::frontend::ring::Ring;
use crate::common::frontend::settle;
use crate::common::frontend::wire::Verdict;
use crate::common::{is_readable, wait_for, wait_readable};

pub(super) const RING: [u8; 8] = [0; 8];

/// A request is done, whoever is told of it.
pub(super) fn run_untold(ring: &mut Ring) {
    let request = Request::read(0, 4096);
    ring.submit(&request);
    ring.kick.signal();
    let used = wait_for("a read is done", || ring.next_used());
    assert_eq!(ring.answer(&request, used).status, OK);
}

/// As the front-end of the issue: it takes `O_NONBLOCK` off again, if it was ever set, and fills the counter.
#[test]
fn a_full_counter_holds_nobody_up_and_calls_again_once_it_is_read() {
    let daemon = two_disks();
    let (_bystander, load) = bystander(&daemon);
    let session = often_called(&daemon);
    let mut ring = session.ring(0, 64);
    let call = blocking_event();
    for message in [SET_VRING_CALL, SET_VRING_ERR] {
        assert_eq!(session.wire.tell(message, &RING, &[call.as_fd()]), Verdict::Ack);
    }
    fill(&call);
    for _ in 0..8 {
        run_untold(&mut ring);
    }
    load.wait_for_progress();
    let mut count = [0; 8];
    rustix::io::read(&call, &mut count).unwrap();
    run_untold(&mut ring);
    wait_readable("the call comes again", &call);
    fill(&call);
    // Its error descriptor, too: the worker signals that, and the session where the ring cannot be started again.
    ring.break_it();
    settle();
    session.share_memory();
    load.wait_for_progress();
    load.stop();
    drop(session);
    daemon.stop();
}

/// The flags belong to the open file, which is also the front-end's.
#[test]
fn a_reader_that_waits_goes_on_waiting() {
    let daemon = two_disks();
    let session = often_called(&daemon);
    let mut ring = session.ring(0, 64);
    let call = blocking_event();
    for message in [SET_VRING_CALL, SET_VRING_ERR] {
        assert_eq!(session.wire.tell(message, &RING, &[call.as_fd()]), Verdict::Ack);
        let flags = rustix::fs::fcntl_getfl(&call).unwrap();
        assert!(!flags.contains(OFlags::NONBLOCK), "{message}");
    }
    // Once it is handed over it is signalled.
    let mut count = [0; 8];
    rustix::io::read(&call, &mut count).unwrap();
    let (sender, receiver) = mpsc::channel();
    let reader = call.try_clone().unwrap();
    let thread = std::thread::spawn(move || {
        for _ in 0..3 {
            let read = rustix::io::read(&reader, &mut [0; 8]);
            sender.send(read).unwrap();
        }
    });
    for _ in 0..3 {
        let waits = receiver.recv_timeout(Duration::from_millis(50));
        assert_eq!(waits, Err(mpsc::RecvTimeoutError::Timeout), "it waits for the next call");
        run_untold(&mut ring);
        assert_eq!(receiver.recv_timeout(crate::common::PATIENCE).unwrap(), Ok(8));
    }
    thread.join().unwrap();
}

/// User-Mode Linux: the call is one end of a pair of stream sockets.
#[test]
fn a_socket_is_called_and_a_full_or_closed_one_holds_nobody_up() {
    let daemon = two_disks();
    let (_bystander, load) = bystander(&daemon);
    let session = often_called(&daemon);
    let mut ring = session.ring(0, 64);
    let (call, reader) = UnixStream::pair().unwrap();
    assert_eq!(session.wire.tell(SET_VRING_CALL, &RING, &[call.as_fd()]), Verdict::Ack);
    assert!(!rustix::fs::fcntl_getfl(&call).unwrap().contains(OFlags::NONBLOCK));
    for _ in 0..3 {
        wait_readable("the call comes", &reader);
        reader.set_nonblocking(true).unwrap();
        while rustix::io::read(&reader, &mut [0; 64]).is_ok() {}
        assert!(!is_readable(&reader, Duration::ZERO));
        run_untold(&mut ring);
    }
    while rustix::net::send(&call, &[0; 4096], rustix::net::SendFlags::DONTWAIT).is_ok() {}
    while rustix::net::send(&call, &[0; 1], rustix::net::SendFlags::DONTWAIT).is_ok() {}
    for _ in 0..8 {
        run_untold(&mut ring);
    }
    drop(reader);
    for _ in 0..8 {
        run_untold(&mut ring);
    }
    load.wait_for_progress();
    load.stop();
}

/// Whoever uses up the machine's contexts of Linux AIO later (`fs.aio-max-nr`) takes none away from calls.
#[test]
fn what_calls_are_made_with_is_there_from_the_start() {
    let daemon = two_disks();
    // What is read of maps that change meanwhile may lack some.
    let maps = || std::fs::read_to_string(format!("/proc/{}/maps", daemon.pid())).unwrap();
    wait_for("there is a context", || maps().contains("[aio]").then_some(()));
    daemon.stop();
}
