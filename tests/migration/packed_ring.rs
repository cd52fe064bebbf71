//! The dirty log of packed rings: what is marked is copied while requests are under way, as QEMU does it.

use super::chains::{self, SPANS};
use super::dirty_log::{daemon, switch_on};
use super::log::{Log, Snapshot};
use crate::common::daemon::Place;
use crate::common::frontend::ring::{Descriptor, INDIRECT, NEXT, Ring};
use crate::common::frontend::{LOG_ALL, Options, Session};
use crate::common::{Random, wait_for};

/// Descriptor flags: made available, and given back, in the ring's first round.
const AVAILABLE: u16 = 1 << 7;
const USED: u16 = 1 << 15;

/// Each chain is answered by a descriptor of its own without this.
const IN_ORDER: u64 = 1 << 35;

const SIZE: u16 = 1024;

/// A ring whose driver and device areas have pages of their own.
fn packed_ring(session: &Session) -> Ring {
    let mut ring = Ring::new(&session.memory, 0, 8, false);
    ring.size = SIZE;
    ring.descriptors = session.memory.allocate(u64::from(SIZE) * 16, 4096);
    ring.available = session.memory.allocate(4096, 4096);
    ring.used = session.memory.allocate(4096, 4096);
    ring
}

/// Writes a descriptor, but for its flags.
fn put(ring: &Ring, slot: u16, part: &Descriptor, id: u16) {
    let at = ring.descriptors + u64::from(slot) * 16;
    ring.memory.write(at, &part.address.to_le_bytes());
    ring.memory.write(at + 8, &part.len.to_le_bytes());
    ring.memory.write(at + 12, &id.to_le_bytes());
}

fn flags_of(ring: &Ring, slot: u16) -> u64 {
    ring.descriptors + u64::from(slot) * 16 + 14
}

/// Lays out random chains until the ring is nearly full; the first one is not available yet. Returns the flags
/// that make it so, and the slot of the last one's head.
fn lay_out(ring: &Ring, random: &mut Random) -> (u16, u16) {
    let headers = ring.memory.allocate(u64::from(SIZE) * 256, 4096);
    let tables = ring.memory.allocate(u64::from(SIZE) * 128, 4096);
    let (mut slot, mut last, mut first_flags) = (0, 0, 0);
    for number in 0_u16.. {
        if slot + 8 > SIZE {
            break;
        }
        let mut parts = chains::parts(&ring.memory, random, headers + u64::from(number) * 256);
        if random.one_in(2) {
            let table = tables + u64::from(number) * 128;
            for (at, part) in parts.iter().enumerate() {
                let bytes = Descriptor { next: part.flags, flags: 0, ..*part }.to_bytes();
                ring.memory.write(table + at as u64 * 16, &bytes);
            }
            let len = parts.len() as u32 * 16;
            parts = vec![Descriptor { address: table, len, flags: INDIRECT, next: 0 }];
        }
        last = slot;
        let count = parts.len();
        for (at, part) in parts.iter().enumerate() {
            let flags = part.flags | AVAILABLE | if at + 1 < count { NEXT } else { 0 };
            put(ring, slot, part, number);
            match slot {
                0 => first_flags = flags,
                _ => ring.memory.store_u16(flags_of(ring, slot), flags),
            }
            slot += 1;
        }
    }
    (first_flags, last)
}

fn copy_under_load(place: Place) {
    let daemon = daemon(place);
    for round in 0..4 {
        let features = !LOG_ALL & !IN_ORDER;
        let options = Options { features, spans: SPANS.to_vec(), packed: true, ..Options::default() };
        let mut session = Session::connect_with(&daemon.socket(0), &options);
        let ring = packed_ring(&session);
        let (flags, last) = lay_out(&ring, &mut Random::new(round));
        session.start(&ring, 0).unwrap();
        let log = Log::of(&session.memory);
        switch_on(&mut session, &log, &[&ring]);
        let mut copy = Snapshot::of(&session.memory);
        ring.memory.store_u16(flags_of(&ring, 0), flags);
        ring.kick.ring();
        let is_done = || ring.memory.load_u16(flags_of(&ring, last)) & USED != 0;
        wait_for("all are done", || {
            copy.update(&session.memory, &log.take());
            is_done().then_some(())
        });
        session.enable(&ring, false).unwrap();
        copy.update(&session.memory, &log.take());
        let lost = copy.changes(&Snapshot::of(&session.memory));
        assert!(lost.is_empty(), "round {round}: pages {lost:x?} are not copied as they are");
    }
}

#[test]
fn a_copy_of_packed_rings_is_complete() {
    copy_under_load(Place::Tmpfs);
}

#[test]
fn a_copy_of_packed_rings_behind_flushes_is_complete() {
    copy_under_load(Place::FileSystem);
}
