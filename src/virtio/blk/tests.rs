//! Requests as bytes: what is asked, what is refused, and that no bytes at all do harm.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;
use std::task::Waker;

use proptest::prelude::*;

use super::*;
use crate::copy::testing::{Memory, memfd};
use crate::disk::{Geometry, MappedDisk};
use crate::log::LogLimit;
use crate::virtio::memory::testing::table_of;
use crate::virtio::queue::{RingAddresses, RingKind, RingLayout};
use crate::worker::{AnyRing, RingKey, RingParts, Served};

const LIMITS: Limits =
    Limits { capacity_sectors: 1 << 40, block_sectors: 1, unit_sectors: 1, read_only: false };

/// Ranges of a payload, split anywhere.
fn ranges(bytes: &[u8], split: usize, zeroes: bool) -> Result<Vec<Range>, ErrorStatus> {
    let memory = Memory::new(bytes).cut(0, &[split, bytes.len() - split], 0);
    parse_ranges(memory.segments(), zeroes, &LIMITS).map(|ranges| ranges.as_slice().to_vec())
}

fn raw_range(sector: u64, count: u32, flags: u32) -> Vec<u8> {
    [&sector.to_le_bytes()[..], &count.to_le_bytes(), &flags.to_le_bytes()].concat()
}

#[test]
fn ranges_are_read_over_any_split() {
    let bytes = [raw_range(8, 16, 0), raw_range(1 << 39, 1, 1)].concat();
    let expected = [
        Range { offset: 4096, len_bytes: 8192, unmap: false },
        Range { offset: 1 << 48, len_bytes: 512, unmap: true },
    ];
    for split in 0..=bytes.len() {
        assert_eq!(ranges(&bytes, split, true).unwrap(), expected);
    }
}

#[test]
fn ranges_are_refused_as_the_specification_says() {
    let refused = |bytes: Vec<u8>, zeroes| ranges(&bytes, 3.min(bytes.len()), zeroes).unwrap_err();
    let many = raw_range(0, 1, 0).repeat(usize::from(MAX_RANGES) + 1);
    let cases = [
        (vec![], true, ErrorStatus::IoError),
        (vec![0; 15], true, ErrorStatus::IoError),
        (many, false, ErrorStatus::Unsupported),
        (raw_range(0, 1, 2), true, ErrorStatus::Unsupported),
        (raw_range(0, 1, 1), false, ErrorStatus::Unsupported),
        (raw_range(1 << 40, 1, 0), true, ErrorStatus::IoError),
        (raw_range(u64::MAX, u32::MAX, 0), false, ErrorStatus::IoError),
        ([raw_range(0, 1, 0), raw_range(u64::MAX, 1, 0)].concat(), true, ErrorStatus::IoError),
    ];
    for (bytes, zeroes, error) in cases {
        assert_eq!(refused(bytes.clone(), zeroes), error, "{bytes:?} zeroes={zeroes}");
    }
}

const MEMORY_BYTES: u64 = 1 << 16;
const DISK_BYTES: u64 = 1 << 16;

/// A driver's numbers: mostly such that something comes of them.
fn number() -> impl Strategy<Value = u64> {
    prop_oneof![
        4 => 0..MEMORY_BYTES,
        2 => (MEMORY_BYTES - 600)..(MEMORY_BYTES + 600),
        1 => any::<u64>(),
    ]
}

fn descriptor() -> impl Strategy<Value = [u8; 16]> {
    let len = prop_oneof![3 => 0..2048_u32, 1 => Just(16), 1 => Just(1), 1 => any::<u32>()];
    let flags = prop_oneof![6 => 0..4_u16, 1 => 0..8_u16, 1 => any::<u16>()];
    (number(), len, flags, prop_oneof![5 => 0..9_u16, 1 => any::<u16>()]).prop_map(
        |(at, len, flags, next)| {
            let mut bytes = [0; 16];
            bytes[..8].copy_from_slice(&at.to_le_bytes());
            bytes[8..12].copy_from_slice(&len.to_le_bytes());
            bytes[12..14].copy_from_slice(&flags.to_le_bytes());
            bytes[14..].copy_from_slice(&next.to_le_bytes());
            bytes
        },
    )
}

/// A guest whose memory is full of this, with descriptors at its start.
fn noisy(noise: &[u8], descriptors: &[[u8; 16]]) -> File {
    let guest = memfd("guest", MEMORY_BYTES);
    for (at, chunk) in (0..MEMORY_BYTES).step_by(noise.len()).zip(std::iter::repeat(noise)) {
        guest.write_all_at(chunk, at).unwrap();
    }
    guest.write_all_at(descriptors.as_flattened(), 0).unwrap();
    guest
}

/// A ring of eight descriptors in that guest, over a disk in memory.
fn ring(kind: RingKind, guest: &File, event_idx: bool, indirect: bool) -> (AnyRing<MappedDisk>, File) {
    let geometry = Geometry { capacity_bytes: DISK_BYTES, block_bytes: 512, read_only: false };
    let disk = memfd("disk", DISK_BYTES);
    let identity = Identity { name: "fuzz".into(), serial: [b'x'; 20] };
    let device = Device::new(MappedDisk::new(disk.try_clone().unwrap(), geometry).unwrap(), identity, 1);
    let kick = Arc::new(File::open("/dev/null").unwrap());
    let addresses = RingAddresses { descriptors: 0, available: 0x100, used: 0x200 };
    let parts = RingParts {
        key: RingKey { session: 0, index: 0 },
        layout: RingLayout { kind, size: 8, addresses, base: 0, event_idx, indirect },
        memory: table_of(guest, MEMORY_BYTES),
        device: Arc::new(device),
        cache: Arc::new(CacheMode::unknown(true)),
        kick,
        call: None,
        err: None,
        connection: None,
        hold_ups: Arc::default(),
    };
    let ring = AnyRing::start(parts, Arc::new(LogLimit::default())).unwrap();
    (ring, disk)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// Whatever is in the ring and in guest memory: serving ends, the disk keeps its size, a ring that is not
    /// broken has answered all that was offered, and a broken one has said so.
    #[test]
    fn no_bytes_of_a_guest_do_harm(
        descriptors in prop::collection::vec(descriptor(), 8),
        heads in prop::collection::vec(prop_oneof![6 => 0..8_u16, 1 => any::<u16>()], 8),
        offered in prop_oneof![6 => 0..9_u16, 1 => any::<u16>()],
        noise in prop::collection::vec(0..4_u8, 64),
        indirect: bool,
        event_idx: bool,
    ) {
        let guest = noisy(&noise, &descriptors);
        let mut avail = vec![0, 0];
        avail.extend_from_slice(&offered.to_le_bytes());
        avail.extend(heads.iter().flat_map(|head| head.to_le_bytes()));
        guest.write_all_at(&avail, 0x100).unwrap();
        guest.write_all_at(&[0; 4], 0x200).unwrap();

        let (mut ring, disk) = ring(RingKind::Split, &guest, event_idx, indirect);
        // A request may write into the ring itself and so offer more; but not for ever in so few rounds.
        let _ = (0..4).take_while(|_| ring.serve(Waker::noop()) == Served::More).count();
        prop_assert_eq!(disk.metadata().unwrap().len(), DISK_BYTES);
        let done = ring.counters();
        let answered = done.reads + done.writes + done.flushes + done.others + done.failures;
        prop_assert_eq!(answered & 0xffff, u64::from(ring.base()));
        prop_assert_eq!(done.broken_rings, u64::from(ring.is_broken()));
        if offered > 8 {
            prop_assert!(ring.is_broken());
        }
    }

    /// The same in a packed ring, of which every slot may be available, used or neither.
    #[test]
    fn no_bytes_of_a_guest_with_packed_rings_do_harm(
        slots in prop::collection::vec((descriptor(), 0..8_u8), 8),
        noise in prop::collection::vec(0..4_u8, 64),
        areas: [u8; 8],
        indirect: bool,
        event_idx: bool,
    ) {
        const AVAIL: u16 = 1 << 7;
        let slots: Vec<[u8; 16]> = slots.into_iter().map(|(mut slot, state)| {
            // In a packed ring the flags come last; the id is anything.
            slot.swap(12, 14);
            slot.swap(13, 15);
            let flags = u16::from_le_bytes([slot[14], slot[15]]);
            let flags = match state { 0 => flags ^ AVAIL, 1 => flags, _ => flags & 0x7fff | AVAIL };
            slot[14..].copy_from_slice(&flags.to_le_bytes());
            slot
        }).collect();
        let guest = noisy(&noise, &slots);
        guest.write_all_at(&areas[..4], 0x100).unwrap();
        guest.write_all_at(&areas[4..], 0x200).unwrap();

        let (mut ring, disk) = ring(RingKind::Packed, &guest, event_idx, indirect);
        let rounds = (0..4).take_while(|_| ring.serve(Waker::noop()) == Served::More).count();
        prop_assert_eq!(disk.metadata().unwrap().len(), DISK_BYTES);
        let done = ring.counters();
        prop_assert_eq!(done.broken_rings, u64::from(ring.is_broken()));
        // Whatever was answered is the driver's again.
        if !ring.is_broken() && rounds < 4 {
            prop_assert!(!ring.has_work());
        }
    }
}
