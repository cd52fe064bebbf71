#!/bin/bash
# libqcow-python 20260703 (PyPI): compressed clusters of a qcow2 image whose data begins at an odd offset in the file are
# read as zeroes, without an error.
#
# qemu-img packs compressed clusters byte by byte, so about half of them begin at an odd offset. In the L2 entry of a
# compressed cluster bit 0 is a part of that offset (qcow2 specification, "Compressed Clusters Descriptor"); only in the
# entry of a standard cluster is it "reads as all zeros". libqcow takes it for the latter in both.
#
# Needs python3 with venv, and qemu-img (seen with 10.0.2).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip -q --disable-pip-version-check install libqcow-python==20260703
qemu-img --version | head -1

cat >look.py <<'PY'
import struct, pyqcow
CLUSTER = 65536
image, raw = open("disk.qcow2", "rb").read(), open("disk.raw", "rb").read()
l1, = struct.unpack_from(">Q", image, 40)
l2, = struct.unpack_from(">Q", image, l1)
l2 &= 0x00fffffffffffe00
disk = pyqcow.file()
disk.open("disk.qcow2")
told = set()
for index in range(len(raw) // CLUSTER):
    entry, = struct.unpack_from(">Q", image, l2 + 8 * index)
    assert entry >> 62 & 1, "compressed"
    offset = entry & (1 << 62 - 8) - 1
    disk.seek(index * CLUSTER)
    got, want = disk.read_buffer(CLUSTER), raw[index * CLUSTER:][:CLUSTER]
    seen = "right" if got == want else "zeroes" if got == bytes(CLUSTER) else "other bytes"
    told.add(("odd" if offset % 2 else "even", seen))
print(sorted(told))
PY
python3 - <<'PY'
import random
random.seed(1)
with open("disk.raw", "wb") as raw:
    for index in range(32):
        raw.write(random.randbytes(1000 + 37 * index).ljust(65536, bytes([index + 1])))
PY
qemu-img convert -c -f raw -O qcow2 disk.raw disk.qcow2
seen=$(venv/bin/python look.py)
echo "$seen"
[ "$seen" = "[('even', 'right'), ('odd', 'zeroes')]" ] || { echo "changed"; exit 1; }
echo "as seen on 30 November 2026"
