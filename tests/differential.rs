//! The daemon against an independent back-end: the same streams of requests, valid and invalid, framed in every
//! way that descriptors allow, must give the same statuses, used ids, used lengths, memory and image.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
#![allow(clippy::cast_possible_truncation, clippy::print_stdout, unreachable_pub)]

mod common;
#[path = "common/oracle.rs"]
mod oracle;
#[path = "differential/ring.rs"]
mod ring;
#[path = "differential/stream.rs"]
mod stream;

use std::collections::BTreeMap;
use std::path::Path;

use common::daemon::{Daemon, Place, Setup};
use common::{Random, SECTOR_BYTES, pattern};
use oracle::{Oracle, Shape};
use ring::{Aftermath, Ring, RingOptions};
use stream::{Placed, Stream};
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX,
    VIRTIO_BLK_F_WRITE_ZEROES,
};

const SERIAL: &str = "differential-0123456";
const DISK_BYTES: usize = 1 << 20;
const CONFIG_BYTES: u32 = 60;
/// Connections for each disk, unless `DIFFERENTIAL_STREAMS` says how many.
const STREAMS: u64 = 8;
const BATCHES: usize = 50;

/// How often each status came, and for which requests.
type Tally = BTreeMap<(u8, &'static str), usize>;

#[test]
fn disks_of_512_byte_blocks_do_what_the_oracle_does() {
    for (number, place) in Place::ALL.into_iter().enumerate() {
        let tally = compare(place, 512, false, number as u64 * 100);
        assert_thorough(&tally);
    }
}

#[test]
fn disks_of_4096_byte_blocks_do_what_the_oracle_does() {
    for (number, place) in Place::ALL.into_iter().enumerate() {
        let tally = compare(place, 4096, false, 1000 + number as u64 * 100);
        assert_thorough(&tally);
    }
}

#[test]
fn read_only_disks_do_what_the_oracle_does() {
    for (number, place) in Place::ALL.into_iter().enumerate() {
        let tally = compare(place, 512, true, 2000 + number as u64 * 100);
        assert_thorough(&tally);
    }
}

/// Runs several streams, each on a fresh connection with other ring options.
fn compare(place: Place, block_bytes: u32, read_only: bool, first_seed: u64) -> Tally {
    let access = if read_only { ",readonly=on" } else { "" };
    let setup = Setup::new(place).disk(&format!("serial={SERIAL},block-size={block_bytes}{access}"));
    let twin = setup.image(1);
    for image in [setup.image(0), twin.clone()] {
        std::fs::write(image, pattern(first_seed, DISK_BYTES)).unwrap();
    }
    let daemon = setup.start();
    let mut tally = Tally::new();
    let streams = std::env::var("DIFFERENTIAL_STREAMS").map_or(STREAMS, |streams| streams.parse().unwrap());
    for seed in first_seed..first_seed + streams {
        run_stream(&daemon, &twin, read_only, seed, &mut tally);
        let same = std::fs::read(daemon.image(0)).unwrap() == std::fs::read(&twin).unwrap();
        assert!(same, "{place:?}, seed {seed}: the images differ");
    }
    daemon.stop();
    tally
}

fn run_stream(daemon: &Daemon, twin: &Path, read_only: bool, seed: u64, tally: &mut Tally) {
    let mut random = Random::new(seed);
    let options = RingOptions {
        queue_size: random.pick(&[8, 16, 64, 128, 256, 1024]),
        event_idx: random.one_in(2),
        // A high base makes the indices wrap soon.
        base: random.pick(&[0, 7, u16::MAX - 100]),
        device_features: device_features(read_only),
    };
    let mut subject = Ring::start(&daemon.socket(0), options);
    let shape = Shape::from_config(&subject.config(CONFIG_BYTES), read_only, serial());
    assert_eq!(shape.capacity_sectors as usize * SECTOR_BYTES, DISK_BYTES);
    let oracle = Oracle::serve(&daemon.socket(1), twin, shape);
    let mut reference = Ring::start(&daemon.socket(1), options);

    let mut stream = Stream::new(seed, shape);
    for number in 0..BATCHES {
        let (batch, requests) = stream.batch(options.queue_size);
        let (found, expected) = (subject.run(&batch), reference.run(&batch));
        for (index, placed) in requests.iter().enumerate() {
            let status = placed.status_in(&expected);
            *tally.entry((status, placed.request.what)).or_default() += 1;
            let case = format!("seed {seed}, {options:?}, batch {number}, request {index}");
            assert_same(&case, index, placed, &found, &expected);
        }
        assert!(
            found == expected,
            "seed {seed}, batch {number}: memory differs outside of the requests' data"
        );
    }
    drop((subject, reference));
    oracle.finish();
}

fn assert_same(case: &str, index: usize, placed: &Placed, found: &Aftermath, expected: &Aftermath) {
    let request = placed.request.summary();
    assert_eq!(placed.status_in(found), placed.status_in(expected), "status: {case}: {request}");
    assert_eq!(found.used[index], expected.used[index], "used id and length: {case}: {request}");
}

impl Placed {
    fn status_in(&self, aftermath: &Aftermath) -> u8 {
        aftermath.data[self.status]
    }
}

fn serial() -> [u8; 20] {
    SERIAL.as_bytes().try_into().unwrap()
}

fn device_features(read_only: bool) -> u64 {
    let shared = (1 << VIRTIO_BLK_F_SEG_MAX) | (1 << VIRTIO_BLK_F_BLK_SIZE) | (1 << VIRTIO_BLK_F_FLUSH);
    let own = match read_only {
        true => 1 << VIRTIO_BLK_F_RO,
        false => (1 << VIRTIO_BLK_F_DISCARD) | (1 << VIRTIO_BLK_F_WRITE_ZEROES),
    };
    shared | own
}

/// The comparison is worth something only if everything came up often enough, with every status.
fn assert_thorough(tally: &Tally) {
    println!("{tally:#?}");
    let total: usize = tally.values().sum();
    assert!(total > 1000, "only {total} requests");
    for status in [0, 1, 2] {
        let count: usize =
            tally.iter().filter(|((found, _), _)| *found == status).map(|(_, count)| count).sum();
        assert!(count > 50, "status {status} came only {count} times");
    }
    for what in ["read", "write", "get id", "discard or write zeroes"] {
        let count: usize =
            tally.iter().filter(|((_, found), _)| *found == what).map(|(_, count)| count).sum();
        assert!(count > 20, "{what} came only {count} times");
    }
}
