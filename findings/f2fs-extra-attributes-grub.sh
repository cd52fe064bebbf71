#!/bin/bash
# GRUB 2.06-13+deb12u2 (grub-common, Debian 12): an F2FS with the feature "extra_attr" is empty to it, without an error, and no file is found.
#
# With this feature, which checksums of inodes, project quotas and compression need, an inode has more fields, and what follows
# them (small files, small folders, the numbers of blocks) begins at a place that the inode says (i_extra_isize in Linux'
# include/linux/f2fs_fs.h). GRUB reads all of this at the place where it is without the feature, and does not
# look at the features. fsck.f2fs says that the file system is sound.
#
# Needs apt-get with Debian 12's sources, libdevmapper, libselinux, libblkid, libuuid.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
apt-get -q -o APT::Sandbox::User=root download grub-common=2.06-13+deb12u2 f2fs-tools=1.15.0-1 liblzo2-2=2.10-2 liblz4-1=1.9.4-1 \
    >/dev/null
for package in *.deb; do dpkg -x "$package" root; done
LD_LIBRARY_PATH=$(echo root/usr/lib/*-linux-gnu):$(echo root/lib/*-linux-gnu)
export LD_LIBRARY_PATH
mkdir -p files/folder
echo "a small file" >files/small
seq 100000 >files/large
seq -f files/folder/%.0f 50 | xargs touch

# look FEATURES: what is in an F2FS that has them.
look() {
    rm -f disk
    truncate -s 128M disk
    root/sbin/mkfs.f2fs -q ${1:+-O "$1"} disk >/dev/null
    root/sbin/sload.f2fs -f files disk >/dev/null
    echo "${1:-no features}: fsck.f2fs $(root/sbin/fsck.f2fs --dry-run disk | grep -c '\[Fail\]') complaints," \
        "GRUB lists $(root/usr/bin/grub-fstest disk ls '(loop0)/' | wc -w) at the top and $(
            root/usr/bin/grub-fstest disk ls '(loop0)/folder/' 2>/dev/null | wc -w
        ) in the folder"
    for name in small large; do
        root/usr/bin/grub-fstest disk cat "(loop0)/$name" >back 2>error || true
        cmp -s back files/$name && echo "GRUB, $name: the same" || echo "GRUB, $name: $(grep -o 'not found' error)"
    done
}
seen=$(
    look ''
    look extra_attr
    look extra_attr,inode_checksum
)
echo "$seen"
want='no features: fsck.f2fs 0 complaints, GRUB lists 3 at the top and 50 in the folder
GRUB, small: the same
GRUB, large: the same
extra_attr: fsck.f2fs 0 complaints, GRUB lists 0 at the top and 0 in the folder
GRUB, small: not found
GRUB, large: not found
extra_attr,inode_checksum: fsck.f2fs 0 complaints, GRUB lists 0 at the top and 0 in the folder
GRUB, small: not found
GRUB, large: not found'
[ "$seen" = "$want" ] || { echo "changed"; exit 1; }
echo "as seen on 1 December 2026"
