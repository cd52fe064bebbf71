//! Rings at places where none can be.

use super::{FrontEnd, words};
use crate::common::frontend::message::SET_VRING_ADDR;
use crate::common::frontend::request::{OK, Request};
use crate::common::frontend::ring::Ring;
use crate::common::frontend::wire::{NEED_REPLY, VERSION};
use crate::common::frontend::{Options, SPANS, Session, settle};
use crate::table::Answer::{self, Nack, Served};
use crate::table::{Kind, Place, Row};

/// Descriptors of the ring.
const SIZE: u16 = 64;

/// The end of the first region; behind it is a gap, up to the second one.
const END: u64 = SPANS[0].guest_start + SPANS[0].bytes;
const GAP: u64 = SPANS[1].guest_start - 64;

/// Guest addresses of descriptors, available and used ring, made of those that are right.
type Places = fn([u64; 3]) -> [u64; 3];

/// The rows.
pub(super) fn rows() -> Vec<Row> {
    let bad = |area: &str, why: &str| format!("the {area} {why}");
    let mut all = Vec::new();
    for packed in [false, true] {
        let [table, available, used] = match packed {
            false => ["descriptor table", "available ring", "used ring"],
            true => ["descriptor ring", "driver area", "device area"],
        };
        let outside = "lies outside guest memory, or in two regions";
        let rows: [(&str, Places, Answer, String); 18] = [
            ("descriptors at 0", |[_, a, u]| [0, a, u], Nack, bad(table, outside)),
            ("descriptors in a gap", |[_, a, u]| [GAP, a, u], Nack, bad(table, outside)),
            ("descriptors over a region's end", |[_, a, u]| [END - 1008, a, u], Nack, bad(table, outside)),
            (
                "descriptors over all addresses",
                |[_, a, u]| [0_u64.wrapping_sub(16), a, u],
                Nack,
                bad(table, outside),
            ),
            ("descriptors misaligned", |[d, a, u]| [d + 8, a, u], Nack, "is not aligned to 16".into()),
            ("available ring at 0", |[d, _, u]| [d, 0, u], Nack, bad(available, outside)),
            ("available ring in a gap", |[d, _, u]| [d, GAP, u], Nack, bad(available, outside)),
            (
                "available ring over a region's end",
                |[d, _, u]| [d, END - 2, u],
                Nack,
                bad(available, outside),
            ),
            ("available ring misaligned", |[d, a, u]| [d, a + 1, u], Nack, "is not aligned to 2".into()),
            ("used ring at 0", |[d, a, _]| [d, a, 0], Nack, bad(used, outside)),
            ("used ring in a gap", |[d, a, _]| [d, a, GAP], Nack, bad(used, outside)),
            ("used ring over a region's end", |[d, a, _]| [d, a, END], Nack, bad(used, outside)),
            ("used ring misaligned", |[d, a, u]| [d, a, u + 2], Nack, "is not aligned to 4".into()),
            ("everything at the last byte", |_| [u64::MAX; 3], Nack, "is not aligned to 16".into()),
            (
                "everything at the last aligned address",
                |_| [0_u64.wrapping_sub(16); 3],
                Nack,
                bad(table, outside),
            ),
            ("everything at one place", |[d, _, _]| [d; 3], Served, String::new()),
            ("available ring in the descriptors", |[d, _, u]| [d, d, u], Served, String::new()),
            ("used ring in the descriptors", |[d, a, _]| [d, a, d], Served, String::new()),
        ];
        all.extend(rows.map(|(name, places, expected, reason)| {
            let ring = if packed { "packed" } else { "split" };
            Row::new(Kind::Ring, format!("{name} ({ring})"), expected, move |place| {
                start_at(place, packed, places)
            })
            .logged(reason)
        }));
    }
    all
}

/// What is said of a ring at these places, or becomes of its first request.
fn start_at(place: &Place<'_>, packed: bool, places: Places) -> Answer {
    let session = Session::connect_with(&place.socket, &Options { packed, ..Options::default() });
    let mut other = session.ring(1, SIZE);
    let mut ring = session.new_ring(0, SIZE);
    ring.submit(&Request::read(0, 512));
    let [descriptors, available, used] = places([ring.descriptors, ring.available, ring.used]);
    let front_end = FrontEnd { session, ring: None };
    let session = &front_end.session;
    session.ask(|control| vhost::VhostBackend::set_vring_num(control, 0, SIZE)).unwrap();
    let payload = words(&[0, Ring::user(descriptors), Ring::user(used), Ring::user(available), 0]);
    let mut answer = front_end.tell(SET_VRING_ADDR, VERSION | NEED_REPLY, &payload, &[]);
    if answer == Answer::Done {
        let is_started = session.set_events(&ring).and_then(|()| session.enable(&ring, true));
        ring.kick.signal();
        settle();
        // Areas that overlap are written to by both sides: what that means is the driver's own trouble.
        answer = if is_started.is_err() { Nack } else { Served };
    }
    let works = other.run(&Request::read(0, 512));
    assert_eq!((works.status, works.used_bytes), (OK, 513), "another ring");
    session.stop(&ring);
    ring.reset();
    session.start(&ring, 0).unwrap();
    assert_eq!(ring.run(&Request::read(0, 512)).status, OK, "started where it should be");
    answer
}
