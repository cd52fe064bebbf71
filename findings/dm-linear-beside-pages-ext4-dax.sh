#!/bin/bash
# Linux 6.1.192 (linux-image-6.1.0-57-cloud-amd64 6.1.192-3, Debian 12): a file on ext4 with -o dax=always has other bytes
# than are stored through it, where the file system lies on a dm-linear device that begins off a page boundary of a DAX
# device.
#
# device-mapper passes DAX on whatever the offset is, and offsets of DAX are in pages: with a table that begins at sector
# 1 of /dev/pmem0 a store goes 512 bytes beside the place where the same file is read with -o dax=never. The
# device's alignment_offset says so, mount and MAP_SYNC do not. Beginning at sector 8, all is well.
#
# A guest in QEMU (emulation is enough) with memory of its own as /dev/pmem0. Needs apt-get with Debian 12's security
# sources, qemu-system-x86_64, busybox-static, dmsetup, e2fsprogs, kmod and cpio.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
PATH=$PATH:/usr/sbin:/sbin
apt-get -q -o APT::Sandbox::User=root download linux-image-6.1.0-57-cloud-amd64=6.1.192-3 >/dev/null
dpkg -x linux-image-*.deb kernel

mkdir -p root/{bin,own,proc,sys,dev,m} root/lib/modules
cp /bin/busybox root/bin/
for program in dmsetup mke2fs; do
    cp "$(command -v $program)" root/own/ # busybox has an mke2fs, too
    ldd "$(command -v $program)" | grep -o '/[^ ]*' | while read -r library; do
        mkdir -p "root$(dirname "$library")"
        cp -L "$library" "root$library"
    done
done
release=$(basename kernel/lib/modules/*)
(cd kernel && find lib/modules -path '*/nvdimm/*' -o -path '*/dax/*' -o -name 'dm-mod.ko' -o -name 'modules.*') |
    (cd kernel && cpio -pdm --quiet ../root)
depmod -b root "$release"
cat >root/init <<'SH'
#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev
for module in nd_pmem nd_e820 dm-mod; do modprobe $module; done
while [ ! -b /dev/pmem0 ]; do sleep 0.1; done
dd if=/dev/urandom of=/stored bs=64k count=4 2>/dev/null
for start in 8 1; do
    /own/dmsetup create --noudevsync --noudevrules disk --table "0 262144 linear /dev/pmem0 $start"
    [ -b /dev/dm-0 ] || mknod /dev/dm-0 b "$(cut -d: -f1 /sys/block/dm-0/dev)" "$(cut -d: -f2 /sys/block/dm-0/dev)"
    MKE2FS_CONFIG=/none /own/mke2fs -q -t ext4 -b 4096 -I 256 -O extent,^has_journal /dev/dm-0
    mount -t ext4 -o dax=always /dev/dm-0 /m && dd if=/stored of=/m/file bs=64k 2>/dev/null
    with=$(cmp -s /stored /m/file && echo same || echo other)
    umount /m; sync; echo 3 >/proc/sys/vm/drop_caches
    mount -t ext4 -o dax=never,ro /dev/dm-0 /m
    without=$(cmp -s /stored /m/file && echo same || echo other)
    umount /m
    echo "SEEN begins at sector $start (alignment_offset $(cat /sys/block/dm-0/alignment_offset)): read with DAX $with, without $without"
    /own/dmsetup remove --noudevsync --noudevrules disk
done
echo "SEEN $(uname -r)"
poweroff -f
SH
chmod +x root/init
(cd root && find . | cpio -o -H newc --quiet) >initrd
timeout 300 qemu-system-x86_64 -accel tcg -cpu max -m 1G -nodefaults -no-reboot -display none -serial file:serial \
    -kernel kernel/boot/vmlinuz-* -initrd initrd \
    -append 'console=ttyS0 quiet panic=-1 no_timer_check memmap=256M!512M' </dev/null
seen=$(tr -d '\r' <serial | sed -n 's/^SEEN //p')
echo "$seen"
want='begins at sector 8 (alignment_offset 0): read with DAX same, without same
begins at sector 1 (alignment_offset 3584): read with DAX same, without other
6.1.0-57-cloud-amd64'
[ "$seen" = "$want" ] || { echo "changed"; exit 1; }
echo "as seen on 30 November 2026"
