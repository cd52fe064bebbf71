#!/bin/bash
# vm-allocator 0.1.4 (crates.io, rust-vmm): AddressAllocator gives the same addresses out twice with ExactMatch.
#
# A range that lies inside of one that is allocated, but is not the whole of it, is allocated again without an error.
# Only a request for exactly an allocated range is refused (InvalidStateTransition).
#
# Needs cargo.
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
vm-allocator = "=0.1.4"
TOML
cat >src/main.rs <<'RUST'
use vm_allocator::{AddressAllocator, AllocPolicy};
fn main() {
    for (start, bytes) in [(0x1000, 0x4000), (0x1000, 0x1000), (0x2000, 0x1000), (0x4000, 0x2000)] {
        let mut space = AddressAllocator::new(0x1000, 0x10000).unwrap();
        let first = space.allocate(0x4000, 0x1000, AllocPolicy::FirstMatch).unwrap();
        let second = space.allocate(bytes, 0x1000, AllocPolicy::ExactMatch(start));
        let second = second.map_or("refused".into(), |it| format!("{:#x}..={:#x}", it.start(), it.end()));
        println!("{:#x}..={:#x} is taken; {bytes:#x} bytes at {start:#x}: {second}", first.start(), first.end());
    }
}
RUST
seen=$(cargo -q run)
echo "$seen"
want="0x1000..=0x4fff is taken; 0x4000 bytes at 0x1000: refused
0x1000..=0x4fff is taken; 0x1000 bytes at 0x1000: 0x1000..=0x1fff
0x1000..=0x4fff is taken; 0x1000 bytes at 0x2000: 0x2000..=0x2fff
0x1000..=0x4fff is taken; 0x2000 bytes at 0x4000: refused"
[ "$seen" = "$want" ] || { echo "changed"; exit 1; }
echo "as seen on 30 November 2026"
