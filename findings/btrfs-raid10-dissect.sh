#!/bin/bash
# dissect.btrfs 1.10 (PyPI): files of a btrfs whose data has the profile RAID10 are read from the wrong disks, without an error.
#
# The disks of a RAID10 are pairs, and a stripe's number says which pair (btrfs on-disk format, "chunk item": sub_stripes). The
# library takes the number of the pair for that of the disk: of four disks it reads the first two, which are the same, and each
# second stripe is the one before. The sums that btrfs has of each block would tell; they are not looked at. RAID0 and RAID1
# are read as they are by Linux and GRUB.
#
# Needs root, a kernel with btrfs and loop devices, apt-get with Debian 12's sources, python3 with venv.
set -euo pipefail
folder=$(mktemp -d)
devices=()
# losetup -d waits for the last user of a device, here the mount in another mount namespace, if one has it.
trap 'umount -q "$folder/mount" || true; [ ${#devices[@]} = 0 ] || losetup -d "${devices[@]}"; rm -rf "$folder"' EXIT
cd "$folder"
PATH=$PATH:/usr/sbin:/sbin
apt-get -q -o APT::Sandbox::User=root download btrfs-progs=6.2-1+deb12u2 grub-common=2.06-13+deb12u2 >/dev/null
for package in *.deb; do dpkg -x "$package" root; done
python3 -m venv venv
venv/bin/pip -q --disable-pip-version-check install dissect.btrfs==1.10
mkdir mount

cat >look.py <<'PY'
import sys
from dissect.btrfs import Btrfs
sys.stdout.buffer.write(Btrfs([open(disk, "rb") for disk in sys.argv[1:]]).get("file").open().read())
PY
# letters: of each 64 KiB, the size of a stripe, the first byte.
letters() { fold -b -w 65536 | cut -c 1 | tr -d '\n'; }
for letter in a b c d e f g h i j k l m n o p; do head -c 65536 /dev/zero | tr '\0' $letter; done >file
seen=$(
    for profile in raid0 raid1 raid10; do
        disks=("$profile".{1,2,3,4}) devices=()
        truncate -s 400M "${disks[@]}"
        for disk in "${disks[@]}"; do devices+=("$(losetup -f --show "$disk")"); done
        root/sbin/mkfs.btrfs -q -d $profile -m raid1 "${devices[@]}" >/dev/null 2>&1
        root/bin/btrfs device scan "${devices[@]}" >/dev/null
        mount -t btrfs "${devices[0]}" mount
        cp file mount/file
        sync -f mount
        echo "Linux, $profile: $(letters <mount/file)"
        mount -o remount,ro mount
        umount mount
        losetup -d "${devices[@]}"
        devices=()
        echo "GRUB, $profile: $(root/usr/bin/grub-fstest "${disks[@]}" -c 4 cat '(loop0)/file' | letters)"
        echo "dissect.btrfs, $profile: $(timeout 60 venv/bin/python look.py "${disks[@]}" | letters)"
    done
)
echo "$seen"
all=abcdefghijklmnop
want="Linux, raid0: $all
GRUB, raid0: $all
dissect.btrfs, raid0: $all
Linux, raid1: $all
GRUB, raid1: $all
dissect.btrfs, raid1: $all
Linux, raid10: $all
GRUB, raid10: $all
dissect.btrfs, raid10: aacceeggiikkmmoo"
[ "$seen" = "$want" ] || { echo "changed"; exit 1; }
echo "as seen on 1 December 2026"
