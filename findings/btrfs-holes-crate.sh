#!/bin/bash
# btrfs-core 0.1.5 (crates.io): of a file with holes in a btrfs as mkfs.btrfs makes it the parts are read one behind the other and the
# holes at the end; what was reserved for a file and not written reads as what happened to be on the disk before.
#
# With "no-holes", which is the default since btrfs-progs 5.15, a hole has no entry: an extent's place in the file is its key's
# offset (btrfs on-disk format, "EXTENT_DATA"). The crate sorts by this offset and then puts each extent behind the last
# one. An extent of type 2 ("prealloc") is to it the same as one that was written. rust-fs-btrfs 0.10.2 is right.
#
# Needs root, a kernel with btrfs and loop devices, cargo, and mkfs.btrfs (seen with 6.2).
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
btrfs-core = "=0.1.5"
rust-fs-btrfs = "=0.10.2"
rust-fs-core = "=0.3.17"
TOML
cat >src/main.rs <<'RUST'
use btrfs_core::{read_by_path_content, ChunkMap, Superblock};
fn main() {
    let image = std::fs::read("disk").unwrap();
    let head = Superblock::parse(&image[0x10000..0x11000]).unwrap();
    let map = ChunkMap::walk(&image, &head).unwrap();
    let device = std::sync::Arc::new(fs_core::FileDevice::open("disk").unwrap());
    let other = fs_btrfs::fs::Filesystem::mount(device).unwrap();
    for name in ["holes", "reserved"] {
        std::fs::write(format!("{name}.core"), read_by_path_content(&image, &head, &map, name).unwrap()).unwrap();
        std::fs::write(format!("{name}.rust-fs"), other.read_path(name).unwrap()).unwrap();
    }
}
RUST
CARGO_PROFILE_DEV_DEBUG=0 cargo -q build

# A disk of "o" (old). The files have 24 blocks; of one the blocks 8 and 16 are written, of the other block 4.
head -c 300M /dev/zero | tr '\0' o >disk
mkfs.btrfs -q -K -f disk >/dev/null
mount -o loop disk mount
block() { head -c 4096 /dev/zero | tr '\0' n | dd of="mount/$1" bs=4096 seek="$2" conv=notrunc status=none; }
truncate -s 96K mount/holes
block holes 8
block holes 16
fallocate -l 96K mount/reserved
block reserved 4
# map FILE: a letter per block, 0 for zeroes.
map() { tr '\0' 0 <"$1" | fold -w 4096 | cut -c 1 | tr -d '\n'; }
seen=$(
    for name in holes reserved; do echo "Linux, $name: $(map mount/$name)"; done
    mount -o remount,ro mount # writes all of it to its place, also where another mount namespace keeps the mount
    umount mount
    timeout 60 target/debug/look
    for name in holes reserved; do
        echo "rust-fs-btrfs, $name: $(map $name.rust-fs)"
        echo "btrfs-core, $name: $(map $name.core)"
    done
)
echo "$seen"
want='Linux, holes: 00000000n0000000n0000000
Linux, reserved: 0000n0000000000000000000
rust-fs-btrfs, holes: 00000000n0000000n0000000
btrfs-core, holes: nn0000000000000000000000
rust-fs-btrfs, reserved: 0000n0000000000000000000
btrfs-core, reserved: oooonooooooooooooooooooo'
[ "$seen" = "$want" ] || { echo "changed"; exit 1; }
echo "as seen on 1 December 2026"
