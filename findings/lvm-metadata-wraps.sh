#!/bin/bash
# dissect.volume 3.18 and libvslvm-python 20260901 (PyPI): an LVM volume group cannot be opened when its metadata runs over the
# end of its area; the one says "source code string cannot contain null bytes", the other "mismatch in checksum".
#
# The area (1 MiB, as a rule) is a ring: each change writes the metadata anew behind the last one, and what does not fit
# goes on behind the header. The larger a group, the more often that is so; the next change mends it. Both
# read on behind the area's end. LVM and GRUB read all of the group's states.
#
# Needs root, loop devices, apt-get with Debian 12's sources and the libraries that an installed lvm2 brings, python3 with venv.
set -euo pipefail
folder=$(mktemp -d)
device=
trap '[ -z "$device" ] || losetup -d "$device"; rm -rf "$folder"' EXIT
cd "$folder"
PATH=$PATH:/usr/sbin:/sbin
apt-get -q -o APT::Sandbox::User=root download {grub-common=2.06-13+deb12u2,lvm2=2.03.16-2,liblvm2cmd2.03=2.03.16-2} \
    {libdevmapper1.02.1,libdevmapper-event1.02.1}=2:1.02.185-2 libaio1=0.3.113-4 >/dev/null
for package in *.deb; do dpkg -x "$package" root; done
python3 -m venv venv
venv/bin/pip -q --disable-pip-version-check install dissect.volume==3.18 libvslvm-python==20260901

truncate -s 64M disk
device=$(losetup -f --show disk)
mkdir lvm
cat >lvm/lvm.conf <<CONF
devices { dir = "/dev" scan = "/dev" filter = [ "a|^$device\$|", "r|.*|" ] use_devicesfile = 0 }
devices { obtain_device_list_from_udev = 0 external_device_info_source = "none" }
global { locking_dir = "$folder/lvm" use_lvmpolld = 0 }
backup { backup = 0 archive = 0 }
activation { udev_sync = 0 udev_rules = 0 monitoring = 0 }
CONF
export LD_LIBRARY_PATH=root/lib/x86_64-linux-gnu:root/usr/lib/x86_64-linux-gnu LVM_SUPPRESS_FD_WARNINGS=1 LVM_SYSTEM_DIR=$folder/lvm
# Without device-mapper: volumes are described on the disks, and not activated.
lvm() { root/sbin/lvm "$@" 2>/dev/null; }
lvm vgcreate -qq group "$device"
lvm lvcreate -qq --driverloaded n -an -Zn -Wn -y -L 8M -n volume group
# Many tags stand for the many volumes of a large group: its metadata has some 190,000 bytes.
tags=()
for number in $(seq 100 290); do tags+=(--addtag "$(head -c 1000 /dev/zero | tr '\0' t)$number"); done
lvm vgchange -qq "${tags[@]}" group

cat >look.py <<'PY'
import sys
import pyvslvm
from dissect.volume.lvm import LVM2
try:
    names = [volume.name for volume in LVM2([open("disk", "rb")]).vg.lv]
except SyntaxError as error:
    names = str(error).split(" (")[0]
print("dissect.volume:", names)
handle = pyvslvm.handle()
try:
    handle.open("disk")
    handle.open_physical_volume_files(["disk"])
    group = handle.get_volume_group()
    names = [group.get_logical_volume(number).name for number in range(group.number_of_logical_volumes)]
except OSError as error:
    names = "mismatch in checksum" if "mismatch in checksum" in str(error) else error
print("libvslvm:", names)
PY
# look: where the metadata is (the header of the area lies at 4096, and has its size at 32, the place at 40), and who finds the volume.
look() {
    local size place length
    sync -f disk
    read -r size place length < <(od -A n -t u8 -w24 -j $((4096 + 32)) -N 24 disk)
    if [ $((place + length)) -gt "$size" ]; then echo "metadata over the area's end"; else echo "metadata in one piece"; fi
    echo "LVM: $(lvm lvs --noheadings -o name group | tr -d ' ')"
    echo "GRUB: $(root/usr/bin/grub-fstest disk ls '(lvm/group-volume)' 2>&1 | grep -o 'Total size.*')"
    venv/bin/python look.py
}
seen=$(
    for change in 1 2 3 4; do lvm vgchange -qq --addtag change$change group; done
    look
    lvm vgchange -qq --addtag change5 group
    look
    lvm vgchange -qq --addtag change6 group
    look
)
echo "$seen"
state="metadata in one piece
LVM: volume
GRUB: Total size 8192KiB
dissect.volume: ['volume']
libvslvm: ['volume']"
want="$state
metadata over the area's end
LVM: volume
GRUB: Total size 8192KiB
dissect.volume: source code string cannot contain null bytes
libvslvm: mismatch in checksum
$state"
[ "$seen" = "$want" ] || { echo "changed"; exit 1; }
echo "as seen on 30 November 2026"
