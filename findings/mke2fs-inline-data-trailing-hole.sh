#!/bin/bash
# e2fsprogs 1.47.0-2+b2 (Debian 12): `mke2fs -d FOLDER -O inline_data` stores a sparse file without the hole at its end.
#
# A file that ends with a hole keeps its length without inline_data. With it the file in the image is as long as its last
# block of data, rounded up: its bytes are right, its size is not, whether or not its data is small enough to be inline.
# A disk image inside of such a file system is cut off.
#
# Needs apt-get with Debian 12's sources, dpkg, sparse files.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
apt-get -q -o APT::Sandbox::User=root download e2fsprogs=1.47.0-2+b2 libext2fs2=1.47.0-2+b2 libcom-err2=1.47.0-2+b2 libss2=1.47.0-2+b2 >/dev/null
for package in *.deb; do dpkg -x "$package" root; done
run() {
    local program=$1
    shift
    MKE2FS_CONFIG=root/etc/mke2fs.conf LD_LIBRARY_PATH=root/lib/x86_64-linux-gnu:root/usr/lib/x86_64-linux-gnu \
        "root/sbin/$program" "$@" 2>/dev/null
}
mkdir tree
printf 'data' | dd of=tree/disk.img bs=1 seek=1M status=none
truncate -s 3M tree/disk.img

# length OPTION...: of the file in an image made with these options.
length() {
    rm -f fs.img
    run mke2fs -q -t ext4 "$@" -d tree fs.img 32M >/dev/null
    run debugfs -R 'stat disk.img' fs.img | sed -n 's/.*Size: \([0-9][0-9]*\)$/\1/p' | head -1
}
seen="without inline_data: $(length), with it: $(length -O inline_data), the file: $(stat -c %s tree/disk.img)"
echo "$seen"
[ "$seen" = "without inline_data: 3145728, with it: 1049600, the file: 3145728" ] || { echo "changed"; exit 1; }
echo "as seen on 30 November 2026"
