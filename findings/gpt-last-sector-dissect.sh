#!/bin/bash
# dissect.volume 3.18 (PyPI): every partition of a GPT is one sector too short.
#
# The last block of a partition's entry is a part of it (UEFI specification, table 5.6: "Ending LBA", inclusive); the size is taken
# as the last less the first one. The second boot sector of an NTFS is in what is missing, and the superblock of an MD
# array of version 1.0 or 0.90 is looked for from the end, in the wrong place. The sizes of an MBR's partitions are right.
#
# Needs sfdisk (util-linux 2.38.1), python3 with venv.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
PATH=$PATH:/usr/sbin:/sbin
python3 -m venv venv
venv/bin/pip -q --disable-pip-version-check install dissect.volume==3.18
cat >look.py <<'PY'
from dissect.volume.disk import Disk
with open("disk.img", "rb") as file:
    print(*(part.size // 512 for part in Disk(file).partitions))
PY
# look LABEL: the sizes of two partitions, in sectors, as sfdisk and as the library sees them.
look() {
    rm -f disk.img
    truncate -s 64M disk.img
    printf 'label: %s\nsize=1MiB\nsize=8MiB\n' "$1" | sfdisk -q disk.img
    echo "$1: sfdisk $(sfdisk -d disk.img | sed -n 's/.*size= *\([0-9]*\),.*/\1/p' | xargs), dissect.volume $(venv/bin/python look.py)"
}
seen=$(look dos; look gpt)
echo "$seen"
want='dos: sfdisk 2048 16384, dissect.volume 2048 16384
gpt: sfdisk 2048 16384, dissect.volume 2047 16383'
[ "$seen" = "$want" ] || { echo "changed"; exit 1; }
echo "as seen on 30 November 2026"
