#!/bin/bash
# exfat-slim 0.7.0 (crates.io): of a folder of exFAT that is longer than a cluster and lies in one piece, the files of the first cluster
# are listed and found; the others are not there, without an error.
#
# The bit NoFatChain says that the clusters follow one another and that the FAT says nothing of them (exFAT specification,
# 6.3.4.2). The crate looks at it for files; of a folder it asks the FAT, where the first cluster is free, and takes that for the
# end. exfat-fuse and GRUB list them all.
#
# Needs root, a kernel with FUSE and loop devices, apt-get with Debian 12's sources, libdevmapper, cargo.
set -euo pipefail
folder=$(mktemp -d)
device=
trap 'umount -q "$folder/mount" || true; [ -z "$device" ] || losetup -d "$device" || true; rm -rf "$folder"' EXIT
cd "$folder"
PATH=$PATH:/usr/sbin:/sbin
apt-get -q -o APT::Sandbox::User=root download exfatprogs=1.2.0-1+deb12u1 exfat-fuse=1.3.0+git20220115-2 \
    grub-common=2.06-13+deb12u2 >/dev/null
for package in *.deb; do dpkg -x "$package" root; done
mkdir mount src
cat >Cargo.toml <<'TOML'
[package]
name = "look"
version = "0.0.0"
edition = "2021"
[dependencies]
exfat-slim = "=0.7.0"
aligned = "0.4"
TOML
cat >src/main.rs <<'RUST'
use aligned::{Aligned, A4};
use exfat_slim::blocking::{file_system::FileSystem, BlockDevice};
use std::{fs::File, os::unix::fs::FileExt};
struct Disk(File);
impl BlockDevice<512> for Disk {
    type Error = std::io::Error;
    type Align = A4;
    fn read(&mut self, block: u32, data: &mut [Aligned<A4, [u8; 512]>]) -> Result<(), Self::Error> {
        for (index, data) in data.iter_mut().enumerate() {
            self.0.read_exact_at(&mut data[..], (u64::from(block) + index as u64) * 512)?;
        }
        Ok(())
    }
    fn write(&mut self, _: u32, _: &[Aligned<A4, [u8; 512]>]) -> Result<(), Self::Error> {
        unimplemented!()
    }
    fn size(&mut self) -> Result<u64, Self::Error> {
        Ok(self.0.metadata()?.len())
    }
}
fn main() {
    let mut system: FileSystem<_, 512, 16> = FileSystem::new(Disk(File::open("disk").unwrap()));
    system.mount().unwrap();
    let mut entries = system.read_dir("/folder").unwrap();
    let (mut name, mut count) = ([0; 765], 0);
    while entries.next_entry(&mut system, &mut name).unwrap().is_some() {
        count += 1;
    }
    println!("exfat-slim: {count} files, the last is there: {}", system.exists("/folder/300").unwrap());
}
RUST
CARGO_PROFILE_DEV_DEBUG=0 cargo -q build

truncate -s 16M disk
root/usr/sbin/mkfs.exfat -c 4096 disk >/dev/null
device=$(losetup -f --show disk)
root/sbin/mount.exfat-fuse "$device" mount >/dev/null
mkdir mount/folder
(cd mount/folder && seq 300 | xargs touch)
seen=$(
    echo "exfat-fuse: $(find mount/folder -type f | wc -l) files"
    umount mount
    root/usr/sbin/fsck.exfat -n "$device" | grep -o 'clean.*'
    echo "GRUB: $(root/usr/bin/grub-fstest disk ls '(loop0)/folder/' | wc -w) files"
    target/debug/look
)
losetup -d "$device"
device=
echo "$seen"
want='exfat-fuse: 300 files
clean. directories 2, files 300
GRUB: 300 files
exfat-slim: 42 files, the last is there: false'
[ "$seen" = "$want" ] || { echo "changed"; exit 1; }
echo "as seen on 1 December 2026"
