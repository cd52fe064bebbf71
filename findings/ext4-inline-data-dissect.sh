#!/bin/bash
# dissect.extfs 3.15 (PyPI): a file of an ext4 file system with inline_data whose bytes do not fit into the inode's block
# map is cut off after 60 of them, without an error.
#
# ext4 keeps the first 60 bytes of a small file in place of its block map, and the rest in the extended attribute
# system.data. The library opens the file with its right size and reads the first part only.
#
# Needs python3 with venv, mke2fs and debugfs (seen with 1.47.0).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip -q --disable-pip-version-check install dissect.extfs==3.15

mkdir tree
for length in 60 61 120; do head -c $length /dev/zero | tr '\0' x >tree/$length; done
mke2fs -q -t ext4 -O inline_data -d tree fs.img 16M 2>/dev/null >/dev/null
cat >look.py <<'PY'
from dissect.extfs import ExtFS
with open("fs.img", "rb") as image:
    fs = ExtFS(image)
    for name in ("60", "61", "120"):
        node = fs.get(name)
        print(f"{name}: size {node.size}, read {len(node.open().read())}")
PY
seen=$(venv/bin/python look.py)
echo "$seen"
echo "debugfs reads $(debugfs -R 'cat 120' fs.img 2>/dev/null | wc -c)"
want="60: size 60, read 60
61: size 61, read 60
120: size 120, read 60"
[ "$seen" = "$want" ] || { echo "changed"; exit 1; }
echo "as seen on 30 November 2026"
