#!/bin/bash
# GRUB 2.06-13+deb12u2 (grub-common, Debian 12): in a sparse file of NTFS the first cluster of a hole has the bytes with which
# the run of clusters before it begins.
#
# A hole is a run without a place on the disk and reads as zeroes; so do the other clusters of the hole in GRUB. Asked for
# the cluster with which a run begins, it answers the place last known, that of the run before, without an error. A
# sparse ISO or disk image for the loopback command has clusters of other data in it.
#
# Needs root, a kernel with FUSE, apt-get with Debian 12's sources, and libdevmapper.
set -euo pipefail
folder=$(mktemp -d)
trap 'umount -q "$folder/mount" || true; rm -rf "$folder"' EXIT
cd "$folder"
apt-get -q -o APT::Sandbox::User=root download grub-common=2.06-13+deb12u2 ntfs-3g=1:2022.10.3-1+deb12u4 \
    libntfs-3g89=1:2022.10.3-1+deb12u4 >/dev/null
for package in *.deb; do dpkg -x "$package" root; done
export LD_LIBRARY_PATH=root/lib/x86_64-linux-gnu:root/usr/lib/x86_64-linux-gnu
PATH=root/usr/sbin:root/sbin:root/usr/bin:root/bin:$PATH

# A file of 16 clusters of 4096 bytes: "." is a hole, every other cluster is full of its letter.
want=abcdefgh....ijkl
for at in {0..15}; do
    letter=${want:at:1}
    [ "$letter" = . ] || head -c 4096 /dev/zero | tr '\0' "$letter" | dd of=file bs=4096 seek="$at" conv=notrunc status=none
done
truncate -s 32M fs.img
mkntfs -q -F -c 4096 fs.img >/dev/null 2>&1
mkdir mount
ntfs-3g fs.img mount
cp --sparse=always file mount/file
umount mount
# first FILE: of each cluster of FILE the first byte, a zero as ".".
first() {
    local at
    for at in {0..15}; do dd if="$1" bs=4096 skip="$at" count=1 status=none | head -c 1 | tr '\0' .; done
}
grub-fstest fs.img cat '(loop0)/file' >read.out
ntfs-3g -o ro fs.img mount
seen="ntfs-3g $(first mount/file), GRUB $(first read.out)"
echo "$seen"
[ "$seen" = "ntfs-3g $want, GRUB abcdefgha...ijkl" ] || { echo "changed"; exit 1; }
echo "as seen on 30 November 2026"
