#!/bin/bash
# virtio-queue 0.18.0 (crates.io, feature test-utils): the rings of its mock driver overlap.
#
# MockSplitQueue lays out descriptor table, available ring and used ring one behind the other, for tests of devices. The
# available ring has 6 + 2 * size bytes (VIRTIO 1.2 §2.7.6). The used ring begins inside of it, since its place is found
# with the number of entries where their bytes are meant: a driver that makes enough entries available overwrites the
# used ring's flags, index and elements, and the device's completions overwrite its entries.
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
virtio-queue = { version = "=0.18.0", features = ["test-utils"] }
vm-memory = { version = "=0.18.0", features = ["backend-mmap"] }
TOML
cat >src/main.rs <<'RUST'
use virtio_queue::mock::MockSplitQueue;
use vm_memory::{Address as _, GuestAddress, GuestMemoryMmap};
fn main() {
    let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
    for size in [4_u16, 16, 128, 256] {
        let queue = MockSplitQueue::new(&memory, size);
        let (avail, used) = (queue.avail_addr().raw_value(), queue.used_addr().raw_value());
        let room = used - avail;
        println!("size {size}: room for the available ring {room}, it has {}", 6 + 2 * u64::from(size));
    }
}
RUST
seen=$(cargo -q run)
echo "$seen"
want="size 4: room for the available ring 8, it has 14
size 16: room for the available ring 20, it has 38
size 128: room for the available ring 132, it has 262
size 256: room for the available ring 260, it has 518"
[ "$seen" = "$want" ] || { echo "changed"; exit 1; }
echo "as seen on 30 November 2026"
