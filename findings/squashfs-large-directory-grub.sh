#!/bin/bash
# GRUB 2.06-13+deb12u2 (grub-common, Debian 12): of a directory of SquashFS whose list is longer than 64 KiB it knows the beginning
# only; the other files are "not found".
#
# Such a directory has an inode of another type, whose size has 32 bits. GRUB goes by the lower 16 of them, and ends with the
# block of names in which that is reached: 1620 names of 32 letters are all there, and of 1640 there are 204.
#
# Needs apt-get with Debian 12's sources, libdevmapper, and the libraries that an installed squashfs-tools brings.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
apt-get -q -o APT::Sandbox::User=root download grub-common=2.06-13+deb12u2 squashfs-tools=1:4.5.1-1 liblzo2-2=2.10-2 >/dev/null
for package in *.deb; do dpkg -x "$package" root; done
export LD_LIBRARY_PATH=root/usr/lib/x86_64-linux-gnu:root/lib/x86_64-linux-gnu

# look NAMES: how many of so many names of 32 letters are listed, and whether the last one is found.
look() {
    rm -rf tree fs.img
    mkdir tree
    (cd tree && seq -f "a-name-of-some-length-%010.0f" "$1" | xargs touch)
    root/usr/bin/mksquashfs tree fs.img -quiet -no-progress >/dev/null
    root/usr/bin/unsquashfs -q -n -d back fs.img >/dev/null
    root/usr/bin/grub-fstest fs.img cat "(loop0)/$(printf "a-name-of-some-length-%010d" "$1")" >last 2>&1 || true
    echo "$1 names: unsquashfs $(find back -type f | wc -l), GRUB $(root/usr/bin/grub-fstest fs.img ls '(loop0)/' | wc -w)," \
        "the last $(grep -o 'not found' last || echo found)"
    rm -rf back
}
seen=$(look 1620; look 1640; look 3200)
echo "$seen"
want='1620 names: unsquashfs 1620, GRUB 1620, the last found
1640 names: unsquashfs 1640, GRUB 204, the last not found
3200 names: unsquashfs 3200, GRUB 1632, the last not found'
[ "$seen" = "$want" ] || { echo "changed"; exit 1; }
echo "as seen on 30 November 2026"
