#!/bin/bash
# pyfatfs 1.1.0 (PyPI) and fatfs 0.10.8 (npm) damage a FAT where they make a file shorter: with the first its end still leads to a
# cluster that the next file gets, and each overwrites the other; after the second mtools reads no file of the disk.
#
# Clusters behind the new end are freed. pyfatfs does not mark the last one that is kept as the end of its chain, and a file
# of more than a cluster cannot be written anew at all ("FREE_CLUSTER mark found", its old bytes are gone). fatfs puts 0xff00
# where free clusters have 0: no cluster of that number exists ("Probably non MS-DOS disk"). Neither says anything.
#
# Needs apt-get with Debian 12's sources, npm, python3 with venv.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
apt-get -q -o APT::Sandbox::User=root download dosfstools=4.2-1 mtools=4.0.33-1+really4.0.32-1 >/dev/null
for package in *.deb; do dpkg -x "$package" root; done
PATH=$PWD/root/usr/bin:$PWD/root/sbin:$PATH
python3 -m venv venv
venv/bin/pip -q --disable-pip-version-check install pyfatfs==1.1.0 fs==2.4.16 setuptools==75.8.0
npm install --silent --no-audit --no-fund --prefix . fatfs@0.10.8 >/dev/null

letters() { head -c "$2" /dev/zero | tr '\0' "$1"; }
# A disk with the files A and B, in clusters of 512 bytes.
disk() {
    rm -f disk
    truncate -s 10M disk
    mkfs.fat -F 16 -s 1 disk >/dev/null
    letters A 2000 | mcopy -i disk - ::A
    letters B 1000 | mcopy -i disk - ::B
    fsck.fat -n disk >/dev/null
}
# look FILE...: what mtools reads of each, a letter for 100 bytes, and what fsck.fat says.
look() {
    local name
    for name in "$@"; do
        mtype -i disk "::$name" >out 2>error || true
        echo "$name: $(fold -w 100 out | cut -c 1 | tr -d '\n')$(grep -o 'Probably.*' error || true)"
    done
    fsck.fat -n disk >out || true
    grep -E '^/A  and|share clusters|out of range' out | xargs
}
cat >change.py <<'PY'
import warnings
warnings.simplefilter("ignore")
from pyfatfs.PyFatFS import PyFatFS
with PyFatFS("disk") as fs:
    with fs.openbin("/A", "r+") as file:
        file.truncate(100)
    fs.writebytes("/C", b"C" * 1000)
    with fs.openbin("/A", "a") as file:
        file.write(b"a" * 1000)
    try:
        fs.writebytes("/B", b"b" * 1000)
    except Exception as error:
        print("B:", error)
PY
cat >change.js <<'JS'
const fs = require("fs")
const disk = fs.openSync("disk", "r+")
const fat = require("fatfs").createFileSystem({
    sectorSize: 512,
    numSectors: fs.fstatSync(disk).size / 512,
    readSectors: (sector, data, done) => fs.read(disk, data, 0, data.length, sector * 512, error => done(error)),
    writeSectors: (sector, data, done) => fs.write(disk, data, 0, data.length, sector * 512, error => done(error)),
})
fat.on("ready", () => fat.truncate("/A", 100, error => { if (error) console.log(error) }))
JS
seen=$(
    disk
    venv/bin/python change.py
    look A B C
    disk
    node change.js
    look A B
)
echo "$seen"
want='B: FREE_CLUSTER mark found in FAT cluster chain, cannot access file
A: Aaaaaaaaaaa
B: 
C: aaaaaaCCCC
/A and share clusters.
A: Probably non MS-DOS disk
B: Probably non MS-DOS disk
Cluster 1 out of range (65280 > 20288). Setting to EOF. Cluster 2 out of range (65280 > 20288). Setting to EOF. Cluster 3 out of range (65280 > 20288). Setting to EOF.'
[ "$seen" = "$want" ] || { echo "changed"; exit 1; }
echo "as seen on 30 November 2026"
