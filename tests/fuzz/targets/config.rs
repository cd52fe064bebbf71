//! The configuration space: reads and writes of any part of it, against a copy that is kept here.

use arbitrary::{Arbitrary, Unstructured};

use super::server::{DISK_BYTES, World};
use super::with_world;
use crate::common::frontend::wire::{NEED_REPLY, VERSION, Wire};
use crate::common::guarded::found;

const GET_CONFIG: u32 = 24;
const SET_CONFIG: u32 = 25;
/// Where the driver chooses the cache mode: the only byte that can be written.
const WRITEBACK: u32 = 32;
/// Bytes with a meaning.
const CONFIG_BYTES: usize = 60;

#[derive(Debug, Arbitrary)]
enum Access {
    Read { offset: Offset, bytes: u16 },
    Write { offset: Offset, bytes: u16, value: u8, flags: u8 },
    Choose { writeback: bool },
}

#[derive(Debug, Clone, Copy, Arbitrary)]
enum Offset {
    Near(u8),
    Cloud(u8),
    Wild(u32),
}

impl Offset {
    fn number(self) -> u32 {
        match self {
            Self::Near(offset) => offset.into(),
            Self::Cloud(offset) => 0x100 + u32::from(offset),
            Self::Wild(offset) => offset,
        }
    }
}

fn body(offset: u32, bytes: u32, flags: u32, value: u8) -> Vec<u8> {
    let fields = [offset, bytes, flags].map(u32::to_le_bytes).concat();
    [fields, vec![value; bytes as usize]].concat()
}

/// Reads and writes on one connection.
pub fn run(data: &[u8]) {
    let Ok(accesses) = Vec::<Access>::arbitrary_take_rest(Unstructured::new(data)) else { return };
    with_world(|world: &mut World| {
        let wire = Wire::new(world.connect());
        negotiate(&wire);
        let Some(mut copy) = read(&wire, 0, CONFIG_BYTES as u32) else {
            found("the configuration is not answered")
        };
        if copy[..8] != (DISK_BYTES / 512).to_le_bytes() {
            found("the capacity is another");
        }
        for access in accesses.iter().take(40) {
            if !try_access(&wire, access, &mut copy) {
                break;
            }
        }
        wire.hang_up();
        world.input_is_over();
    });
}

/// What a front-end says before: features are read, protocol features acknowledged.
pub fn negotiate(wire: &Wire) {
    const GET_FEATURES: u32 = 1;
    const GET_PROTOCOL_FEATURES: u32 = 15;
    const SET_PROTOCOL_FEATURES: u32 = 16;
    wire.send(GET_FEATURES, VERSION, &[], &[]);
    wire.receive();
    wire.send(GET_PROTOCOL_FEATURES, VERSION, &[], &[]);
    let offered = wire.receive().map_or(0, |answer| answer.value());
    wire.send(SET_PROTOCOL_FEATURES, VERSION, &offered.to_le_bytes(), &[]);
}

/// As many bytes as were asked for, if the connection was not closed for it.
fn read(wire: &Wire, offset: u32, bytes: u32) -> Option<Vec<u8>> {
    wire.send(GET_CONFIG, VERSION, &body(offset, bytes, 0, 0), &[]);
    let answer = wire.receive()?;
    (answer.payload.len() >= 12).then(|| answer.payload[12..].to_vec())
}

/// Whether the connection is still there.
fn try_access(wire: &Wire, access: &Access, copy: &mut [u8]) -> bool {
    match *access {
        Access::Read { offset, bytes } => {
            let (offset, bytes) = (offset.number(), u32::from(bytes) % 600);
            let Some(answer) = read(wire, offset, bytes) else { return false };
            let start = if offset >= 0x100 { offset - 0x100 } else { offset } as usize;
            let rest = copy.iter().skip(start).copied().chain(std::iter::repeat(0));
            // Bytes behind the fields are zeroes.
            if !answer.is_empty() && !answer.iter().copied().eq(rest.take(answer.len())) {
                found(&format!("{bytes} bytes at {offset:#x} of the configuration are {answer:?}"));
            }
            answer.len() == bytes as usize || answer.is_empty() || found("an answer of another length")
        }
        Access::Write { offset, bytes, value, flags } => {
            let (offset, bytes) = (offset.number(), u32::from(bytes) % 600);
            let sent = body(offset, bytes, flags.into(), value);
            if !wire.send(SET_CONFIG, VERSION | NEED_REPLY, &sent, &[]) {
                return false;
            }
            let Some(answer) = wire.receive() else { return false };
            let is_writeback = offset == WRITEBACK && bytes == 1;
            if answer.value() == 0 {
                if !is_writeback {
                    found(&format!("{bytes} bytes at {offset:#x} of the configuration can be written"));
                }
                copy[WRITEBACK as usize] = value & 1;
            }
            true
        }
        Access::Choose { writeback } => {
            let sent = body(WRITEBACK, 1, 0, writeback.into());
            if !wire.send(SET_CONFIG, VERSION | NEED_REPLY, &sent, &[]) {
                return false;
            }
            match wire.receive() {
                None => false,
                Some(answer) if answer.value() == 0 => {
                    copy[WRITEBACK as usize] = writeback.into();
                    true
                }
                Some(_) => found("a cache mode is refused"),
            }
        }
    }
}
