//! Front-ends that stop speaking, leave, or come at a bad moment, and floods.

use std::os::fd::{AsFd as _, OwnedFd};

use vhost::VhostBackend as _;

use super::messages::event;
use super::{FrontEnd, Stage, state, words};
use crate::common::frontend::message::*;
use crate::common::frontend::request::{IN, OK, Request, header};
use crate::common::frontend::ring::{Ring, WRITE};
use crate::common::frontend::wire::{HEADER_BYTES, NEED_REPLY, VERSION, Wire};
use crate::common::frontend::{Options, SPANS, Session, handover, settle};
use crate::common::{PATIENCE, wait_for};
use crate::table::Answer::{self, Done, HungUp, Nack, Served};
use crate::table::{Kind, Place, Row};

/// Front-ends of one disk at the same time.
const PLACES: usize = 16;

/// The rows.
pub(super) fn rows() -> Vec<Row> {
    [leaving(), halves(), slow(), floods(), late()].into_iter().flatten().collect()
}

fn row(name: impl Into<String>, expected: Answer, attack: impl Fn(&Place<'_>) -> Answer + 'static) -> Row {
    Row::new(Kind::Timing, name, expected, attack)
}

/// A message, of which so many bytes are sent.
fn part(code: u32, payload: &[u8], bytes: usize) -> Vec<u8> {
    Wire::encode(code, VERSION | NEED_REPLY, payload)[..bytes].to_vec()
}

/// A message, and what sends it.
type Step = (&'static str, fn(&mut Session, &Ring));

/// How a front-end starts a ring, step by step.
const STEPS: [Step; 11] = [
    ("GET_FEATURES", |session, _| drop(session.ask(|control| control.get_features()))),
    ("SET_OWNER", |session, _| session.ask(|control| control.set_owner()).unwrap()),
    ("SET_PROTOCOL_FEATURES", |session, _| session.negotiate_protocol(&Options::default())),
    ("SET_FEATURES", |session, _| session.set_features(session.features)),
    ("SET_MEM_TABLE", |session, _| session.share_memory()),
    ("SET_VRING_NUM", |session, ring| session.ask(|control| control.set_vring_num(0, ring.size)).unwrap()),
    ("SET_VRING_ADDR", |session, ring| session.set_addresses(ring).unwrap()),
    ("SET_VRING_KICK", |session, ring| {
        session.ask(|control| control.set_vring_kick(0, &ring.kick.current())).unwrap();
    }),
    ("SET_VRING_ENABLE", |session, ring| session.enable(ring, true).unwrap()),
    ("SET_VRING_CALL", |session, ring| {
        session.ask(|control| control.set_vring_call(0, &ring.call.current())).unwrap();
    }),
    ("GET_VRING_BASE", |session, ring| _ = session.stop(ring)),
];

/// At each step, and in the middle of requests.
fn leaving() -> Vec<Row> {
    let after = |count: usize| {
        row(format!("leaves after {}", STEPS[count].0), Served, move |place| {
            let mut session = Session::open(&place.socket, &SPANS);
            // Its memory has requests in it, whoever looks.
            let mut ring = session.new_ring(0, 64);
            ring.submit(&Request::read(0, 4096));
            ring.kick.signal();
            STEPS[..=count].iter().for_each(|(_, step)| step(&mut session, &ring));
            Served
        })
    };
    let mut all: Vec<Row> = (0..STEPS.len()).map(after).collect();
    for (name, request) in [
        ("leaves in mid-read", Request::read(0, 32 << 10)),
        ("leaves in mid-write", Request::write(4096, &[7; 32 << 10])),
        ("leaves in mid-flush", Request::flush()),
    ] {
        all.push(row(name, Served, move |place| {
            let mut front_end = FrontEnd::at(Stage::Running, place);
            let ring = front_end.ring.as_mut().unwrap();
            (0..ring.slots()).for_each(|_| _ = ring.submit(&request));
            ring.kick.signal();
            Served
        }));
    }
    all.extend([
        row("connects and leaves", Served, |place| {
            drop(Wire::connect(&place.socket));
            Served
        }),
        row("leaves before it is answered", Served, |place| {
            let front_end = FrontEnd::at(Stage::Running, place);
            front_end.session.wire.send(GET_VRING_BASE, VERSION, &state(0, 0), &[]);
            Served
        }),
        row("hears no more while its ring runs", HungUp, |place| {
            let FrontEnd { session, .. } = FrontEnd::at(Stage::Running, place);
            session.wire.hang_up();
            HungUp
        }),
        row("leaves while it waits for another front-end's ring", Served, |place| {
            let mut first = FrontEnd::at(Stage::Running, place);
            let _second = FrontEnd::at(Stage::Running, place);
            settle();
            first.assert_works();
            Served
        })
        .logged("waiting: another front-end's rings run"),
    ]);
    all
}

/// Parts of messages.
fn halves() -> Vec<Row> {
    let mut all = Vec::new();
    for bytes in [1, 4, 8, HEADER_BYTES - 1, HEADER_BYTES, HEADER_BYTES + 1, HEADER_BYTES + 7] {
        all.push(row(format!("leaves after {bytes} bytes of SET_VRING_NUM"), Served, move |place| {
            let front_end = FrontEnd::at(Stage::Running, place);
            front_end.session.wire.send_bytes(&part(SET_VRING_NUM, &state(0, 64), bytes), &[]);
            Served
        }));
    }
    for bytes in [1, HEADER_BYTES, HEADER_BYTES + 8, HEADER_BYTES + 71] {
        all.push(row(
            format!("leaves after {bytes} bytes of SET_MEM_TABLE with memory"),
            Served,
            move |place| {
                let front_end = FrontEnd::at(Stage::Running, place);
                let memory = front_end.session.memory.clone();
                let fd = memory.fd();
                front_end
                    .session
                    .wire
                    .send_bytes(&part(SET_MEM_TABLE, &words(&memory.table()), bytes), &[fd, fd]);
                Served
            },
        ));
    }
    for bytes in [0, 1, HEADER_BYTES - 1, HEADER_BYTES + 7] {
        all.push(row(format!("{} say {bytes} bytes and wait", PLACES + 4), Served, move |place| {
            let silent: Vec<Wire> = (0..PLACES + 4).map(|_| Wire::connect(&place.socket)).collect();
            silent.iter().for_each(|wire| _ = wire.send_bytes(&part(SET_VRING_NUM, &[0; 8], bytes), &[]));
            FrontEnd::at(Stage::Running, place).assert_works();
            Served
        }));
    }
    all.push(row("a message byte by byte", Done, |place| {
        let front_end = FrontEnd::at(Stage::Negotiated, place);
        let message = part(SET_VRING_NUM, &state(0, 64), 20);
        let (last, first) = message.split_last().unwrap();
        first.iter().for_each(|byte| _ = front_end.session.wire.send_bytes(&[*byte], &[]));
        front_end.send(SET_VRING_NUM, &[*last], &[])
    }));
    all.push(
        row("a message byte by byte, with 32 descriptors each", Nack, |place| {
            let front_end = FrontEnd::at(Stage::Negotiated, place);
            let event: Vec<OwnedFd> = event();
            let message = part(SET_VRING_NUM, &state(0, 64), 20);
            let (last, first) = message.split_last().unwrap();
            let many = [event[0].as_fd(); 32];
            first.iter().for_each(|byte| _ = front_end.session.wire.send_bytes(&[*byte], &many));
            front_end.send(SET_VRING_NUM, &[*last], &many)
        })
        .logged("32 descriptors, and has no use for any"),
    );
    all
}

/// What takes seconds.
fn slow() -> Vec<Row> {
    vec![
        row("half a message, and silence", HungUp, |place| {
            let wire = Wire::connect(&place.socket);
            wire.send_bytes(&part(SET_VRING_NUM, &state(0, 64), HEADER_BYTES + 4), &[]);
            if wire.receive().is_none() { HungUp } else { Served }
        })
        .logged("a message was begun and not completed within 10 s")
        .slow(),
        row("a state from a pipe that nothing comes through", Nack, |place| {
            let session = handover::connect(&place.socket);
            let (reader, _writer) = std::io::pipe().unwrap();
            let answer = session.wire.ask(SET_DEVICE_STATE_FD, &words(&[1]), &[reader.as_fd()]).unwrap();
            assert_eq!(answer.value(), 0x100);
            let answer = session.wire.ask(CHECK_DEVICE_STATE, &[], &[]).unwrap();
            if answer.value() == 0 { Done } else { Nack }
        })
        .logged("the device's state: it did not end within")
        .slow(),
    ]
}

fn floods() -> Vec<Row> {
    vec![
        row("500 connections that leave", Served, |place| {
            (0..500).for_each(|_| drop(Wire::connect(&place.socket)));
            Served
        })
        .slow(),
        row("2000 questions whose answers nobody reads", Served, |place| {
            let front_end = FrontEnd::at(Stage::Running, place);
            let questions = Wire::encode(GET_FEATURES, VERSION, &[]).repeat(200);
            (0..10).for_each(|_| _ = front_end.session.wire.send_bytes(&questions, &[]));
            Served
        }),
        row("2000 messages that are refused", Served, |place| {
            let mut front_end = FrontEnd::at(Stage::Running, place);
            let messages = Wire::encode(SET_VRING_NUM, VERSION, &state(0, 3)).repeat(200);
            (0..10).for_each(|_| _ = front_end.session.wire.send_bytes(&messages, &[]));
            front_end.assert_works();
            Served
        }),
        row("20000 kicks for nothing", Served, |place| {
            let mut front_end = FrontEnd::at(Stage::Running, place);
            let kick = front_end.ring.as_ref().unwrap().kick.clone();
            (0..20_000).for_each(|_| kick.signal());
            front_end.assert_works();
            Served
        }),
        row("a ring is started and stopped 100 times under requests", Served, |place| {
            let FrontEnd { session, ring } = FrontEnd::at(Stage::Running, place);
            let mut ring = ring.unwrap();
            for _ in 0..100 {
                ring.submit(&Request::read(0, 512));
                ring.kick.signal();
                let base = session.stop(&ring);
                session.start(&ring, base).unwrap();
                ring.wait();
            }
            Served
        }),
        row("memory is announced 50 times under requests", Served, |place| {
            let mut front_end = FrontEnd::at(Stage::Running, place);
            for _ in 0..50 {
                front_end.session.share_memory();
                front_end.assert_works();
            }
            Served
        }),
        row("kick, call and err are replaced 100 times", Served, |place| {
            let mut front_end = FrontEnd::at(Stage::Running, place);
            for _ in 0..100 {
                front_end.session.set_events(front_end.ring.as_ref().unwrap()).unwrap();
            }
            front_end.assert_works();
            Served
        }),
        row("the cache mode is switched 100 times", Served, |place| {
            let mut front_end = FrontEnd::at(Stage::Running, place);
            for mode in [0, 1].repeat(50) {
                let written = front_end.session.wire.tell(SET_CONFIG, &mode_of(mode), &[]);
                assert_eq!(written, crate::common::frontend::wire::Verdict::Ack);
            }
            front_end.assert_works();
            Served
        }),
        row("20 front-ends at once, all of which want to run a ring", Served, |place| {
            let one = |_: usize| {
                let wire = Wire::connect(&place.socket);
                wire.send(GET_FEATURES, VERSION, &[], &[]);
                wire
            };
            let crowd: Vec<Wire> = (0..20).map(one).collect();
            drop(crowd);
            wait_for("there is room again", || {
                Wire::connect(&place.socket).ask(GET_FEATURES, &[], &[]).is_some().then_some(())
            });
            Served
        }),
    ]
}

/// The payload that writes the cache mode.
fn mode_of(mode: u8) -> Vec<u8> {
    [[32_u32, 1, 0].map(u32::to_le_bytes).as_flattened(), &[mode]].concat()
}

/// What changes when it must not.
fn late() -> Vec<Row> {
    vec![
        row("all of its memory is cut off under its ring", HungUp, |place| {
            let FrontEnd { session, ring } = FrontEnd::at(Stage::Running, place);
            let ring = ring.unwrap();
            rustix::fs::ftruncate(session.memory.fd(), 0).unwrap();
            // From here on, this process must not look at it either.
            ring.kick.signal();
            if session.wire.receive().is_none() { HungUp } else { Served }
        })
        .logged("guest memory is lost"),
        row("the memory of its data is cut off", HungUp, |place| {
            let FrontEnd { session, ring } = FrontEnd::at(Stage::Running, place);
            let mut ring = ring.unwrap();
            let start = SPANS[1].guest_start;
            assert_eq!(ring.read_to(0, start, 4096), OK);
            rustix::fs::ftruncate(session.memory.fd(), SPANS[0].bytes).unwrap();
            let frame = ring.buffers(0);
            ring.memory.write(frame.header, &header(IN, 0));
            ring.chain(0, &[(frame.header, 16, 0), (start, 4096, WRITE), (frame.status, 1, WRITE)]);
            ring.kick.signal();
            if session.wire.receive().is_none() { HungUp } else { Served }
        })
        .logged("guest memory is lost"),
        row("its ring is disabled under requests", Served, |place| {
            let FrontEnd { session, ring } = FrontEnd::at(Stage::Running, place);
            let mut ring = ring.unwrap();
            for _ in 0..20 {
                session.enable(&ring, false).unwrap();
                ring.submit(&Request::read(0, 512));
                ring.kick.signal();
                session.enable(&ring, true).unwrap();
                ring.wait();
            }
            Served
        }),
        row("a kick, and nothing available", Served, |place| {
            let mut front_end = FrontEnd::at(Stage::Running, place);
            let ring = front_end.ring.as_mut().unwrap();
            ring.kick.signal();
            settle();
            assert_eq!(ring.next_used(), None);
            front_end.assert_works();
            Served
        }),
        row("requests, and no kick until the worker sleeps", Served, |place| {
            let mut front_end = FrontEnd::at(Stage::Running, place);
            settle();
            let ring = front_end.ring.as_mut().unwrap();
            ring.submit(&Request::read(0, 512));
            settle();
            ring.kick.signal();
            assert!(crate::common::is_readable(&*ring.call.current(), PATIENCE));
            ring.wait();
            Served
        }),
        row("its eventfds are closed while requests are under way", Served, |place| {
            let FrontEnd { session, ring } = FrontEnd::at(Stage::Running, place);
            let mut ring = ring.unwrap();
            (0..ring.slots()).for_each(|_| _ = ring.submit(&Request::read(0, 32 << 10)));
            ring.kick.signal();
            drop(ring);
            settle();
            session.config(0, 8).unwrap();
            Served
        }),
    ]
}
