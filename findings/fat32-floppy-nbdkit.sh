#!/bin/bash
# nbdkit 1.32.5-1 (Debian 12): the FAT32 that its floppy plugin makes of a folder is damaged by an empty file, by a folder in the
# folder and by a name that begins with a dot; mtools, Sleuthkit and 7-Zip refuse it in any case.
#
# fsck.fat finds a first cluster of the empty file that does not exist (it shall be 0), a ".." of the folder that is not 0 though
# the root is above it, and a short name that begins with a space (all in Microsoft's FAT specification, 6). The boot sector
# has neither a jump nor a geometry, which these three readers ask for; GRUB does not.
#
# Needs apt-get with Debian 12's sources, and the libraries that an installed nbdkit brings.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
apt-get -q -o APT::Sandbox::User=root download {nbdkit=1.32.5-1,libnbd0=1.14.2-1,libnbd-bin=1.14.2-1,dosfstools=4.2-1,mtools=4.0.33-1+really4.0.32-1} \
    {sleuthkit,libtsk19}=4.11.1+dfsg-1+b1 libafflib0v5=3.7.20-1 libbfio1=20170123-6 libewf2=20140813-1+b1 \
    libvhdi1=20210425-1+b2 libvmdk1=20200926-2+b2 7zip=22.01+really26.02+dfsg-0+deb12u1 grub-common=2.06-13+deb12u2 >/dev/null
for package in *.deb; do dpkg -x "$package" root; done
export LD_LIBRARY_PATH=root/usr/lib/x86_64-linux-gnu
parts=root/usr/lib/x86_64-linux-gnu/nbdkit

# look NAME: what fsck.fat says of the file system made of `tree`.
look() {
    local found
    # shellcheck disable=SC2016 # nbdkit knows its address
    root/usr/bin/nbdkit -U - $parts/plugins/nbdkit-floppy-plugin.so tree --run 'root/usr/bin/nbdcopy "$uri" disk.img'
    dd if=disk.img of=fs.img bs=1M skip=1 status=none
    root/sbin/fsck.fat -n fs.img >fsck.out 2>/dev/null || true
    found=$(sed -n 's/^  \([A-Z].*\)\. .*/\1./p; s/^  \(Bad.*\)/\1/p' fsck.out | xargs -d '\n')
    echo "$1: ${found:-nothing}"
}
mkdir tree
echo x >tree/file
seen=$(
    look 'a file'
    root/usr/bin/mdir -i fs.img :: >out 2>&1 || sed -n 's/^The devil.*: /mtools: /p' out
    root/usr/bin/fsstat fs.img >out 2>&1 || echo "Sleuthkit: $(cat out)"
    root/usr/bin/7zz l fs.img >out 2>&1 || echo "7-Zip: $(grep -o 'Cannot open.*' out)"
    echo "GRUB: $(root/usr/bin/grub-fstest fs.img ls '(loop0)/' | xargs)"
    : >tree/empty
    look 'an empty file'
    rm tree/empty
    mkdir tree/folder
    echo y >tree/folder/file
    look 'a folder'
    rm -r tree/folder
    echo z >tree/.name
    look 'a dot'
)
echo "$seen"
want="a file: nothing
mtools: zero number of heads or sectors
Sleuthkit: Cannot determine file system type
7-Zip: Cannot open the file as archive
GRUB: file
an empty file: Start cluster beyond limit (4 > 3).
a folder: Invalid '..' entry in the second slot.
a dot: Bad short file name (.NAM)."
[ "$seen" = "$want" ] || { echo "changed"; exit 1; }
echo "as seen on 30 November 2026"
