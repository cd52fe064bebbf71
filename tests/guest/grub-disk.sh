#!/bin/bash
# grub-disk.sh OUT PAYLOAD TOKEN: makes a disk that both SeaBIOS and OVMF boot. GRUB, started from it, prints TOKEN
# from one file of the disk and checks the SHA-256 of another, PAYLOAD. Runs on the host, needs no root.
set -euo pipefail
PATH=$PATH:/usr/sbin:/sbin
out=$1 payload=$2 token=$3
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

modules=(part_msdos fat configfile search search_fs_file serial terminal normal echo test cat hashsum gcry_sha256 halt)
cat >"$work/early.cfg" <<'GRUB'
serial --unit=0 --speed=115200
terminal_output serial
search --file --set=root /check/sums
configfile ($root)/check/grub.cfg
GRUB
cat >"$work/grub.cfg" <<'GRUB'
echo "GRUB-BEGIN $grub_platform"
cat /check/token
if hashsum --hash sha256 --check /check/sums --prefix /check; then
    echo "GRUB-HASH ok"
else
    echo "GRUB-HASH wrong"
fi
echo "GRUB-END"
halt
GRUB
echo "GRUB-TOKEN $token" >"$work/token"
cp "$payload" "$work/payload"
(cd "$work" && sha256sum payload >sums)

grub-mkimage -O i386-pc -p /check -c "$work/early.cfg" -o "$work/core.img" biosdisk "${modules[@]}"
grub-mkimage -O x86_64-efi -p /check -c "$work/early.cfg" -o "$work/bootx64.efi" "${modules[@]}"

start_sectors=2048 size_mib=64
truncate -s $((size_mib - 1))M "$work/partition"
mkfs.fat -F 32 "$work/partition" >/dev/null
mmd -i "$work/partition" ::check ::EFI ::EFI/BOOT
mcopy -i "$work/partition" "$work"/{grub.cfg,token,payload,sums} ::check
mcopy -i "$work/partition" "$work/bootx64.efi" ::EFI/BOOT/BOOTX64.EFI

truncate -s ${size_mib}M "$out"
echo "$start_sectors,,0xef,*" | sfdisk --quiet --label dos "$out"
[ "$(stat -c %s "$work/core.img")" -le $(((start_sectors - 1) * 512)) ]
dd if=/usr/lib/grub/i386-pc/boot.img of="$out" bs=440 count=1 conv=notrunc status=none
dd if="$work/core.img" of="$out" bs=512 seek=1 conv=notrunc status=none
dd if="$work/partition" of="$out" bs=512 seek=$start_sectors conv=notrunc status=none
