#!/bin/bash
# dissect.volume 3.18 (PyPI): an MD array of RAID level 4, 5, 6 or 10 is as long as one of its disks, and a read of more than a
# chunk is followed on the first disk.
#
# A superblock's `size` is the part of each disk that is used (md_p.h), and the library takes it for the array's. Where a
# read begins is found by the layout; then all that is left to read is read from that disk, chunk after chunk, and put
# together. Parity and copies of data are handed out as the array's contents, and more bytes than were asked for.
#
# Needs apt-get with Debian 12's sources, libdevmapper, python3 with venv.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
apt-get -q -o APT::Sandbox::User=root download mdadm=4.2-5 grub-common=2.06-13+deb12u2 >/dev/null
for package in *.deb; do dpkg -x "$package" root; done
python3 -m venv venv
venv/bin/pip -q --disable-pip-version-check install dissect.volume==3.18

# Disks of an array whose chunks of 64 KiB are full of the letters A, B, C... (parity and second copies: "-").
cat >make.py <<'PY'
import struct, sys
CHUNK = 128  # sectors
START = 2048
def superblock(disk, disks, level, layout, used):
    block = bytearray(512)
    struct.pack_into("<IIII16s32s", block, 0, 0xA92B4EFC, 1, 0, 0, bytes(range(16)), b"array")
    struct.pack_into("<QiIQII", block, 64, 0, level, layout, used, CHUNK, disks)
    struct.pack_into("<QQQQI", block, 128, START, used, 8, 0, disk)
    struct.pack_into("<16s", block, 168, bytes([disk] * 16))
    struct.pack_into("<QQQII", block, 192, 0, 1, 0xFFFFFFFFFFFFFFFF, 0, 128)
    struct.pack_into("<128H", block, 256, *range(disks), *[0xFFFF] * (128 - disks))
    total = sum(struct.unpack("<128I", block))
    struct.pack_into("<I", block, 216, ((total & 0xFFFFFFFF) + (total >> 32)) & 0xFFFFFFFF)
    return block
def place(level, chunk, disks):
    if level == 10:  # two copies, one beside the other
        return chunk * 2 % disks, chunk * 2 // disks
    stripe, data = divmod(chunk, disks - (2 if level == 6 else 1))
    if level == 4:
        return data, stripe
    parity = disks - 1 - stripe % disks  # left-symmetric
    return (parity + level - 4 + data) % disks, stripe
level, disks, chunks = map(int, sys.argv[1:])
layout = {4: 0, 5: 2, 6: 2, 10: 0x102}[level]
used = 4 * CHUNK
contents = [bytearray(b"-" * used * 512) for _ in range(disks)]
for chunk in range(chunks):
    disk, row = place(level, chunk, disks)
    contents[disk][row * CHUNK * 512 : (row + 1) * CHUNK * 512] = bytes([65 + chunk]) * (CHUNK * 512)
for disk in range(disks):
    with open(f"disk{disk}", "wb") as file:
        file.seek(4096)
        file.write(superblock(disk, disks, level, layout, used))
        file.seek(START * 512)
        file.write(contents[disk] + bytes(65536))
PY
cat >look.py <<'PY'
import sys
from dissect.volume.md.md import MD
def show(data):
    return data[::65536].decode()
disk = MD([open(name, "rb") for name in sys.argv[1:]]).configurations[0].virtual_disks[0]
stream = disk.open()
parts = []
while part := stream.read(65536):
    parts.append(show(part))
whole = show(disk.open().read(262144))
print(f"dissect.volume {disk.size} bytes, by chunks {''.join(parts)}, at once {whole}")
PY
# look LEVEL DISKS CHUNKS: sizes and contents of such an array; mdadm and GRUB are asked first.
look() {
    local at size
    rm -f disk?
    python3 make.py "$@"
    size=$(root/sbin/mdadm --examine disk0 | sed -n 's/ *Array Size : \([0-9]*\) KiB.*/\1/p')
    echo "RAID $1: mdadm $((size * 1024)) bytes, GRUB $(for ((at = 0; at < $3; at++)); do
        root/usr/bin/grub-fstest disk? -c "$2" cat "(md/array)$((at * 128))+1" | head -c 1
    done), $(venv/bin/python look.py disk?)"
}
seen=$(look 4 3 8; look 5 3 8; look 6 4 8; look 10 4 8)
echo "$seen"
want='RAID 4: mdadm 524288 bytes, GRUB ABCDEFGH, dissect.volume 262144 bytes, by chunks ABCD, at once ACEGBDFCED
RAID 5: mdadm 524288 bytes, GRUB ABCDEFGH, dissect.volume 262144 bytes, by chunks ABCD, at once AD-GB-ECFD
RAID 6: mdadm 524288 bytes, GRUB ABCDEFGH, dissect.volume 262144 bytes, by chunks ABCD, at once AD--B--CFD
RAID 10: mdadm 524288 bytes, GRUB ABCDEFGH, dissect.volume 262144 bytes, by chunks ABCD, at once ACEGBDFCED'
[ "$seen" = "$want" ] || { echo "changed"; exit 1; }
echo "as seen on 30 November 2026"
