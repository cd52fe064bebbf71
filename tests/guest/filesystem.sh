#!/bin/bash
# filesystem.sh KIND DEVICE FILE: makes a file system, writes FILE to it, checks it, and reads FILE back from the disk.
# The last line is the SHA-256 of what came back.
set -euo pipefail
kind=$1 device=$2 file=$3
case $kind in
ext4) make=(mkfs.ext4 -q -F) check=(e2fsck -f -n) ;;
xfs) make=(mkfs.xfs -q -f) check=(xfs_repair -n) ;;
esac
"${make[@]}" "$device"
mount -t "$kind" "$device" /mnt
mkdir /mnt/folder
cp "$file" /mnt/folder/file
sync
umount /mnt
"${check[@]}" "$device" >&2
mount -t "$kind" -o ro "$device" /mnt
sha256sum /mnt/folder/file
umount /mnt
