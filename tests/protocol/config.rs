//! The configuration space (VIRTIO 1.2 §5.2.4), read and written.

use vhost::vhost_user::VhostUserFrontend;
use vhost::vhost_user::message::VhostUserConfigFlags;

use super::{DISK_BYTES, assert_works, daemon};
use crate::common::frontend::message::GET_CONFIG;
use crate::common::frontend::request::{OK, Request};
use crate::common::frontend::wire::Verdict;
use crate::common::frontend::{INDIRECT_DESC, Options, Session, assert_refused};

const WRITEBACK_OFFSET: u32 = 32;

/// Length of the fields that QEMU, Cloud Hypervisor and Firecracker know of, in bytes.
const FIELDS_BYTES: u32 = 60;

fn u16_at(config: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(config[at..at + 2].try_into().unwrap())
}

fn u32_at(config: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(config[at..at + 4].try_into().unwrap())
}

fn u64_at(config: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(config[at..at + 8].try_into().unwrap())
}

/// The message that asks for `size` bytes and carries `room` of them.
fn request(offset: u32, size: u32, room: usize) -> Vec<u8> {
    let fields = [offset, size, 0].map(u32::to_le_bytes);
    [fields.as_flattened(), &vec![0; room]].concat()
}

#[test]
fn every_length_is_answered_exactly_and_padded_with_zeroes() {
    let daemon = daemon("");
    let session = Session::connect(&daemon.socket(0));
    let whole = session.config(0, 256).unwrap();
    assert_eq!(whole.len(), 256);
    assert!(whole[FIELDS_BYTES as usize..].iter().all(|&byte| byte == 0), "no fields behind {FIELDS_BYTES}");
    for bytes in 1..=256 {
        let expected = &whole[..bytes as usize];
        assert_eq!(session.config(0, bytes).unwrap(), expected, "{bytes} bytes at 0");
        // Where Cloud Hypervisor before v0.9 looked.
        assert_eq!(session.config(0x100, bytes).unwrap(), expected, "{bytes} bytes at 0x100");
    }
    for offset in 0..FIELDS_BYTES {
        let expected = &whole[offset as usize..];
        let bytes = expected.len() as u32;
        assert_eq!(session.config(offset, bytes).unwrap(), expected, "{bytes} bytes at {offset}");
    }
    assert_eq!(session.config(200, 56).unwrap(), [0; 56]);
}

#[test]
fn fields_describe_the_disk() {
    for (options, block_bytes, queues) in [("", 512, 64), ("block-size=4096,queues=5", 4096, 5)] {
        let daemon = daemon(options);
        let session = Session::connect(&daemon.socket(0));
        let config = session.config(0, FIELDS_BYTES).unwrap();
        assert_eq!(u64_at(&config, 0), DISK_BYTES / 512, "capacity in sectors, whatever the block size");
        assert_eq!(u32_at(&config, 8), 0, "size_max is not offered");
        assert_eq!(u32_at(&config, 12), 126, "seg_max");
        assert_eq!(config[16..20], [0; 4], "geometry is not offered");
        assert_eq!(u32_at(&config, 20), block_bytes, "blk_size");
        assert_eq!(block_bytes << config[24], 4096, "physical block");
        assert_eq!(config[25], 0, "alignment offset");
        assert_eq!(config[32], 1, "writeback: nothing on tmpfs is durable without being asked for");
        assert_eq!(u16_at(&config, 34), queues, "num_queues");
        for (field, at) in [
            ("max_discard_sectors", 36),
            ("max_discard_seg", 40),
            ("discard_sector_alignment", 44),
            ("max_write_zeroes_sectors", 48),
            ("max_write_zeroes_seg", 52),
        ] {
            // Windows' driver divides by them.
            assert_ne!(u32_at(&config, at), 0, "{field}");
        }
        assert_eq!(config[56], 1, "write_zeroes_may_unmap");
    }
}

#[test]
fn only_the_writeback_byte_can_be_written() {
    let daemon = daemon("");
    let session = Session::connect(&daemon.socket(0));
    let mut ring = session.ring(0, 64);
    let before = session.config(0, FIELDS_BYTES).unwrap();
    let write = |offset, bytes: &[u8]| {
        session.ask(|control| control.set_config(offset, VhostUserConfigFlags::empty(), bytes))
    };
    for writeback in [0, 1, 0, 0, 1] {
        write(WRITEBACK_OFFSET, &[writeback]).unwrap();
        let mut expected = before.clone();
        expected[WRITEBACK_OFFSET as usize] = writeback;
        assert_eq!(session.config(0, FIELDS_BYTES).unwrap(), expected);
        assert_works(&mut ring, 0);
    }
    let refused: [(u32, &[u8]); 8] = [
        (0, &[0; 8]),
        (0, &before),
        (20, &4096_u32.to_le_bytes()),
        (WRITEBACK_OFFSET - 1, &[0]),
        (WRITEBACK_OFFSET - 1, &[0, 0]),
        (WRITEBACK_OFFSET, &[0, 0]),
        (WRITEBACK_OFFSET + 1, &[0]),
        (0xfff, &[0]),
    ];
    for (offset, bytes) in refused {
        assert_refused(&format!("{} bytes at {offset}", bytes.len()), write(offset, bytes));
        assert_eq!(session.config(0, FIELDS_BYTES).unwrap(), before);
    }
    assert_works(&mut ring, 0);
}

/// As QEMU does, which shows its guest the byte that was written before the reset.
#[test]
fn a_reset_device_keeps_its_cache_mode() {
    let daemon = daemon("");
    let session = Session::connect(&daemon.socket(0));
    let write_through = |control: &mut vhost::vhost_user::Frontend| {
        control.set_config(WRITEBACK_OFFSET, VhostUserConfigFlags::empty(), &[0])
    };
    session.ask(write_through).unwrap();
    assert_eq!(session.config(WRITEBACK_OFFSET, 1).unwrap(), [0]);
    session.ask(|control| control.reset_device()).unwrap();
    assert_eq!(session.config(WRITEBACK_OFFSET, 1).unwrap(), [0]);
}

/// The specification's answer to a read that cannot be done is one of no bytes.
#[test]
fn reads_that_cannot_be_answered_are_refused_but_not_ignored() {
    let daemon = daemon("");
    for (what, payload) in [
        ("no bytes", request(0, 0, 0)),
        ("over the end", request(0xfff, 2, 2)),
        ("wrapping around", request(u32::MAX, 2, 2)),
        ("less room than bytes", request(0, 60, 59)),
        ("half a request", vec![0; 6]),
        ("nothing", Vec::new()),
    ] {
        let session = Session::connect(&daemon.socket(0));
        let refusal = session.wire.ask(GET_CONFIG, &payload, &[]);
        if let Some(answer) = &refusal {
            let size = answer.payload.get(4..8).map_or(0, |_| u32_at(&answer.payload, 4));
            assert_eq!(size, 0, "{what}: {answer:?}");
            assert_works(&mut session.ring(0, 64), 0);
        }
        println!("{what}: {}", if refusal.is_some() { "answered" } else { "closed" });
    }
    let session = Session::connect(&daemon.socket(0));
    assert_works(&mut session.ring(0, 64), 0);
}

/// The answer of one front-end is not disturbed by another's messages.
#[test]
fn the_cache_mode_is_each_front_ends_own() {
    let daemon = daemon("");
    let sessions = [Session::connect(&daemon.socket(0)), Session::connect(&daemon.socket(0))];
    let verdict = {
        let fields = [WRITEBACK_OFFSET, 1, 0].map(u32::to_le_bytes);
        sessions[0].wire.tell(25, &[fields.as_flattened(), &[0]].concat(), &[])
    };
    assert_eq!(verdict, Verdict::Ack);
    assert_eq!(sessions[0].config(WRITEBACK_OFFSET, 1).unwrap(), [0]);
    assert_eq!(sessions[1].config(WRITEBACK_OFFSET, 1).unwrap(), [1]);
}

/// A guest with both would have only one of them under `/dev/disk/by-id`.
#[test]
fn names_that_begin_alike_have_serial_numbers_that_differ() {
    let serials = ["one", "two"].map(|end| {
        let daemon = daemon(&format!("name=production-database-{end}"));
        let read = Session::connect(&daemon.socket(0)).ring(0, 64).run(&Request::get_id());
        assert_eq!(read.status, OK);
        read.data
    });
    assert!(serials.iter().all(|serial| serial.starts_with(b"production-")), "{serials:?}");
    assert_ne!(serials[0], serials[1]);
}

/// For drivers with small rings and without indirect descriptors, which the log warns of.
#[test]
fn the_most_segments_are_as_configured_and_small_rings_are_warned_of() {
    for (options, expected, warns) in
        [("", 126, true), ("seg-max=14", 14, false), ("seg-max=1022", 1022, true)]
    {
        let daemon = daemon(options);
        for features in [u64::MAX, !INDIRECT_DESC] {
            let options = Options { features, ..Options::default() };
            let session = Session::connect_with(&daemon.socket(0), &options);
            assert_eq!(session.config(12, 4).unwrap(), u32::to_le_bytes(expected));
            assert_works(&mut session.ring(0, 16), 0);
        }
        let log = daemon.stop_for_log();
        let lines = log.lines().filter(|line| line.contains("use seg-max=14")).count();
        assert_eq!(lines > 0, warns, "{options:?}: {log}");
    }
}
