#!/bin/bash
# qemu-storage-daemon 7.2 (qemu-system-common 1:7.2+dfsg-7+deb12u18+b3, Debian 12; 10.0.2 of its backports as well): two
# of them export one raw file for writing at the same time, and qemu-io writes to it as well.
#
# QEMU locks an image that a guest uses, by bytes of the file (100 and on: what is used; 200 and on: what nobody else may
# do), and its tools refuse to touch it then ("Failed to get "write" lock"). A writable export of the storage daemon
# says that it writes, and lets everybody else do so too, with vhost-user-blk as with NBD. Two guests on one disk are
# noticed by nobody.
#
# Needs apt-get with Debian 12's sources, and the libraries that an installed qemu-utils brings.
set -euo pipefail
folder=$(mktemp -d)
trap 'kill $(jobs -p) 2>/dev/null; wait; rm -rf "$folder"' EXIT
cd "$folder"
apt-get -q -o APT::Sandbox::User=root download qemu-{system-common,utils}='1:7.2+dfsg-7+deb12u18+b3' >/dev/null
for package in *.deb; do dpkg -x "$package" root; done
PATH=$folder/root/usr/bin:$PATH
qemu-storage-daemon --version | head -1

# exports KIND: two daemons, then qemu-io; what each of them says.
exports() {
    local kind=$1 number
    rm -f disk.raw
    truncate -s 1M disk.raw
    for number in 1 2; do
        case $kind in
        vhost-user-blk) set -- --export "type=$kind,id=e,node-name=n,writable=on,addr.type=unix,addr.path=$kind-$number" ;;
        nbd) set -- --nbd-server "addr.type=unix,addr.path=$kind-$number" --export "type=$kind,id=e,node-name=n,writable=on" ;;
        esac
        qemu-storage-daemon --blockdev driver=file,node-name=n,filename=disk.raw "$@" >"$number.log" 2>&1 &
        for _ in $(seq 100); do
            [ ! -S "$kind-$number" ] || break
            sleep 0.1
        done
        sleep 0.5
        printf '%s %s: %s%s; ' "$kind" "$number" "$(kill -0 $! 2>/dev/null && echo serves || echo refused)" "$(cat "$number.log")"
    done
    qemu-io -f raw -c 'write -P 1 0 512' disk.raw 2>&1 | head -1
    # shellcheck disable=SC2046 # numbers
    kill $(jobs -p)
    wait
}
seen=$(exports vhost-user-blk; exports nbd)
echo "$seen"
want='vhost-user-blk 1: serves; vhost-user-blk 2: serves; wrote 512/512 bytes at offset 0
nbd 1: serves; nbd 2: serves; wrote 512/512 bytes at offset 0'
[ "$seen" = "$want" ] || { echo "changed"; exit 1; }
echo "as seen on 30 November 2026"
