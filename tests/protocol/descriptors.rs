//! Descriptors that are no eventfds, or eventfds that are full: whoever sent them has the damage.

use std::os::fd::{AsFd, OwnedFd};

use rustix::event::EventfdFlags;

use super::{assert_works, with_disks};
use crate::common::daemon::Daemon;
use crate::common::frontend::load::Load;
use crate::common::frontend::message::{SET_VRING_CALL, SET_VRING_ERR, SET_VRING_KICK};
use crate::common::frontend::request::{OK, Request};
use crate::common::frontend::ring::Ring;
use crate::common::frontend::wire::Verdict;
use crate::common::frontend::{Session, settle};
use crate::common::process::Process;
use crate::common::{full_pipe, wait_for};

/// An eventfd whose counter is full: the next write to it waits until somebody reads it.
fn full_event() -> OwnedFd {
    let event = rustix::event::eventfd(0, EventfdFlags::CLOEXEC).unwrap();
    rustix::io::write(&event, &(u64::MAX - 1).to_ne_bytes()).unwrap();
    event
}

/// Descriptors of every kind, and what keeps them as they are.
fn strange_descriptors(daemon: &Daemon) -> (Vec<(&'static str, OwnedFd)>, Vec<OwnedFd>) {
    let (hung_up_reader, _) = std::io::pipe().unwrap();
    let (_, broken_writer) = std::io::pipe().unwrap();
    let (reader, full_writer) = full_pipe();
    let (socket, peer) = std::os::unix::net::UnixStream::pair().unwrap();
    let (hung_up_socket, _) = std::os::unix::net::UnixStream::pair().unwrap();
    let scratch = daemon.socket(0).with_extension("scratch");
    let list = vec![
        ("file", std::fs::File::create(&scratch).unwrap().into()),
        ("read-only file", std::fs::File::open(&scratch).unwrap().into()),
        ("folder", std::fs::File::open("/").unwrap().into()),
        ("/dev/null", std::fs::File::open("/dev/null").unwrap().into()),
        ("reading end of a closed pipe", hung_up_reader.into()),
        ("writing end of a closed pipe", broken_writer.into()),
        ("full pipe", full_writer),
        ("socket", socket.into()),
        ("closed socket", hung_up_socket.into()),
        ("epoll", rustix::event::epoll::create(rustix::event::epoll::CreateFlags::CLOEXEC).unwrap()),
        ("full eventfd", full_event()),
        ("semaphore", rustix::event::eventfd(7, EventfdFlags::SEMAPHORE).unwrap()),
        (
            "the socket that is served",
            std::os::unix::net::UnixStream::connect(daemon.socket(0)).unwrap().into(),
        ),
    ];
    (list, vec![reader, peer.into()])
}

fn message(index: u16) -> [u8; 8] {
    u64::from(index).to_le_bytes()
}

/// The ring does a request; nobody is notified.
fn assert_done_unnoticed(what: &str, ring: &mut Ring) {
    let request = Request::read(0, 512);
    ring.submit(&request);
    ring.kick.signal();
    let used = wait_for(&format!("a read is done: {what}"), || ring.next_used());
    assert_eq!(ring.answer(&request, used).status, OK);
}

#[test]
fn strange_call_and_error_descriptors_hold_nobody_up() {
    let daemon = with_disks(&["", ""]).start();
    let session = Session::connect(&daemon.socket(0));
    let mut other_ring = session.ring(1, 64);
    let bystander = Session::connect(&daemon.socket(1));
    let other_disk = Load::start(bystander.ring(0, 64), 0);
    let (strange, _others) = strange_descriptors(&daemon);
    for (what, fd) in &strange {
        let mut ring = session.ring(0, 64);
        let verdict = session.wire.tell(SET_VRING_CALL, &message(0), &[fd.as_fd()]);
        assert_ne!(verdict, Verdict::Closed, "{what}");
        for _ in 0..3 {
            assert_done_unnoticed(what, &mut ring);
        }
        assert_ne!(session.wire.tell(SET_VRING_ERR, &message(0), &[fd.as_fd()]), Verdict::Closed, "{what}");
        // An endless chain breaks the ring, which is told through that descriptor.
        ring.break_it();
        assert_works(&mut other_ring, 0);
        other_disk.wait_for_progress();
        session.stop(&ring);
    }
    other_disk.stop();
}

#[test]
fn strange_kick_descriptors_hold_nobody_up_and_burn_no_time() {
    let daemon = with_disks(&["", ""]).start();
    let process = Process(daemon.pid());
    let session = Session::connect(&daemon.socket(0));
    let mut other_ring = session.ring(40, 64);
    let bystander = Session::connect(&daemon.socket(1));
    let other_disk = Load::start(bystander.ring(0, 64), 0);
    let (strange, _others) = strange_descriptors(&daemon);
    let mut rings = Vec::new();
    for (index, (what, fd)) in strange.iter().enumerate() {
        let ring = session.ring(index as u16, 64);
        let verdict = session.wire.tell(SET_VRING_KICK, &message(index as u16), &[fd.as_fd()]);
        println!("{what}: {verdict:?}");
        assert_ne!(verdict, Verdict::Closed, "{what}");
        assert_works(&mut other_ring, 0);
        other_disk.wait_for_progress();
        rings.push(ring);
    }
    other_disk.stop();
    // That takes time too, and some of it may be left to do.
    wait_for("both disks are populated", || (daemon.log().matches(" populated ").count() == 2).then_some(()));
    settle();
    // A descriptor that is always ready must not keep a worker busy for nothing.
    let before = process.ticks();
    std::thread::sleep(std::time::Duration::from_secs(1));
    let ticks = process.ticks() - before;
    assert!(ticks < 20, "{ticks} clock ticks in a second for nothing");
    for (ring, (what, _)) in rings.iter_mut().zip(&strange) {
        session.stop(ring);
        session.start(ring, 0).unwrap_or_else(|error| panic!("after {what}: {error}"));
        assert_works(ring, 0);
    }
}

/// A ring that cannot be started is that ring's own trouble.
#[test]
fn a_ring_that_cannot_start_does_not_spoil_other_messages() {
    use vhost::vhost_user::VhostUserFrontend;
    use vhost::vhost_user::message::VhostUserConfigFlags;

    let daemon = with_disks(&[""]).start();
    let session = Session::connect(&daemon.socket(0));
    let mut ring = session.ring(0, 64);
    let _broken = session.ring(1, 64);
    let file = std::fs::File::open("/dev/null").unwrap();
    let folder = std::fs::File::open("/").unwrap();
    for fd in [file.as_fd(), folder.as_fd()] {
        session.wire.tell(SET_VRING_KICK, &message(1), &[fd]);
    }
    let extra = crate::common::frontend::memory::Memory::new(&[crate::common::frontend::memory::Span {
        guest_start: 1 << 40,
        bytes: 1 << 20,
    }]);
    let slot = extra.announcement()[0];
    session.ask(|control| control.add_mem_region(&slot)).unwrap();
    session.ask(|control| control.remove_mem_region(&slot)).unwrap();
    session.ask(|control| control.set_config(32, VhostUserConfigFlags::empty(), &[0])).unwrap();
    session.share_memory();
    assert_works(&mut ring, 0);
}
