#!/bin/bash
# Runs on a node that has all of a small Ceph: a monitor, a manager, a metadata server, and three OSDs with a replica each on a file.
#
#   ceph.sh new ADDRESS   makes and starts it, with the file system `disks`
#   ceph.sh start [OSD]   all of it, or OSD 0, 1 or 2, which must not run
#   ceph.sh kill [OSD]    where it stands
#   ceph.sh freeze        all of it: nothing answers, and all connections stay
#   ceph.sh thaw
#   ceph.sh whole         waits until all replicas are there and have all that was written
set -euo pipefail

OSDS='0 1 2'
TRIES=1500

# await WHAT COMMAND...: until it succeeds.
await() {
    local what=$1 try
    shift
    for try in $(seq $TRIES); do
        "$@" && return
        [ "$try" = $TRIES ] || sleep 0.2
    done
    echo "waited in vain until $what; the cluster says:"
    timeout 20 ceph -s
    exit 1
}

has_active_mds() { ceph mds stat | grep -q up:active; }
# As in "17 pgs: 17 active+clean; 16 MiB data, ...".
is_whole() {
    [[ $(ceph osd stat) == *" 3 up "* ]] && [[ $(ceph pg stat) =~ ^([1-9][0-9]*)\ pgs:\ ([0-9]+)\ active\+clean\; ]] &&
        [ "${BASH_REMATCH[1]}" = "${BASH_REMATCH[2]}" ]
}
start_osds() {
    local osd
    for osd; do ceph-osd -i "$osd" 2>/dev/null & done
    wait
}
# signal SIGNAL [OSD]: to all of it, or to one OSD.
signal() {
    # shellcheck disable=SC2046
    kill "-$1" $(if [ $# = 1 ]; then cat /run/ceph/*.pid; else cat "/run/ceph/osd.$2.pid"; fi)
}

start() {
    ceph-mon -i a
    ceph-mgr -i a
    # shellcheck disable=SC2086
    start_osds $OSDS
    ceph-mds -i a
}

new() {
    local id osd uuid commands=''
    id=$(cat /proc/sys/kernel/random/uuid)
    cat >/etc/ceph/ceph.conf <<END
[global]
fsid = $id
mon host = [v2:$1:3300]
mon initial members = a
# Of a network that nobody else is on.
auth cluster required = none
auth service required = none
auth client required = none
pid file = /run/ceph/\$name.pid
osd pool default size = 3
osd pool default min size = 2
osd pool default pg num = 8
osd pool default pg autoscale mode = off
# All replicas are on one host.
osd crush chooseleaf type = 0
bluestore block size = 1073741824
# However full the disk of this machine is.
mon data avail crit = 0
mon data avail warn = 0
END
    monmaptool --create --addv a "[v2:$1:3300]" --fsid "$id" /run/ceph/monmap
    mkdir -p /var/lib/ceph/{mon,mgr,mds}/ceph-a
    ceph-mon --mkfs -i a --monmap /run/ceph/monmap
    ceph-mon -i a
    ceph-mgr -i a
    for osd in $OSDS; do
        mkdir -p "/var/lib/ceph/osd/ceph-$osd"
        uuid=$(cat /proc/sys/kernel/random/uuid)
        commands+="osd new $uuid"$'\n'
        ceph-osd -i "$osd" --mkfs --osd-uuid "$uuid" 2>/dev/null &
    done
    ceph <<<"$commands"
    wait
    # shellcheck disable=SC2086
    start_osds $OSDS
    ceph-mds -i a
    ceph <<<$'osd pool create meta\nosd pool create data\nfs new disks meta data\nfs set disks session_timeout 30'
    await "there is a file system" has_active_mds
}

case $1 in
new) new "$2" ;;
start) if [ $# = 1 ]; then start; else start_osds "$2"; fi ;;
kill) shift && signal KILL "$@" ;;
freeze) signal STOP ;;
thaw) signal CONT ;;
whole) await "all replicas are the same" is_whole ;;
esac
