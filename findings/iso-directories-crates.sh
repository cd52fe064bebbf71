#!/bin/bash
# iso9660_simple 0.2.7, cdfs 0.2.3, isomage 2.1.0 and iso9660 0.1.1 (crates.io): of an ISO image as genisoimage makes it the first
# lists a part of a folder, the second ends long names with another file's letters, the third cuts them off, and two are
# wrong by the time zone.
#
# A record of a folder does not cross a block's end, and what is left of the block is zero (ECMA-119, 6.8.1.1): there, after
# 41 of 100 files, iso9660_simple stops. What a record of 255 bytes has no room for lies in a continuation area (SUSP, 5.1): cdfs
# takes the beginning of the block in place of the offset that it is told, isomage does not look for it. The seventh byte
# of a time is signed (ECMA-119, 9.1.5): west of Greenwich iso9660 and cdfs take the local time for UTC. bsdtar 3.6.2 is right.
#
# Needs apt-get with Debian 12's sources, the libraries that an installed libarchive brings, cargo, pkg-config.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
apt-get -q -o APT::Sandbox::User=root download genisoimage=9:1.1.11-3.4 \
    {libarchive-tools,libarchive13}=3.6.2-1+deb12u5 >/dev/null
for package in *.deb; do dpkg -x "$package" root; done
mkdir src tree-names tree-many names many
cat >Cargo.toml <<'TOML'
[package]
name = "look"
version = "0.0.0"
edition = "2021"
[dependencies]
iso9660_simple = "=0.2.7"
cdfs = "=0.2.3"
isomage = "=2.1.0"
iso9660 = "=0.1.1"
TOML
# Only a program in cdfs, which is not built here, needs libfuse.
printf '%s: %s\n' Name fuse3 Description none Version 3.14 >fuse3.pc
cat >src/main.rs <<'RUST'
use std::{fs::File, os::unix::fs::FileExt};
struct Disk(File);
impl iso9660_simple::Read for Disk {
    fn read(&mut self, position: usize, buffer: &mut [u8]) -> Option<()> {
        self.0.read_exact_at(buffer, position as u64).ok()
    }
}
fn main() {
    let many = || File::open("many.iso").unwrap();
    let mut iso = iso9660_simple::ISO9660::from_device(Disk(many())).unwrap();
    let folder = iso.read_root();
    let files = (&folder).filter(|entry| entry.name.starts_with("FILE")).count();
    println!("iso9660_simple lists {files} files");
    let iso = iso9660::ISO9660::new(many()).unwrap();
    if let Some(iso9660::DirectoryEntry::File(file)) = iso.open("FILE_100.TXT").unwrap() {
        println!("iso9660: {}", file.time().unix_timestamp());
    }
    let iso = cdfs::ISO9660::new(many()).unwrap();
    if let Some(cdfs::DirectoryEntry::File(file)) = iso.open("FILE_100.TXT").unwrap() {
        println!("cdfs: {}", cdfs::ExtraAttributes::time(&file).unix_timestamp());
    }
    let names = || File::open("names.iso").unwrap();
    let iso = cdfs::ISO9660::new(names()).unwrap();
    let list = |who, names: Vec<String>| {
        for name in names.iter().filter(|name| name.len() > 2) {
            println!("{who}: {} letters, from {} to {}", name.len(), &name[..1], &name[name.len() - 1..]);
        }
    };
    list("cdfs", iso.root().contents().map(|entry| entry.unwrap().identifier().into()).collect());
    let tree = isomage::iso9660::parse_iso9660(&mut names()).unwrap();
    list("isomage", tree.children.iter().map(|node| node.name.clone()).collect());
}
RUST
PKG_CONFIG_PATH=$folder CARGO_PROFILE_DEV_DEBUG=0 cargo -q build

for letter in a b; do touch "tree-names/$(head -c 220 /dev/zero | tr '\0' $letter)"; done
for number in $(seq -w 100); do touch -d '2020-01-01 12:00 UTC' "tree-many/file_$number.txt"; done
export TZ=EST5
root/usr/bin/genisoimage -quiet -R -o names.iso tree-names
root/usr/bin/genisoimage -quiet -l -o many.iso tree-many
seen=$(
    for image in names many; do
        LD_LIBRARY_PATH=root/usr/lib/x86_64-linux-gnu root/usr/bin/bsdtar -xf $image.iso -C $image
    done
    echo "bsdtar lists $(find many -type f | wc -l) files, and says $(stat -c %Y many/FILE_100.TXT)"
    for file in names/*; do
        name=${file##*/}
        echo "bsdtar: ${#name} letters, from ${name::1} to ${name: -1}"
    done
    target/debug/look
)
echo "$seen"
want='bsdtar lists 100 files, and says 1577880000
bsdtar: 220 letters, from a to a
bsdtar: 220 letters, from b to b
iso9660_simple lists 41 files
iso9660: 1577862000
cdfs: 1577862000
cdfs: 220 letters, from a to a
cdfs: 220 letters, from b to a
isomage: 146 letters, from a to a
isomage: 146 letters, from b to b'
[ "$seen" = "$want" ] || { echo "changed"; exit 1; }
echo "as seen on 30 November 2026"
