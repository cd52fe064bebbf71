#!/bin/bash
# QEMU 7.2 and its storage daemon (qemu-system-x86, qemu-utils 1:7.2+dfsg-7+deb12u18+b3, Debian 12; 10.0.2 of its backports
# as well), each as it is by default: what a guest's fsync promises on a vhost-user-blk disk is not kept.
#
# The export writes through the host's page cache and offers VIRTIO_BLK_F_CONFIG_WCE, while the field `writeback` of its
# configuration space is 0 from the start. Linux believes it ("write through") and never sends a flush; the daemon calls
# fdatasync when it ends. With config-wce=off on QEMU's device Linux says "write back", and each fsync of the guest is
# an fdatasync of the daemon.
#
# A guest in QEMU (emulation is enough). Needs apt-get with Debian 12's sources, the libraries that an installed
# qemu-system-x86 brings, busybox-static, cpio, kmod and strace.
set -euo pipefail
folder=$(mktemp -d)
trap 'kill $(jobs -p) 2>/dev/null; wait; rm -rf "$folder"' EXIT
cd "$folder"
PATH=$PATH:/usr/sbin:/sbin
apt-get -q -o APT::Sandbox::User=root download linux-image-6.1.0-57-cloud-amd64=6.1.192-3 seabios=1.16.2-1 \
    qemu-system-data='1:7.2+dfsg-7+deb12u18' qemu-{system-common,system-x86,utils}='1:7.2+dfsg-7+deb12u18+b3' >/dev/null
for package in *.deb; do dpkg -x "$package" debian; done
PATH=$folder/debian/usr/bin:$PATH
qemu-system-x86_64 --version | head -1

mkdir -p root/{bin,proc,sys,dev} root/lib/modules
cp /bin/busybox root/bin/
(cd debian && find lib/modules -name 'virtio*.ko' -o -name 'modules.*' | cpio -pdm --quiet ../root)
depmod -b root "$(basename debian/lib/modules/*)"
cat >root/init <<'SH'
#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev
for module in virtio_pci virtio_blk; do modprobe $module; done
while [ ! -b /dev/vdb ]; do sleep 0.1; done
for disk in vda vdb; do
    dd if=/dev/urandom of=/dev/$disk bs=4k count=1 conv=fsync 2>/dev/null
    echo "SEEN $disk: $(cat /sys/block/$disk/queue/write_cache)"
done
echo END
sleep 600
SH
chmod +x root/init
(cd root && find . | cpio -o -H newc --quiet) >initrd

for disk in a b; do
    truncate -s 1M $disk.raw
    strace -f -o $disk.calls -e trace=fdatasync,fsync,pwrite64,pwritev qemu-storage-daemon \
        --blockdev "driver=file,node-name=n,filename=$disk.raw" \
        --export "type=vhost-user-blk,id=e,node-name=n,writable=on,addr.type=unix,addr.path=$disk.socket" &
    while [ ! -S $disk.socket ]; do sleep 0.1; done
done
qemu-system-x86_64 -L debian/usr/share/qemu -L debian/usr/share/seabios -accel tcg -cpu max -m 512M -nodefaults \
    -object memory-backend-memfd,id=m,size=512M,share=on -machine q35,memory-backend=m -display none -serial file:serial \
    -chardev socket,id=a,path=a.socket -device vhost-user-blk-pci,chardev=a \
    -chardev socket,id=b,path=b.socket -device vhost-user-blk-pci,chardev=b,config-wce=off \
    -kernel debian/boot/vmlinuz-* -initrd initrd -append 'console=ttyS0 quiet panic=-1 no_timer_check' </dev/null 2>qemu.log &
for _ in $(seq 300); do
    ! grep -q ^END serial 2>/dev/null || break
    sleep 1
done
seen=$(
    tr -d '\r' <serial | sed -n 's/^SEEN //p'
    for disk in a b; do echo "$disk: $(grep -c pwrite $disk.calls || true) written, $(grep -c sync $disk.calls || true) synced"; done
)
echo "$seen"
want='vda: write through
vdb: write back
a: 1 written, 0 synced
b: 1 written, 1 synced'
[ "$seen" = "$want" ] || { echo "changed"; exit 1; }
echo "as seen on 30 November 2026"
