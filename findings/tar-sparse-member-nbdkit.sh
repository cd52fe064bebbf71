#!/bin/bash
# nbdkit 1.32.5-1 (Debian 12): its tar filter serves a sparse member of a tar file with its data in the wrong place, and behind it
# the members that follow.
#
# `tar --sparse`, made for disk images, stores a file's data without its holes, and a map of where they were. The filter takes
# the place of the member's data and its size from GNU tar's listing, and that is the size with the holes: the disk has
# its parts moved together, and then the next file of the archive. It is writable, too.
#
# Needs apt-get with Debian 12's sources, the libraries that an installed nbdkit brings, GNU tar (seen with 1.34), sparse files.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
apt-get -q -o APT::Sandbox::User=root download nbdkit=1.32.5-1 libnbd0=1.14.2-1 libnbd-bin=1.14.2-1 >/dev/null
for package in *.deb; do dpkg -x "$package" root; done
export LD_LIBRARY_PATH=root/usr/lib/x86_64-linux-gnu
parts=root/usr/lib/x86_64-linux-gnu/nbdkit

# Four blocks of 64 KiB: "a", a hole, "b", a hole. And another file.
head -c 65536 /dev/zero | tr '\0' a >disk
truncate -s 128K disk
head -c 65536 /dev/zero | tr '\0' b >>disk
truncate -s 256K disk
head -c 1M /dev/zero | tr '\0' z >other
# serve OPTION...: the disk's blocks, a zero as ".", as served out of an archive made with these options.
serve() {
    tar -cf disks.tar "$@" disk other
    tar -xOf disks.tar disk | cmp - disk
    # shellcheck disable=SC2016 # nbdkit knows its address
    root/usr/bin/nbdkit -U - -r --filter=$parts/filters/nbdkit-tar-filter.so $parts/plugins/nbdkit-file-plugin.so disks.tar \
        tar-entry=disk --run 'root/usr/bin/nbdcopy "$uri" read.out'
    for at in 2 6 10 14; do dd if=read.out bs=16k skip=$at count=1 status=none | head -c 1 | tr '\0' .; done
    echo ", $(stat -c %s read.out) bytes: $*"
    rm read.out
}
seen=$(serve --format=gnu; serve --format=gnu --sparse; serve --format=posix --sparse)
echo "$seen"
want='a.b., 262144 bytes: --format=gnu
abzz, 262144 bytes: --format=gnu --sparse
abzz, 262144 bytes: --format=posix --sparse'
[ "$seen" = "$want" ] || { echo "changed"; exit 1; }
echo "as seen on 30 November 2026"
