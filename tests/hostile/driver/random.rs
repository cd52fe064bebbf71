//! Tables full of random descriptors: each chain is answered or breaks its ring, and the daemon lives.

use crate::common::daemon::{Place, Setup};
use crate::common::frontend::Session;
use crate::common::frontend::ring::{Descriptor, NEXT, NO_STATUS, Ring};
use crate::common::{Random, wait_for};

const CASES: u64 = 1500;

const QUEUE_SIZE: u16 = 16;

/// Makes a chain of random descriptors available; returns its head, or its buffer id.
fn offer(ring: &mut Ring, random: &mut Random) -> u16 {
    let table: Vec<Descriptor> = (0..QUEUE_SIZE).map(|_| descriptor(ring, random, 40)).collect();
    let part = |it: &Descriptor| (it.address, it.len, it.flags);
    let inner = ring.buffers(1).header;
    if ring.is_packed() {
        ring.put_table(inner, &table.iter().map(part).collect::<Vec<_>>());
    } else {
        ring.memory.write(inner, &table.iter().flat_map(|it| it.to_bytes()).collect::<Vec<u8>>());
    }
    // Sometimes a request that could be meant.
    let frame = ring.buffers(0);
    let kind = random.pick(&[0, 1, 4, 8, 11, 13, 99]);
    let sector = if random.one_in(4) { random.next() } else { random.below(64) };
    ring.memory.write(frame.header, &crate::common::frontend::request::header(kind, sector));
    let first = Descriptor { address: frame.header, len: 16, flags: NEXT, next: 1 };
    let mut chain: Vec<Descriptor> = (0..QUEUE_SIZE).map(|_| descriptor(ring, random, 40)).collect();
    if !random.one_in(4) {
        chain[0] = first;
    }
    if ring.is_packed() {
        // All but the last lead on. Where the ring's last one does so too the chain has no end.
        let most = if random.one_in(8) { u64::from(QUEUE_SIZE) } else { 5 };
        chain.truncate(1 + random.below(most) as usize);
        let is_round = chain.len() == usize::from(QUEUE_SIZE);
        let last = chain.last_mut().unwrap();
        last.flags &= if is_round { u16::MAX } else { !NEXT };
        let id = random.next() as u16;
        ring.chain(id, &chain.iter().map(part).collect::<Vec<_>>());
        return id;
    }
    (0..).zip(chain).for_each(|(index, descriptor)| ring.put(index, descriptor));
    let head = if random.one_in(50) { random.next() as u16 } else { random.below(3) as u16 };
    ring.offer(head);
    head
}

/// Neither the rings nor the tables are ever written to by the device, so its answer can be believed.
fn descriptor(ring: &Ring, random: &mut Random, oddness: u64) -> Descriptor {
    let frame = ring.buffers(0);
    let address = match random.below(oddness) {
        0 => random.next(),
        1 => 0,
        2 => u64::MAX - random.below(4096),
        3..=8 => ring.buffers(1).header,
        9..=14 => frame.header,
        15..=20 => frame.status,
        _ => frame.data + random.below(1024),
    };
    let is_table = address == ring.buffers(1).header;
    let len = match random.below(12) {
        0 => 0,
        1 => 1,
        2 => 16,
        3 if !is_table => random.next() as u32 % 30_000,
        4 if random.one_in(4) => u32::MAX,
        _ => random.pick(&[1, 16, 32, 256, 512, 512, 1024]),
    };
    let len = if address == frame.header || address == frame.status { len.min(64) } else { len };
    let flags = if is_table {
        random.pick(&[4, 4, 4, 5, 6, 0, 1])
    } else {
        random.pick(&[0, 1, 1, 1, 2, 3, 3, 3, 7])
    };
    let next =
        if random.one_in(12) { random.next() as u16 } else { random.below(u64::from(QUEUE_SIZE)) as u16 };
    Descriptor { address, len, flags, next }
}

#[test]
fn random_chains_are_answered_or_break_their_ring() {
    let seed = std::env::var("SEED").map_or(1, |seed| seed.parse().unwrap());
    let mut daemon = Setup::new(Place::Tmpfs).disk("size=8M").start();
    for session in Session::of_each_kind(&daemon.socket(0)) {
        let mut ring = session.ring(0, QUEUE_SIZE);
        let mut witness = session.ring(1, 64);
        let (mut answered, mut broken) = (0, 0);
        for case in 0..CASES {
            let mut random = Random::new(seed ^ case << 20);
            ring.memory.fill(ring.buffers(0).status, 64, NO_STATUS);
            let head = offer(&mut ring, &mut random);
            ring.kick.signal();
            let what = format!("SEED={seed}, case {case}: the chain is answered or the ring broken");
            let used = wait_for(&what, || match ring.next_used() {
                None if ring.err.is_signalled() => Some(None),
                None => None,
                used => Some(used),
            });
            match used {
                Some(used) => {
                    assert_eq!(used.head, head, "SEED={seed}, case {case}");
                    answered += 1;
                }
                None => {
                    session.stop(&ring);
                    ring.reset();
                    session.start(&ring, 0).unwrap();
                    broken += 1;
                }
            }
            if case % 50 == 0 {
                super::assert_reads(&mut witness);
            }
        }
        println!("SEED={seed}: {answered} answered, {broken} rings broken");
        assert!(answered > CASES / 10 && broken > CASES / 10, "the cases are all of one kind");
    }
    daemon.assert_alive();
}
