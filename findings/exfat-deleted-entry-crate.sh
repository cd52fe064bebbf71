#!/bin/bash
# exfat 0.1.0 (crates.io): where a file was deleted from a folder of exFAT, the files behind its place are not listed, without an
# error.
#
# An entry whose type is 0 ends a folder. One that was deleted keeps its type but for the bit InUse, and is skipped (exFAT
# specification, 6.2.1): types from 1 to 127. The crate ends at the first type below 129. exfat-fuse and GRUB
# list all that is there.
#
# Needs root, a kernel with FUSE and loop devices, apt-get with Debian 12's sources, libdevmapper, cargo.
set -euo pipefail
folder=$(mktemp -d)
device=
trap 'umount -q "$folder/mount" || true; [ -z "$device" ] || losetup -d "$device" || true; rm -rf "$folder"' EXIT
cd "$folder"
PATH=$PATH:/usr/sbin:/sbin
apt-get -q -o APT::Sandbox::User=root download exfatprogs=1.2.0-1+deb12u1 exfat-fuse=1.3.0+git20220115-2 \
    grub-common=2.06-13+deb12u2 >/dev/null
for package in *.deb; do dpkg -x "$package" root; done
mkdir mount src
cat >Cargo.toml <<'TOML'
[package]
name = "look"
version = "0.0.0"
edition = "2021"
[dependencies]
exfat = "=0.1.0"
TOML
cat >src/main.rs <<'RUST'
use exfat::directory::Item;
use std::fs::File;
fn main() {
    for item in exfat::ExFat::open(File::open("disk").unwrap()).unwrap() {
        let Item::Directory(folder) = item else { continue };
        let names = folder.open().unwrap().into_iter().map(|item| match item {
            Item::File(file) => file.name().to_string(),
            Item::Directory(folder) => folder.name().to_string(),
        });
        println!("exfat, {}: {}", folder.name(), names.collect::<Vec<_>>().join(" "));
    }
}
RUST
CARGO_PROFILE_DEV_DEBUG=0 cargo -q build

truncate -s 16M disk
root/usr/sbin/mkfs.exfat -L disk disk >/dev/null
device=$(losetup -f --show disk)
root/sbin/mount.exfat-fuse "$device" mount >/dev/null
mkdir mount/kept mount/deleted
touch mount/{kept,deleted}/{a,b,c,d}
rm mount/deleted/b
seen=$(
    for name in kept deleted; do (cd mount/$name && echo "exfat-fuse, $name:" *); done
    umount mount
    root/usr/sbin/fsck.exfat -n "$device" | grep -o 'clean.*'
    for name in kept deleted; do echo "GRUB, $name: $(root/usr/bin/grub-fstest disk ls "(loop0)/$name/" | xargs)"; done
    target/debug/look
)
losetup -d "$device"
device=
echo "$seen"
want='exfat-fuse, kept: a b c d
exfat-fuse, deleted: a c d
clean. directories 3, files 7
GRUB, kept: a b c d
GRUB, deleted: a c d
exfat, kept: a b c d
exfat, deleted: a'
[ "$seen" = "$want" ] || { echo "changed"; exit 1; }
echo "as seen on 1 December 2026"
