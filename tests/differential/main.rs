//! The daemon, and with the feature `stock` the same disk inside a daemon on `vhost-user-backend`, against an
//! independent back-end: the same streams of requests, valid and invalid, framed in every way that descriptors allow,
//! must give the same statuses, used ids, used lengths, memory and image.
//!
//! The oracle shares nothing with what is under test. `stock` shares the parsing and execution of requests with the
//! daemon, and `virtio-queue` with the oracle: where it agrees with one of them only, that says where the fault is.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
#![allow(clippy::cast_possible_truncation, clippy::print_stdout, unreachable_pub)]

#[path = "../common/mod.rs"]
mod common;
#[cfg(feature = "stock")]
mod embedded;
mod kinds;
#[path = "../common/oracle.rs"]
mod oracle;
mod ring;
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

/// What is compared with the oracle: a disk that a front-end connects to for each stream.
trait Subject {
    /// Serves the first disk of `setup`, whose image is there.
    fn start(setup: Setup, block_bytes: u32, read_only: bool) -> Self;

    /// Serves one front-end, which comes and leaves in `run`.
    fn serve(&self, run: impl FnOnce(&Path));

    /// Ends it.
    fn stop(self);
}

impl Subject for Daemon {
    fn start(setup: Setup, block_bytes: u32, read_only: bool) -> Self {
        let access = if read_only { ",readonly=on" } else { "" };
        setup.disk(&format!("serial={SERIAL},block-size={block_bytes}{access}")).start()
    }

    fn serve(&self, run: impl FnOnce(&Path)) {
        run(&self.socket(0));
    }

    fn stop(self) {
        Self::stop(self);
    }
}

#[test]
fn disks_of_512_byte_blocks_do_what_the_oracle_does() {
    compare_everywhere::<Daemon>(512, false, 0);
}

#[test]
fn disks_of_4096_byte_blocks_do_what_the_oracle_does() {
    compare_everywhere::<Daemon>(4096, false, 1000);
}

#[test]
fn read_only_disks_do_what_the_oracle_does() {
    compare_everywhere::<Daemon>(512, true, 2000);
}

/// Compares on both kinds of file systems.
fn compare_everywhere<S: Subject>(block_bytes: u32, read_only: bool, first_seed: u64) {
    for (number, place) in Place::ALL.into_iter().enumerate() {
        let tally = compare::<S>(place, block_bytes, read_only, first_seed + number as u64 * 100);
        assert_thorough(&tally);
    }
}

/// Runs several streams, each on a fresh connection with other ring options.
fn compare<S: Subject>(place: Place, block_bytes: u32, read_only: bool, first_seed: u64) -> Tally {
    let setup = Setup::new(place);
    let [image, twin] = [0, 1].map(|index| setup.image(index));
    let oracle_socket = setup.socket(1);
    for image in [&image, &twin] {
        std::fs::write(image, pattern(first_seed, DISK_BYTES)).unwrap();
    }
    let subject = S::start(setup, block_bytes, read_only);
    let mut tally = Tally::new();
    let streams = std::env::var("DIFFERENTIAL_STREAMS").map_or(STREAMS, |streams| streams.parse().unwrap());
    for seed in first_seed..first_seed + streams {
        subject.serve(|socket| run_stream([socket, &oracle_socket], &twin, read_only, seed, &mut tally));
        let same = std::fs::read(&image).unwrap() == std::fs::read(&twin).unwrap();
        assert!(same, "{place:?}, seed {seed}: the images differ");
    }
    subject.stop();
    tally
}

/// Runs one stream on what listens at the first socket, and on the oracle at the second.
fn run_stream(sockets: [&Path; 2], twin: &Path, read_only: bool, seed: u64, tally: &mut Tally) {
    let mut random = Random::new(seed);
    let options = RingOptions {
        queue_size: random.pick(&[8, 16, 64, 128, 256, 1024]),
        event_idx: random.one_in(2),
        // A high base makes the indices wrap soon.
        base: random.pick(&[0, 7, u16::MAX - 100]),
        device_features: device_features(read_only),
    };
    let mut subject = Ring::start(sockets[0], options);
    let shape = Shape::from_config(&subject.config(CONFIG_BYTES), read_only, serial());
    assert_eq!(shape.capacity_sectors as usize * SECTOR_BYTES, DISK_BYTES);
    let oracle = Oracle::serve(sockets[1], twin, shape);
    let mut reference = Ring::start(sockets[1], options);

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
