#!/bin/bash
# GRUB 2.06-13+deb12u2 (grub-common), 7-Zip 26.02 (p7zip-full 16.02+really26.02+dfsg-0+deb12u1, both Debian 12): a compressed file of an
# ISO image is read as its compressed bytes, without an error. pycdlib 1.22.0 (PyPI) refuses the whole image.
#
# `genisoimage -z` notes at a file that mkzftree has compressed how, and how long it really is (zisofs, the field "ZF" of its
# Rock Ridge record); Linux and libarchive unpack it. The first two do not look for the field; the last
# says "Unknown SUSP record", though a reader is to step over what it does not know (SUSP, 4).
#
# Needs apt-get with Debian 12's sources, libdevmapper, libarchive's libraries, python3 with venv.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
apt-get -q -o APT::Sandbox::User=root download grub-common=2.06-13+deb12u2 genisoimage=9:1.1.11-3.4 \
    p7zip-full=16.02+really26.02+dfsg-0+deb12u1 7zip=22.01+really26.02+dfsg-0+deb12u1 libarchive-tools=3.6.2-1+deb12u5 \
    libarchive13=3.6.2-1+deb12u5 >/dev/null
for package in *.deb; do dpkg -x "$package" root; done
python3 -m venv venv
venv/bin/pip -q --disable-pip-version-check install pycdlib==1.22.0
cat >look.py <<'PY'
from io import BytesIO
from pycdlib import PyCdlib
disk, content = PyCdlib(), BytesIO()
try:
    disk.open("disk.iso")
    disk.get_file_from_iso_fp(content, rr_path="/numbers")
    print(f"{len(content.getvalue())} bytes")
except Exception as error:
    print(error)
PY

mkdir files
seq 50000 >files/numbers
root/usr/bin/mkzftree files packed
seen=$(
    for kind in plain packed; do
        case $kind in
            plain) root/usr/bin/genisoimage -quiet -R -o disk.iso files ;;
            packed) root/usr/bin/genisoimage -quiet -R -z -o disk.iso packed ;;
        esac
        root/usr/bin/grub-fstest disk.iso cat '(loop0)/numbers' >grub
        "$(find root/usr/lib -name 7z -type f)" x -so disk.iso numbers >7-Zip
        LD_LIBRARY_PATH=$(echo root/usr/lib/*-linux-gnu) root/usr/bin/bsdtar -xOf disk.iso numbers >libarchive
        for reader in libarchive grub 7-Zip; do
            if cmp -s $reader files/numbers; then what="the same"; else
                what="other bytes"
                ! cmp -s $reader packed/numbers || what="the compressed bytes"
            fi
            echo "$kind, $reader: $what"
        done
        echo "$kind, pycdlib: $(venv/bin/python look.py)"
    done
)
echo "$seen"
want='plain, libarchive: the same
plain, grub: the same
plain, 7-Zip: the same
plain, pycdlib: 288894 bytes
packed, libarchive: the same
packed, grub: the compressed bytes
packed, 7-Zip: the compressed bytes
packed, pycdlib: Unknown SUSP record'
[ "$seen" = "$want" ] || { echo "changed"; exit 1; }
echo "as seen on 1 December 2026"
