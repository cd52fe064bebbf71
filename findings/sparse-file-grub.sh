#!/bin/bash
# GRUB 2.06-13+deb12u2 (grub-common, Debian 12): a file with a hole cannot be read from btrfs as mkfs.btrfs makes it, and a
# file that begins with a hole not from ext4.
#
# Since version 5.15 mkfs.btrfs turns on no-holes: a hole is a place without an extent, and GRUB wants one for each ("extent
# not found"). In ext4 that is how holes always were; GRUB knows it behind the first extent only ("something wrong with
# extent"). A copy with --sparse of a kernel, an initrd or an ISO image (32 KiB of zeroes come first) is not read.
#
# Needs root, a kernel with btrfs, ext4 and loop devices, apt-get with Debian 12's sources, mkfs.btrfs (seen with 6.2),
# mke2fs (1.47.0), and libdevmapper.
set -euo pipefail
folder=$(mktemp -d)
trap 'umount -q "$folder/mount" || true; rm -rf "$folder"' EXIT
cd "$folder"
PATH=$PATH:/usr/sbin:/sbin
apt-get -q -o APT::Sandbox::User=root download grub-common=2.06-13+deb12u2 >/dev/null
dpkg -x grub-common_*.deb root

mkdir tree mount
head -c 300000 /dev/zero | tr '\0' x >tree/none
cp tree/none tree/start
cp tree/none tree/middle
cp tree/none tree/end
fallocate -p -o 0 -l 200000 tree/start
fallocate -p -o 100000 -l 100000 tree/middle
truncate -s 100000 tree/end
truncate -s 300000 tree/end
# look NAME PROGRAM...: how the files are read from a file system that PROGRAM makes.
look() {
    local name=$1 file
    shift
    truncate -s 0 fs.img
    truncate -s 200M fs.img
    "$@" fs.img >/dev/null 2>&1
    mount -o loop fs.img mount
    cp --sparse=always tree/* mount
    umount mount
    for file in none start middle end; do
        root/usr/bin/grub-fstest fs.img cat "(loop0)/$file" >read.out 2>error && cmp -s read.out tree/$file && echo right >error
        echo "$name: hole $file: $(sed 's/.*: //' error)"
    done
}
seen=$(look btrfs mkfs.btrfs; look 'btrfs without no-holes' mkfs.btrfs -O ^no-holes; look ext4 mke2fs -t ext4; look ext2 mke2fs -t ext2)
echo "$seen"
want='btrfs: hole none: right
btrfs: hole start: extent not found.
btrfs: hole middle: extent not found.
btrfs: hole end: extent not found.
btrfs without no-holes: hole none: right
btrfs without no-holes: hole start: right
btrfs without no-holes: hole middle: right
btrfs without no-holes: hole end: right
ext4: hole none: right
ext4: hole start: something wrong with extent.
ext4: hole middle: right
ext4: hole end: right
ext2: hole none: right
ext2: hole start: right
ext2: hole middle: right
ext2: hole end: right'
[ "$seen" = "$want" ] || { echo "changed"; exit 1; }
echo "as seen on 30 November 2026"
