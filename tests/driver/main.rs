//! The daemon under `virtio-driver`, a client that no one here wrote. What a request did is checked twice:
//! through the client, and by reading the image file on the host.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
#![allow(clippy::cast_possible_truncation, clippy::print_stdout, clippy::single_range_in_vec_init)]

#[path = "../common/mod.rs"]
mod common;
mod model;

use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use common::daemon::{Daemon, Place, Setup};
use common::driver::{DATA_BYTES, Driver, Options, Outcome, RawDriver, Request};
use common::{SECTOR_BYTES, pattern};
use libc::{EIO, ENOTSUP};
use virtio_driver::{VirtioBlkFeatureFlags, VirtioFeatureFlags};

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;

fn daemon(place: Place, options: &str) -> Daemon {
    Setup::new(place).disk(options).start()
}

/// What the host finds in the image.
fn in_file(image: &Path, offset: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    std::fs::File::open(image).unwrap().read_exact_at(&mut bytes, offset).unwrap();
    bytes
}

/// Space that the image takes in bytes.
fn allocated_bytes(image: &Path) -> u64 {
    const UNIT_OF_ST_BLOCKS: u64 = 512;
    std::fs::metadata(image).unwrap().blocks() * UNIT_OF_ST_BLOCKS
}

/// Every combination of EVENT_IDX, INDIRECT_DESC, split or packed, 1 or 4 queues, sleeping or polling. The crate
/// accepts INDIRECT_DESC but never makes an indirect table; the differential test does.
fn every_option() -> impl Iterator<Item = Options> {
    (0..32).map(|bits: u32| {
        let mut ring_features = VirtioFeatureFlags::VERSION_1;
        ring_features.set(VirtioFeatureFlags::RING_EVENT_IDX, bits & 1 != 0);
        ring_features.set(VirtioFeatureFlags::RING_INDIRECT_DESC, bits & 2 != 0);
        ring_features.set(VirtioFeatureFlags::RING_PACKED, bits & 16 != 0);
        let queues = if bits & 4 != 0 { 4 } else { 1 };
        Options { queues, ring_features, polled: bits & 8 != 0, ..Options::default() }
    })
}

#[test]
fn every_request_works_with_every_ring_feature() {
    for place in Place::ALL {
        let daemon = daemon(place, "size=8M,queues=4");
        for (round, options) in every_option().enumerate() {
            let mut driver = Driver::connect(&daemon.socket(0), options);
            for (index, queue) in driver.queues().iter_mut().enumerate() {
                println!("{place:?}, {options:?}, queue {index}");
                use_every_request(queue, &daemon.image(0), (round * 4 + index) as u64);
            }
        }
        daemon.stop();
    }
}

/// Leaves 64 KiB of data, zeroes in its middle, at the start of the disk.
fn use_every_request(queue: &mut common::driver::Queue, image: &Path, seed: u64) {
    let data = pattern(seed, 64 * KIB);
    queue.write(0, &data).unwrap();
    assert_eq!(in_file(image, 0, data.len()), data, "written");
    assert_eq!(queue.read(0, data.len()).unwrap(), data, "read back");
    queue.run(&Request::Flush).unwrap();

    for unmap in [false, true] {
        queue.write(16 * KIB as u64, &data[..16 * KIB]).unwrap();
        queue.run(&Request::WriteZeroes { offset: 16 * KIB as u64, len: 16 * KIB as u64, unmap }).unwrap();
        let zeroed = [&data[..16 * KIB], &vec![0; 16 * KIB], &data[32 * KIB..]].concat();
        assert_eq!(in_file(image, 0, zeroed.len()), zeroed, "zeroed, unmap {unmap}");
        assert_eq!(queue.read(0, zeroed.len()).unwrap(), zeroed, "zeroes read back, unmap {unmap}");
    }

    queue.run(&Request::Discard { offset: 64 * KIB as u64, len: 64 * KIB as u64 }).unwrap();
    assert_eq!(
        queue.read(48 * KIB as u64, 16 * KIB).unwrap(),
        data[48 * KIB..],
        "beside the discarded range"
    );
}

#[test]
fn a_client_without_any_virtio_feature_is_served() {
    let daemon = daemon(Place::Tmpfs, "size=1M");
    let ring_features = VirtioFeatureFlags::empty();
    let mut driver = Driver::connect(&daemon.socket(0), Options { ring_features, ..Options::default() });
    assert_eq!(driver.features() & VirtioFeatureFlags::VERSION_1.bits(), 0);
    use_every_request(driver.queue(), &daemon.image(0), 1);
    daemon.stop();
}

#[test]
fn the_configuration_describes_the_disk() {
    let daemon = Setup::new(Place::Tmpfs).disk("size=8M,queues=3").disk("size=3M,block-size=4096").start();
    let expected = [(8 * MIB, 512, 3), (3 * MIB, 4096, 64)];
    for (index, (bytes, block_bytes, queues)) in expected.into_iter().enumerate() {
        let config = Driver::connect(&daemon.socket(index), Options::default()).config();
        assert_eq!(config.capacity.to_native(), (bytes / SECTOR_BYTES) as u64);
        assert_eq!(config.blk_size.to_native(), block_bytes);
        assert_eq!(config.num_queues.to_native(), queues);
        assert!(config.seg_max.to_native() > 0);
        assert!(config.max_discard_sectors.to_native() > 0);
        assert!(config.max_discard_seg.to_native() > 0);
        assert!(config.discard_sector_alignment.to_native() > 0);
        assert!(config.max_write_zeroes_sectors.to_native() > 0);
        assert!(config.max_write_zeroes_seg.to_native() > 0);
        assert_eq!(config.write_zeroes_may_unmap, 1);
        assert_eq!(config.writeback, 1, "memory and page cache are volatile");
    }
    daemon.stop();
}

#[test]
fn the_serial_is_returned_by_get_id() {
    const GET_ID: u32 = 8;
    let serials = ["x", "0123456789abcdefghij"];
    let daemon = serials.iter().fold(Setup::new(Place::Tmpfs), |setup, serial| {
        setup.disk(&format!("size=1M,serial={serial}")) //
    });
    let daemon = daemon.start();
    for (index, serial) in serials.into_iter().enumerate() {
        let mut field = serial.as_bytes().to_vec();
        field.resize(20, 0);
        let mut driver = RawDriver::connect(&daemon.socket(index));
        for asked in [20, 1, 7, 0] {
            assert_eq!(driver.run(GET_ID, 0, &[], asked), (0, field[..asked].to_vec()), "{asked} bytes");
        }
        let (status, bytes) = driver.run(GET_ID, 0, &[], 64);
        assert_eq!((status, &bytes[..20]), (0, &field[..]));
        assert_eq!(bytes[20..], [0xa5; 44], "nothing is written behind the serial");
    }
    daemon.stop();
}

#[test]
fn data_may_be_split_at_any_byte() {
    for place in Place::ALL {
        let daemon = daemon(place, "size=1M");
        let mut driver = Driver::connect(&daemon.socket(0), Options::default());
        for (seed, sizes) in
            [vec![1, 511], vec![1535, 1], vec![3, 509, 1, 1023], vec![1; 64 + 448], vec![4097, 511, 4096]]
                .into_iter()
                .enumerate()
        {
            // The ring has 128 descriptors: one segment a byte is too many for it.
            let sizes = if sizes.len() > 100 { vec![8; 64] } else { sizes };
            let len: usize = sizes.iter().sum();
            let data = pattern(seed as u64, len);
            let segments = scattered(&sizes);
            let mut taken = 0;
            for segment in &segments {
                driver.put(segment.start, &data[taken..taken + segment.len()]);
                taken += segment.len();
            }
            driver.queue().run(&Request::Write { offset: 512, from: segments.clone() }).unwrap();
            assert_eq!(in_file(&daemon.image(0), 512, len), data, "{place:?}: written from {sizes:?}");

            driver.put(0, &vec![0xa5; 128 * KIB]);
            driver.queue().run(&Request::Read { offset: 512, into: segments.clone() }).unwrap();
            let read: Vec<u8> = segments.into_iter().flat_map(|segment| driver.get(segment)).collect();
            assert_eq!(read, data, "{place:?}: read into {sizes:?}");
        }
        daemon.stop();
    }
}

/// Segments of these sizes, apart from each other, backwards and oddly aligned.
fn scattered(sizes: &[usize]) -> Vec<std::ops::Range<usize>> {
    let mut end = 128 * KIB;
    let place = |&size: &usize| {
        end -= size + 13;
        end..end + size
    };
    sizes.iter().map(place).collect()
}

#[test]
fn a_large_request_is_one_request() {
    for place in Place::ALL {
        let daemon = daemon(place, "size=32M");
        let mut driver = Driver::connect(&daemon.socket(0), Options::default());
        let data = pattern(7, DATA_BYTES);
        driver.queue().write(MIB as u64, &data).unwrap();
        assert!(in_file(&daemon.image(0), MIB as u64, data.len()) == data);
        assert!(driver.queue().read(MIB as u64, data.len()).unwrap() == data);
        daemon.stop();
    }
}

#[test]
fn what_is_not_a_whole_sector_inside_the_disk_fails_and_changes_nothing() {
    for place in Place::ALL {
        let daemon = daemon(place, "size=1M");
        let mut driver = Driver::connect(&daemon.socket(0), Options::default());
        let queue = driver.queue();
        let before = pattern(1, MIB);
        queue.write(0, &before).unwrap();
        let cases =
            [(0, 1), (0, 511), (0, 513), (MIB, 512), (MIB - 512, 1024), (1 << 40, 512), (1 << 62, 512)];
        for (offset, len) in cases {
            assert_eq!(queue.write(offset as u64, &vec![7; len]), Err(EIO), "write {len} at {offset}");
            assert_eq!(queue.read(offset as u64, len), Err(EIO), "read {len} at {offset}");
        }
        for (offset, len) in [(MIB as u64, 512), (MIB as u64 - 512, 1024), (1 << 62, 512)] {
            assert_eq!(queue.run(&Request::Discard { offset, len }), Err(EIO), "discard {len} at {offset}");
            for unmap in [false, true] {
                let zeroes = Request::WriteZeroes { offset, len, unmap };
                assert_eq!(queue.run(&zeroes), Err(EIO), "{zeroes:?}");
            }
        }
        assert!(in_file(&daemon.image(0), 0, MIB) == before);
        assert_eq!(queue.read(MIB as u64 - 512, 512).unwrap(), before[MIB - 512..], "the last sector works");
        daemon.stop();
    }
}

#[test]
fn a_full_ring_is_worked_off() {
    let daemon = daemon(Place::Tmpfs, "size=1M");
    for queue_size in [4, 16, 1024] {
        let mut driver = Driver::connect(&daemon.socket(0), Options { queue_size, ..Options::default() });
        for round in 0..4 {
            let queue = driver.queue();
            let request = |tag: u64| Request::Write {
                offset: tag * 512,
                from: vec![tag as usize * 512..tag as usize * 512 + 512],
            };
            let submitted = (0..).take_while(|&tag| queue.submit(&request(tag), tag)).count();
            assert_eq!(submitted, usize::from(queue_size / 3), "three descriptors a request, round {round}");
            queue.kick();
            let mut tags = Vec::new();
            while tags.len() < submitted {
                for (tag, outcome) in queue.wait() {
                    outcome.unwrap();
                    tags.push(tag);
                }
            }
            tags.sort_unstable();
            assert_eq!(tags, (0..submitted as u64).collect::<Vec<_>>(), "each completes once");
        }
    }
    daemon.stop();
}

#[test]
fn ring_indices_wrap() {
    let daemon = daemon(Place::Tmpfs, "size=1M");
    let indirect = VirtioFeatureFlags::RING_INDIRECT_DESC;
    let is_plain = |options: &Options| options.queues == 1 && !options.ring_features.contains(indirect);
    for options in every_option().filter(is_plain) {
        let mut driver = Driver::connect(&daemon.socket(0), options);
        driver.put(0, &pattern(3, 64 * 512));
        let queue = driver.queue();
        // In a debug build the crate counts no more than 65 535 descriptors in a packed ring, which wraps sooner.
        let is_packed = options.ring_features.contains(VirtioFeatureFlags::RING_PACKED);
        let enough = if is_packed { 5_000 } else { 70_000 };
        let (mut submitted, mut completed) = (0, 0);
        while completed < enough {
            let slot = (submitted % 32) as usize * 512;
            if queue.submit(&Request::Read { offset: slot as u64, into: vec![slot..slot + 512] }, submitted) {
                submitted += 1;
                continue;
            }
            queue.kick();
            for (_, outcome) in queue.wait() {
                outcome.unwrap();
                completed += 1;
            }
        }
    }
    daemon.stop();
}

#[test]
fn notifications_that_are_not_wanted_do_not_come() {
    let daemon = daemon(Place::Tmpfs, "size=1M");
    for options in every_option().filter(|options| options.polled && options.queues == 1) {
        let mut driver = Driver::connect(&daemon.socket(0), options);
        let queue = driver.queue();
        // One may come when the call descriptor is set, and one for the used event left at its first value.
        queue.write(0, &[1; 512]).unwrap();
        queue.write(0, &[1; 512]).unwrap();
        if queue.is_notified() {
            queue.drain_notifications();
        }
        for _ in 0..1000 {
            queue.read(0, 512).unwrap();
        }
        assert!(!queue.is_notified(), "{options:?}");
    }
    daemon.stop();
}

#[test]
fn a_read_only_disk_refuses_changes() {
    for place in Place::ALL {
        let setup = Setup::new(place).disk("readonly=on");
        let before = pattern(2, MIB);
        std::fs::write(setup.image(0), &before).unwrap();
        let daemon = setup.start();
        let mut driver = Driver::connect(&daemon.socket(0), Options::default());
        let features = VirtioBlkFeatureFlags::from_bits_truncate(driver.features());
        assert!(features.contains(VirtioBlkFeatureFlags::RO));
        assert!(!features.intersects(VirtioBlkFeatureFlags::DISCARD | VirtioBlkFeatureFlags::WRITE_ZEROES));

        let queue = driver.queue();
        assert_eq!(queue.write(0, &[7; 512]), Err(EIO));
        assert_eq!(queue.run(&Request::Discard { offset: 0, len: 4096 }), Err(ENOTSUP));
        for unmap in [false, true] {
            let outcome = queue.run(&Request::WriteZeroes { offset: 0, len: 4096, unmap });
            assert_eq!(outcome, Err(ENOTSUP), "unmap {unmap}");
        }
        queue.run(&Request::Flush).unwrap();
        assert!(queue.read(0, MIB).unwrap() == before);
        drop(driver);
        let setup = daemon.stop();
        assert!(std::fs::read(setup.image(0)).unwrap() == before);
    }
}

/// As SeaBIOS and U-Boot do, whatever they are told of blocks, which are a hint (VIRTIO 1.2 §5.2.5).
#[test]
fn a_disk_of_4096_byte_blocks_takes_sectors_too() {
    for place in Place::ALL {
        let daemon = daemon(place, "size=1M,block-size=4096");
        let mut driver = Driver::connect(&daemon.socket(0), Options::default());
        assert_eq!(driver.config().blk_size.to_native(), 4096);
        let queue = driver.queue();
        let mut expected = pattern(4, MIB);
        queue.write(0, &expected).unwrap();

        for (offset, len) in [(0, 512), (512, 4096), (4096, 4608), (3584, 512), (MIB - 512, 512)] {
            assert_eq!(queue.read(offset as u64, len).unwrap(), expected[offset..offset + len]);
            let bytes = pattern(offset as u64, len);
            queue.write(offset as u64, &bytes).unwrap();
            expected[offset..offset + len].copy_from_slice(&bytes);
            assert_eq!(queue.read(offset as u64, len).unwrap(), bytes);
        }
        queue.run(&Request::WriteZeroes { offset: 8704, len: 512, unmap: true }).unwrap();
        expected[8704..9216].fill(0);
        queue.run(&Request::Flush).unwrap();
        assert!(in_file(&daemon.image(0), 0, MIB) == expected);
        queue.run(&Request::Discard { offset: 16_896, len: 512 }).unwrap();
        expected[16_896..17_408].copy_from_slice(&queue.read(16_896, 512).unwrap());
        assert!(in_file(&daemon.image(0), 0, MIB) == expected, "a discard of a sector costs no other");
        assert_eq!(queue.write(0, &[7; 256]), Err(EIO), "half a sector");
        daemon.stop();
    }
}

#[test]
fn unmapping_gives_space_back_and_zeroing_keeps_it() {
    for place in Place::ALL {
        let daemon = daemon(place, "size=16M");
        let mut driver = Driver::connect(&daemon.socket(0), Options::default());
        let (queue, image) = (driver.queue(), daemon.image(0));
        let data = pattern(6, 16 * MIB);
        queue.write(0, &data).unwrap();
        queue.run(&Request::Flush).unwrap();
        let full = allocated_bytes(&image);
        assert!(full >= 16 * MIB as u64, "{place:?}: all written: {full}");

        queue.run(&Request::WriteZeroes { offset: 0, len: 4 * MIB as u64, unmap: false }).unwrap();
        queue.run(&Request::Flush).unwrap();
        assert!(allocated_bytes(&image) >= 16 * MIB as u64, "{place:?}: zeroes take space");

        queue.run(&Request::Discard { offset: 4 * MIB as u64, len: 4 * MIB as u64 }).unwrap();
        let discarded = allocated_bytes(&image);
        assert!(discarded <= full - 4 * MIB as u64, "{place:?}: {full} -> {discarded} by discard");

        queue
            .run(&Request::WriteZeroes { offset: 8 * MIB as u64, len: 4 * MIB as u64, unmap: true })
            .unwrap();
        let unmapped = allocated_bytes(&image);
        assert!(unmapped <= discarded - 4 * MIB as u64, "{place:?}: {discarded} -> {unmapped} by unmap");

        assert!(in_file(&image, 0, 12 * MIB).iter().all(|&byte| byte == 0), "{place:?}");
        assert!(in_file(&image, 12 * MIB as u64, 4 * MIB) == data[12 * MIB..], "{place:?}: the rest stays");
        daemon.stop();
    }
}

#[test]
fn a_discard_has_several_segments() {
    const DISCARD: u32 = 11;
    const WRITE_ZEROES: u32 = 13;
    for place in Place::ALL {
        let daemon = daemon(place, "size=1M");
        for kind in [DISCARD, WRITE_ZEROES] {
            let before = pattern(u64::from(kind), MIB);
            Driver::connect(&daemon.socket(0), Options::default()).queue().write(0, &before).unwrap();
            let ranges = [(8_u64, 8_u32), (64, 16), (2040, 8)];
            let payload: Vec<u8> = ranges
                .iter()
                .flat_map(|(sector, count)| {
                    [&sector.to_le_bytes()[..], &count.to_le_bytes(), &[0; 4]].concat()
                })
                .collect();
            assert_eq!(RawDriver::connect(&daemon.socket(0)).run(kind, 0, &payload, 0).0, 0, "{kind}");

            let mut expected = before;
            for (sector, count) in ranges {
                let start = sector as usize * SECTOR_BYTES;
                expected[start..start + count as usize * SECTOR_BYTES].fill(0);
            }
            assert!(in_file(&daemon.image(0), 0, MIB) == expected, "{place:?}, request type {kind}");
        }
        daemon.stop();
    }
}

#[test]
fn queues_work_side_by_side() {
    const SHARE: usize = 4 * MIB;
    for place in Place::ALL {
        let daemon = daemon(place, "size=16M,queues=4");
        let options = Options { queues: 4, ..Options::default() };
        let mut driver = Driver::connect(&daemon.socket(0), options);
        for share in 0..4 {
            driver.put(share * SHARE, &pattern(share as u64, SHARE));
        }
        std::thread::scope(|scope| {
            for (share, queue) in driver.queues().iter_mut().enumerate() {
                scope.spawn(move || write_in_pieces(queue, share * SHARE..(share + 1) * SHARE));
            }
        });
        for share in 0..4 {
            let written = in_file(&daemon.image(0), (share * SHARE) as u64, SHARE);
            assert!(written == pattern(share as u64, SHARE), "{place:?}, queue {share}");
        }
        daemon.stop();
    }
}

/// Copies `range` of the data memory to the same place on the disk, 4 KiB a request, as many at once as fit.
fn write_in_pieces(queue: &mut common::driver::Queue, range: std::ops::Range<usize>) {
    let mut outcomes: Vec<Outcome> = Vec::new();
    let mut pieces = range.step_by(4 * KIB).peekable();
    let mut in_flight = 0;
    while in_flight > 0 || pieces.peek().is_some() {
        while let Some(&start) = pieces.peek() {
            let request = Request::Write { offset: start as u64, from: vec![start..start + 4 * KIB] };
            if !queue.submit(&request, start as u64) {
                break;
            }
            pieces.next();
            in_flight += 1;
        }
        queue.kick();
        let done = queue.wait();
        in_flight -= done.len();
        outcomes.extend(done.into_iter().map(|(_, outcome)| outcome));
    }
    assert!(outcomes.iter().all(|outcome| outcome.is_ok()));
}

#[test]
fn data_outlives_connection_and_daemon() {
    for place in Place::ALL {
        let mut setup = Setup::new(place).disk("size=1M");
        let data = pattern(9, MIB);
        for start in (0..MIB).step_by(MIB / 4) {
            let daemon = setup.start();
            for start in [start, start + MIB / 8] {
                let mut driver = Driver::connect(&daemon.socket(0), Options::default());
                assert!(driver.queue().read(0, MIB).unwrap()[..start] == data[..start]);
                driver.queue().write(start as u64, &data[start..start + MIB / 8]).unwrap();
            }
            setup = daemon.stop();
        }
        assert!(std::fs::read(setup.image(0)).unwrap() == data);
    }
}

#[test]
fn disks_of_one_daemon_are_apart() {
    let daemon = Setup::new(Place::Tmpfs).disk("size=1M").disk("size=1M").start();
    let mut drivers = [0, 1].map(|index| Driver::connect(&daemon.socket(index), Options::default()));
    let data = [pattern(10, MIB), pattern(11, MIB)];
    for start in (0..MIB).step_by(MIB / 16) {
        for (driver, data) in drivers.iter_mut().zip(&data) {
            driver.queue().write(start as u64, &data[start..start + MIB / 16]).unwrap();
        }
    }
    for (index, data) in data.iter().enumerate() {
        assert!(in_file(&daemon.image(index), 0, MIB) == *data, "disk {index}");
        assert!(drivers[index].queue().read(0, MIB).unwrap() == *data, "disk {index}");
    }
    daemon.stop();
}
