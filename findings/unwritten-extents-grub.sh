#!/bin/bash
# GRUB 2.06-13+deb12u2 (grub-common, Debian 12): where blocks of a file were reserved but not written, GRUB reads what happened
# to be on the disk before, from ext4 and from XFS.
#
# fallocate (as `qemu-img create -o preallocation=falloc` uses it) gives a file extents that are marked as unwritten: by a
# length over 32768 in ext4, by the highest bit of the extent in XFS. They read as zeroes. GRUB looks at neither mark, and
# a file that was reserved and written in part has bytes of deleted files in it.
#
# Needs root, a kernel with ext4, XFS and loop devices, apt-get with Debian 12's sources, mke2fs (seen with 1.47.0), mkfs.xfs
# (6.1.0), and libdevmapper.
set -euo pipefail
folder=$(mktemp -d)
trap 'umount -q "$folder/mount" || true; rm -rf "$folder"' EXIT
cd "$folder"
PATH=$PATH:/usr/sbin:/sbin
apt-get -q -o APT::Sandbox::User=root download grub-common=2.06-13+deb12u2 >/dev/null
dpkg -x grub-common_*.deb root

mkdir mount
# 64 KiB of "a", zeroes after them: a file's contents, however they lie on the disk.
head -c 65536 /dev/zero | tr '\0' a >want
truncate -s 1M want
# look NAME PROGRAM...: how the files are read from a file system that PROGRAM makes on a disk that begins with many "o" (old).
look() {
    local name=$1 file
    shift
    head -c 32M /dev/zero | tr '\0' o >fs.img
    truncate -s 320M fs.img
    "$@" fs.img >/dev/null 2>&1
    mount -o loop fs.img mount
    cp want mount/written
    fallocate -l 1M mount/reserved
    dd if=want of=mount/reserved bs=64k count=1 conv=notrunc status=none
    cmp mount/written want
    cmp mount/reserved want
    umount mount
    for file in written reserved; do
        root/usr/bin/grub-fstest fs.img cat "(loop0)/$file" >read.out
        echo "$name: $file: $(stat -c %s read.out) bytes, old $(tr -cd o <read.out | wc -c)"
    done
}
seen=$(look ext4 mke2fs -t ext4 -E nodiscard; look XFS mkfs.xfs -K)
echo "$seen"
want='ext4: written: 1048576 bytes, old 0
ext4: reserved: 1048576 bytes, old 983040
XFS: written: 1048576 bytes, old 0
XFS: reserved: 1048576 bytes, old 983040'
[ "$seen" = "$want" ] || { echo "changed"; exit 1; }
echo "as seen on 30 November 2026"
