#!/bin/bash
# nfs.sh: the first process of a User-Mode Linux whose root is this machine's, read-only. An NFS server exports /mnt/export,
# and is mounted twice as if by two clients; "daemon=" of the kernel's command line is served by all of them.
# Each case is one line: its name, and the exit codes of who came second and third ("-" for one that was served).
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
# shellcheck source=tests/common/nfs.sh
. "$(dirname "$0")/../common/nfs.sh"
mount -t proc proc /proc
mount -t sysfs sysfs /sys
for folder in /run /var/lib/nfs /tmp /mnt; do mount -t tmpfs tmpfs "$folder"; done
daemon=$(sed -n 's/.*daemon=\([^ ]*\).*/\1/p' /proc/cmdline)

# serve PATH KEYS: "-" when it is served for a while, else its exit code; then it has ended.
serve() {
    local status=0
    timeout "$wait" "$daemon" serve --disk "path=$1,socket=/tmp/$RANDOM$RANDOM,name=$2" >/dev/null 2>"/tmp/log-$2" ||
        status=$?
    [ "$status" = 124 ] && echo - || echo "$status"
}

# begin PATH KEYS: serves it, and returns when it does.
begin() {
    rm -f /tmp/begun
    "$daemon" serve --disk "path=$1,socket=/tmp/first,$2" >/tmp/begun 2>/tmp/log &
    for _ in $(seq 300); do
        [ -s /tmp/begun ] && return
        sleep 0.1
    done
    cat /tmp/log
}

# finish: ends that one.
finish() {
    kill %%
    wait
}

# log WORDS: whether the log of the first one has them in time.
log() {
    for _ in $(seq 100); do
        grep -q "$1" /tmp/log && return
        sleep 0.1
    done
    cat /tmp/log
    return 1
}

export_folder
mount_export /mnt/a nosharecache
mount_export /mnt/b nosharecache
truncate -s 1M /mnt/export/x.img

wait=60
begin /mnt/a/x.img name=client
echo "case client-first $(serve /mnt/export/x.img server) $(serve /mnt/b/x.img other)"
finish
begin /mnt/export/x.img name=server
echo "case server-first $(serve /mnt/a/x.img client) $(serve /mnt/a/x.img reader,readonly=on)"
finish
wait=5
begin /mnt/export/x.img name=server,readonly=on
echo "case readers $(serve /mnt/a/x.img client,readonly=on)"
wait=60
echo "case writer-beside-readers $(serve /mnt/b/x.img other)"
finish

"$daemon" info /mnt/a/x.img | sed -n 's/^ *it lies on  */case storage /p'
truncate -s 8M /mnt/a/y.img
begin /mnt/a/y.img name=growing
truncate -s 24M /mnt/a/y.img
log 'the disk has grown' && echo "case growth $(($(stat -c '%b * %B' /mnt/export/y.img) >> 20)) $(grep -c 'cannot preallocate' /tmp/log)"
finish
echo "case end"
poweroff -f
