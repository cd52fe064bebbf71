#!/bin/bash
# libfsext-python 20260821 (PyPI): a device node of ext4 whose major or minor number is 256 or more is device 0:0.
#
# Such numbers (NVMe disks' partitions have the major number 259) are kept in the second word of the inode's block map, in
# the kernel's newer encoding; the library reads the first word only, where small ones are, and says nothing.
#
# Needs python3 with venv, mke2fs and debugfs (seen with 1.47.0).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
PATH=$PATH:/usr/sbin:/sbin
python3 -m venv venv
venv/bin/pip -q --disable-pip-version-check install libfsext-python==20260821

mke2fs -q -t ext4 fs.img 16M 2>/dev/null >/dev/null
printf 'mknod %s\n' 'sda1 b 8 1' 'nvme0n1p3 b 259 3' 'sdtc b 8 300' >commands
debugfs -w -f commands fs.img >/dev/null 2>&1
cat >look.py <<'PY'
import pyfsext
volume = pyfsext.volume()
volume.open("fs.img")
for entry in volume.get_root_directory().sub_file_entries:
    if entry.name != "lost+found":
        print(entry.name, entry.get_device_number())
PY
seen=$(venv/bin/python look.py)
echo "$seen"
debugfs -R 'stat nvme0n1p3' fs.img 2>/dev/null | grep -o 'Device major.*' | sed 's/^/debugfs reads nvme0n1p3: /'
want="sda1 (8, 1)
nvme0n1p3 (0, 0)
sdtc (0, 0)"
[ "$seen" = "$want" ] || { echo "changed"; exit 1; }
echo "as seen on 30 November 2026"
