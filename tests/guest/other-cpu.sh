#!/bin/sh
# Process 1 of a guest of another CPU. Reads the first 8 MiB of its disk, copies 4 MiB of them to 32 MiB and zeroes the
# MiB behind, and says LAB-READ, LAB-PACKED, LAB-ERRORS and LAB-END.
export PATH=/bin
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
while read -r module; do
    insmod "/modules/$module"
done </modules/order
errors=0
[ -b /dev/vda ] || errors=1
echo "LAB-READ $(dd if=/dev/vda bs=64k count=128 iflag=direct 2>/dev/null | sha256sum)"
# VIRTIO_F_RING_PACKED is bit 34, and the first character is bit 0.
echo "LAB-PACKED $(cut -c 35 /sys/block/vda/device/features)"
dd if=/dev/vda of=/dev/vda bs=64k count=64 seek=512 oflag=direct conv=fsync 2>/dev/null || errors=2
blkdiscard -z -o $((36 << 20)) -l $((1 << 20)) /dev/vda 2>/dev/null ||
    dd if=/dev/zero of=/dev/vda bs=64k count=16 seek=576 oflag=direct conv=fsync 2>/dev/null || errors=3
sync
echo "LAB-ERRORS $errors"
echo LAB-END
poweroff -f
