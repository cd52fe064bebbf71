//! Descriptors that lead to the front-end's own connection, or hide it: what we hold must not keep a front-end that is gone.

use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::net::UnixStream;

use super::{FrontEnd, Stage, words};
use crate::common::frontend::message::*;
use crate::common::frontend::wire::{NEED_REPLY, VERSION, Wire};
use crate::common::wait_for;
use crate::table::Answer::{self, HungUp, Served};
use crate::table::{Kind, Place, Row};

/// Front-ends of one disk at the same time.
const PLACES: usize = 16;

/// A message that takes a socket, and its payload: for a state, save or load.
const TAKES: [(&str, u32, &[u64]); 5] = [
    ("SET_VRING_CALL", SET_VRING_CALL, &[0]),
    ("SET_VRING_ERR", SET_VRING_ERR, &[0]),
    ("SET_BACKEND_REQ_FD", SET_BACKEND_REQ_FD, &[]),
    ("SET_DEVICE_STATE_FD (save)", SET_DEVICE_STATE_FD, &[0]),
    ("SET_DEVICE_STATE_FD (load)", SET_DEVICE_STATE_FD, &[1]),
];

/// The rows.
pub(super) fn rows() -> Vec<Row> {
    let mut all = Vec::new();
    for (name, code, payload) in TAKES {
        let own = move |place: &Place<'_>| {
            let front_end = FrontEnd::at(Stage::Negotiated, place);
            send(&front_end, code, payload, front_end.session.wire.socket().as_fd())
        };
        all.push(row(format!("{name} with its own end of the connection"), HungUp, own));
        let places = move |place: &Place<'_>| {
            let crowd: Vec<_> = (0..PLACES).map(|_| FrontEnd::at(Stage::Negotiated, place)).collect();
            for (front_end, next) in crowd.iter().zip(crowd.iter().cycle().skip(1)) {
                let wire = &front_end.session.wire;
                wire.send(code, VERSION, &words(payload), &[next.session.wire.socket().as_fd()]);
            }
            drop(crowd);
            wait_for("there is room again", || {
                Wire::connect(&place.socket).ask(GET_FEATURES, &[], &[]).is_some().then_some(())
            });
            Served
        };
        all.push(row(format!("{PLACES} front-ends, each {name} with the next one's end"), Served, places));
    }
    // What is loaded is read, which takes out what comes with it.
    for (name, code, payload) in &TAKES[..4] {
        let hidden = |place: &Place<'_>| {
            let front_end = FrontEnd::at(Stage::Negotiated, place);
            let (socket, peer) = UnixStream::pair().unwrap();
            Wire::new(peer).send_bytes(&[0], &[front_end.session.wire.socket().as_fd()]);
            send(&front_end, *code, payload, socket.as_fd())
        };
        let name = format!("{name} with a socket in which its own end waits");
        all.push(row(name, HungUp, hidden).logged("something waits"));
    }
    all
}

fn row(name: impl Into<String>, expected: Answer, attack: impl Fn(&Place<'_>) -> Answer + 'static) -> Row {
    Row::new(Kind::Descriptor, name, expected, attack)
}

/// It may be answered first, and is hung up on then.
fn send(front_end: &FrontEnd, code: u32, payload: &[u64], fd: BorrowedFd<'_>) -> Answer {
    let wire = &front_end.session.wire;
    wire.send(code, VERSION | NEED_REPLY, &words(payload), &[fd]);
    while wire.receive().is_some() {}
    HungUp
}
