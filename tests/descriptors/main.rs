//! Descriptors that a front-end hands over: what is taken, what is refused and why, and that none holds up anybody else.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
#![allow(clippy::cast_possible_truncation, clippy::print_stderr, unreachable_pub)]

mod calls;
#[path = "../common/mod.rs"]
mod common;
mod floods;
mod fuse;
mod kinds;
mod linger;
mod own_end;
mod share;
mod state;
mod watched;

use std::os::fd::OwnedFd;

use rustix::event::EventfdFlags;
use rustix::fs::OFlags;

use common::daemon::{Daemon, Place, Setup};
use common::frontend::load::Load;
use common::frontend::{EVENT_IDX, Options, Session, handover};

/// Two disks, and one worker for both: whatever holds it up holds up both.
fn two_disks() -> Daemon {
    Setup::new(Place::Tmpfs).disk("size=16M").disk("size=16M").arg("--workers=1").with_metrics().start()
}

/// An honest front-end of the second disk.
fn bystander(daemon: &Daemon) -> (Session, Load) {
    let session = Session::connect(&daemon.socket(1));
    let load = Load::start(session.ring(0, 64), 0);
    (session, load)
}

/// A front-end of the first disk with everything that a message needs.
fn connect(daemon: &Daemon) -> Session {
    handover::connect(&daemon.socket(0))
}

/// An eventfd whose reader waits.
fn blocking_event() -> OwnedFd {
    rustix::event::eventfd(0, EventfdFlags::CLOEXEC).unwrap()
}

/// Has it that no more is counted: a write waits until somebody reads.
fn fill(event: &OwnedFd) {
    let flags = rustix::fs::fcntl_getfl(event).unwrap();
    rustix::fs::fcntl_setfl(event, flags | OFlags::NONBLOCK).unwrap();
    let _ = rustix::io::read(event, &mut [0; 8]);
    while rustix::io::write(event, &(u64::MAX - 1).to_ne_bytes()).is_ok() {}
    rustix::fs::fcntl_setfl(event, flags - OFlags::NONBLOCK).unwrap();
}

/// A front-end that is called for each request.
fn often_called(daemon: &Daemon) -> Session {
    Session::connect_with(&daemon.socket(0), &Options { features: !EVENT_IDX, ..Options::default() })
}

/// Runs a test with a descriptor table of its own: others start programs, which would close what is in it, and so wait.
#[allow(unsafe_code)]
fn with_own_table(test: impl FnOnce() + Send) {
    std::thread::scope(|scope| {
        let body = || {
            // SAFETY: it concerns this thread only, which ends with the test, and what it starts.
            assert_eq!(unsafe { libc::unshare(libc::CLONE_FILES) }, 0, "unshare");
            // SAFETY: the thread has opened nothing yet, and others have tables of their own.
            assert_eq!(unsafe { libc::syscall(libc::SYS_close_range, 3, u32::MAX, 0) }, 0, "close_range");
            test();
        };
        scope.spawn(body).join().unwrap();
    });
}
