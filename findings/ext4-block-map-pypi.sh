#!/bin/bash
# ext4 1.4.1 (PyPI): an ext4 file system that once was an ext3 has no files, and by their numbers they are zeroes, without an error; of
# a file that lies in its inode what is behind the 60th byte reads as the inode's next fields.
#
# An ext3 becomes an ext4 by `tune2fs -O extents` (tune2fs(8)), and its directories and files keep their block maps. The library
# knows extents: without them a directory is empty, and a file is a hole of its size. With inline_data the rest of a small file
# is in the attribute system.data, not behind the block map, where the inode's sum and times are. debugfs reads all of it.
#
# Needs apt-get with Debian 12's sources, the libraries that an installed e2fsprogs brings, python3 (3.11) with venv.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
apt-get -q -o APT::Sandbox::User=root download e2fsprogs=1.47.0-2+b2 >/dev/null
for package in *.deb; do dpkg -x "$package" root; done
python3 -m venv venv
venv/bin/pip -q --disable-pip-version-check install ext4==1.4.1

mkdir files
seq 1000 >files/long
seq 40 >files/short
truncate -s 16M {native,was-ext3,inline}.img
root/sbin/mke2fs -q -F -t ext4 -d files native.img
root/sbin/mke2fs -q -F -t ext3 -I 256 -d files was-ext3.img
root/sbin/tune2fs -O extents,uninit_bg,dir_index was-ext3.img >/dev/null
root/sbin/e2fsck -fyD was-ext3.img >/dev/null 2>&1 || [ $? = 1 ]
root/sbin/mke2fs -q -F -t ext4 -O inline_data -d files inline.img

cat >look.py <<'PY'
import sys
import ext4
disk = ext4.Volume(open(sys.argv[1] + ".img", "rb"))
print("ext4: a folder of", len(list(disk.root.opendir())), "names")
for name, number in zip(sys.argv[2::2], sys.argv[3::2]):
    want = open("files/" + name, "rb").read()
    seen = disk.inodes[int(number)].open().read()
    right = next((at for at in range(len(seen)) if seen[at] != want[at]), len(seen))
    rest = "" if right == len(seen) else ", then other ones" if any(seen[right:]) else ", then zeroes"
    print(f"ext4: {name}: {right} of {len(seen)} bytes{rest}")
PY
seen=$(
    for disk in native was-ext3 inline; do
        echo "$disk"
        files=()
        for file in long short; do
            files+=("$file" "$(root/sbin/debugfs -R "stat /$file" $disk.img 2>/dev/null | sed -n 's/^Inode: *\([0-9]*\).*/\1/p')")
            root/sbin/debugfs -R "cat /$file" $disk.img 2>/dev/null | cmp - files/$file && echo "debugfs: $file"
        done
        timeout 60 venv/bin/python look.py $disk "${files[@]}"
    done
)
echo "$seen"
want='native
debugfs: long
debugfs: short
ext4: a folder of 5 names
ext4: long: 3893 of 3893 bytes
ext4: short: 111 of 111 bytes
was-ext3
debugfs: long
debugfs: short
ext4: a folder of 0 names
ext4: long: 0 of 3893 bytes, then zeroes
ext4: short: 0 of 111 bytes, then zeroes
inline
debugfs: long
debugfs: short
ext4: a folder of 5 names
ext4: long: 3893 of 3893 bytes
ext4: short: 60 of 111 bytes, then other ones'
[ "$seen" = "$want" ] || { echo "changed"; exit 1; }
echo "as seen on 1 December 2026"
