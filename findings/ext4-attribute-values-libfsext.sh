#!/bin/bash
# libfsext-python 20260821 (PyPI): the value of an extended attribute in an inode of ext4 reads as zeroes from its 61st byte
# on.
#
# Values lie in the inode behind its fields, or in a block of their own; nothing in the format has 60 bytes but the block
# map, where a file with inline_data begins. The attribute has its right size, and there is no error.
#
# Needs python3 with venv, mke2fs and debugfs (seen with 1.47.0).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
PATH=$PATH:/usr/sbin:/sbin
python3 -m venv venv
venv/bin/pip -q --disable-pip-version-check install libfsext-python==20260821

mke2fs -q -t ext4 -I 1024 fs.img 16M 2>/dev/null >/dev/null
touch empty
printf '%s\n' 'write empty file' >commands
for length in 60 61 200; do
    printf 'ea_set file user.of%d %s\n' "$length" "$(head -c "$length" /dev/zero | tr '\0' x)" >>commands
done
debugfs -w -f commands fs.img >/dev/null 2>&1
cat >look.py <<'PY'
import pyfsext
volume = pyfsext.volume()
volume.open("fs.img")
for entry in volume.get_root_directory().sub_file_entries:
    for attribute in entry.extended_attributes:
        value = attribute.read_buffer(attribute.size)
        print(f"{attribute.name}: size {attribute.size}, {value.count(b'x')} times x, {value.count(0)} zeroes")
PY
seen=$(venv/bin/python look.py)
echo "$seen"
echo "debugfs reads user.of200: $(debugfs -R 'ea_get -V file user.of200' fs.img 2>/dev/null | tr -dc x | wc -c) times x"
want="user.of60: size 60, 60 times x, 0 zeroes
user.of61: size 61, 60 times x, 1 zeroes
user.of200: size 200, 60 times x, 140 zeroes"
[ "$seen" = "$want" ] || { echo "changed"; exit 1; }
echo "as seen on 30 November 2026"
