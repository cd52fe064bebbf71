//! What a driver must not do: each row of a table is one chain or request, what becomes of it is written
//! beside it, and the next request works.

mod broken;
pub(crate) mod case;
mod chains;
mod random;
mod requests;

use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::common::daemon::{Place, Setup};
use crate::common::frontend::features::BLK_SIZE;
use crate::common::frontend::request::{OK, Request};
use crate::common::frontend::ring::Ring;
use crate::common::frontend::{INDIRECT_DESC, Options, Session, VERSION_1};
use crate::common::{PATIENCE, is_readable, pattern};
use crate::table::{self, Answer, Kind};
use case::{Case, DISK_BYTES, KEPT_BYTES, Layout, Row, Rows, SERIAL};

/// Where the requests between the rows go: behind what the rows must not change.
const WITNESS_SECTOR: u64 = KEPT_BYTES / 512;

/// The rows of the table.
pub(crate) fn rows() -> Vec<table::Row> {
    let mut all = Vec::new();
    for options in Options::both_kinds() {
        for rows in [broken::rows(), chains::rows()] {
            all.extend(
                rows.of(options.packed).map(|row| in_table(Kind::Ring, row, &options, Layout::Direct)),
            );
        }
        for layout in [Layout::Direct, Layout::Indirect] {
            let rows = requests::rows();
            all.extend(rows.of(options.packed).map(|row| in_table(Kind::Request, row, &options, layout)));
        }
    }
    all
}

/// A chain as a row of the table: with a front-end of its own.
fn in_table(kind: Kind, row: &Row, options: &Options, layout: Layout) -> table::Row {
    let ring = if options.packed { "packed" } else { "split" };
    let way = if layout == Layout::Indirect { ", in an indirect table" } else { "" };
    let (name, expected) = (format!("{} ({ring}{way})", row.name), row.expected.clone());
    let (options, row) = (options.clone(), row.clone());
    table::Row::new(kind, name, expected, move |place| {
        let session = Session::connect_with(&place.socket, &options);
        let (mut ring, mut witness) = (session.ring(0, case::QUEUE_SIZE), session.ring(1, 64));
        try_row(&row, layout, &session, &mut ring, &mut witness)
    })
}

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
            let seen = try_row(row, Layout::Direct, &session, &mut ring, &mut witness);
            assert_eq!(seen, row.expected, "{}", row.name);
            assert_is_kept(&image, &kept, row.name);
        }
    }
    daemon.assert_alive();
}

/// What becomes of a chain. A ring that is broken by it is started again.
fn try_row(row: &Row, layout: Layout, session: &Session, ring: &mut Ring, witness: &mut Ring) -> Answer {
    let used_before = (ring.used_index(), ring.used_base());
    let mut case = Case::new(ring, layout);
    (row.build)(&mut case);
    let (status, head) = (case.status, case.head);
    ring.kick.signal();
    let answer = wait_for_answer(ring, head, status);
    if answer == Answer::Broken {
        assert_works(witness, row.name);
        let used = (ring.used_index(), session.stop(ring));
        assert_eq!(used, used_before, "{}: completed all the same", row.name);
        ring.reset();
        session.start(ring, 0).unwrap();
    }
    assert!(!ring.err.is_signalled(), "{}: the ring is broken", row.name);
    assert_works(ring, row.name);
    assert_works(witness, row.name);
    answer
}

/// The only chain that is available is used, or breaks the ring.
fn wait_for_answer(ring: &mut Ring, head: u16, status: u64) -> Answer {
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        ring.name_event(0, 0);
        if let Some(used) = ring.next_used() {
            assert_eq!(used.head, head, "another chain is used");
            return Answer::Status(ring.memory.read(status, 1)[0], used.bytes);
        }
        if ring.err.is_signalled() {
            ring.err.take();
            return Answer::Broken;
        }
        is_readable(&*ring.call.current(), Duration::from_millis(1));
    }
    Answer::Wrong("no answer".into())
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

/// As in the table, but not on tmpfs.
#[test]
fn requests_fail_alike_on_an_ordinary_file_system() {
    try_rows(Place::FileSystem, "", u64::MAX, &chains::rows());
    try_rows(Place::FileSystem, "", u64::MAX, &requests::rows());
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
