//! Bytes that the guest reads, writes, discards and zeroes, compared with the file on the host.

use std::io::Write;
use std::process::{Command, Stdio};

use super::common::SECTOR_BYTES;
use super::guest::Guest;
use super::linux::{Drive, Linux};
use crate::common::MIB;

/// SHA-256 in hexadecimal, as the guest's `sha256sum` prints it.
pub fn sha256(bytes: &[u8]) -> String {
    let mut tool = Command::new("sha256sum").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    tool.stdin.take().unwrap().write_all(bytes).unwrap();
    let output = tool.wait_with_output().unwrap();
    String::from_utf8(output.stdout).unwrap().split(' ').next().unwrap().to_owned()
}

/// Has the guest write `/lab/payload` at `at_mib`, past its cache, and flush.
fn write_payload(guest: &mut Guest, drive: &Drive, at_mib: u64) {
    let device = drive.device;
    let dd =
        format!("dd if=/lab/payload of=/dev/{device} bs=64k seek={} oflag=direct conv=fsync", at_mib * 16);
    guest.shell(&dd);
}

pub fn read(linux: &mut Linux) -> String {
    let sum = linux.guest.shell("dd if=/dev/vdc bs=1M iflag=direct status=none | sha256sum");
    assert_eq!(sum.split(' ').next(), Some(&*sha256(&linux.frozen_bytes)));
    format!("16 MiB with SHA-256 {:.8}…", sum)
}

pub fn write(linux: &mut Linux) -> String {
    let expected = sha256(&linux.payload);
    for drive in [&linux.memory, &linux.ordinary] {
        write_payload(&mut linux.guest, drive, 32);
        drive.image.assert_holds(32 * MIB, &linux.payload);
        let dd = format!("dd if=/dev/{} bs=1M skip=32 count=4 iflag=direct status=none", drive.device);
        let sum = linux.guest.shell(&format!("{dd} | sha256sum"));
        assert_eq!(sum.split(' ').next(), Some(&*expected), "read back from /dev/{}", drive.device);
    }
    format!("4 MiB on vda and vdd are in both files at {} and read back", 32 * MIB)
}

pub fn odd_sectors(linux: &mut Linux) -> String {
    let last = linux.memory.size_bytes / SECTOR_BYTES as u64 - 1;
    let sectors = [1, 3, 7, 4099, 8191, last];
    let around = |sector: u64| {
        let end = (sector + 2).min(last + 1);
        ((sector - 1) * 512, (end - sector + 1) as usize * SECTOR_BYTES)
    };
    for (turn, sector) in sectors.into_iter().enumerate() {
        let (start, len) = around(sector);
        let mut expected = linux.memory.image.bytes(start, len);
        let content = &linux.payload[turn * SECTOR_BYTES..][..SECTOR_BYTES];
        expected[SECTOR_BYTES..2 * SECTOR_BYTES].copy_from_slice(content);
        linux.guest.shell(&format!(
            "dd if=/lab/payload of=/dev/vda bs=512 count=1 skip={turn} seek={sector} oflag=direct conv=fsync"
        ));
        linux.memory.image.assert_holds(start, &expected);
        let sum = linux.guest.shell(&format!(
            "dd if=/dev/vda bs=512 count=1 skip={sector} iflag=direct status=none | sha256sum"
        ));
        assert_eq!(sum.split(' ').next(), Some(&*sha256(content)), "sector {sector} read back");
    }
    format!("sectors {sectors:?} are in the file, their neighbours untouched")
}

pub fn disks_apart(linux: &mut Linux) -> String {
    let writes = [("vda", &linux.memory, 0), ("vdb", &linux.second, 1), ("vdd", &linux.ordinary, 2)];
    for (device, _, part) in writes {
        linux.guest.shell(&format!(
            "dd if=/lab/payload of=/dev/{device} bs=4k count=1 skip={part} seek=2048 oflag=direct conv=fsync"
        ));
    }
    for (_, drive, part) in writes {
        drive.image.assert_holds(8 * MIB, &linux.payload[part * 4096..][..4096]);
    }
    linux.frozen.image.assert_holds(0, &linux.frozen_bytes);
    "each disk's block at 8 MiB is in its own file, the read-only file is untouched".to_owned()
}

pub fn discard(linux: &mut Linux) -> String {
    let len_bytes = 2 * MIB;
    let seen = [&linux.memory, &linux.ordinary].map(|drive| {
        write_payload(&mut linux.guest, drive, 64);
        let before = drive.image.allocated_bytes();
        let device = drive.device;
        linux.guest.shell(&format!("blkdiscard --offset {} --length {len_bytes} /dev/{device}", 65 * MIB));
        let freed = before.saturating_sub(drive.image.allocated_bytes());
        assert!(freed >= len_bytes, "/dev/{device}: discarded {len_bytes} bytes, the file shrank by {freed}");
        drive.image.assert_holds(64 * MIB, &linux.payload[..MIB as usize]);
        drive.image.assert_holds(67 * MIB, &linux.payload[3 * MIB as usize..]);
        format!("{device}'s file takes {freed} bytes less")
    });
    seen.join(", ")
}

/// A way to zero from the guest, and whether it allows the space to be given back.
const ZEROERS: [(&str, bool); 3] =
    [("blkdiscard --zeroout", false), ("fallocate --zero-range", false), ("fallocate --punch-hole", true)];

pub fn write_zeroes(linux: &mut Linux) -> String {
    let mib = MIB as usize;
    for drive in [&linux.memory, &linux.ordinary] {
        let device = drive.device;
        let limit = linux.guest.shell(&format!("cat /sys/block/{device}/queue/write_zeroes_max_bytes"));
        assert_ne!(limit, "0", "/dev/{device} offers no WRITE_ZEROES");
        for (zeroer, frees) in ZEROERS {
            write_payload(&mut linux.guest, drive, 96);
            let before = drive.image.allocated_bytes();
            linux.guest.shell(&format!("{zeroer} --offset {} --length {} /dev/{device}", 97 * MIB, 2 * MIB));
            drive.image.assert_holds(96 * MIB, &linux.payload[..mib]);
            drive.image.assert_holds(97 * MIB, &vec![0; 2 * mib]);
            drive.image.assert_holds(99 * MIB, &linux.payload[3 * mib..]);
            let freed = before.saturating_sub(drive.image.allocated_bytes());
            assert!(!frees || freed >= 2 * MIB, "/dev/{device}: {zeroer} freed only {freed} bytes");
        }
    }
    let tools = ZEROERS.map(|(tool, _)| tool);
    format!("{}: zeroes in both files, neighbours untouched, a punched hole frees", tools.join(", "))
}
