//! A daemon that is killed: who connects again the moment its session has ended must not reach it any more.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread::JoinHandle;

use super::with_disks;
use crate::common::frontend::Session;
use crate::common::frontend::message::GET_FEATURES;
use crate::common::frontend::request::Request;
use crate::common::frontend::wire::{VERSION, Wire};
use crate::common::pattern;

/// A front-end with a session that connects again, once, when that has ended. Cloud Hypervisor 53 does so, and gives
/// the disk up when it is let in by a process that does not live to answer.
fn comes_back_at_once(socket: &Path) -> JoinHandle<std::io::Result<()>> {
    let mut stream = UnixStream::connect(socket).unwrap();
    stream.write_all(&Wire::encode(GET_FEATURES, VERSION, &[])).unwrap();
    stream.read_exact(&mut [0; 20]).unwrap();
    let socket = socket.to_owned();
    std::thread::spawn(move || {
        let _ = stream.read(&mut [0]);
        UnixStream::connect(socket).map(drop)
    })
}

#[test]
fn who_comes_back_at_once_is_refused_by_a_daemon_that_was_killed() {
    const ROUNDS: usize = 20;
    let mut setup = with_disks(&["", ""]);
    let mut let_in = 0;
    for _ in 0..ROUNDS {
        let daemon = setup.start();
        let session = Session::connect(&daemon.socket(0));
        let mut ring = session.ring(0, 64);
        let bytes = pattern(7, 32 << 10);
        for sector in 0..ring.slots() as u64 {
            ring.submit(&Request::write(sector * 8, &bytes));
        }
        let come_back: Vec<_> =
            [0, 0, 1, 1].map(|disk| daemon.socket(disk)).iter().map(|it| comes_back_at_once(it)).collect();
        ring.kick.signal();
        setup = daemon.kill();
        let came: Vec<_> = come_back.into_iter().map(|thread| thread.join().unwrap()).collect();
        let is_refused = |came: &std::io::Result<()>| {
            came.as_ref().is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused)
        };
        let_in += usize::from(!came.iter().all(is_refused));
    }
    assert_eq!(let_in, 0, "rounds of {ROUNDS} in which one was let in by the dying process");
}
