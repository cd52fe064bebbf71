#!/bin/bash
# debugfs of e2fsprogs 1.47.0-2+b2 and e2cp of e2tools 0.1.0-3 (Debian 12): a file of less than 60 bytes that ext4 keeps
# in its inode comes out with 60 bytes.
#
# With inline_data the first 60 bytes of a file take the place of the block map, whatever the file's size. libext2fs reads
# them all: `dump`, `cat` and `rdump` of debugfs and a copy by e2cp have zeroes behind the file's end, while the size that
# `stat` of debugfs shows is right.
#
# Needs apt-get with Debian 12's sources, dpkg.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
apt-get -q -o APT::Sandbox::User=root download e2fsprogs=1.47.0-2+b2 e2tools=0.1.0-3 libext2fs2=1.47.0-2+b2 \
    libcom-err2=1.47.0-2+b2 libss2=1.47.0-2+b2 >/dev/null
for package in *.deb; do dpkg -x "$package" root; done
export LD_LIBRARY_PATH=root/lib/x86_64-linux-gnu:root/usr/lib/x86_64-linux-gnu
PATH=root/sbin:root/usr/bin:$PATH

mkdir tree out
for length in 1 59 60 61; do head -c $length /dev/zero | tr '\0' x >tree/$length; done
MKE2FS_CONFIG=/none mke2fs -q -t ext4 -b 4096 -I 256 -O extent,filetype,inline_data -d tree fs.img 16M 2>/dev/null >/dev/null
debugfs -R 'rdump / out' fs.img 2>/dev/null
seen=$(for name in 1 59 60 61; do
    size=$(debugfs -R "stat $name" fs.img 2>/dev/null | sed -n 's/.*Size: \([0-9]*\)$/\1/p' | head -1)
    debugfs -R "dump $name dumped" fs.img 2>/dev/null
    e2cp "fs.img:/$name" copied
    echo "size $size: dump $(stat -c %s dumped), rdump $(stat -c %s out/$name), e2cp $(stat -c %s copied)," \
        "of them $(tr -dc x <dumped | wc -c) of the file"
done)
echo "$seen"
want="size 1: dump 60, rdump 60, e2cp 60, of them 1 of the file
size 59: dump 60, rdump 60, e2cp 60, of them 59 of the file
size 60: dump 60, rdump 60, e2cp 60, of them 60 of the file
size 61: dump 61, rdump 61, e2cp 61, of them 61 of the file"
[ "$seen" = "$want" ] || { echo "changed"; exit 1; }
echo "as seen on 30 November 2026"
