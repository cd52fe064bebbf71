#!/bin/bash
# Sleuthkit 4.11.1+dfsg-1+b1 (Debian 12): a sparse file of ext4 with more than 340 extents cannot be read, and tsk_recover leaves
# an empty file in its place and ends with 0.
#
# 340 extents fit into a leaf of 4096 bytes of a file's extent tree. Where a second leaf is needed and there are holes, icat
# says "No filler entry for 0" and ends with 1; debugfs reads the file. Sparse disk images have thousands of extents.
#
# Needs apt-get with Debian 12's sources, mke2fs and debugfs (seen with 1.47.0), python3, sparse files.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
PATH=$PATH:/usr/sbin:/sbin
apt-get -q -o APT::Sandbox::User=root download {sleuthkit,libtsk19}=4.11.1+dfsg-1+b1 libafflib0v5=3.7.20-1 \
    libbfio1=20170123-6 libewf2=20140813-1+b1 libvhdi1=20210425-1+b2 libvmdk1=20200926-2+b2 >/dev/null
for package in *.deb; do dpkg -x "$package" root; done
export LD_LIBRARY_PATH=root/usr/lib/x86_64-linux-gnu
PATH=root/usr/bin:$PATH

# Files of so many blocks of data, three blocks of nothing between them.
python3 - <<'PY'
import os
os.mkdir("tree")
for extents in (4, 340, 341):
    with open(f"tree/{extents}", "wb") as file:
        for index in range(extents):
            file.seek(index * 16384)
            file.write(b"x" * 4096)
PY
MKE2FS_CONFIG=/none mke2fs -q -t ext4 -b 4096 -I 256 -O extent,filetype -d tree fs.img 32M >/dev/null 2>&1
mkdir out
tsk_recover -a fs.img out >/dev/null 2>&1 && ended=$? || ended=$?
seen=$(for name in 4 340 341; do
    inode=$(debugfs -R "stat $name" fs.img 2>/dev/null | sed -n 's/^Inode: \([0-9]*\).*/\1/p')
    code=0
    icat fs.img "$inode" >read.out 2>error || code=$?
    echo "$name extents, $(debugfs -R "cat $name" fs.img 2>/dev/null | wc -c) bytes: icat $(stat -c %s read.out)," \
        "ends with $code $(grep -o 'No filler entry for 0' error || true); tsk_recover $(stat -c %s out/$name), ends with $ended"
done)
echo "$seen"
want="4 extents, 53248 bytes: icat 53248, ends with 0 ; tsk_recover 53248, ends with 0
340 extents, 5558272 bytes: icat 5558272, ends with 0 ; tsk_recover 5558272, ends with 0
341 extents, 5574656 bytes: icat 0, ends with 1 No filler entry for 0; tsk_recover 0, ends with 0"
[ "$seen" = "$want" ] || { echo "changed"; exit 1; }
echo "as seen on 30 November 2026"
