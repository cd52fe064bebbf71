#!/bin/bash
# android-sparse 0.6.0 (crates.io): a block of zeroes is "don't care" in the sparse image that it makes, so that what was on the disk
# before stays there when the image is written; and of each block that an image leaves alone its simg2img zeroes the last byte.
#
# A sparse image of Android has chunks of data, of a repeated word, and of "don't care" (libsparse's sparse_format.h). The
# img2simg of Android makes zeroes a chunk of the second kind, and its simg2img
# steps over the third. The crate's Encoder makes all zeroes the third, and its Decoder writes one byte at such a block's end.
#
# Needs root, loop devices, apt-get with Debian 12's sources, cargo.
set -euo pipefail
folder=$(mktemp -d)
device=
trap '[ -z "$device" ] || losetup -d "$device" || true; rm -rf "$folder"' EXIT
cd "$folder"
PATH=$PATH:/usr/sbin:/sbin
apt-get -q -o APT::Sandbox::User=root download android-sdk-libsparse-utils=1:29.0.6-28 android-libsparse=1:29.0.6-28 \
    android-libbase=1:29.0.6-28 android-liblog=1:29.0.6-28 >/dev/null
for package in *.deb; do dpkg -x "$package" root; done
LD_LIBRARY_PATH=$(echo root/usr/lib/*-linux-gnu/android)
export LD_LIBRARY_PATH
CARGO_PROFILE_RELEASE_DEBUG=0 CARGO_PROFILE_RELEASE_OPT_LEVEL=0 cargo -q install --version 0.6.0 --root crate android-sparse 2>/dev/null

# letters COUNT LETTER: so many blocks full of a letter. map FILE: the first and the last letter of each block, 0 for zeroes.
letters() { head -c $(($1 * 4096)) /dev/zero | tr '\0' "$2"; }
map() { tr '\0' 0 <"$1" | fold -w 4096 | sed -E 's/^(.).*(.)$/\1\2/' | xargs; }
# The image has a block of data, two of zeroes, one of data. A loop device is a disk full of "o" (old).
{ letters 1 n; head -c 8192 /dev/zero; letters 1 n; } >image
truncate -s 16384 disk
device=$(losetup -f --show disk)
root/usr/bin/img2simg image libsparse.simg
crate/bin/img2simg image crate.simg
seen=$(
    echo "image: $(map image)"
    for by in libsparse crate; do
        for reader in root/usr crate; do
            letters 4 o | dd of="$device" bs=4096 oflag=direct iflag=fullblock status=none
            $reader/bin/simg2img $by.simg "$device"
            blockdev --flushbufs "$device"
            echo "made by $by, written by ${reader/root\/usr/libsparse}: $(map "$device")"
        done
    done
)
losetup -d "$device"
device=
echo "$seen"
want='image: nn 00 00 nn
made by libsparse, written by libsparse: nn 00 00 nn
made by libsparse, written by crate: nn 00 00 nn
made by crate, written by libsparse: nn oo oo nn
made by crate, written by crate: nn o0 o0 nn'
[ "$seen" = "$want" ] || { echo "changed"; exit 1; }
echo "as seen on 1 December 2026"
