#!/bin/bash
# 7-Zip 22.01+really26.02+dfsg-0+deb12u1 (Debian 12): a streamOptimized VMDK made by `qemu-img convert`, empty or not, is no archive
# to it ("Cannot open the file as [VMDK] archive").
#
# The subformat is the one for OVA files: compressed grains, a marker before each. QEMU writes the grain directory in front
# and says so in the header; other writers have it at the end, where the footer is. QEMU itself and Sleuthkit
# (libvmdk) read such an image, and 7-Zip those of the other subformats that qemu-img writes.
#
# Needs apt-get with Debian 12's sources, qemu-img and qemu-io (seen with 10.0.2).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
apt-get -q -o APT::Sandbox::User=root download 7zip=22.01+really26.02+dfsg-0+deb12u1 {sleuthkit,libtsk19}=4.11.1+dfsg-1+b1 \
    libafflib0v5=3.7.20-1 libbfio1=20170123-6 libewf2=20140813-1+b1 libvhdi1=20210425-1+b2 libvmdk1=20200926-2+b2 >/dev/null
for package in *.deb; do dpkg -x "$package" root; done

truncate -s 8M empty
truncate -s 8M some
qemu-io -f raw -c 'write -P 65 64k 192k' -c 'write -P 66 5M 1k' some >/dev/null
# look DISK SUBFORMAT: whether each reader gets back what qemu-img put into an image.
look() {
    rm -f image*
    qemu-img convert -f raw -O vmdk -o "subformat=$2" "$1" image.vmdk
    echo "$1, $2"
    echo "  QEMU: $(qemu-img compare "$1" image.vmdk)"
    LD_LIBRARY_PATH=root/usr/lib/x86_64-linux-gnu root/usr/bin/img_cat image.vmdk >out
    echo "  Sleuthkit: $(cmp out "$1" && echo the same)"
    if root/usr/bin/7zz x -so image.vmdk >out 2>error; then
        echo "  7-Zip: $(cmp out "$1" && echo the same)"
    else
        echo "  7-Zip: $(grep -o 'Cannot.*' error)"
    fi
}
seen=$(
    look some monolithicSparse
    look some twoGbMaxExtentSparse
    look some streamOptimized
    look empty streamOptimized
)
echo "$seen"
want='some, monolithicSparse
  QEMU: Images are identical.
  Sleuthkit: the same
  7-Zip: the same
some, twoGbMaxExtentSparse
  QEMU: Images are identical.
  Sleuthkit: the same
  7-Zip: the same
some, streamOptimized
  QEMU: Images are identical.
  Sleuthkit: the same
  7-Zip: Cannot open the file as [VMDK] archive
empty, streamOptimized
  QEMU: Images are identical.
  Sleuthkit: the same
  7-Zip: Cannot open the file as [VMDK] archive'
[ "$seen" = "$want" ] || { echo "changed"; exit 1; }
echo "as seen on 30 November 2026"
