#!/bin/bash
# qcow 1.2.0 (crates.io): the reader of a qcow2 overlay hands out zeroes for everything that its backing file holds.
#
# The header's backing file is parsed, and read by nobody: an unallocated cluster is zeroes, whatever the base has there.
# No error tells an overlay from a whole disk.
#
# Needs cargo, cmake, qemu-img and qemu-io (seen with 10.0.2).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
mkdir src
qemu-img create -q -f raw base.raw 1M
qemu-io -f raw -c 'write -q -P 0x77 0 1M' base.raw
qemu-img create -q -f qcow2 -b base.raw -F raw disk.qcow2
qemu-io -f qcow2 -c 'write -q -P 0x55 512k 64k' disk.qcow2

cat >Cargo.toml <<'TOML'
[package]
name = "look"
version = "0.0.0"
edition = "2021"
[dependencies]
qcow = "=1.2.0"
TOML
cat >src/main.rs <<'RUST'
use std::io::Read as _;
fn main() {
    let disk = qcow::open("disk.qcow2").unwrap().unwrap_qcow2();
    let mut file = std::io::BufReader::new(std::fs::File::open("disk.qcow2").unwrap());
    let mut bytes = vec![0; 1 << 20];
    disk.reader(&mut file).read_exact(&mut bytes).unwrap();
    println!("of the base {:#x}, of the overlay {:#x}", bytes[0], bytes[512 << 10]);
}
RUST
seen=$(cargo -q run)
echo "$seen"
[ "$seen" = "of the base 0x0, of the overlay 0x55" ] || { echo "changed"; exit 1; }
echo "as seen on 30 November 2026"
