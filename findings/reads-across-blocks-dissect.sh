#!/bin/bash
# dissect.hypervisor 3.21 (PyPI): a read of a dynamic VDI image that runs over the end of a block returns what lies behind
# that block in the *file*, and comes up short at its end.
#
# A VDI's blocks of 1 MiB lie in the file in the order in which they were first written. Block by block the library finds
# them; a read of several blocks is taken from the place of the first one as a whole
# (`min(length, max(length, block_size - offset_in_block))` is `length`).
#
# Needs python3 with venv, qemu-img and qemu-io (seen with 10.0.2).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip -q --disable-pip-version-check install dissect.hypervisor==3.21
qemu-img --version | head -1

qemu-img create -q -f vdi disk.vdi 8M
# Written from the back: block 5 comes first in the file, then block 0.
qemu-io -f vdi -c 'write -q -P 0x55 5M 1M' -c 'write -q -P 0x11 0 1M' disk.vdi
cat >look.py <<'PY'
from dissect.hypervisor.disk.vdi import VDI
MIB = 1 << 20
with open("disk.vdi", "rb") as file:
    disk = VDI(file).open()
    def read(first, count):
        disk.seek(first * MIB)
        data = disk.read(count * MIB)
        return [f"{data[at]:#x}" for at in range(0, len(data), MIB)]
    print("one by one", [read(block, 1)[0] for block in range(8)])
    print("blocks 0 to 7", read(0, 8))
    print("blocks 5 to 7", read(5, 3))
PY
seen=$(venv/bin/python look.py)
echo "$seen"
want="one by one ['0x11', '0x0', '0x0', '0x0', '0x0', '0x55', '0x0', '0x0']
blocks 0 to 7 ['0x11']
blocks 5 to 7 ['0x55', '0x11']"
[ "$seen" = "$want" ] || { echo "changed"; exit 1; }
echo "as seen on 30 November 2026"
