//! What daemons do all day.

use std::fs::File;
use std::io::Read as _;

use rustix::process::Signal;
use vhost::vhost_user::VhostUserFrontend as _;
use vhost::vhost_user::message::{VhostTransferStateDirection, VhostTransferStatePhase};
use vhost_user_pmem::sandbox::ThreadKind;

use crate::common::daemon::{Daemon, Place, Setup};
use crate::common::frontend::request::{OK, Request, WRITE_ZEROES, range};
use crate::common::frontend::{Session, settle};
use crate::common::{MIB, metrics, pattern};

/// The kinds of threads and processes that take part.
pub(super) const KINDS: [ThreadKind; 15] = [
    ThreadKind::Main,
    ThreadKind::Log,
    ThreadKind::StartMessage,
    ThreadKind::Signals,
    ThreadKind::Acceptor,
    ThreadKind::Session,
    ThreadKind::WriterLock,
    ThreadKind::Worker,
    ThreadKind::Flusher,
    ThreadKind::Io,
    ThreadKind::Stalls,
    ThreadKind::Rescan,
    ThreadKind::Metrics,
    ThreadKind::Spawner,
    ThreadKind::Checker,
];

/// A disk on an ordinary file system, which has to be synced.
pub(super) fn setup() -> Setup {
    let setup = Setup::new(Place::FileSystem).disk("discard=unmap").with_metrics();
    File::create(setup.image(0)).unwrap().set_len(16 * MIB).unwrap();
    setup
}

/// Requests of each kind, a second front-end that waits, growth, device state, metrics.
pub(super) fn run(daemon: &Daemon) {
    let first = Session::connect(&daemon.socket(0));
    let mut ring = first.ring(0, 64);
    let bytes = pattern(1, 4096);
    assert_eq!(ring.run(&Request::write(0, &bytes)).status, OK);
    assert!(ring.run(&Request::read(0, 4096)).data == bytes);
    // The worker has written that itself; this is for a thread of the disk.
    let payload = range(64, 64, 0).to_vec();
    let zeroes = Request { kind: WRITE_ZEROES, sector: 0, payload, writable_bytes: 0 };
    for request in [Request::flush(), Request::get_id(), zeroes] {
        assert_eq!(ring.run(&request).status, OK);
    }
    assert_eq!(first.config(0, 60).unwrap().len(), 60);

    let second = Session::connect(&daemon.socket(0));
    let mut waiting = second.ring(0, 64);
    waiting.submit(&Request::read(0, 512));
    settle();
    first.stop(&ring);
    let used = waiting.wait();
    assert_eq!(waiting.answer(&Request::read(0, 512), used).status, OK);
    drop(waiting);
    drop(second);

    let (mut reader, writer) = std::io::pipe().unwrap();
    let (save, stopped) = (VhostTransferStateDirection::SAVE, VhostTransferStatePhase::STOPPED);
    first.ask(|control| control.set_device_state_fd(save, stopped, writer.into())).unwrap();
    reader.read_to_end(&mut Vec::new()).unwrap();
    first.ask(|control| control.check_device_state()).unwrap();

    File::options().write(true).open(daemon.image(0)).unwrap().set_len(32 * MIB).unwrap();
    daemon.signal(Signal::HUP.as_raw());
    daemon.wait_for_log("to_bytes=33554432");
    assert!(metrics::read(&daemon.metrics_socket()).len() > 10);
}
