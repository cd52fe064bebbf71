#!/bin/bash
# dissect.hypervisor 3.21 (PyPI): a read of a dynamic VDI or VHDX image that runs over the end of a block returns what lies
# behind that block in the *file*; a VDI's comes up short at the file's end.
#
# Blocks (of 1 MiB here) lie in the file in the order in which they were first written. Block by block the library finds
# them. In a VDI a read of several blocks is taken from the place of the first one as a whole (`min(length, max(length,
# block_size - offset_in_block))` is `length`); in a VHDX a read that begins inside of a block is taken from its place for
# the length of a block, not up to the block's end.
#
# Needs python3 with venv, qemu-img and qemu-io (seen with 10.0.2).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip -q --disable-pip-version-check install dissect.hypervisor==3.21
qemu-img --version | head -1

# Written from the back: block 5 comes first in the file, then block 0.
qemu-img create -q -f vdi disk.vdi 8M
qemu-img create -q -f vhdx -o block_size=1M disk.vhdx 8M
for format in vdi vhdx; do qemu-io -f $format -c 'write -q -P 0x55 5M 1M' -c 'write -q -P 0x11 0 1M' disk.$format; done
cat >look.py <<'PY'
from pathlib import Path
from dissect.hypervisor.disk.vdi import VDI
from dissect.hypervisor.disk.vhdx import VHDX
HALF = 1 << 19
def read(disk, first, count):
    disk.seek(first * HALF)
    data = disk.read(count * HALF)
    return [f"{data[at]:x}" for at in range(0, len(data), HALF)]
for disk in (VDI(open("disk.vdi", "rb")).open(), VHDX(Path("disk.vhdx"))):
    print(type(disk).__name__, "halves of blocks, one by one", *[read(disk, half, 1)[0] for half in range(16)])
    print("all", *read(disk, 0, 16))
    print("two blocks from block 5 on", *read(disk, 10, 4))
    print("two blocks from the middle of block 5 on", *read(disk, 11, 4))
PY
seen=$(venv/bin/python look.py)
echo "$seen"
want="VDIStream halves of blocks, one by one 11 11 0 0 0 0 0 0 0 0 55 55 0 0 0 0
all 11 11
two blocks from block 5 on 55 55 11 11
two blocks from the middle of block 5 on 55 0 0 0
VHDX halves of blocks, one by one 11 11 0 0 0 0 0 0 0 0 55 55 0 0 0 0
all 11 11 0 0 0 0 0 0 0 0 55 55 0 0 0 0
two blocks from block 5 on 55 55 0 0
two blocks from the middle of block 5 on 55 11 0 0"
[ "$seen" = "$want" ] || { echo "changed"; exit 1; }
echo "as seen on 30 November 2026"
