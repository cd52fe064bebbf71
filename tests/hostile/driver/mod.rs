//! What a driver must not do: each row of a table is one chain or request, what becomes of it is written
//! beside it, and the next request works.

mod broken;
mod case;
mod chains;
mod random;
mod requests;

use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::common::daemon::{Place, Setup};
use crate::common::frontend::features::BLK_SIZE;
use crate::common::frontend::request::{OK, Request};
use crate::common::frontend::ring::Ring;
use crate::common::frontend::{INDIRECT_DESC, Options, Session, VERSION_1};
use crate::common::pattern;
use case::{Case, DISK_BYTES, Expected, KEPT_BYTES, Row, Rows, SERIAL};

/// Where the requests between the rows go: behind what the rows must not change.
const WITNESS_SECTOR: u64 = KEPT_BYTES / 512;

/// A daemon's disk with a pattern in the part that no row may change, and the rows tried on it with rings of each kind.
fn try_rows(place: Place, disk: &str, features: u64, rows: &Rows) {
    let setup = Setup::new(place).disk(&format!("serial={SERIAL}{disk}"));
    let image = setup.image(0);
    let kept = pattern(1, KEPT_BYTES as usize);
    let file = std::fs::File::create(&image).unwrap();
    file.set_len(DISK_BYTES).unwrap();
    file.write_all_at(&kept, 0).unwrap();
    let mut daemon = setup.start();
    for options in Options::both_kinds() {
        let session = Session::connect_with(&daemon.socket(0), &Options { features, ..options.clone() });
        let mut ring = session.ring(0, case::QUEUE_SIZE);
        let mut witness = session.ring(1, 64);
        for row in rows.of(options.packed) {
            println!("{place:?}{disk}, packed {}: {}", options.packed, row.name);
            try_row(row, &session, &mut ring, &mut witness);
            assert_is_kept(&image, &kept, row.name);
        }
    }
    daemon.assert_alive();
}

fn try_row(row: &Row, session: &Session, ring: &mut Ring, witness: &mut Ring) {
    let used_before = (ring.used_index(), ring.used_base());
    let mut case = Case::new(ring);
    (row.build)(&mut case);
    let (status, head) = (case.status, case.head);
    ring.kick.signal();
    match row.expected {
        Expected::Status(expected, used_bytes) => {
            let used = ring.wait();
            let found = ring.memory.read(status, 1)[0];
            assert_eq!((used.head, found, used.bytes), (head, expected, used_bytes), "{}", row.name);
            assert!(!ring.err.is_signalled(), "{}: the ring is broken", row.name);
        }
        Expected::Broken => {
            ring.err.wait(&format!("the ring breaks: {}", row.name));
            assert_works(witness, row.name);
            assert_eq!(
                (ring.used_index(), session.stop(ring)),
                used_before,
                "{}: completed all the same",
                row.name
            );
            ring.reset();
            session.start(ring, 0).unwrap();
        }
    }
    assert_works(ring, row.name);
    assert_works(witness, row.name);
}

fn assert_works(ring: &mut Ring, after: &str) {
    let answer = ring.run(&Request::read(WITNESS_SECTOR, 4096));
    assert_eq!((answer.status, answer.used_bytes), (OK, 4097), "ring {} after {after}", ring.index);
}

/// As [`assert_works`], on a disk of any size.
fn assert_reads(ring: &mut Ring) {
    assert_eq!(ring.run(&Request::read(0, 512)).status, OK);
}

fn assert_is_kept(image: &Path, kept: &[u8], after: &str) {
    let mut bytes = vec![0; kept.len()];
    std::fs::File::open(image).unwrap().read_exact_at(&mut bytes, 0).unwrap();
    assert!(bytes == kept, "{after}: the disk has changed");
}

#[test]
fn chains_that_have_no_end_or_no_status_break_their_ring_alone() {
    let rows = broken::rows();
    assert!(rows.split.len() >= 15 && rows.both.len() >= 19);
    try_rows(Place::Tmpfs, "", u64::MAX, &rows);
}

#[test]
fn chains_of_a_bad_form_fail_and_strange_ones_work() {
    let rows = chains::rows();
    assert!(rows.both.len() >= 30);
    for place in Place::ALL {
        try_rows(place, "", u64::MAX, &rows);
    }
}

#[test]
fn requests_that_make_no_sense_fail() {
    let rows = requests::rows();
    assert!(rows.both.len() >= 40);
    for place in Place::ALL {
        try_rows(place, "", u64::MAX, &rows);
    }
}

#[test]
fn a_legacy_driver_is_treated_alike() {
    try_rows(Place::Tmpfs, "", !VERSION_1, &requests::rows());
    try_rows(Place::Tmpfs, "", !VERSION_1, &broken::rows());
}

#[test]
fn indirect_tables_fail_where_they_were_not_negotiated() {
    try_rows(Place::Tmpfs, "", !INDIRECT_DESC, &chains::rows_without_indirect());
}

#[test]
fn a_read_only_disk_refuses_what_writes() {
    try_rows(Place::Tmpfs, ",readonly=on", u64::MAX, &requests::rows_read_only());
}

#[test]
fn sectors_of_a_disk_of_large_blocks_are_read_and_written() {
    for place in Place::ALL {
        // Whether the driver has heard of blocks or not.
        for features in [u64::MAX, !BLK_SIZE] {
            try_rows(place, ",block-size=4096", features, &requests::rows_large_blocks());
        }
    }
}
