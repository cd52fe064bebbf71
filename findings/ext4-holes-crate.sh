#!/bin/bash
# ext4_rs 1.3.3 (crates.io): a hole in a file of ext4 reads as what lies behind the extent before it on the disk: the file's own
# later blocks and another file's, without an error.
#
# An extent says how many blocks it has, and what is in none of them is a hole of zeroes. The crate looks for the last extent
# that begins at the block or before it, and counts on from there; the length is not looked at. Sparse files are what disk
# images are. debugfs reads zeroes.
#
# Needs apt-get with Debian 12's sources, the libraries that an installed e2fsprogs brings, cargo (1.81 or later).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
apt-get -q -o APT::Sandbox::User=root download e2fsprogs=1.47.0-2+b2 >/dev/null
for package in *.deb; do dpkg -x "$package" root; done
mkdir src
cat >Cargo.toml <<'TOML'
[package]
name = "look"
version = "0.0.0"
edition = "2021"
[dependencies]
ext4_rs = "=1.3.3"
TOML
cat >src/main.rs <<'RUST'
use std::{fs::File, os::unix::fs::FileExt, sync::Arc};
struct Disk(File);
impl ext4_rs::BlockDevice for Disk {
    fn read_offset(&self, offset: usize) -> Vec<u8> {
        let mut block = vec![0; 4096];
        self.0.read_exact_at(&mut block, offset as u64).unwrap();
        block
    }
    fn write_offset(&self, _: usize, _: &[u8]) {}
}
fn main() {
    let disk = ext4_rs::Ext4::open(Arc::new(Disk(File::open("disk").unwrap())));
    let file = std::env::args().nth(1).unwrap().parse().unwrap();
    let bytes = disk.ext4_file_read(file, 1 << 16, 0).unwrap_or_else(|_| panic!("an error"));
    std::io::Write::write_all(&mut std::io::stdout(), &bytes).unwrap();
}
RUST
# Its source asks for a feature of nightly compilers that is stable since 1.81.
RUSTC_BOOTSTRAP=1 CARGO_PROFILE_DEV_DEBUG=0 cargo -q build 2>/dev/null

# Nine blocks, of which the first, the fourth and the seventh are there; and a file behind them.
mkdir files
truncate -s 36864 files/sparse
for block in 0:a 3:b 6:c; do
    head -c 4096 /dev/zero | tr '\0' "${block#*:}" | dd of=files/sparse bs=4096 seek="${block%:*}" conv=notrunc status=none
done
head -c 16384 /dev/zero | tr '\0' n >next
truncate -s 16M disk
root/sbin/mke2fs -q -F -t ext4 -b 4096 -d files disk
root/sbin/debugfs -w -R "write next next" disk >/dev/null 2>&1
# letters: the first byte of each block, a zero as 0.
letters() { tr '\0' 0 | fold -b -w 4096 | cut -c 1 | tr -d '\n'; }
number=$(root/sbin/debugfs -R "stat /sparse" disk 2>/dev/null | sed -n 's/^Inode: *\([0-9]*\).*/\1/p')
seen=$(
    echo "debugfs: $(root/sbin/debugfs -R "cat /sparse" disk 2>/dev/null | letters)"
    echo "ext4_rs: $(timeout 60 target/debug/look "$number" | letters)"
)
echo "$seen"
want='debugfs: a00b00c00
ext4_rs: abcbcncnn'
[ "$seen" = "$want" ] || { echo "changed"; exit 1; }
echo "as seen on 1 December 2026"
