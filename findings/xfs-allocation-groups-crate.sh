#!/bin/bash
# xfs-core 0.1.6 (crates.io): a file of XFS that does not lie in the first allocation group is read from another place, without
# an error; and what was reserved for a file and not written reads as what happened to be on the disk before.
#
# The number of a block has the number of its group in the upper bits and the block in the group in the lower ones (XFS
# Algorithms & Data Structures, "extent": fsblock). The crate multiplies all of it by the size of a block, which is right where
# the groups' size is a power of two, as a disk's seldom is; a place behind the disk's end reads as zeroes. It decodes the bit
# "unwritten", and does not look at it.
#
# Needs root, a kernel with XFS and loop devices, cargo, and mkfs.xfs (seen with 6.1.0).
set -euo pipefail
folder=$(mktemp -d)
trap 'umount -q "$folder/mount" || true; rm -rf "$folder"' EXIT
cd "$folder"
PATH=$PATH:/usr/sbin:/sbin
mkdir src mount
cat >Cargo.toml <<'TOML'
[package]
name = "look"
version = "0.0.0"
edition = "2021"
[dependencies]
xfs-core = "=0.1.6"
TOML
cat >src/main.rs <<'RUST'
fn main() {
    let image = std::fs::read("fs.img").unwrap();
    let disk = xfs::Superblock::parse(&image).unwrap();
    for name in ["1", "2", "3", "4", "reserved"] {
        let bytes = xfs::read_by_path(&image, &disk, &format!("/{name}/file")).unwrap();
        let count = |letter| bytes.iter().filter(|byte| **byte == letter).count();
        println!("xfs-core: /{name}/file: {} bytes, {} of its own, old ones: {}", bytes.len(), count(b'n'), count(b'o') > 0);
    }
}
RUST
CARGO_PROFILE_DEV_DEBUG=0 cargo -q build

# A disk of "o" (old), and in each of four folders, which XFS spreads over its groups, a file of "n" (new).
head -c 320M /dev/zero | tr '\0' o >fs.img
mkfs.xfs -q -K -f -d agcount=4 fs.img
mount -o loop fs.img mount
for name in 1 2 3 4 reserved; do mkdir mount/$name; done
for name in 1 2 3 4; do head -c 65536 /dev/zero | tr '\0' n >mount/$name/file; done
fallocate -l 65536 mount/reserved/file
sync -f mount
seen=$(
    for name in 1 2 3 4 reserved; do
        file=mount/$name/file old=false
        ! grep -q o $file || old=true
        echo "Linux: /$name/file: $(stat -c %s $file) bytes, $(tr -dc n <$file | wc -c) of its own, old ones: $old"
    done
    mount -o remount,ro mount # writes all of it to its place, also where another mount namespace keeps the mount
    umount mount
    timeout 60 target/debug/look
)
echo "$seen"
want='Linux: /1/file: 65536 bytes, 65536 of its own, old ones: false
Linux: /2/file: 65536 bytes, 65536 of its own, old ones: false
Linux: /3/file: 65536 bytes, 65536 of its own, old ones: false
Linux: /4/file: 65536 bytes, 65536 of its own, old ones: false
Linux: /reserved/file: 65536 bytes, 0 of its own, old ones: false
xfs-core: /1/file: 65536 bytes, 65536 of its own, old ones: false
xfs-core: /2/file: 65536 bytes, 0 of its own, old ones: true
xfs-core: /3/file: 65536 bytes, 0 of its own, old ones: false
xfs-core: /4/file: 65536 bytes, 0 of its own, old ones: false
xfs-core: /reserved/file: 65536 bytes, 0 of its own, old ones: true'
[ "$seen" = "$want" ] || { echo "changed"; exit 1; }
echo "as seen on 30 November 2026"
