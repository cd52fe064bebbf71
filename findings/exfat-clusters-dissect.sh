#!/bin/bash
# dissect.target 3.25.1 with dissect.fat 3.13 (PyPI): every file of an exFAT is read from the wrong place, without an error, and a
# directory of more than one cluster makes the whole file system unreadable ("EOFError").
#
# The one library counts a file's runs in sectors, the other reads them as clusters: right only where a cluster is one
# sector, which no formatter chooses. A directory in one piece has no chain in the FAT (its flag NoFatChain), only a length;
# the library takes its first cluster for all of it.
#
# Needs root, a kernel with FUSE and loop devices, apt-get with Debian 12's sources, python3 with venv.
set -euo pipefail
folder=$(mktemp -d)
device=
trap 'umount -q "$folder/mount" || true; [ -z "$device" ] || losetup -d "$device" || true; rm -rf "$folder"' EXIT
cd "$folder"
PATH=$PATH:/usr/sbin:/sbin
apt-get -q -o APT::Sandbox::User=root download exfatprogs=1.2.0-1+deb12u1 exfat-fuse=1.3.0+git20220115-2 >/dev/null
for package in *.deb; do dpkg -x "$package" root; done
python3 -m venv venv
venv/bin/pip -q --disable-pip-version-check install dissect.target==3.25.1 dissect.fat==3.13
mkdir mount
cat >look.py <<'PY'
from dissect.target.filesystems.exfat import ExfatFilesystem
try:
    with open("fs.img", "rb") as image:
        fs = ExfatFilesystem(image)
        data = fs.get("file").open().read()
        print(f"{len(list(fs.get('folder').iterdir()))} names; {len(data)} bytes, as written: {data == b'x' * 100000}")
except EOFError:
    print("EOFError")
PY
# look CLUSTER NAMES: what is seen of a file, and of a folder with so many names, with clusters of so many bytes.
look() {
    local name
    truncate -s 0 fs.img
    truncate -s 32M fs.img
    root/usr/sbin/mkfs.exfat -c "$1" fs.img >/dev/null
    device=$(losetup -f --show fs.img)
    root/sbin/mount.exfat-fuse "$device" mount >/dev/null
    head -c 100000 /dev/zero | tr '\0' x >mount/file
    mkdir mount/folder
    for name in $(seq "$2"); do : >"mount/folder/$name"; done
    umount mount
    losetup -d "$device"
    device=
    root/usr/sbin/fsck.exfat -n fs.img >fsck.out
    echo "clusters of $1, $2 names: $(venv/bin/python look.py)"
}
seen=$(look 512 5; look 4096 42; look 4096 43; look 32768 5)
echo "$seen"
want='clusters of 512, 5 names: 5 names; 100000 bytes, as written: True
clusters of 4096, 42 names: 42 names; 100000 bytes, as written: False
clusters of 4096, 43 names: EOFError
clusters of 32768, 5 names: 5 names; 0 bytes, as written: False'
[ "$seen" = "$want" ] || { echo "changed"; exit 1; }
echo "as seen on 30 November 2026"
