#!/bin/bash
# qcow2-rs 0.1.6 (crates.io): a qcow2 image with clusters of less than 4 KiB reads as zeroes, and behind the end of a shorter backing
# file a read says that all is done and leaves the buffer as it was; neither is an error.
#
# The crate keeps slices of 4 KiB of the second tables, each of which has only a cluster's size (qcow2's specification allows
# clusters of 512 bytes and up); an assertion that says so is not in an optimized build. Of a disk that has
# grown beyond its backing file the rest reads as zeroes (the same, "backing file"; qemu-img).
#
# Needs cargo, qemu-img and qemu-io (seen with 10.0.2).
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
qcow2-rs = "=0.1.6"
tokio = { version = "1", features = ["rt"] }
[profile.dev]
debug = false
debug-assertions = false
overflow-checks = false
TOML
cat >src/main.rs <<'RUST'
use qcow2_rs::{dev::Qcow2DevParams, helpers::Qcow2IoBuf, utils::qcow2_setup_dev_tokio};
fn main() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let name = std::env::args().nth(1).unwrap();
    runtime.block_on(async {
        let params = Qcow2DevParams::new(9, None, None, true, false);
        let disk = qcow2_setup_dev_tokio(std::path::Path::new(&name), &params).await.unwrap();
        for mebibyte in 0..4 {
            let mut block = Qcow2IoBuf::<u8>::new(4096);
            block.fill(b'x');
            let count = disk.read_at(&mut block, mebibyte << 20).await.unwrap();
            let letter = if block[0] == 0 { '0' } else { block[0] as char };
            let rest = if block.iter().all(|byte| *byte == block[0]) { "" } else { "..." };
            print!(" {letter}{rest} ({count})");
        }
    });
}
RUST
cargo -q build

for size in 512 1024 2048 4096 65536; do
    qemu-img create -q -f qcow2 -o cluster_size=$size $size.qcow2 4M
    qemu-io -f qcow2 -c "write -q -P 0x6e 1M 1M" -c "write -q -P 0x6f 3M 1M" $size.qcow2
done
qemu-img create -q -f qcow2 base.qcow2 2M
qemu-io -f qcow2 -c "write -q -P 0x62 0 2M" base.qcow2
qemu-img create -q -f qcow2 -b base.qcow2 -F qcow2 grown.qcow2 4M
seen=$(
    for name in 512 1024 2048 4096 65536 grown; do
        echo "QEMU, $name:$(for at in 0 1 2 3; do
            printf ' %b' "$(qemu-io -f qcow2 -c "read -v ${at}M 1" $name.qcow2 | sed -n '1s/.*: *\(..\) .*/\\x\1/p' | sed 's/x00/x30/')"
        done)"
        echo "qcow2-rs, $name:$(timeout 60 target/debug/look $name.qcow2)"
    done
)
echo "$seen"
want='QEMU, 512: 0 n 0 o
qcow2-rs, 512: 0 (4096) 0 (4096) 0 (4096) 0 (4096)
QEMU, 1024: 0 n 0 o
qcow2-rs, 1024: 0 (4096) 0 (4096) 0 (4096) 0 (4096)
QEMU, 2048: 0 n 0 o
qcow2-rs, 2048: 0 (4096) 0 (4096) 0 (4096) 0 (4096)
QEMU, 4096: 0 n 0 o
qcow2-rs, 4096: 0 (4096) n (4096) 0 (4096) o (4096)
QEMU, 65536: 0 n 0 o
qcow2-rs, 65536: 0 (4096) n (4096) 0 (4096) o (4096)
QEMU, grown: b b 0 0
qcow2-rs, grown: b (4096) b (4096) x (4096) x (4096)'
[ "$seen" = "$want" ] || { echo "changed"; exit 1; }
echo "as seen on 1 December 2026"
