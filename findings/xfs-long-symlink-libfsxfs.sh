#!/bin/bash
# libfsxfs-python 20260901 (PyPI): a symbolic link of XFS whose target does not fit into its inode leads to "XSLM".
#
# A target of more than some 330 bytes lies in a block of its own, which in version 5 of the format (the default since
# 2015) begins with a header of 56 bytes and the magic number XSLM. The library answers the block up to the first zero byte,
# that is the magic number, beside the link's right size.
#
# Needs root, a kernel with XFS and loop devices, python3 with venv, and mkfs.xfs (seen with 6.1.0).
set -euo pipefail
folder=$(mktemp -d)
trap 'umount -q "$folder/mount" || true; rm -rf "$folder"' EXIT
cd "$folder"
PATH=$PATH:/usr/sbin:/sbin
python3 -m venv venv
venv/bin/pip -q --disable-pip-version-check install libfsxfs-python==20260901

truncate -s 320M fs.img
mkfs.xfs -q fs.img
mkdir mount
mount -o loop fs.img mount
ln -s folder/file mount/short
ln -s "$(printf 'folder/%.0s' {1..80})" mount/long
echo "Linux reads $(readlink mount/long | tr -d '\n' | wc -c) bytes"
umount mount
cat >look.py <<'PY'
import pyfsxfs
volume = pyfsxfs.volume()
volume.open("fs.img")
for entry in volume.get_root_directory().sub_file_entries:
    target = entry.symbolic_link_target
    print(f"{entry.name}: size {entry.size}, target {target} ({len(target)})")
PY
seen=$(venv/bin/python look.py)
echo "$seen"
want="short: size 11, target folder/file (11)
long: size 560, target XSLM (4)"
[ "$seen" = "$want" ] || { echo "changed"; exit 1; }
echo "as seen on 30 November 2026"
