#!/bin/bash
# user_mode.sh: the first process of a User-Mode Linux whose root is this machine's, read-only. It makes what media of the
# device-mapper and of NFS need, and runs a test of a program of tests ("test=", "tests=") that makes its files in "temporary=".
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
word() { sed -n "s/.*[ ]$1=\([^ ]*\).*/\1/p" /proc/cmdline; }
mkdir -p /dev/shm
for folder in /run /var/lib/nfs /tmp /mnt /dev/shm "$(word temporary)"; do mount -t tmpfs tmpfs "$folder"; done
modules=/usr/lib/uml/modules/$(uname -r)

load() {
    local file dependency
    grep -q "^${1//-/_} " /proc/modules && return
    file=$(find "$modules" -name "$1.ko")
    [ -n "$file" ] || return 0
    for dependency in $(modinfo -F depends "$file" | tr ',' ' '); do load "$dependency"; done
    insmod "$file"
}

ip link set lo up
for module in loop dm-mod nfsv4 nfsd; do load "$module"; done
mkdir -p /var/lib/nfs/v4recovery /var/lib/nfs/rpc_pipefs /mnt/{export,client}
touch /var/lib/nfs/{etab,rmtab}
mount -t tmpfs tmpfs /mnt/export
mount -t nfsd nfsd /proc/fs/nfsd
exportfs -o rw,no_root_squash,insecure,fsid=0,no_subtree_check 127.0.0.1:/mnt/export
rpc.mountd -N 3
rpc.nfsd -N 3 -V 4.2 2
echo Y >/proc/fs/nfsd/v4_end_grace
mount -i -t nfs4 -o vers=4.2,addr=127.0.0.1,clientaddr=127.0.0.1,timeo=50 127.0.0.1:/ /mnt/client || echo "no mount"

"$(word tests)" --ignored --exact "$(word test)" --nocapture --test-threads=1 2>&1
echo "case end $?"
poweroff -f
