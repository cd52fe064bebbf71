#!/bin/bash
# jefferson 0.4.8 and dissect.jffs 1.6 (PyPI): of a file of JFFS2 with two names the first extracts one, without an error; the
# second reads no file that is compressed with LZO ("Invalid header value").
#
# A directory's entry is a node of its own, with the number of the file's inode, and a file has as many as it has names. jefferson
# keeps one entry for each inode's number, and so the other hard links are not there. dissect.jffs counts LZO among what it
# reads, and looks for the header of python-lzo's format, which JFFS2 does not have. Each of them does what the other does not.
#
# Needs apt-get with Debian 12's sources, liblzo2-2, python3 with venv.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
apt-get -q -o APT::Sandbox::User=root download mtd-utils=1:2.1.5-1 >/dev/null
for package in *.deb; do dpkg -x "$package" root; done
python3 -m venv venv
venv/bin/pip -q --disable-pip-version-check install jefferson==0.4.8 dissect.jffs==1.6

mkdir files
seq 10000 >files/text
ln files/text files/second
seq 500 >files/other
root/usr/sbin/mkfs.jffs2 -r files -o zlib.jffs2
root/usr/sbin/mkfs.jffs2 -x zlib -x rtime -X lzo -r files -o lzo.jffs2

cat >look.py <<'PY'
import sys
from dissect.jffs import JFFS2
disk = JFFS2(open(sys.argv[1], "rb"))
for name, node in sorted(disk.get("/").iterdir()):
    try:
        same = node.open().read() == open("files/" + name, "rb").read()
    except ValueError as error:
        same = error
    print("dissect.jffs:", name, same)
PY
seen=$(
    for method in zlib lzo; do
        echo "$method"
        venv/bin/python look.py $method.jffs2
        venv/bin/jefferson -d out-$method $method.jffs2 >/dev/null
        same=0
        for file in "out-$method"/*; do
            if cmp -s "$file" "files/${file##*/}"; then same=$((same + 1)); fi
        done
        echo "jefferson: $(find out-$method -type f | wc -l) files, $same of them the same"
    done
)
echo "$seen"
want='zlib
dissect.jffs: other True
dissect.jffs: second True
dissect.jffs: text True
jefferson: 2 files, 2 of them the same
lzo
dissect.jffs: other Invalid header value
dissect.jffs: second Invalid header value
dissect.jffs: text Invalid header value
jefferson: 2 files, 2 of them the same'
[ "$seen" = "$want" ] || { echo "changed"; exit 1; }
echo "as seen on 1 December 2026"
