#!/bin/bash
# dissect.hypervisor 3.21 (PyPI): in a disk image of Parallels the data behind a hole reads as zeroes, without an error, where it lies as
# far from the file's beginning as the hole is long: as of a disk whose first MiB is empty and that was then written in order.
#
# Such an image has a table of blocks, with 0 for one that is not there (QEMU, docs/interop/parallels). The library joins
# neighbouring blocks to one read: a hole counts as a run from 0, and a block at the place at which this run ends, as its
# continuation. A file's first block lies at 1 MiB, so that a hole of the first MiB swallows it, and the ones behind it.
#
# Needs python3 with venv, qemu-img and qemu-io (seen with 10.0.2).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip -q --disable-pip-version-check install dissect.hypervisor==3.21
cat >look.py <<'PY'
import sys
from dissect.hypervisor.disk.hdd import HDS
content = HDS(open(sys.argv[1], "rb")).read(8 << 20)
print("".join(chr(content[at << 20] or 48) for at in range(8)))
PY

# make NAME AT...: an image of 8 MiB, with letters at these MiB, written in this order.
make() {
    qemu-img create -q -f parallels "$1" 8M
    local at letter=97
    for at in "${@:2}"; do
        qemu-io -f parallels -c "write -q -P $letter ${at}M 1M" "$1"
        letter=$((letter + 1))
    done
}
make from-0 0 1 2 5
make from-1 1 2 3 5
make from-2 2 3 4 5
make 2-before-1 2 1 3 5
seen=$(
    for name in from-0 from-1 from-2 2-before-1; do
        qemu-img convert -f parallels -O raw $name raw
        echo "QEMU, $name: $(tr '\0' 0 <raw | fold -w 1048576 | cut -c 1 | tr -d '\n')"
        echo "dissect, $name: $(venv/bin/python look.py $name)"
    done
)
echo "$seen"
want='QEMU, from-0: abc00d00
dissect, from-0: abc00d00
QEMU, from-1: 0abc0d00
dissect, from-1: 00000d00
QEMU, from-2: 00abcd00
dissect, from-2: 00abcd00
QEMU, 2-before-1: 0bac0d00
dissect, 2-before-1: 0bac0d00'
[ "$seen" = "$want" ] || { echo "changed"; exit 1; }
echo "as seen on 1 December 2026"
