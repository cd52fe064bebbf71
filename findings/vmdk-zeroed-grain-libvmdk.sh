#!/bin/bash
# libvmdk-python 20260714 (PyPI): a zeroed grain of a sparse VMDK is read as the file's own descriptor text.
#
# With `zeroed_grain=on` qemu-img sets the header flag of that name, and 1 in the grain table then means "this grain is
# zero". libvmdk takes it for a place: sector 1 of the file, where the descriptor is, and hands its text to the reader as
# the disk's contents.
#
# Needs python3 with venv, qemu-img and qemu-io (seen with 10.0.2).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip -q --disable-pip-version-check install libvmdk-python==20260714
qemu-img --version | head -1

qemu-img create -q -f vmdk -o zeroed_grain=on disk.vmdk 4M
qemu-io -f vmdk -c 'write -q -P 0x11 0 1M' -c 'write -q -z 512k 128k' disk.vmdk
[ "$(qemu-io -f vmdk -c 'read -q -P 0 512k 128k' disk.vmdk)" = "" ] # QEMU reads zeroes there
cat >look.py <<'PY'
import pyvmdk
disk = pyvmdk.handle()
disk.open("disk.vmdk")
disk.open_extent_data_files()
disk.seek(512 << 10)
print(disk.read_buffer(21))
PY
seen=$(venv/bin/python look.py)
echo "$seen"
[ "$seen" = "b'# Disk DescriptorFile'" ] || { echo "changed"; exit 1; }
echo "as seen on 30 November 2026"
