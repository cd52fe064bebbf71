//! States of a device: what can be loaded is exactly what the format says (`vhost_user/device_state.rs`), and saved again it is
//! the same.

use std::io::{Read as _, Write as _};

use arbitrary::{Arbitrary, Unstructured};

use super::config::negotiate;
use super::server::{DISK_BYTES, SERIAL, World};
use super::with_world;
use crate::common::frontend::wire::{NEED_REPLY, VERSION, Wire};
use crate::common::guarded::found;

const SET_DEVICE_STATE_FD: u32 = 42;
const CHECK_DEVICE_STATE: u32 = 43;
const SAVE: u32 = 0;
const LOAD: u32 = 1;

#[derive(Debug, Arbitrary)]
struct Input {
    /// Changes to a state that is as it should be.
    patches: Vec<(u8, u8)>,
    /// Bytes more, or less.
    longer: i8,
    /// Whatever, in its place.
    noise: Option<Vec<u8>>,
    direction: u8,
    phase: u8,
}

impl Input {
    fn bytes(&self) -> Vec<u8> {
        if let Some(noise) = &self.noise {
            return noise.clone();
        }
        let mut state = good();
        for (at, bits) in &self.patches {
            state[usize::from(*at) % 64] ^= bits;
        }
        state.resize(64_usize.saturating_add_signed(self.longer.into()), 0);
        state
    }
}

/// A state of this disk, of a driver without features.
fn good() -> Vec<u8> {
    let parts: [&[u8]; 6] = [
        b"vupmemst",
        &1_u32.to_le_bytes(),
        &512_u32.to_le_bytes(),
        &DISK_BYTES.to_le_bytes(),
        &[0; 8],
        &SERIAL,
    ];
    let mut state = parts.concat();
    state.resize(64, 0);
    state
}

/// Whether it is a state that a disk like this can go on with. An empty one is that of a device that has none.
fn is_good(state: &[u8]) -> bool {
    if state.is_empty() {
        return true;
    }
    let word = |at: usize| u64::from_le_bytes(state[at..at + 8].try_into().unwrap());
    state.len() == 64
        && state[..8] == *b"vupmemst"
        && word(8) == u64::from(1_u32) | 512 << 32
        && word(16) <= DISK_BYTES
        && state[32..52] == SERIAL
        && state[53] != 1
}

/// Loads a state, and saves what has become of it.
pub fn run(data: &[u8]) {
    let Ok(input) = Input::arbitrary_take_rest(Unstructured::new(data)) else { return };
    with_world(|world: &mut World| {
        let wire = Wire::new(world.connect());
        negotiate(&wire);
        let state = input.bytes();
        let is_usual = input.direction % 4 != 3 && input.phase % 4 != 3;
        let [direction, phase] = match is_usual {
            true => [LOAD, 0],
            false => [u32::from(input.direction), u32::from(input.phase)],
        };
        let is_loaded = load(&wire, [direction, phase], &state);
        if is_usual && is_loaded && !is_good(&state) {
            found(&format!("this state was loaded: {state:?}"));
        }
        // Features that are not offered are refused besides.
        let has_features = state.len() == 64 && state[24..32] != [0; 8];
        if is_usual && !is_loaded && is_good(&state) && !has_features {
            found(&format!("this state was refused: {state:?}"));
        }
        if is_usual && is_loaded {
            let saved = save(&wire);
            if saved.is_empty() || !is_good(&saved) {
                found(&format!("{saved:?} was saved"));
            }
        }
        wire.hang_up();
        world.input_is_over();
    });
}

fn begin(wire: &Wire, words: [u32; 2], file: &impl std::os::fd::AsFd) -> bool {
    let body = words.map(u32::to_le_bytes).concat();
    wire.send(SET_DEVICE_STATE_FD, VERSION | NEED_REPLY, &body, &[file.as_fd()])
        && wire.receive().is_some_and(|answer| answer.value() & 0xff == 0)
}

fn check(wire: &Wire) -> bool {
    wire.send(CHECK_DEVICE_STATE, VERSION | NEED_REPLY, &[], &[])
        && wire.receive().is_some_and(|answer| answer.value() == 0)
}

fn load(wire: &Wire, words: [u32; 2], state: &[u8]) -> bool {
    let (reader, mut writer) = std::io::pipe().unwrap();
    let has_begun = begin(wire, words, &reader);
    drop(reader);
    let _ = writer.write_all(state);
    drop(writer);
    has_begun && check(wire)
}

fn save(wire: &Wire) -> Vec<u8> {
    let (mut reader, writer) = std::io::pipe().unwrap();
    let mut state = Vec::new();
    if begin(wire, [SAVE, 0], &writer) {
        drop(writer);
        reader.read_to_end(&mut state).unwrap();
    }
    state
}
