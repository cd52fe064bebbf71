//! Packed rings do what split ones do, which are compared with an independent back-end.

use crate::common::daemon::{Place, Setup};
use crate::common::frontend::chains::{self, DATA, SECTORS, SPANS, Tables};
use crate::common::frontend::memory::Span;
use crate::common::frontend::ring::Used;
use crate::common::frontend::{EVENT_IDX, Options, Session};
use crate::common::{Random, SECTOR_BYTES, pattern};

const SIZE: u16 = 512;

/// No piece of the data is in two regions.
const PIECE_BYTES: usize = 1 << 20;

#[test]
fn packed_rings_do_what_split_ones_do() {
    for (place, features) in Place::ALL.into_iter().zip([u64::MAX, !EVENT_IDX]) {
        let setup = Setup::new(place).disk("serial=a-serial-number").disk("serial=a-serial-number");
        let content = pattern(1, (SECTORS as usize - 64) * SECTOR_BYTES);
        (0..2).for_each(|index| std::fs::write(setup.image(index), &content).unwrap());
        let daemon = setup.start();
        let sessions = [false, true].map(|packed| {
            let options = Options { features, packed, spans: SPANS.to_vec(), ..Options::default() };
            Session::connect_with(&daemon.socket(usize::from(packed)), &options)
        });
        let mut rings = sessions.each_ref().map(|session| session.ring(0, SIZE));
        let tables = rings.each_ref().map(Tables::new);
        let (mut written, mut sizes) = (0, Random::new(2));
        for round in 0..60 {
            let count = 1 + sizes.below(u64::from(Tables::chains(&rings[0]))) as u16;
            for (ring, tables) in rings.iter_mut().zip(&tables) {
                let mut random = Random::new(round);
                match place {
                    Place::Tmpfs => drop(chains::lay_out(ring, &mut random, count, tables)),
                    // Requests on files are under way at the same time.
                    Place::FileSystem => chains::lay_out_apart(ring, &mut random, count, tables),
                }
                ring.make_available();
                ring.kick.signal();
            }
            let [split, packed] =
                rings.each_mut().map(|ring| (0..count).map(|_| ring.wait()).collect::<Vec<Used>>());
            assert_eq!(split, packed, "{place:?}, round {round}");
            written += split.iter().map(|used| u64::from(used.bytes)).sum::<u64>();
            for start in DATA.into_iter().flat_map(|Span { guest_start, bytes }| {
                (guest_start..guest_start + bytes).step_by(PIECE_BYTES)
            }) {
                let [split, packed] = sessions.each_ref().map(|it| it.memory.read(start, PIECE_BYTES));
                assert!(split == packed, "{place:?}, round {round}: memory differs");
            }
            let [split, packed] = [0, 1].map(|index| std::fs::read(daemon.image(index)).unwrap());
            assert!(split == packed, "{place:?}, round {round}: the images differ");
        }
        assert!(written > 1 << 20, "hardly anything was read: {written} bytes");
        daemon.stop();
    }
}
