#!/bin/bash
# nbdkit 1.32.5-1 (Debian 12): its gzip filter serves the first member of a gzip file as the whole disk.
#
# A gzip file is a series of members, and its contents are all of them (RFC 1952, 2.2): so write pigz -i, bgzip, and anybody
# who appends one file to another. The filter stops at the first member's end, without an error. The xz filter of the
# same package reads a file of several blocks in whole.
#
# Needs apt-get with Debian 12's sources, and the libraries that an installed nbdkit brings.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
apt-get -q -o APT::Sandbox::User=root download nbdkit=1.32.5-1 libnbd0=1.14.2-1 libnbd-bin=1.14.2-1 >/dev/null
for package in *.deb; do dpkg -x "$package" root; done
export LD_LIBRARY_PATH=root/usr/lib/x86_64-linux-gnu
parts=root/usr/lib/x86_64-linux-gnu/nbdkit

seq -w 0 131071 | head -c 917504 >disk
head -c 500000 disk >first
tail -c +500001 disk >second
gzip -c disk >one.gz
{ gzip -c first; gzip -c second; } >two.gz
gzip -dc two.gz | cmp - disk
xz -c --block-size=500000 disk >two.xz
# serve FILTER FILE: how many bytes of the disk are served.
serve() {
    # shellcheck disable=SC2016 # nbdkit knows its address
    root/usr/bin/nbdkit -U - --filter="$parts/filters/nbdkit-$1-filter.so" $parts/plugins/nbdkit-file-plugin.so "$2" \
        --run 'root/usr/bin/nbdcopy "$uri" read.out'
    echo "$2: $(stat -c %s read.out) of $(stat -c %s disk) bytes"
    rm read.out
}
seen=$(serve gzip one.gz; serve gzip two.gz; serve xz two.xz)
echo "$seen"
want='one.gz: 917504 of 917504 bytes
two.gz: 500000 of 917504 bytes
two.xz: 917504 of 917504 bytes'
[ "$seen" = "$want" ] || { echo "changed"; exit 1; }
echo "as seen on 30 November 2026"
