#!/bin/bash
# dissect.xfs 3.13 (PyPI): where blocks of a file were reserved but not written, the library reads what happened to be on the
# disk before.
#
# fallocate (as `qemu-img create -o preallocation=falloc` uses it) gives a file extents whose highest bit says "unwritten",
# and these read as zeroes. The library drops the bit. Its sister dissect.extfs does know such extents of ext4.
#
# Needs root, a kernel with XFS and loop devices, python3 with venv, and mkfs.xfs (seen with 6.1.0).
set -euo pipefail
folder=$(mktemp -d)
trap 'umount -q "$folder/mount" || true; rm -rf "$folder"' EXIT
cd "$folder"
PATH=$PATH:/usr/sbin:/sbin
python3 -m venv venv
venv/bin/pip -q --disable-pip-version-check install dissect.xfs==3.13

# A disk that begins with many "o" (old), and two files with 64 KiB of "a" and zeroes after them.
head -c 32M /dev/zero | tr '\0' o >fs.img
truncate -s 320M fs.img
mkfs.xfs -q -K -f fs.img
head -c 65536 /dev/zero | tr '\0' a >want
truncate -s 1M want
mkdir mount
mount -o loop fs.img mount
cp want mount/written
fallocate -l 1M mount/reserved
dd if=want of=mount/reserved bs=64k count=1 conv=notrunc status=none
cmp mount/written want
cmp mount/reserved want
umount mount

seen=$(venv/bin/python - <<'PY'
from dissect.xfs import XFS
with open("fs.img", "rb") as image:
    for name in ("written", "reserved"):
        data = XFS(image).get(name).open().read()
        print(f"{name}: {len(data)} bytes, old {data.count(b'o')}")
PY
)
echo "$seen"
want='written: 1048576 bytes, old 0
reserved: 1048576 bytes, old 983040'
[ "$seen" = "$want" ] || { echo "changed"; exit 1; }
echo "as seen on 30 November 2026"
