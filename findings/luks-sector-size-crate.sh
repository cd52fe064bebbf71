#!/bin/bash
# luks 0.4.5 (crates.io): a LUKS2 volume with sectors of 4096 bytes, as cryptsetup makes it on a disk of such blocks, is mapped with
# sectors of 512: seven of eight are read as other bytes, and what is written there is lost to cryptsetup, without an error.
#
# The sector's size is part of a LUKS2 segment, and of the table of dm-crypt where it is not 512 ("sector_size:4096"): a sector is
# encrypted as one. The crate's `map_with_dmsetup` leaves it out of the table.
#
# A guest in QEMU (emulation is enough). Needs apt-get with Debian 12's security sources, qemu-system-x86_64, busybox-static,
# cryptsetup, dmsetup, kmod, cpio and cargo.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
PATH=$PATH:/usr/sbin:/sbin
apt-get -q -o APT::Sandbox::User=root download linux-image-6.1.0-57-cloud-amd64=6.1.192-3 >/dev/null
dpkg -x linux-image-*.deb kernel
mkdir src
cat >Cargo.toml <<'TOML'
[package]
name = "look"
version = "0.0.0"
edition = "2021"
[dependencies]
luks = "=0.4.5"
TOML
cat >src/main.rs <<'RUST'
fn main() {
    let path = std::path::Path::new("/dev/vda");
    let mut volume = luks::LuksHeader::open(std::fs::File::open(path).unwrap()).unwrap();
    let key = luks::UnlockKey::from_passphrase("secret".to_string());
    volume.unlock(&luks::KeySlotId::new("0"), &key).unwrap();
    volume.map_with_dmsetup("disk", path).unwrap();
}
RUST
CARGO_PROFILE_DEV_DEBUG=0 cargo -q build

mkdir -p root/{bin,own,proc,sys,dev,run/cryptsetup}
cp /bin/busybox root/bin/
for program in target/debug/look cryptsetup dmsetup; do
    cp "$(command -v $program)" root/own/
    ldd "$(command -v $program)" | grep -o '/[^ ]*' | while read -r library; do
        mkdir -p "root$(dirname "$library")"
        cp -L "$library" "root$library"
    done
done
release=$(basename kernel/lib/modules/*)
(cd kernel && find lib/modules -path '*/crypto/*' -o -path '*/virtio/*' -o -name 'virtio_blk.ko' -o -path '*/md/dm-*' -o -name 'modules.*') |
    (cd kernel && cpio -pdm --quiet ../root)
depmod -b root "$release"
cat >root/init <<'SH'
#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev
for module in virtio_pci virtio_blk dm-crypt xts aesni-intel algif_skcipher; do modprobe $module; done
while [ ! -b /dev/vda ]; do sleep 0.1; done
export DM_DISABLE_UDEV=1
# Of each of the first 16 sectors: is it all "a"?
sectors() {
    for sector in 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15; do
        [ "$(dd if=/dev/mapper/disk bs=512 skip=$sector count=1 2>/dev/null | tr -cd a | wc -c)" = 512 ] && echo -n a || echo -n -
    done
}
for size in 512 4096; do
    for by in cryptsetup crate; do
        if [ $by = crate ]; then
            /own/look
        else
            echo -n secret | /own/cryptsetup luksFormat -q --sector-size $size --pbkdf pbkdf2 --pbkdf-force-iterations 1000 /dev/vda -
            echo -n secret | /own/cryptsetup open /dev/vda disk -
            head -c 8192 /dev/zero | tr '\0' a >/dev/mapper/disk
            sync
        fi
        echo 3 >/proc/sys/vm/drop_caches
        echo "SEEN $by, $size: $(sectors), table ends in $(/own/dmsetup table disk | cut -d ' ' -f 8-)"
        /own/dmsetup remove disk
    done
done
poweroff -f
SH
chmod +x root/init
# The crate runs its programs by their names.
ln -s /own/dmsetup root/bin/dmsetup
(cd root && find . | cpio -o -H newc --quiet) >initrd
truncate -s 32M disk
timeout 300 qemu-system-x86_64 -accel tcg -cpu max -m 1G -nodefaults -no-reboot -display none -serial file:serial \
    -drive file=disk,format=raw,if=virtio -kernel kernel/boot/vmlinuz-* -initrd initrd \
    -append 'console=ttyS0 quiet panic=-1 no_timer_check' </dev/null
seen=$(tr -d '\r' <serial | sed -n 's/^SEEN //p')
echo "$seen"
want='cryptsetup, 512: aaaaaaaaaaaaaaaa, table ends in 32768
crate, 512: aaaaaaaaaaaaaaaa, table ends in 32768
cryptsetup, 4096: aaaaaaaaaaaaaaaa, table ends in 32768 1 sector_size:4096
crate, 4096: a-------a-------, table ends in 32768'
[ "$seen" = "$want" ] || { echo "changed"; exit 1; }
echo "as seen on 1 December 2026"
