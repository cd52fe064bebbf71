//! What one disk's front-ends may take of the process, and what is kept for those of another disk.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;

use rustix::fs::{MemfdFlags, memfd_create};

use super::{assert_works, with_disks};
use crate::common::daemon::{Daemon, Setup};
use crate::common::frontend::message::{SET_MEM_TABLE, SET_VRING_CALL, SET_VRING_ERR, SET_VRING_KICK};
use crate::common::frontend::wire::Verdict;
use crate::common::frontend::{Options, Session};
use crate::common::metrics;
use crate::common::wait_for;

const TIB: u64 = 1 << 40;

/// A session that shares nothing.
fn session(daemon: &Daemon, disk: usize) -> Session {
    let mut session = Session::open(&daemon.socket(disk), &crate::common::frontend::SPANS);
    session.negotiate(&Options::default());
    session
}

/// So much memory, of which no page is there.
fn share(session: &Session, bytes: u64) -> Verdict {
    let file = File::from(memfd_create("guest", MemfdFlags::CLOEXEC).unwrap());
    file.set_len(bytes).unwrap();
    let body: Vec<u8> =
        [1, 0, bytes, 0x6000_0000_0000, 0].iter().flat_map(|word| word.to_ne_bytes()).collect();
    session.wire.tell(SET_MEM_TABLE, &body, &[file.as_fd()])
}

#[test]
fn one_disks_guests_do_not_map_what_is_kept_for_anothers() {
    let daemon = with_disks(&["", ""]).with_metrics().start();
    let hogs = [session(&daemon, 0), session(&daemon, 0), session(&daemon, 0)];
    assert_eq!(share(&hogs[0], 49 * TIB), Verdict::Nack);
    daemon.wait_for_log("53876069761024 bytes of mapped guest memory are too many");
    daemon.wait_for_log("beside 1 other disks");
    assert_eq!(hogs.each_ref().map(|hog| share(hog, 16 * TIB)), [Verdict::Ack; 3]);
    assert_eq!(share(&hogs[2], TIB), Verdict::Nack, "it is the disk's, not the connection's");
    let values = metrics::read(&daemon.metrics_socket());
    assert_eq!(values[r#"guest_memory_bytes{disk="disk0"}"#], (48 * TIB) as f64);
    assert_eq!(values[r#"budget_refusals_total{disk="disk0"}"#], 2.0);

    let other = session(&daemon, 1);
    assert_eq!(share(&other, 15 * TIB), Verdict::Ack);
    other.share_memory();
    assert_works(&mut other.ring(0, 64), 0);
    // It is given back, and can be had again.
    drop(hogs);
    let next = session(&daemon, 0);
    wait_for("it is given back", || (share(&next, 40 * TIB) == Verdict::Ack).then_some(()));
}

/// A daemon of two disks that may have so many descriptors.
fn with_descriptors(most: u64) -> Daemon {
    let setup: Setup = with_disks(&["queues=256", ""]);
    let program = setup.image(0).parent().unwrap().join("program");
    let binary = env!("CARGO_BIN_EXE_vhost-user-pmem");
    let script = format!("#!/bin/sh\nulimit -n {most}\nexec {binary} \"$@\"\n");
    std::fs::write(&program, script).unwrap();
    std::fs::set_permissions(&program, PermissionsExt::from_mode(0o755)).unwrap();
    setup.program(&program).start()
}

fn event() -> OwnedFd {
    rustix::event::eventfd(0, rustix::event::EventfdFlags::NONBLOCK).unwrap()
}

#[test]
fn one_disks_front_ends_leave_descriptors_for_anothers() {
    let daemon = with_descriptors(600);
    let hog = session(&daemon, 0);
    let mut refused = 0;
    for ring in 0..=255_u64 {
        for code in [SET_VRING_KICK, SET_VRING_CALL, SET_VRING_ERR] {
            match hog.wire.tell(code, &ring.to_ne_bytes(), &[event().as_fd()]) {
                Verdict::Ack => {}
                Verdict::Nack => refused += 1,
                Verdict::Closed => panic!("ring {ring}"),
            }
        }
    }
    assert!(refused > 300, "{refused}");
    daemon.wait_for_log("3 descriptors are too many");
    let victim = Session::connect(&daemon.socket(1));
    for index in 0..8 {
        assert_works(&mut victim.ring(index, 64), 0);
    }
    hog.wire.hang_up();
    assert_works(&mut Session::connect(&daemon.socket(0)).ring(0, 64), 0);
}
