#!/bin/bash
# dissect.volume 3.18 and libvslvm-python 20260901 (PyPI): of a striped LVM volume the first reads the blocks of one disk only, and the
# second opens no volume of a group that has one.
#
# In LVM's metadata stripe_size counts sectors, and the stripes take turns. dissect.volume counts it in extents (of 8192 sectors
# here), and takes no second turn: all that is read comes from the first disk, beside the volume's right size. libvslvm knows
# a list of one stripe ("unsupported character value"), and so not even the linear volumes beside it can be read.
#
# Needs root, loop devices, apt-get with Debian 12's sources and the libraries that an installed lvm2 brings, python3 with venv.
set -euo pipefail
folder=$(mktemp -d)
devices=()
trap '[ ${#devices[@]} = 0 ] || losetup -d "${devices[@]}"; rm -rf "$folder"' EXIT
cd "$folder"
PATH=$PATH:/usr/sbin:/sbin
apt-get -q -o APT::Sandbox::User=root download {grub-common=2.06-13+deb12u2,lvm2=2.03.16-2,liblvm2cmd2.03=2.03.16-2} \
    {libdevmapper1.02.1,libdevmapper-event1.02.1}=2:1.02.185-2 libaio1=0.3.113-4 >/dev/null
for package in *.deb; do dpkg -x "$package" root; done
python3 -m venv venv
venv/bin/pip -q --disable-pip-version-check install dissect.volume==3.18 libvslvm-python==20260901

for name in a b; do
    truncate -s 64M $name
    devices+=("$(losetup -f --show $name)")
done
mkdir lvm
cat >lvm/lvm.conf <<CONF
devices { dir = "/dev" scan = "/dev" filter = [ "a|^${devices[0]}\$|", "a|^${devices[1]}\$|", "r|.*|" ] use_devicesfile = 0 }
devices { obtain_device_list_from_udev = 0 external_device_info_source = "none" }
global { locking_dir = "$folder/lvm" use_lvmpolld = 0 }
backup { backup = 0 archive = 0 }
activation { udev_sync = 0 udev_rules = 0 monitoring = 0 }
CONF
# Without device-mapper: volumes are described on the disks, and not activated.
lvm() {
    local command=$1
    shift
    LVM_SUPPRESS_FD_WARNINGS=1 LVM_SYSTEM_DIR=$folder/lvm LD_LIBRARY_PATH=root/lib/x86_64-linux-gnu:root/usr/lib/x86_64-linux-gnu \
        root/sbin/lvm "$command" -qq "$@" >/dev/null 2>&1
}
lvm vgcreate group "${devices[@]}"
options=(--driverloaded n -an -Zn -Wn -y -L 8M)
lvm lvcreate "${options[@]}" -n linear group "${devices[0]}"
lvm lvcreate "${options[@]}" -i 2 -I 64k -n striped group
losetup -d "${devices[@]}"
devices=()
# Behind the metadata each disk is full of its name.
for name in a b; do
    head -c 16M /dev/zero | tr '\0' $name | dd of=$name bs=1M seek=1 conv=notrunc status=none
done
cat >look.py <<'PY'
from dissect.volume.lvm import LVM2
for volume in LVM2([open(name, "rb") for name in "ab"]).vg.lv:
    stream = volume.open()
    first = []
    for at in range(0, 6 << 16, 1 << 16):
        stream.seek(at)
        first.append(stream.read(1).decode())
    print(f"dissect.volume: {volume.name}, {stream.size} bytes: {''.join(first)}")
PY
cat >open.py <<'PY'
import pyvslvm
try:
    pyvslvm.handle().open("a")
    print("libvslvm: opened")
except OSError as error:
    print("libvslvm:", "unable to read stripes list" if "unable to read stripes list" in str(error) else error)
PY
seen=$(
    for volume in linear striped; do
        echo "GRUB: $volume, $(for at in 0 128 256 384 512 640; do
            root/usr/bin/grub-fstest a b -c 2 cat "(lvm/group-$volume)$at+1" | head -c 1
        done)"
    done
    venv/bin/python look.py
    venv/bin/python open.py
)
echo "$seen"
want='GRUB: linear, aaaaaa
GRUB: striped, ababab
dissect.volume: linear, 8388608 bytes: aaaaaa
dissect.volume: striped, 8388608 bytes: aaaaaa
libvslvm: unable to read stripes list'
[ "$seen" = "$want" ] || { echo "changed"; exit 1; }
echo "as seen on 30 November 2026"
