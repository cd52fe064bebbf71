//! Descriptors that are on their way in sockets count for their user (`ETOOMANYREFS`): whoever runs as the daemon's own can use
//! up what that may have.

use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use rustix::event::{EventfdFlags, eventfd};

use super::identity::{USER, is_root, setup};
use super::in_force::start;
use crate::common::frontend::handover::{self, Outcome, hand_over};
use crate::common::frontend::message::SET_VRING_CALL;
use crate::common::frontend::wire::Wire;
use crate::common::process::as_user;

/// Descriptors that the daemon may have, and so its user on their way.
const LIMIT: usize = 256;

/// With each message as many as it may have.
const EACH: usize = 32;

#[test]
fn a_message_waits_until_descriptors_of_the_same_user_are_received() {
    if !is_root() {
        return;
    }
    let limit = format!("--nofile={LIMIT}");
    let user = [format!("--reuid={USER}"), format!("--regid={USER}")];
    let command = ["prlimit", &limit, "setpriv", &user[0], &user[1], "--clear-groups"];
    let daemon = start(setup().through(&command));
    let session = handover::connect(&daemon.socket(0));
    let event: OwnedFd = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
    assert_eq!(hand_over(&session, SET_VRING_CALL, event.as_fd()), Outcome::Taken);
    let pairs: Vec<(Wire, UnixStream)> = as_user(USER, USER, || {
        let fill = || {
            let (sender, receiver) = UnixStream::pair().unwrap();
            let sender = Wire::new(sender);
            assert!(sender.send_bytes(&[0], &[event.as_fd(); EACH]));
            (sender, receiver)
        };
        (0..=LIMIT / EACH).map(|_| fill()).collect()
    });
    std::thread::scope(|scope| {
        let told = scope.spawn(|| hand_over(&session, SET_VRING_CALL, event.as_fd()));
        std::thread::sleep(Duration::from_secs(1));
        assert!(!told.is_finished(), "nothing was in its way");
        drop(pairs);
        assert_eq!(told.join().unwrap(), Outcome::Taken);
    });
    session.config(0, 8).unwrap();
    drop(session);
    daemon.stop();
}
