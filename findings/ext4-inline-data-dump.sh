#!/bin/bash
# dump 0.4b47-4 (Debian 12): a backup of an ext4 file system with inline_data holds zeroes in place of each file that lies in
# its inode, and of a device node whose numbers are large the device 0:0.
#
# dump knows a file's blocks, and a file with inline_data has none: it is saved as a hole of the right size. Large device
# numbers (those of NVMe disks' partitions, 259 and minor numbers over 255) are in a word of the inode that it does not
# look at. dump and restore end with 0; "Unknown EA index", once a file, is all that restore says.
#
# Needs root, loop devices, apt-get with Debian 12's sources, mke2fs (seen with 1.47.0).
set -euo pipefail
folder=$(mktemp -d)
device=
trap '[ -z "$device" ] || losetup -d "$device"; rm -rf "$folder"' EXIT
cd "$folder"
PATH=$folder/sbin:$PATH:/usr/sbin:/sbin
apt-get -q -o APT::Sandbox::User=root download dump=0.4b47-4 >/dev/null
dpkg -x dump_*.deb .

mkdir tree
for length in 10 100 3000; do head -c $length /dev/zero | tr '\0' x >tree/of-$length; done
mknod tree/sda1 b 8 1
mknod tree/nvme0n1p3 b 259 3
# shown FEATURE: what restore makes of a dump of a file system made with or without it.
shown() {
    rm -rf fs.img back
    MKE2FS_CONFIG=/none mke2fs -q -t ext4 -b 4096 -I 256 -O "extent,filetype,$1" -d tree fs.img 32M >/dev/null 2>&1
    device=$(losetup -f --show fs.img)
    dump -0 -f backup "$device" 2>/dev/null
    losetup -d "$device"
    device=
    mkdir back
    (cd back && restore -r -f ../backup)
    for length in 10 100 3000; do echo "$1: $(stat -c %s back/of-$length) bytes, $(tr -dc x <back/of-$length | wc -c) times x"; done
    for node in sda1 nvme0n1p3; do echo "$1: $node $(stat -c %Hr:%Lr back/$node)"; done
}
seen=$(shown ^inline_data; shown inline_data)
echo "$seen"
want='^inline_data: 10 bytes, 10 times x
^inline_data: 100 bytes, 100 times x
^inline_data: 3000 bytes, 3000 times x
^inline_data: sda1 8:1
^inline_data: nvme0n1p3 0:0
inline_data: 10 bytes, 0 times x
inline_data: 100 bytes, 0 times x
inline_data: 3000 bytes, 3000 times x
inline_data: sda1 8:1
inline_data: nvme0n1p3 0:0'
[ "$seen" = "$want" ] || { echo "changed"; exit 1; }
echo "as seen on 30 November 2026"
