#!/bin/bash
# partclone 0.3.23+repack-1 (Debian 12): of a FAT12 partclone.fat saves the first three quarters of the files, and says that it
# succeeded, as partclone.restore does; what was in the rest is gone.
#
# An entry of the table has 12 bits there, so that two of them are three bytes (Microsoft's FAT specification, 4.1). The program
# takes two bytes for each: where three quarters of the clusters in use are counted it is at their end, and the last quarter
# is free to it. FAT12 is on floppies and on small EFI partitions. A FAT16 with the same files comes back in whole.
#
# Needs apt-get with Debian 12's sources, libncursesw6, libssl3.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
apt-get -q -o APT::Sandbox::User=root download partclone=0.3.23+repack-1 dosfstools=4.2-1 mtools=4.0.33-1+really4.0.32-1 >/dev/null
for package in *.deb; do dpkg -x "$package" root; done

# Eight files of 64 clusters each, one behind the other.
mkdir files
for letter in a b c d e f g h; do head -c $((64 * 2048)) /dev/zero | tr '\0' $letter >files/$letter; done
seen=$(
    for bits in 12 16; do
        size=4M
        [ $bits = 12 ] || size=16M
        truncate -s $size disk$bits back$bits
        root/sbin/mkfs.fat -F $bits -s 4 disk$bits >/dev/null
        root/usr/bin/mcopy -i disk$bits files/* ::
        echo "FAT$bits: $(root/sbin/fsck.fat -n disk$bits | grep -o '[0-9]*/[0-9]* clusters')"
        root/usr/sbin/partclone.fat -c -s disk$bits -O image$bits -L log >/dev/null 2>&1
        grep -o 'successfully cloned' log
        root/usr/sbin/partclone.restore -s image$bits -O back$bits -C -L log >/dev/null 2>&1
        grep -o 'successfully restored' log
        for file in a b c d e f g h; do
            echo "$file: $(root/usr/bin/mtype -i back$bits ::$file | tr '\0' 0 | fold -b -w 2048 | cut -c 1 | sort | uniq -c | xargs)"
        done
    done
)
echo "$seen"
want='FAT12: 512/2036 clusters
successfully cloned
successfully restored
a: 64 a
b: 64 b
c: 64 c
d: 64 d
e: 64 e
f: 64 f
g: 64 0
h: 64 0
FAT16: 512/8167 clusters
successfully cloned
successfully restored
a: 64 a
b: 64 b
c: 64 c
d: 64 d
e: 64 e
f: 64 f
g: 64 g
h: 64 h'
[ "$seen" = "$want" ] || { echo "changed"; exit 1; }
echo "as seen on 1 December 2026"
