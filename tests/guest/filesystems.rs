//! Partitions, file systems and a load that verifies itself.

use super::bytes::sha256;
use super::guest::Guest;
use super::linux::{Drive, Linux};
use crate::common::MIB;

/// First two bytes of each block that `fio --verify` has written, little-endian.
const FIO_MAGIC: [u8; 2] = 0xacca_u16.to_le_bytes();

pub fn fio(linux: &mut Linux) -> String {
    let (start_mib, job_mib) = (160, 24);
    let image = &linux.memory.image;
    let len = 2 * job_mib as usize * MIB as usize;
    let marked = |bytes: Vec<u8>| bytes.chunks(4096).filter(|block| block.starts_with(&FIO_MAGIC)).count();
    assert_eq!(marked(image.bytes(start_mib * MIB, len)), 0, "marks before the run");
    let output = linux.guest.shell(&format!("/lab/fio.sh /dev/vda {start_mib} {job_mib}"));
    let marked = marked(image.bytes(start_mib * MIB, len));
    assert_eq!(marked, len / 4096, "blocks in the file that bear fio's mark");
    let counts = output.lines().last().and_then(|line| line.strip_prefix("interrupts "));
    let counts: Vec<u64> = counts.unwrap_or(&output).split(' ').map(|count| count.parse().unwrap()).collect();
    assert!(
        counts.len() == 2 && counts.iter().all(|&count| count > 100),
        "interrupts of the queues: {counts:?}"
    );
    format!("{marked} blocks verified, all in the file; interrupts {} and {}", counts[0], counts[1])
}

pub fn partitions(linux: &mut Linux) -> String {
    let first = linux.guest.shell("/lab/partitions.sh /dev/vda 16 32");
    assert_eq!(first, "vda1 2048 32768\nvda2 34816 65536");
    let second = linux.guest.shell("/lab/partitions.sh /dev/vda 64");
    assert_eq!(second, "vda1 2048 131072");
    let table = linux.memory.image.bytes(0, 512);
    let number = |at: usize| u32::from_le_bytes(table[at..at + 4].try_into().unwrap());
    assert_eq!((number(446 + 8), number(446 + 12)), (2048, 131_072), "first entry in the file");
    assert_eq!(table[510..], [0x55, 0xaa], "signature in the file");
    "two partitions, then one, in the kernel and in the file".to_owned()
}

pub fn ext4(guest: &mut Guest, drive: &Drive, document: &[u8]) -> String {
    file_system(guest, drive, document, "ext4")
}

pub fn xfs(guest: &mut Guest, drive: &Drive, document: &[u8]) -> String {
    file_system(guest, drive, document, "xfs")
}

fn file_system(guest: &mut Guest, drive: &Drive, document: &[u8], kind: &str) -> String {
    let output = guest.shell(&format!("/lab/filesystem.sh {kind} /dev/{} /lab/document", drive.device));
    let sum = output.lines().last().and_then(|line| line.split(' ').next());
    assert_eq!(sum, Some(&*sha256(document)), "the file read back; all output: {output}");
    assert!(
        drive.image.contains_in_one_piece(document),
        "the file is not in {}",
        drive.image.path().display()
    );
    format!("made, mounted, written, checked; the file is in {} as well", drive.device)
}
