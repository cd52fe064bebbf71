#!/bin/bash
# 7-Zip 22.01+really26.02+dfsg-0+deb12u1 (Debian 12), dissect.volume 3.18 and libvsmbr-python 20240505 (PyPI): of a sound MBR the first
# refuses partitions that are not in the order of their places, the second has two of the same number, the third no logical ones.
#
# Entries of the table are in no order: after a partition was deleted and another made, the first may lie behind the second.
# 7-Zip then opens nothing ("Cannot open the file as archive"). dissect.volume counts the logical partitions, whose numbers
# begin at 5, on from the extended one's number, over those of the primary ones behind it. libvsmbr does not know the
# extended type 0x85, Linux's own. sfdisk, partx and Sleuthkit agree about all of these.
#
# Needs apt-get with Debian 12's sources, sfdisk and partx (util-linux 2.38.1), python3 with venv.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
apt-get -q -o APT::Sandbox::User=root download 7zip=22.01+really26.02+dfsg-0+deb12u1 >/dev/null
for package in *.deb; do dpkg -x "$package" root; done
python3 -m venv venv
venv/bin/pip -q --disable-pip-version-check install dissect.volume==3.18 libvsmbr-python==20240505

cat >look.py <<'PY'
import pyvsmbr
from dissect.volume.disk import Disk
with open("disk", "rb") as disk:
    print("dissect.volume:", *(f"{part.number}:{part.offset // 512}+{part.size // 512}" for part in Disk(disk).partitions))
volume = pyvsmbr.volume()
volume.open("disk")
sizes = [volume.get_partition(number).size // 512 for number in range(volume.number_of_partitions)]
print("libvsmbr:", *(f"+{size}" for size in sizes))
PY
# look NAME, with what sfdisk shall make: what each knows of, NUMBER:START+SECTORS.
look() {
    rm -f disk
    truncate -s 200M disk
    { echo 'label: dos'; cat; } | sfdisk -q disk
    echo "$1"
    echo "partx: $(partx -g -o NR,START,SECTORS disk | awk '{print $1 ":" $2 "+" $3}' | xargs)"
    venv/bin/python look.py
    root/usr/bin/7zz l -slt disk >out 2>&1 || true # partitions are NUMBER.img, gaps have no suffix
    echo "7-Zip: $(awk '/^Path = .*img$/ { getline; print "+" $3 / 512 }' out | xargs)$(grep -o 'Cannot open.*' out || true)"
}
seen=$(
    look 'in order' <<<'2048,20480,83
22528,204800,5
24576,10240,83
40960,8192,82'
    look 'the second before the first' <<<'22528,20480,83
2048,20480,83'
    look 'extended first' <<<'2048,204800,5
206848,20480,83
4096,10240,83
20480,8192,82'
    look 'of type 0x85' <<<'2048,20480,83
22528,204800,85
24576,10240,83
40960,8192,82'
)
echo "$seen"
want='in order
partx: 1:2048+20480 2:22528+204800 5:24576+10240 6:40960+8192
dissect.volume: 1:2048+20480 2:24576+10240 3:40960+8192
libvsmbr: +20480 +10240 +8192
7-Zip: +20480 +10240 +8192
the second before the first
partx: 1:22528+20480 2:2048+20480
dissect.volume: 1:22528+20480 2:2048+20480
libvsmbr: +20480 +20480
7-Zip: Cannot open the file as archive
extended first
partx: 1:2048+204800 2:206848+20480 5:4096+10240 6:20480+8192
dissect.volume: 1:4096+10240 2:20480+8192 2:206848+20480
libvsmbr: +20480 +10240 +8192
7-Zip: +10240 +8192 +20480
of type 0x85
partx: 1:2048+20480 2:22528+204800 5:24576+10240 6:40960+8192
dissect.volume: 1:2048+20480 2:24576+10240 3:40960+8192
libvsmbr: +20480 +204800
7-Zip: +20480 +204800'
[ "$seen" = "$want" ] || { echo "changed"; exit 1; }
echo "as seen on 30 November 2026"
