#!/bin/bash
# pmem.sh ACTION ...: persistent memory of this guest, and the daemon that serves it here.
#   region PROVIDER INDEX        the number of a region of that kind of bus
#   format KIND DEVICE OPTIONS [FOLDER]   makes an ext4, ext4-no-journal, xfs, or xfs-sharing (reflink=1) there and
#                                mounts it there, or on /mnt
#   fsdax REGION                 makes its namespace one for DAX file systems, unless it is
#   flags PATH                   the flags, octal, with which the daemon has it open
#   serve PATH OPTIONS ARGS...   starts the daemon and waits until it listens, or says why it does not
#   stop                         ends the daemon; the status is the daemon's
#   alive                        whether it runs
#   cached                       KiB in the page cache, without what lies in memory file systems
set -euo pipefail
socket=/tmp/disk.sock
case $1 in
region)
    for region in /sys/bus/nd/devices/region*; do
        region=$(readlink -f "$region")
        [ "$(cat "${region%/*}/provider")" != "$2" ] || echo "${region##*/region}"
    done | sort -n | sed -n "$(($3 + 1))p" | grep .
    ;;
fsdax)
    ndctl list -n "namespace$2.0" | grep -q '"mode":"fsdax"' ||
        ndctl create-namespace -f -e "namespace$2.0" -m fsdax
    ;;
format)
    case $2 in
    ext4) mkfs.ext4 -q -F -b 4096 "$3" ;;
    ext4-no-journal) mkfs.ext4 -q -F -b 4096 -O ^has_journal "$3" ;;
    xfs) mkfs.xfs -q -f -m reflink=0 "$3" ;;
    xfs-sharing) mkfs.xfs -q -f -m reflink=1 "$3" ;;
    esac
    mount -t "${2%%-*}" -o "$4" "$3" "${5:-/mnt}"
    ;;
serve)
    path=$2 options=$3
    shift 3
    rm -f "$socket" /tmp/status
    { (
        status=0
        /lab/vhost-user-pmem serve --disk "path=$path,socket=$socket$options" "$@" &
        echo $! >/tmp/pid
        wait $! || status=$?
        echo "$status" >/tmp/status
    ) & } </dev/null >/tmp/out 2>/tmp/log
    until [ -S "$socket" ] && [ -s /tmp/out ]; do
        if [ -e /tmp/status ]; then
            cat /tmp/log
            exit "$(cat /tmp/status)"
        fi
        sleep 0.1
    done
    ;;
stop)
    kill -TERM "$(cat /tmp/pid)"
    until [ -e /tmp/status ]; do sleep 0.1; done
    exit "$(cat /tmp/status)"
    ;;
alive) kill -0 "$(cat /tmp/pid)" ;;
flags)
    pid=$(cat /tmp/pid)
    for fd in "/proc/$pid/fd"/*; do
        [ "$(readlink "$fd")" != "$2" ] || sed -n 's/^flags:[^0-9]*//p' "/proc/$pid/fdinfo/${fd##*/}"
    done
    ;;
cached) awk '/^Cached:/ { cached = $2 } /^Shmem:/ { print cached - $2 }' FS='[: ]+' /proc/meminfo ;;
esac
