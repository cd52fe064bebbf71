//! Fields with values that mean nothing: bits that are reserved, addresses that cannot be.

use super::messages::{config, event, memory};
use super::{OF_RING, Said, Stage, refusal, state, words};
use crate::common::frontend::message::*;
use crate::table::Answer::{HungUp, Nack};
use crate::table::{Kind, Row};

/// The rows.
pub(super) fn rows() -> Vec<Row> {
    let all = [descriptors(), addresses(), others()];
    all.into_iter().flatten().map(|said| said.row(Kind::Message)).collect()
}

/// Of the word that comes with a ring's descriptor.
fn descriptors() -> Vec<Said> {
    let mut all = Vec::new();
    for (name, code) in OF_RING {
        for word in [0x200, 0x1_0000, 1 << 32, 1 << 63] {
            let said = Said::new(format!("{name} of {word:#x}"), code, &words(&[word]), Nack).with(event);
            all.push(said.logged(format!("bits {word:#x} mean nothing")));
        }
    }
    all
}

/// Of a ring that stands still.
fn addresses() -> Vec<Said> {
    let ring = |name: &str, flags: u32, places: [u64; 3], reason: &str| {
        let payload = [state(9, flags), words(&places), words(&[0])].concat();
        Said::new(name, SET_VRING_ADDR, &payload, Nack).logged(reason)
    };
    vec![
        ring("a flag of a ring that is not defined", 2, [0; 3], "bits 0x2 mean nothing"),
        ring("all flags of a ring", u32::MAX, [0; 3], "bits 0xfffffffe mean nothing"),
        ring(
            "descriptors at 8",
            0,
            [8, 0, 0],
            "ring 9: the descriptor table at 0x8 is not aligned to 16 bytes",
        ),
        ring("a used ring at 2", 0, [0, 2, 0], "ring 9: the used ring at 0x2 is not aligned to 4 bytes"),
        ring("an available ring at 1", 0, [0, 0, 1], "ring 9: the available ring at 0x1 is not aligned to 2"),
        ring("a ring at the last address", 0, [u64::MAX; 3], "at 0xffffffffffffffff is not aligned"),
    ]
}

fn others() -> Vec<Said> {
    let flags = |flags: u32| [config(32, 1, 0)[..8].to_vec(), flags.to_le_bytes().to_vec(), vec![1]].concat();
    let log = |name: &str, bytes: u64, offset: u64| {
        let said = Said::new(name, SET_LOG_BASE, &words(&[bytes, offset]), HungUp).with(memory);
        said.logged(format!("a log of {bytes:#x} bytes at {offset:#x}"))
    };
    let transfer = |name: &str, direction: u32, phase: u32| {
        let payload = state(direction, phase);
        let said = Said::new(name, SET_DEVICE_STATE_FD, &payload, refusal(SET_DEVICE_STATE_FD));
        said.with(memory).at(Stage::Shared).logged(format!("direction {direction}, phase {phase}"))
    };
    vec![
        Said::new("a third state of a ring", SET_VRING_ENABLE, &state(0, 2), Nack).logged("not by 2"),
        Said::new("a state of a ring of all bits", SET_VRING_ENABLE, &state(0, u32::MAX), Nack)
            .logged("not by 4294967295"),
        Said::new("the configuration is written with unknown flags", SET_CONFIG, &flags(4), Nack)
            .logged("bits 0x4 mean nothing"),
        Said::new("the configuration is read with unknown flags", GET_CONFIG, &flags(8), HungUp)
            .logged("bits 0x8 mean nothing"),
        Said::new(
            "a table with something between",
            SET_MEM_TABLE,
            &[state(1, 7), vec![0; 32]].concat(),
            Nack,
        )
        .with(memory)
        .logged("bits 0x7 mean nothing"),
        log("a log of no bytes", 0, 0),
        log("a log over the end of all addresses", 4096, u64::MAX - 4095),
        transfer("a state that is neither saved nor loaded", 2, 0),
        transfer("a state in a phase that is not defined", 0, 1),
    ]
}
