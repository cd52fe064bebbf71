//! Descriptors that are refused again and again: each costs a process, and its front-end the connection in the end.

use std::fs::File;
use std::os::fd::AsFd as _;

use super::connect;
use crate::common::daemon::{Place, Setup};
use crate::common::frontend::handover::{self, Outcome, hand_over};
use crate::common::frontend::message::SET_VRING_CALL;
use crate::common::frontend::wire::VERSION;
use crate::common::metrics;

/// Of one connection.
const MOST: usize = 64;

#[test]
fn who_hands_over_what_is_refused_again_and_again_is_hung_up_on() {
    let daemon = Setup::new(Place::Tmpfs).disk("size=16M").with_metrics().start();
    let (session, null) = (connect(&daemon), File::open("/dev/null").unwrap());
    for number in 0..MOST {
        assert_eq!(hand_over(&session, SET_VRING_CALL, null.as_fd()), Outcome::Refused, "{number}");
        session.config(0, 8).unwrap();
    }
    hand_over(&session, SET_VRING_CALL, null.as_fd());
    assert!(session.config(0, 8).is_err(), "it goes on");
    daemon.wait_for_log("65 of its messages came with descriptors that cannot be taken");
    let counted = metrics::read(&daemon.metrics_socket())["refused_descriptors_total{disk=\"disk0\"}"];
    assert!((64.0..66.0).contains(&counted), "{counted}");
    drop(connect(&daemon));
    daemon.stop();
}

/// As many as there is room for in the sockets, by as many as there are places.
#[test]
fn what_nobody_has_read_does_not_delay_the_end() {
    const FRONT_ENDS: usize = 15;
    const MESSAGES: usize = 250;
    let daemon = Setup::new(Place::Tmpfs).disk("size=16M").arg("--stop-timeout=2").start();
    let null = File::open("/dev/null").unwrap();
    let all: Vec<_> = (0..FRONT_ENDS).map(|_| handover::connect(&daemon.socket(0))).collect();
    std::thread::scope(|scope| {
        for session in &all {
            scope.spawn(|| {
                for _ in 0..MESSAGES {
                    if !session.wire.send(SET_VRING_CALL, VERSION, &[0; 8], &[null.as_fd()]) {
                        break;
                    }
                }
            });
        }
    });
    drop(all);
    // SIGTERM, and exit code 0.
    daemon.stop();
}
