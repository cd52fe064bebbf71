#!/bin/bash
# Runs in a guest that is one of two nodes: DRBD, protocol C, over the disk /dev/vda and the network card eth0.
#
#   drbd.sh up NUMBER [new]   of node 1 or 2; `new` makes it anew, on both
#   drbd.sh first             the copies of two that are new are the same: nothing is there yet
#   drbd.sh primary           from now on this node may use /dev/drbd0
#   drbd.sh same              waits until both nodes have all that was written
#   drbd.sh serve [OPTIONS]   has the daemon serve it at /tmp/disk.sock
set -euo pipefail

NETWORK=10.78.0
PORT=7788
TRIES=1200

# await WHAT COMMAND...: until it succeeds.
await() {
    local what=$1 try
    shift
    for try in $(seq $TRIES); do
        "$@" && return
        [ "$try" = $TRIES ] || sleep 0.1
    done
    echo "waited in vain until $what; /proc/drbd says:"
    cat /proc/drbd
    exit 1
}

are_same() { [ "$(/lab/drbdsetup-84 dstate 0)" = UpToDate/UpToDate ]; }
is_connected() { [ "$(/lab/drbdsetup-84 cstate 0)" = Connected ]; }
listens() { grep -q /tmp/disk.sock /proc/net/unix; }

up() {
    local own=$1 other=$((3 - $1))
    ip link set lo up
    ip addr add "$NETWORK.$own/24" dev eth0
    ip link set eth0 up
    mkdir -p /var/lock /var/lib/drbd /var/run
    [ "${2:-}" != new ] || /lab/drbdmeta --force 0 v08 /dev/vda internal create-md
    /lab/drbdsetup-84 new-resource disk
    /lab/drbdsetup-84 new-minor disk 0 0
    # Of a node that was lost it is said what may not have reached the other.
    /lab/drbdmeta 0 v08 /dev/vda internal apply-al
    /lab/drbdsetup-84 attach 0 /dev/vda /dev/vda internal
    # In tenths of a second, the interval in seconds.
    /lab/drbdsetup-84 connect disk "ipv4:$NETWORK.$own:$PORT" "ipv4:$NETWORK.$other:$PORT" \
        --protocol=C --timeout=30 --ping-int=3 --ping-timeout=20 --connect-int=3
}

case $1 in
up) up "$2" "${3:-}" ;;
first)
    await "the nodes are connected" is_connected
    /lab/drbdsetup-84 new-current-uuid --clear-bitmap 0
    ;;
primary) await "this node is primary" /lab/drbdsetup-84 primary 0 ;;
same) await "both nodes have all" are_same ;;
serve)
    /lab/vhost-user-pmem serve --disk "name=disk,path=/dev/drbd0,socket=/tmp/disk.sock${2:+,$2}" >/tmp/daemon 2>&1 &
    await "the daemon listens" listens
    ;;
*) exit 2 ;;
esac
