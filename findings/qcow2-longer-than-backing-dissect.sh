#!/bin/bash
# dissect.hypervisor 3.21 (PyPI): a qcow2 overlay that is longer than its backing file is read with its data in the wrong place.
#
# An overlay may be larger than its base (`qemu-img resize`, or a size given at creation: how a cloud image gets its disk
# size). What lies behind the base's end and was not written reads as zeroes. The library takes a short read of the base
# for a whole one: everything behind the base's end moves down, and the disk comes out shorter than its own size.
#
# Needs python3 with venv, qemu-img and qemu-io (seen with 10.0.2).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip -q --disable-pip-version-check install dissect.hypervisor==3.21
qemu-img --version | head -1

qemu-img create -q -f raw base.raw 4M
qemu-io -f raw -c 'write -q -P 0x77 0 4M' base.raw
qemu-img create -q -f qcow2 -b base.raw -F raw disk.qcow2 8M
qemu-io -f qcow2 -c 'write -q -P 0x55 6M 64k' disk.qcow2
cat >look.py <<'PY'
from pathlib import Path
from dissect.hypervisor.disk.qcow2 import QCow2
disk = QCow2(Path("disk.qcow2"))
stream = disk.open()
data = stream.read(disk.size)
print("size", disk.size >> 20, "MiB, read at once", len(data) / (1 << 20), "MiB")
where = data.find(b"\x55")
print("the block written at 6 MiB is at", where if where < 0 else f"{where / (1 << 20)} MiB")
PY
seen=$(venv/bin/python look.py)
echo "$seen"
want="size 8 MiB, read at once 4.0625 MiB
the block written at 6 MiB is at 4.0 MiB"
[ "$seen" = "$want" ] || { echo "changed"; exit 1; }
echo "as seen on 30 November 2026"
