#!/bin/bash
# dissect.volume 3.18 (PyPI): a read of a thin volume that reaches a block without a place in the pool answers zeroes, in place of
# the blocks before it and of those behind it.
#
# A thin volume (dm-thin, LVM) has blocks that were never written; they read as zeroes. Block by block the library finds the
# others. In one read of several blocks the first that is missing ends it: the answer is zeroes for what was left to
# read, without what was read so far. All of the disk read at once is shorter than it, and nothing but zeroes.
#
# Needs apt-get with Debian 12's sources and the libraries that an installed thin-provisioning-tools brings, python3 with venv.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
apt-get -q -o APT::Sandbox::User=root download thin-provisioning-tools=0.9.0-2 libaio1=0.3.113-4 >/dev/null
for package in *.deb; do dpkg -x "$package" root; done
python3 -m venv venv
venv/bin/pip -q --disable-pip-version-check install dissect.volume==3.18

# A volume of eight blocks of 64 KiB: 0, 1, 2 and 5 lie in the pool at 4, 5, 6 and 7.
cat >pool.xml <<'XML'
<superblock uuid="" time="0" transaction="0" data_block_size="128" nr_data_blocks="8">
  <device dev_id="1" mapped_blocks="4" transaction="0" creation_time="0" snap_time="0">
    <range_mapping origin_begin="0" data_begin="4" length="3" time="0"/>
    <single_mapping origin_block="5" data_block="7" time="0"/>
  </device>
</superblock>
XML
truncate -s 4M metadata
LD_LIBRARY_PATH=root/lib/x86_64-linux-gnu:root/usr/lib/x86_64-linux-gnu root/usr/sbin/thin_restore -q -i pool.xml -o metadata
LD_LIBRARY_PATH=root/lib/x86_64-linux-gnu:root/usr/lib/x86_64-linux-gnu root/usr/sbin/thin_check -q metadata
for block in {0..7}; do head -c 65536 /dev/zero | tr '\0' "$block"; done >data

cat >look.py <<'PY'
from dissect.volume.dm.thin import ThinPool
def show(data):
    return data[::65536].replace(b"\0", b".").decode()
with open("metadata", "rb") as metadata, open("data", "rb") as data:
    volume = ThinPool(metadata, data).open(1, 8 * 65536)
    for count in (1, 2, 4, 8):
        volume.seek(0)
        parts = []
        while part := volume.read(count * 65536):
            parts.append(show(part))
        print(f"reads of {count}: {' '.join(parts)}")
PY
seen=$(venv/bin/python look.py)
echo "$seen"
want='reads of 1: 4 5 6 . . 7 . .
reads of 2: 45 . .. ..
reads of 4: . ....
reads of 8: .....'
[ "$seen" = "$want" ] || { echo "changed"; exit 1; }
echo "as seen on 30 November 2026"
