#!/bin/bash
# firmware-disk.sh OUT PAYLOAD TOKEN [GRUB]: makes a disk from which firmware of other CPUs says TOKEN: a FAT partition with
# a script for the shell of UEFI, which copies PAYLOAD there, and PAYLOAD for U-Boot; and, from the parts in the folder
# GRUB, a PReP partition that SLOF loads as a whole.
set -euo pipefail
PATH=$PATH:/usr/sbin:/sbin
out=$1 payload=$2 token=$3 grub=${4:-}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

printf '%s\r\n' 'echo -off' "echo $token" 'fs0:' 'cp payload copy' 'comp payload copy' 'reset -s' \
    >"$work/startup.nsh"

truncate -s 50M "$work/partition"
mkfs.fat -F 16 "$work/partition" >/dev/null
mcopy -i "$work/partition" "$work/startup.nsh" ::
mcopy -i "$work/partition" "$payload" ::payload
truncate -s 64M "$out"
printf '2048,50M,0x0e\n104448,8M,0x41,*\n' | sfdisk --quiet --label dos "$out"
dd if="$work/partition" of="$out" bs=512 seek=2048 conv=notrunc status=none
[ -n "$grub" ] || exit 0
echo "echo $token" >"$work/early.cfg"
grub-mkimage -O powerpc-ieee1275 -d "$grub" -p / -c "$work/early.cfg" -o "$work/core" echo
dd if="$work/core" of="$out" bs=512 seek=104448 conv=notrunc status=none
