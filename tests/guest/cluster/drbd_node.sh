#!/bin/bash
# drbd_node.sh: the first process of a node that is a User-Mode Linux on this machine's root, read-only ("node=1" or 2). It loads DRBD,
# and runs what comes into the folder "control=", cmd.1, cmd.2 and so on: out.K is what it said, done.K its exit code.
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
word() { sed -n "s,.*[ ]$1=\([^ ]*\).*,\1,p" /proc/cmdline; }
mkdir -p /dev/shm
for folder in /run /tmp /mnt /dev/shm /var/lib/drbd; do mount -t tmpfs tmpfs "$folder"; done
mkdir -p /run/lock /mnt/control
mount -t hostfs -o "$(word control)" none /mnt/control
modules=/usr/lib/uml/modules/$(uname -r)
for module in lru_cache drbd; do insmod "$(find "$modules" -name "$module.ko")"; done
NODE=$(word node) OTHER=$((3 - NODE))
export NODE OTHER
ip link set lo up
ip address add "10.78.0.$NODE/24" dev vec0
ip link set vec0 up

number=1
cd /mnt/control || exit
while :; do
    until [ -e "cmd.$number" ]; do sleep 0.1; done
    bash "cmd.$number" >"out.$number" 2>&1 </dev/null
    echo $? >status
    mv status "done.$number"
    number=$((number + 1))
done
