//! Guest memory that cannot be.

use std::os::fd::OwnedFd;

use super::{FrontEnd, Stage, words};
use crate::common::MIB;
use crate::common::frontend::memory::{Memory, Span, USER_BASE};
use crate::common::frontend::message::{ADD_MEM_REG, SET_MEM_TABLE};
use crate::common::frontend::request::IOERR;
use crate::common::frontend::wire::{NEED_REPLY, VERSION};
use crate::common::frontend::{SPANS, Session};
use crate::table::Answer::{self, Nack};
use crate::table::{Kind, Place, Row};

const PAGE: u64 = 4096;

/// Where the region would be: behind all others.
const FREE: u64 = 0x10_0000_0000;

/// Guest address, bytes, the front-end's address, offset in the file: of [`MIB`] bytes.
type Region = [u64; 4];

const GOOD: Region = [FREE, MIB, USER_BASE + FREE, 0];

/// What is wrong with a region, the region, and what is said of it.
fn bad_regions() -> Vec<(&'static str, Region, &'static str)> {
    let [start, bytes, user, offset] = GOOD;
    let (taken, last) = (SPANS[1].guest_start, 0_u64.wrapping_sub(PAGE));
    let over = "it has no bytes or runs over the end of an address space";
    vec![
        ("where another is", [taken, bytes, user, offset], "overlaps the region at"),
        ("over the start of another", [taken - PAGE, bytes, user, offset], "overlaps the region at"),
        (
            "over another's last page",
            [taken + SPANS[1].bytes - PAGE, bytes, user, offset],
            "overlaps the region at",
        ),
        ("inside another", [taken + MIB, bytes, user, offset], "overlaps the region at"),
        ("over the last guest address", [last, bytes, user, offset], over),
        ("over the front-end's last address", [start, bytes, last, offset], over),
        ("over the file's last offset", [start, bytes, user, last], over),
        ("of nearly 2^64 bytes", [start, last, user, offset], over),
        ("of no bytes", [start, 0, user, offset], over),
        ("from the middle of a page of its file", [start, PAGE, user, 512], "is not a multiple of 0x1000"),
        (
            "of a page more than its file has",
            [start, bytes + PAGE, user, offset],
            "its file has 0x100000 bytes",
        ),
        ("from a page too far in its file", [start, bytes, user, PAGE], "its file has 0x100000 bytes"),
        ("from behind its file", [start, bytes, user, 64 * MIB], "its file has 0x100000 bytes"),
        ("of 2^62 bytes", [start, 1 << 62, user, offset], "are too many"),
    ]
}

/// The rows.
pub(super) fn rows() -> Vec<Row> {
    let mut all = Vec::new();
    for (what, region, reason) in bad_regions() {
        let name = format!("memory {what}");
        let slot =
            move |place: &Place<'_>| refuse(place, ADD_MEM_REG, &words(&[&[0], &region[..]].concat()), 1);
        all.push(Row::new(Kind::Message, format!("{name}, in a slot"), Nack, slot).logged(reason));
        let of_table = move |place: &Place<'_>| {
            let second = [SPANS[1].guest_start, SPANS[1].bytes, USER_BASE + SPANS[1].guest_start, 0];
            refuse(place, SET_MEM_TABLE, &words(&[&[2], &second[..], &region[..]].concat()), 2)
        };
        all.push(Row::new(Kind::Message, format!("{name}, in a table"), Nack, of_table).logged(reason));
    }
    let twice =
        |place: &Place<'_>| refuse(place, SET_MEM_TABLE, &words(&[&[2], &GOOD[..], &GOOD[..]].concat()), 2);
    all.push(
        Row::new(Kind::Message, "a table of the same region twice", Nack, twice)
            .logged("overlaps the region"),
    );
    all
}

/// Sends a message that carries this memory, or that of the second region and this one.
fn refuse(place: &Place<'_>, code: u32, payload: &[u8], regions: usize) -> Answer {
    let mut front_end = FrontEnd::at(Stage::Running, place);
    let good = Memory::new(&[Span { guest_start: FREE, bytes: MIB }]);
    let large = Memory::new(&[SPANS[1]]);
    let files: Vec<OwnedFd> = match regions {
        1 => vec![own(&good)],
        _ if payload.len() > 8 && payload[8..16] == FREE.to_le_bytes() => vec![own(&good), own(&good)],
        _ => vec![own(&large), own(&good)],
    };
    let answer = front_end.tell(code, VERSION | NEED_REPLY, payload, &files);
    front_end.assert_works();
    let ring = front_end.ring.as_mut().unwrap();
    assert_eq!(ring.read_to(0, FREE, 512), IOERR, "it is there after all");
    restart(&front_end.session, ring);
    answer
}

fn own(memory: &Memory) -> OwnedFd {
    memory.fd().try_clone_to_owned().unwrap()
}

/// The memory from before is in force: the ring can be started again in it.
fn restart(session: &Session, ring: &mut crate::common::frontend::ring::Ring) {
    let base = session.stop(ring);
    session.start(ring, base).unwrap();
    assert_eq!(ring.read_to(0, ring.buffers(1).data, 512), 0);
}
