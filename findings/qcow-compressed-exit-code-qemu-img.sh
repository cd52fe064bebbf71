#!/bin/bash
# qemu-img 7.2 (qemu-utils 1:7.2+dfsg-7+deb12u18+b3, Debian 12; 10.0.2 of its backports as well): `convert -c -O qcow` ends
# with 1 and says nothing, while the image that it wrote is whole.
#
# Compression is offered for qcow, qcow2 and streamOptimized VMDK. For qcow each conversion "fails" without a message, an
# empty disk's too; `compare` finds no difference. A script that looks at the exit code throws away a good image, and who
# looks for the reason finds none.
#
# Needs apt-get with Debian 12's sources, and the libraries that an installed qemu-utils brings.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
apt-get -q -o APT::Sandbox::User=root download qemu-utils='1:7.2+dfsg-7+deb12u18+b3' >/dev/null
dpkg -x qemu-utils_*.deb root
PATH=$folder/root/usr/bin:$PATH
qemu-img --version | head -1

truncate -s 1M empty.raw
for number in $(seq 20000); do echo "line $number"; done >text.raw
truncate -s 1M text.raw
seen=$(for disk in empty text; do
    for format in qcow2 vmdk qcow; do
        options=()
        [ $format != vmdk ] || options=(-o subformat=streamOptimized)
        code=0
        qemu-img convert -c -f raw -O $format "${options[@]}" $disk.raw disk >said 2>&1 || code=$?
        echo "$disk, $format: exits with $code, says '$(cat said)'; $(qemu-img compare -f raw -F $format $disk.raw disk)"
    done
done)
echo "$seen"
want="empty, qcow2: exits with 0, says ''; Images are identical.
empty, vmdk: exits with 0, says ''; Images are identical.
empty, qcow: exits with 1, says ''; Images are identical.
text, qcow2: exits with 0, says ''; Images are identical.
text, vmdk: exits with 0, says ''; Images are identical.
text, qcow: exits with 1, says ''; Images are identical."
[ "$seen" = "$want" ] || { echo "changed"; exit 1; }
echo "as seen on 30 November 2026"
