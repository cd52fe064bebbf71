#!/bin/bash
# gpt 3.0.0 (npm) and gpt-image 0.9.1 (PyPI): a sound GPT with an unused entry between two partitions is called damaged by the
# first, which also loses their numbers; one with room for 256 partitions, or with its entries elsewhere, is refused by the second.
#
# The checksum of a GPT covers all its entries, each in its place. The npm library keeps the used ones only, without their
# numbers, and sums them as if they were the first: after partition 2 of 3 is deleted, `verifyTable()` is false. The other
# compares both headers with what its own tables have; the headers of `sgdisk -S 256` and `sgdisk -j 1024` are
# another's ("primary and backup table do not match"). sgdisk -v and partx take all of them.
#
# Needs apt-get with Debian 12's sources, npm, python3 with venv, partx.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
apt-get -q -o APT::Sandbox::User=root download gdisk=1.0.9-2.1 libpopt0=1.19+dfsg-1 >/dev/null
for package in *.deb; do dpkg -x "$package" root; done
sgdisk() { LD_LIBRARY_PATH=$(echo root/usr/lib/*-linux-gnu):$(echo root/lib/*-linux-gnu) "$(find root -name sgdisk -type f)" "$@"; }
npm install --silent gpt@3.0.0 >/dev/null
python3 -m venv venv
venv/bin/pip -q --disable-pip-version-check install gpt-image==0.9.1
cat >look.js <<'JS'
const GPT = require('gpt'), fs = require('fs')
const gpt = GPT.parse(fs.readFileSync('disk.img'), 512)
console.log(`${gpt.partitions.length} partitions, header ${gpt.verifyHeader()}, table ${gpt.verifyTable()}`)
JS
cat >look.py <<'PY'
from gpt_image.disk import Disk
try:
    disk = Disk.open("disk.img")
    print(len(disk.table.partitions.entries), "partitions")
except Exception as error:
    print(error)
PY
# look WHAT OPTIONS: a disk of two partitions that sgdisk makes with these options.
look() {
    rm -f disk.img
    truncate -s 64M disk.img
    sgdisk "${@:2}" disk.img >/dev/null
    echo "$1: sgdisk $(sgdisk -v disk.img | grep -o 'No problems found'), partx $(partx -g -o NR disk.img | xargs)"
    echo "$1: gpt $(node look.js)"
    echo "$1: gpt-image $(venv/bin/python look.py)"
}
seen=$(
    look plain -n 1:4096:8191 -n 2:8192:16383
    look gap -n 1:4096:8191 -n 3:8192:16383
    look 256 -S 256 -n 1:4096:8191 -n 2:8192:16383
    look moved -j 1024 -n 1:4096:8191 -n 2:8192:16383
)
echo "$seen"
want='plain: sgdisk No problems found, partx 1 2
plain: gpt 2 partitions, header true, table true
plain: gpt-image 2 partitions
gap: sgdisk No problems found, partx 1 3
gap: gpt 2 partitions, header true, table false
gap: gpt-image 2 partitions
256: sgdisk No problems found, partx 1 2
256: gpt 2 partitions, header true, table true
256: gpt-image primary and backup table do not match
moved: sgdisk No problems found, partx 1 2
moved: gpt 2 partitions, header true, table true
moved: gpt-image primary and backup table do not match'
[ "$seen" = "$want" ] || { echo "changed"; exit 1; }
echo "as seen on 30 November 2026"
