#!/bin/bash
# udf-core 0.1.0, hadris-udf 2.5.0 (crates.io) and GRUB 2.06-13+deb12u2 (grub-common, Debian 12): of a file with a hole in UDF the first
# leaves the hole out, so that what follows has another place and the file is short; the others read the disk's map of free
# blocks there. None says an error, and the first lists a deleted file, too.
#
# The two upper bits of an extent's length say whether it is recorded (ECMA-167, 4/14.14.1.1). Linux makes a hole of an extent
# that is neither recorded nor allocated, at the place 0, where a partition has its space bitmap. udf-core skips all that is not
# recorded; the others cut the two bits off and read. An entry with the bit "deleted" (4/14.4.3) is left in its folder.
#
# A guest in QEMU (emulation is enough). Needs apt-get with Debian 12's security sources, qemu-system-x86_64, busybox-static, kmod,
# cpio, libdevmapper and cargo.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
PATH=$PATH:/usr/sbin:/sbin
apt-get -q -o APT::Sandbox::User=root download linux-image-6.1.0-57-cloud-amd64=6.1.192-3 udftools=2.3-1 \
    grub-common=2.06-13+deb12u2 >/dev/null
for package in *.deb; do dpkg -x "$package" system; done
mkdir src
cat >Cargo.toml <<'TOML'
[package]
name = "look"
version = "0.0.0"
edition = "2021"
[dependencies]
udf-core = "=0.1.0"
hadris-udf = "=2.5.0"
TOML
cat >src/main.rs <<'RUST'
use std::fs::File;
fn show(reader: &str, name: &str, bytes: &[u8]) {
    let letters = bytes.chunks(4096).map(|block| match block[0] {
        0 => '0',
        byte if byte.is_ascii_lowercase() => byte as char,
        _ => '?',
    });
    println!("{reader}, {name}: {}", letters.chain(['.']).collect::<String>());
}
fn main() {
    for name in ["sparse", "whole"] {
        show("GRUB", name, &std::fs::read(name).unwrap());
    }
    let mut disk = File::open("disk").unwrap();
    let state = udf_core::parse_udf_state(&mut disk).unwrap();
    let (size, start) = (state.block_size, state.partition_start);
    for entry in udf_core::read_dir_at_lba(&mut disk, size, start, state.root_fe_lba).unwrap() {
        let bytes = udf_core::read_fe_data(&mut disk, size, start, entry.fe_lba).unwrap_or_default();
        show("udf-core", &entry.name, &bytes);
    }
    let volume = hadris_udf::UdfVolume::open(disk).unwrap();
    for entry in volume.root_dir().unwrap().entries() {
        show("hadris-udf", entry.name(), &volume.read_file(entry).unwrap());
    }
}
RUST
CARGO_PROFILE_DEV_DEBUG=0 cargo -q build

mkdir -p root/{bin,proc,sys,dev,m}
cp /bin/busybox root/bin/
(cd system && find lib/modules -path '*/virtio/*' -o -name virtio_blk.ko -o -name udf.ko -o -name cdrom.ko -o -name 'crc-itu-t.ko' -o -name 'modules.*') |
    (cd system && cpio -pdm --quiet ../root)
depmod -b root "$(basename system/lib/modules/*)"
cat >root/init <<'SH'
#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev
for module in virtio_pci virtio_blk udf; do modprobe $module; done
while [ ! -b /dev/vda ]; do sleep 0.1; done
mount -t udf /dev/vda /m
cd /m
# write LETTER BLOCK FILE
write() { head -c 4096 /dev/zero | tr '\0' $1 | dd of=$3 bs=4096 seek=$2 conv=notrunc 2>/dev/null; }
write a 0 whole; write b 1 whole
write a 0 sparse; write b 3 sparse
echo x >deleted
sync
rm deleted
for file in *; do echo "SEEN Linux, $file: $(tr '\0' 0 <$file | fold -b -w 4096 | cut -c 1 | tr -d '\n')."; done
cd /
umount /m
poweroff -f
SH
chmod +x root/init
(cd root && find . | cpio -o -H newc --quiet) >initrd
truncate -s 16M disk
system/usr/sbin/mkudffs -b 2048 --media-type=hd disk >/dev/null 2>&1
timeout 300 qemu-system-x86_64 -accel tcg -cpu max -m 1G -nodefaults -no-reboot -display none -serial file:serial \
    -drive file=disk,format=raw,if=virtio -kernel system/boot/vmlinuz-* -initrd initrd \
    -append 'console=ttyS0 quiet panic=-1 no_timer_check' </dev/null
seen=$(
    tr -d '\r' <serial | sed -n 's/^SEEN //p'
    for file in sparse whole; do system/usr/bin/grub-fstest disk cat "(loop0)/$file" >$file; done
    target/debug/look
)
echo "$seen"
want='Linux, sparse: a00b.
Linux, whole: ab.
GRUB, sparse: a??b.
GRUB, whole: ab.
udf-core, whole: ab.
udf-core, sparse: ab.
udf-core, deleted: .
hadris-udf, whole: ab.
hadris-udf, sparse: a??b.'
[ "$seen" = "$want" ] || { echo "changed"; exit 1; }
echo "as seen on 1 December 2026"
