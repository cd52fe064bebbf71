#!/bin/bash
# user_mode.sh: the first process of a User-Mode Linux whose root is this machine's, read-only. It makes what media of the
# device-mapper and of NFS need, and runs a test of a program of tests ("test=", "tests=") that makes its files in "temporary=".
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
# shellcheck source=tests/common/nfs.sh
. "$(dirname "$0")/../common/nfs.sh"
mount -t proc proc /proc
mount -t sysfs sysfs /sys
word() { sed -n "s/.*[ ]$1=\([^ ]*\).*/\1/p" /proc/cmdline; }
mkdir -p /dev/shm
for folder in /run /var/lib/nfs /tmp /mnt /dev/shm "$(word temporary)"; do mount -t tmpfs tmpfs "$folder"; done

load loop
load dm-mod
export_folder
mount_export /mnt/client timeo=50

"$(word tests)" --ignored --exact "$(word test)" --nocapture --test-threads=1 2>&1
echo "case end $?"
poweroff -f
