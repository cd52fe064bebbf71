#!/bin/bash
# vhdx 0.1.0 (crates.io): of a dynamic VHDX of 4 to 8 GiB everything behind the first 4 GiB is read one block beside its place,
# without an error.
#
# After each chunk of blocks (2^23 sectors: 4 GiB of sectors of 512 bytes) the table of blocks has an entry for a bitmap, in
# an image without a parent as well (MS-VHDX, 2.5.1: "Chunk Ratio"). The crate takes a chunk for twice as long: the entry for
# the bitmap is the first block behind 4 GiB to it, which reads as zeroes, and each further block is the one before. Above
# 8 GiB, where it counts such an entry, it says "not implemented".
#
# Needs cargo, qemu-img and qemu-io (seen with 10.0.2), sparse files.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
mkdir src
cat >Cargo.toml <<'TOML'
[package]
name = "look"
version = "0.0.0"
edition = "2021"
[dependencies]
vhdx = "=0.1.0"
TOML
cat >src/main.rs <<'RUST'
use std::io::{Read, Seek, SeekFrom};
fn main() {
    let mut args = std::env::args().skip(1);
    let mut disk = vhdx::Vhdx::load(args.next().unwrap());
    let mut reader = disk.reader();
    for mebibytes in args {
        let mut byte = [0];
        reader.seek(SeekFrom::Start(mebibytes.parse::<u64>().unwrap() << 20)).unwrap();
        reader.read_exact(&mut byte).unwrap();
        print!(" {}", if byte[0] == 0 { '0' } else { byte[0] as char });
    }
}
RUST
cargo -q build

# Blocks have 8 MiB here. Six of them are full of a letter: four before the end of the first 4 GiB, and two behind it.
blocks=(0 8 4080 4088 4096 4104)
for size in 4112M 9G; do
    qemu-img create -q -f vhdx -o block_size=8M $size.vhdx $size
    letter=97
    for at in "${blocks[@]}"; do
        qemu-io -f vhdx -c "write -q -P $letter ${at}M 8M" $size.vhdx
        letter=$((letter + 1))
    done
done
seen=$(
    for size in 4112M 9G; do
        echo "QEMU, $size:$(for at in "${blocks[@]}"; do
            printf ' %b' "$(qemu-io -f vhdx -c "read -v ${at}M 1" $size.vhdx | sed -n '1s/.*: *\(..\) .*/\\x\1/p')"
        done)"
        echo "vhdx, $size:$(timeout 60 target/debug/look $size.vhdx "${blocks[@]}" 2>&1 | grep -o '^not implemented\|^ .*' | head -1)"
    done
)
echo "$seen"
want='QEMU, 4112M: a b c d e f
vhdx, 4112M: a b c d 0 e
QEMU, 9G: a b c d e f
vhdx, 9G:not implemented'
[ "$seen" = "$want" ] || { echo "changed"; exit 1; }
echo "as seen on 30 November 2026"
