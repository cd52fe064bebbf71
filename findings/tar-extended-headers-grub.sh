#!/bin/bash
# GRUB 2.06-13+deb12u2 (grub-common, Debian 12): in a tar archive of POSIX's format a file with a long name is there under the first 100
# letters of it only, and each extended header is a file; of a sparse file in GNU's format it reads the parts without the holes.
#
# POSIX's format puts what does not fit into a member's head into a member of type x before it (pax, "ustar Interchange
# Format", extended header): the whole name, the real size. GRUB knows the types K and L of GNU's format for
# this, and takes x for a file with the header as its content. A sparse file has a name of its own in POSIX's format; in
# GNU's (type S) GRUB takes it for a plain one of 4 KiB, without an error.
#
# Needs apt-get with Debian 12's sources, libdevmapper, GNU tar, a file system with holes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
apt-get -q -o APT::Sandbox::User=root download grub-common=2.06-13+deb12u2 >/dev/null
dpkg -x grub-common_*.deb root
mkdir files
long=$(printf 'long%.0s' $(seq 30))
echo "some bytes" >"files/$long"
truncate -s 1M files/disk
head -c 4096 /dev/zero | tr '\0' a | dd of=files/disk bs=4096 seek=100 conv=notrunc status=none
seen=$(
    for format in gnu posix; do
        tar --format=$format --sparse -C files -cf $format.tar "$long" disk
        for name in "$long" "${long:0:100}" disk; do
            root/usr/bin/grub-fstest $format.tar cat "(loop0)/$name" >content 2>error || true
            what="$(stat -c %s content) bytes"
            ! grep -q 'not found' error || what="not found"
            ! cmp -s content "files/$name" || what="the same"
            [ ${#name} = 4 ] || name="a name of ${#name}"
            echo "$format, GRUB, $name: $what"
        done
        echo "$format, GRUB's folders: $(root/usr/bin/grub-fstest $format.tar ls '(loop0)/' | tr ' ' '\n' | grep / | sed 's/\.[0-9]*\//.PID\//' | sort -u | xargs)"
    done | sed 's/ $//'
)
echo "$seen"
want='gnu, GRUB, a name of 120: the same
gnu, GRUB, a name of 100: not found
gnu, GRUB, disk: 4096 bytes
gnu, GRUB'\''s folders:
posix, GRUB, a name of 120: not found
posix, GRUB, a name of 100: 11 bytes
posix, GRUB, disk: not found
posix, GRUB'\''s folders: GNUSparseFile.PID/ PaxHeaders/'
[ "$seen" = "$want" ] || { echo "changed"; exit 1; }
echo "as seen on 1 December 2026"
