#!/bin/bash
# ext4-view 1.0.0 (crates.io): a sparse file of a file system without extents (ext2, ext3, or ext4 made by an upgrade) is
# called corrupt.
#
# Where a block map has no block (number 0) a file has a hole. The library knows that of extents; in a block map it
# tries to read block 0, and its own check refuses that with "corrupt filesystem".
#
# Needs cargo, mke2fs and debugfs (seen with 1.47.0).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
mkdir tree src
head -c 300000 /dev/zero | tr '\0' x >tree/whole
truncate -s 300000 tree/sparse
printf data | dd of=tree/sparse bs=1 seek=200000 conv=notrunc status=none

cat >Cargo.toml <<'TOML'
[package]
name = "look"
version = "0.0.0"
edition = "2021"
[dependencies]
ext4-view = "=1.0.0"
TOML
cat >src/main.rs <<'RUST'
fn main() {
    let fs = ext4_view::Ext4::load(Box::new(std::fs::read("fs.img").unwrap())).unwrap();
    for name in ["/whole", "/sparse"] {
        match fs.read(name) {
            Ok(bytes) => println!("{name}: {} bytes", bytes.len()),
            Err(error) => println!("{name}: {error}"),
        }
    }
}
RUST
cargo -q build
look() {
    rm -f fs.img
    mke2fs -q -t "$1" -d tree fs.img 16M 2>/dev/null >/dev/null
    echo "$1:" "$(target/debug/look | tr '\n' ' ')" "debugfs reads $(debugfs -R 'cat sparse' fs.img 2>/dev/null | wc -c)"
}
seen=$(look ext4; look ext2)
echo "$seen"
want="ext4: /whole: 300000 bytes /sparse: 300000 bytes  debugfs reads 300000
ext2: /whole: 300000 bytes /sparse: corrupt filesystem: invalid read of length 1024 from block 0 (originally 0) at offset 0  debugfs reads 300000"
[ "$seen" = "$want" ] || { echo "changed"; exit 1; }
echo "as seen on 30 November 2026"
