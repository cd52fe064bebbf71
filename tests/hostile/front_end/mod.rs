//! What a front-end must not do.

mod descriptors;
mod memory;
mod messages;
mod own_end;
mod rings;
mod timing;
mod values;

use std::os::fd::{AsFd as _, OwnedFd};

use crate::common::frontend::message::{
    CHECK_DEVICE_STATE, GET_CONFIG, GET_FEATURES, GET_INFLIGHT_FD, GET_MAX_MEM_SLOTS, GET_PROTOCOL_FEATURES,
    GET_QUEUE_NUM, GET_SHARED_OBJECT, GET_SHMEM_CONFIG, GET_VRING_BASE, POSTCOPY_ADVISE, POSTCOPY_END,
    SET_DEVICE_STATE_FD, SET_LOG_BASE, SET_VRING_CALL, SET_VRING_ERR, SET_VRING_KICK,
};
use crate::common::frontend::request::{OK, Request};
use crate::common::frontend::ring::Ring;
use crate::common::frontend::wire::{Message, NEED_REPLY, VERSION, Wire};
use crate::common::frontend::{Options, SPANS, Session};
use crate::table::{Answer, Kind, Place, Row};

/// Messages with a descriptor of a ring.
const OF_RING: [(&str, u32); 3] = [
    ("SET_VRING_KICK", SET_VRING_KICK),
    ("SET_VRING_CALL", SET_VRING_CALL),
    ("SET_VRING_ERR", SET_VRING_ERR),
];

/// The rows of the table.
pub(crate) fn rows() -> Vec<Row> {
    let said = [messages::rows(), values::rows(), memory::rows(), rings::rows()];
    let handed_over = [descriptors::rows(), own_end::rows()];
    said.into_iter().chain(handed_over).chain([timing::rows()]).flatten().collect()
}

/// How far a front-end has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// It has said nothing.
    Connected,
    /// Features are acknowledged, those of the protocol as well: refusals are answered.
    Negotiated,
    /// Memory is shared.
    Shared,
    /// Its ring 0 runs.
    Running,
}

/// A front-end that has come so far.
struct FrontEnd {
    session: Session,
    /// The ring that runs.
    ring: Option<Ring>,
}

impl FrontEnd {
    fn at(stage: Stage, place: &Place<'_>) -> Self {
        let mut session = Session::open(&place.socket, &SPANS);
        if stage != Stage::Connected {
            session.negotiate(&Options::default());
        }
        if matches!(stage, Stage::Shared | Stage::Running) {
            session.share_memory();
        }
        let ring = (stage == Stage::Running).then(|| session.ring(0, 64));
        Self { session, ring }
    }

    /// Its ring does a request.
    fn assert_works(&mut self) {
        if let Some(ring) = &mut self.ring {
            let answer = ring.run(&Request::read(0, 512));
            assert_eq!((answer.status, answer.used_bytes), (OK, 513), "its own ring");
        }
    }

    /// Sends a message, and asks something behind it: what is answered first tells what became of the message.
    fn tell(&self, code: u32, flags: u32, payload: &[u8], files: &[OwnedFd]) -> Answer {
        let files: Vec<_> = files.iter().map(|file| file.as_fd()).collect();
        self.send(code, &Wire::encode(code, flags, payload), &files)
    }

    fn send(&self, code: u32, bytes: &[u8], files: &[std::os::fd::BorrowedFd<'_>]) -> Answer {
        let wire = &self.session.wire;
        if !wire.send_bytes(bytes, files) || !wire.send(GET_FEATURES, VERSION, &[], &[]) {
            return Answer::HungUp;
        }
        match wire.receive() {
            None => Answer::HungUp,
            Some(first) if first.code == GET_FEATURES && code != GET_FEATURES => Answer::Silence,
            Some(first) if first.code != code => Answer::Wrong(format!("answered with {first:?}")),
            Some(first) => match wire.receive() {
                None => Answer::HungUp,
                Some(second) if second.code == GET_FEATURES => meant(&first),
                Some(second) => Answer::Wrong(format!("answered with {first:?} and {second:?}")),
            },
        }
    }
}

/// What an answer says.
fn meant(answer: &Message) -> Answer {
    let is_value = answer.payload.len() != 8 || answer.code == GET_FEATURES;
    match answer.code {
        SET_DEVICE_STATE_FD if answer.value() == 0x100 => Answer::Done,
        SET_DEVICE_STATE_FD => Answer::Nack,
        CHECK_DEVICE_STATE | POSTCOPY_END if answer.value() != 0 => Answer::Nack,
        code if is_value || is_question(code) || answer.value() == 0 => Answer::Done,
        _ => Answer::Nack,
    }
}

/// Whether a message is answered with a value, so that the only refusal is to hang up.
fn is_question(code: u32) -> bool {
    matches!(
        code,
        GET_FEATURES
            | SET_LOG_BASE
            | GET_VRING_BASE
            | GET_PROTOCOL_FEATURES
            | GET_QUEUE_NUM
            | GET_CONFIG
            | POSTCOPY_ADVISE
            | GET_INFLIGHT_FD
            | GET_MAX_MEM_SLOTS
            | GET_SHARED_OBJECT
            | GET_SHMEM_CONFIG
            | SET_DEVICE_STATE_FD
            | CHECK_DEVICE_STATE
    )
}

/// How a message that makes no sense is refused.
fn refusal(code: u32) -> Answer {
    if is_question(code) { Answer::HungUp } else { Answer::Nack }
}

/// A message that is out of place.
struct Said {
    name: String,
    stage: Stage,
    code: u32,
    flags: u32,
    payload: Vec<u8>,
    files: fn() -> Vec<OwnedFd>,
    expected: Answer,
    reason: String,
    /// Its ring cannot be expected to go on.
    stops_ring: bool,
}

impl Said {
    /// To a ring that runs; an answer is asked for, and no descriptor comes with it.
    fn new(name: impl Into<String>, code: u32, payload: &[u8], expected: Answer) -> Self {
        let (flags, payload) = (VERSION | NEED_REPLY, payload.to_vec());
        let (name, files, reason) = (name.into(), Vec::new as fn() -> _, String::new());
        Self { name, stage: Stage::Running, code, flags, payload, files, expected, reason, stops_ring: false }
    }

    fn at(self, stage: Stage) -> Self {
        Self { stage, ..self }
    }

    fn logged(self, reason: impl Into<String>) -> Self {
        Self { reason: reason.into(), ..self }
    }

    fn with(self, files: fn() -> Vec<OwnedFd>) -> Self {
        Self { files, ..self }
    }

    fn flags(self, flags: u32) -> Self {
        Self { flags, ..self }
    }

    fn stops_ring(self) -> Self {
        Self { stops_ring: true, ..self }
    }

    fn row(self, kind: Kind) -> Row {
        let (name, expected, reason) = (self.name.clone(), self.expected.clone(), self.reason.clone());
        let attack = move |place: &Place<'_>| {
            let mut front_end = FrontEnd::at(self.stage, place);
            let answer = front_end.tell(self.code, self.flags, &self.payload, &(self.files)());
            if answer != Answer::HungUp && !self.stops_ring {
                front_end.assert_works();
            }
            answer
        };
        Row::new(kind, name, expected, attack).logged(reason)
    }
}

/// Little-endian words.
fn words(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// The number of a ring, and a number.
fn state(index: u32, number: u32) -> Vec<u8> {
    [index, number].map(u32::to_le_bytes).as_flattened().to_vec()
}
