#!/bin/bash
# lvm2 0.0.3 (crates.io): who reads a volume of LVM from its beginning on gets, behind the end of its first segment, what lies
# there on the disk: another volume's data, and so on to the disk's end.
#
# A volume that was extended after another one was made has two segments. The crate finds the one in which it is asked to
# seek, and a read does not count up where it is: it knows neither the segment's nor the volume's end. Block by block,
# with a seek before each, all is right. GRUB reads the volume as a whole.
#
# Needs root, loop devices, apt-get with Debian 12's sources and the libraries that an installed lvm2 brings, cargo.
set -euo pipefail
folder=$(mktemp -d)
device=
trap '[ -z "$device" ] || losetup -d "$device"; rm -rf "$folder"' EXIT
cd "$folder"
PATH=$PATH:/usr/sbin:/sbin
apt-get -q -o APT::Sandbox::User=root download {grub-common=2.06-13+deb12u2,lvm2=2.03.16-2,liblvm2cmd2.03=2.03.16-2} \
    {libdevmapper1.02.1,libdevmapper-event1.02.1}=2:1.02.185-2 libaio1=0.3.113-4 >/dev/null
for package in *.deb; do dpkg -x "$package" root; done
mkdir src lvm
cat >Cargo.toml <<'TOML'
[package]
name = "look"
version = "0.0.0"
edition = "2021"
[dependencies]
lvm2 = "=0.0.3"
TOML
cat >src/main.rs <<'RUST'
use std::io::{Read, Seek, SeekFrom};
fn main() {
    let open = || std::fs::File::open("disk").unwrap();
    let group = lvm2::Lvm2::open(open()).unwrap();
    let mut volume = group.open_lv_by_name("first", open()).unwrap();
    let mut all = Vec::new();
    volume.read_to_end(&mut all).unwrap();
    print!("lvm2, {} MiB: ", all.len() >> 20);
    all.chunks(4 << 20).for_each(|extent| print!("{}", extent[0] as char));
    print!("\nlvm2, sought: ");
    for extent in 0..4 {
        let mut byte = [0];
        volume.seek(SeekFrom::Start(extent << 22)).unwrap();
        volume.read_exact(&mut byte).unwrap();
        print!("{}", byte[0] as char);
    }
    println!();
}
RUST
CARGO_PROFILE_DEV_DEBUG=0 cargo -q build

truncate -s 33M disk
device=$(losetup -f --show disk)
cat >lvm/lvm.conf <<CONF
devices { dir = "/dev" scan = "/dev" filter = [ "a|^$device\$|", "r|.*|" ] use_devicesfile = 0 }
devices { obtain_device_list_from_udev = 0 external_device_info_source = "none" }
global { locking_dir = "$folder/lvm" use_lvmpolld = 0 }
backup { backup = 0 archive = 0 }
activation { udev_sync = 0 udev_rules = 0 monitoring = 0 }
CONF
export LD_LIBRARY_PATH=root/lib/x86_64-linux-gnu:root/usr/lib/x86_64-linux-gnu LVM_SUPPRESS_FD_WARNINGS=1 LVM_SYSTEM_DIR=$folder/lvm
# Without device-mapper: volumes are described on the disks, and not activated.
lvm() { root/sbin/lvm "$@" >/dev/null 2>&1; }
lvm vgcreate -qq group "$device"
lvm lvcreate -qq --driverloaded n -an -Zn -Wn -y -l 2 -n first group
lvm lvcreate -qq --driverloaded n -an -Zn -Wn -y -l 2 -n second group
lvm lvextend -qq --driverloaded n -l 4 group/first
losetup -d "$device"
device=
# Behind the metadata extents of 4 MiB: two of "first", two of "second", two of "first", two that are free.
for letter in a a b b a a f f; do head -c 4M /dev/zero | tr '\0' $letter; done | dd of=disk bs=1M seek=1 conv=notrunc status=none
seen=$(
    echo "GRUB: $(for at in 0 8192 16384 24576; do root/usr/bin/grub-fstest disk cat "(lvm/group-first)$at+1" | head -c 1; done)"
    timeout 60 target/debug/look
)
echo "$seen"
want='GRUB: aaaa
lvm2, 32 MiB: aabbaaff
lvm2, sought: aaaa'
[ "$seen" = "$want" ] || { echo "changed"; exit 1; }
echo "as seen on 30 November 2026"
