#!/bin/bash
# cgroup2.sh: the first process of a User-Mode Linux, as in nfs.sh. "daemon=" creates a disk of 128 MiB in a control group of
# version 2 inside of one that is limited to 64 MiB; the line "case memory" has its exit code and what is left of the disk.
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
for folder in /tmp /mnt; do mount -t tmpfs tmpfs "$folder"; done
daemon=$(sed -n 's/.*daemon=\([^ ]*\).*/\1/p' /proc/cmdline)
groups=/mnt/groups
mkdir "$groups" /mnt/disks
mount -t cgroup2 cgroup2 "$groups"
echo +memory >"$groups/cgroup.subtree_control"
mkdir -p "$groups/outer/inner"
echo +memory >"$groups/outer/cgroup.subtree_control"
echo 64M >"$groups/outer/memory.max"
status=0
(
    echo "$BASHPID" >"$groups/outer/inner/cgroup.procs"
    exec timeout 20 "$daemon" serve --disk path=/mnt/disks/a.img,socket=/tmp/s,size=128M 2>/tmp/log >/dev/null
) || status=$?
echo "case memory $status $(find /mnt/disks -type f | wc -l) $(grep -c "memory cgroup $groups/outer is limited to 67108864" /tmp/log)"
echo "case end"
poweroff -f
