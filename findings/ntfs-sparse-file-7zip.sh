#!/bin/bash
# 7-Zip 26.02 (7zip 22.01+really26.02+dfsg-0+deb12u1, Debian 12): a sparse file of NTFS whose data does not fill 16 clusters
# is not extracted ("Data Error").
#
# A sparse file has a compression unit of 16 clusters, as a compressed one has, and is compressed only if its flags
# (0x0001 and 0x8000, sparse) say so. 7-Zip goes by the unit: where a hole leaves some of the 16 clusters, it tries to
# unpack them. `7zz x` leaves what it read up to there in the file's place. Holes of whole units are right.
#
# Needs root, a kernel with FUSE, apt-get with Debian 12's sources.
set -euo pipefail
folder=$(mktemp -d)
trap 'umount -q "$folder/mount" || true; rm -rf "$folder"' EXIT
cd "$folder"
apt-get -q -o APT::Sandbox::User=root download 7zip=22.01+really26.02+dfsg-0+deb12u1 ntfs-3g=1:2022.10.3-1+deb12u4 \
    libntfs-3g89=1:2022.10.3-1+deb12u4 >/dev/null
for package in *.deb; do dpkg -x "$package" root; done
export LD_LIBRARY_PATH=root/lib/x86_64-linux-gnu:root/usr/lib/x86_64-linux-gnu
PATH=root/usr/sbin:root/sbin:root/usr/bin:root/bin:$PATH

truncate -s 32M fs.img
mkntfs -q -F -c 4096 fs.img >/dev/null 2>&1
mkdir mount files
ntfs-3g fs.img mount
# A hole of 64 KiB, and so many bytes of "x".
for bytes in 65536 131072 61440 81920; do
    truncate -s 64K "files/$bytes"
    head -c "$bytes" /dev/zero | tr '\0' x >>"files/$bytes"
    cp --sparse=always "files/$bytes" mount
done
umount mount
ntfs-3g -o ro fs.img mount
for bytes in 65536 131072 61440 81920; do cmp "files/$bytes" "mount/$bytes"; done
umount mount
seen=$(for bytes in 65536 131072 61440 81920; do
    code=0
    7zz e -so fs.img "$bytes" >read.out 2>error || code=$?
    echo "hole and $bytes bytes: $(stat -c %s read.out) of $(stat -c %s "files/$bytes") bytes, ends with $code" \
        "and $(grep -c 'Data Error' error || true) errors"
done)
echo "$seen"
want='hole and 65536 bytes: 131072 of 131072 bytes, ends with 0 and 0 errors
hole and 131072 bytes: 196608 of 196608 bytes, ends with 0 and 0 errors
hole and 61440 bytes: 65536 of 126976 bytes, ends with 2 and 1 errors
hole and 81920 bytes: 131072 of 147456 bytes, ends with 2 and 1 errors'
[ "$seen" = "$want" ] || { echo "changed"; exit 1; }
echo "as seen on 30 November 2026"
