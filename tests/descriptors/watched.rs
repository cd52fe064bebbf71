//! A call descriptor that very many wait for: each call wakes all of them, which takes milliseconds inside the kernel.

use std::os::fd::{AsFd as _, OwnedFd};

use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};

use super::calls::{RING, run_untold};
use super::{blocking_event, bystander, often_called, two_disks};
use crate::common::daemon::Daemon;
use crate::common::frontend::message::{SET_VRING_CALL, SET_VRING_ERR};
use crate::common::frontend::settle;
use crate::common::frontend::wire::Verdict;
use crate::common::process::Process;
use crate::common::{metrics, wait_for, wait_readable};

/// As many as an ordinary limit of open files allows.
const COPIES: usize = 400;
const EPOLLS: usize = 150;

/// Requests, each of which is called for.
const REQUESTS: usize = 20;

/// An eventfd, and those who wait for it.
struct Watched {
    event: OwnedFd,
    _watchers: Vec<OwnedFd>,
}

fn watched() -> Watched {
    let event = blocking_event();
    let mut watchers: Vec<OwnedFd> = (0..COPIES).map(|_| event.try_clone().unwrap()).collect();
    for _ in 0..EPOLLS {
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

/// How many calls others have waited for.
fn slow(daemon: &Daemon) -> f64 {
    metrics::read(&daemon.metrics_socket())["slow_calls_total{disk=\"disk0\"}"]
}

#[test]
fn a_thread_of_the_disk_s_own_makes_calls_that_are_slow() {
    let daemon = two_disks();
    let (_bystander, load) = bystander(&daemon);
    let watched = watched();
    serve_one(&daemon, &watched);
    daemon.wait_for_log("a thread of the disk's own makes them");
    assert_eq!(Process(daemon.pid()).threads_named("calls-disk0").len(), 1);
    let held_up = slow(&daemon);
    // One by its session's thread, and one by the worker, at the same time.
    assert!((1.0..=2.0).contains(&held_up), "{held_up}");
    load.wait_for_progress();
    // Whoever comes next is known.
    (0..3).for_each(|_| serve_one(&daemon, &watched));
    assert!(slow(&daemon) <= held_up, "{} after {held_up}", slow(&daemon));
    let threads = || Process(daemon.pid()).threads_named("calls-");
    wait_for("there is one thread for the disk", || (threads().len() == 1).then_some(()));
    load.wait_for_progress();
    load.stop();
    daemon.stop();
}
