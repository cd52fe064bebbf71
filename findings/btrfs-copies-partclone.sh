#!/bin/bash
# partclone 0.3.23+repack-1 (Debian 12): of a btrfs that keeps everything twice on its disk partclone.btrfs saves one copy, and says that
# it succeeded, as partclone.restore does; the second copies are gone until somebody scrubs the file system.
#
# With the profile DUP, which mkfs.btrfs gives the metadata of one disk by itself, a chunk has two places ("stripes"). What is in
# use is saved at the first of them. The restored file system mounts, its files are the same, and `btrfs check` finds no
# error: it goes by the first copies, too. A scrub finds all of the second ones wrong. With one copy there is no error.
#
# Needs root, a kernel with btrfs and loop devices, apt-get with Debian 12's sources, libncursesw6, libssl3, btrfs-progs (seen with 6.2).
set -euo pipefail
folder=$(mktemp -d)
trap 'umount -q "$folder/mount" || true; rm -rf "$folder"' EXIT
cd "$folder"
PATH=$PATH:/usr/sbin:/sbin
apt-get -q -o APT::Sandbox::User=root download partclone=0.3.23+repack-1 >/dev/null
dpkg -x partclone_*.deb root
mkdir mount
# off: writes all of it to its place, also where another mount namespace keeps the mount, and unmounts it.
off() {
    mount -o remount,ro mount
    umount mount
}
# scrub WHAT: the files' sum, the check's verdict and the scrub's of a disk.
scrub() {
    echo "$1: $(btrfs check "$2" 2>&1 | grep -o 'no error found')"
    mount -o loop "$2" mount
    cat mount/* | md5sum >"$2.sum"
    btrfs scrub start -BR mount >scrubbed 2>&1 || true
    off
    awk -v what="$1" '/csum_errors/ { bad = $2 }
        END { print what ": a scrub finds blocks of data wrong: " (bad > 2000 ? "more than 2000" : bad) }' scrubbed
}
seen=$(
    for profile in single dup; do
        rm -f disk back image
        truncate -s 300M disk back
        mkfs.btrfs -q -m $profile -d $profile disk >/dev/null 2>&1
        mount -o loop disk mount
        for name in $(seq 30); do head -c 300000 /dev/urandom >"mount/$name"; done
        off
        scrub "$profile" disk
        root/usr/sbin/partclone.btrfs -c -s disk -O image -L log >/dev/null 2>&1
        echo "$profile: $(grep -o 'successfully cloned' log)"
        root/usr/sbin/partclone.restore -s image -O back -C -L log >/dev/null 2>&1
        echo "$profile: $(grep -o 'successfully restored' log)"
        scrub "$profile, restored" back
        cmp -s disk.sum back.sum && echo "$profile, restored: the files are the same"
    done
)
echo "$seen"
want='single: no error found
single: a scrub finds blocks of data wrong: 0
single: successfully cloned
single: successfully restored
single, restored: no error found
single, restored: a scrub finds blocks of data wrong: 0
single, restored: the files are the same
dup: no error found
dup: a scrub finds blocks of data wrong: 0
dup: successfully cloned
dup: successfully restored
dup, restored: no error found
dup, restored: a scrub finds blocks of data wrong: more than 2000
dup, restored: the files are the same'
[ "$seen" = "$want" ] || { echo "changed"; exit 1; }
echo "as seen on 1 December 2026"
