#!/bin/bash
# genext2fs 1.5.0-3 (Debian 12): a device node whose major or minor number is 256 or more becomes a node of another device.
#
# It keeps eight bits of each number: a partition of an NVMe disk, 259:300, is the IDE disk's partition 3:44 in the image,
# without a warning, from a folder as from a table of devices. Larger numbers have a second word of the inode; mke2fs -d
# uses it.
#
# Needs root (for mknod), apt-get with Debian 12's sources and libarchive's libraries, mke2fs and debugfs (seen with 1.47.0).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
PATH=$PATH:/usr/sbin:/sbin
apt-get -q -o APT::Sandbox::User=root download genext2fs=1.5.0-3 libarchive13=3.6.2-1+deb12u5 >/dev/null
for package in *.deb; do dpkg -x "$package" root; done

mkdir tree
mknod tree/small b 8 17
mknod tree/major b 259 0
mknod tree/minor c 10 300
mknod tree/both b 259 300
# look NAME: the nodes' numbers as debugfs finds them.
look() {
    local node
    for node in small major minor both; do
        echo "$1: $(stat -c '%Hr:%Lr' tree/$node) is $(debugfs -R "stat $node" fs.img 2>/dev/null |
            sed -n 's/.*Device major\/minor number: 0*\([0-9]*\):0*\([0-9]\+\) .*/\1:\2/p')"
    done
}
seen=$(
    mke2fs -q -t ext2 -d tree fs.img 1M >/dev/null
    look mke2fs
    rm fs.img
    LD_LIBRARY_PATH=root/usr/lib/x86_64-linux-gnu root/usr/bin/genext2fs -q -b 1024 -d tree fs.img 2>/dev/null
    look genext2fs
)
echo "$seen"
want='mke2fs: 8:17 is 8:17
mke2fs: 259:0 is 259:0
mke2fs: 10:300 is 10:300
mke2fs: 259:300 is 259:300
genext2fs: 8:17 is 8:17
genext2fs: 259:0 is 3:0
genext2fs: 10:300 is 10:44
genext2fs: 259:300 is 3:44'
[ "$seen" = "$want" ] || { echo "changed"; exit 1; }
echo "as seen on 30 November 2026"
