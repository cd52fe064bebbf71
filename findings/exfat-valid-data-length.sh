#!/bin/bash
# exfat-fuse 1.3.0+git20220115-2, Sleuthkit 4.11.1+dfsg-1+b1, GRUB 2.06-13+deb12u2 (Debian 12) and libfsfat-python 20260826 (PyPI):
# what was reserved for a file of exFAT and never written reads as what happened to be on the disk before.
#
# ValidDataLength says how much of a file was written; what follows up to DataLength, the file's size, is undefined on the
# disk and shall be read as zeroes (exFAT specification, 7.6.5). Windows makes such files where space is reserved, as for a
# disk image of a fixed size. None of the four looks at the field when it reads.
#
# Needs root, a kernel with FUSE and loop devices, apt-get with Debian 12's sources, libdevmapper, python3 with venv.
set -euo pipefail
folder=$(mktemp -d)
device=
trap 'umount -q "$folder/mount" || true; [ -z "$device" ] || losetup -d "$device" || true; rm -rf "$folder"' EXIT
cd "$folder"
PATH=$PATH:/usr/sbin:/sbin
apt-get -q -o APT::Sandbox::User=root download grub-common=2.06-13+deb12u2 exfatprogs=1.2.0-1+deb12u1 \
    exfat-fuse=1.3.0+git20220115-2 {sleuthkit,libtsk19}=4.11.1+dfsg-1+b1 libafflib0v5=3.7.20-1 libbfio1=20170123-6 \
    libewf2=20140813-1+b1 libvhdi1=20210425-1+b2 libvmdk1=20200926-2+b2 >/dev/null
for package in *.deb; do dpkg -x "$package" root; done
python3 -m venv venv
venv/bin/pip -q --disable-pip-version-check install libfsfat-python==20260826
PATH=$folder/root/usr/sbin:$folder/root/sbin:$folder/root/usr/bin:$PATH
export LD_LIBRARY_PATH=$folder/root/usr/lib/x86_64-linux-gnu
mkdir mount
# with PROGRAM...: runs it while the file system is mounted.
with() {
    device=$(losetup -f --show fs.img)
    mount.exfat-fuse "$device" mount >/dev/null
    "$@"
    umount mount
    losetup -d "$device"
    device=
}

# A file of 65536 bytes of "a" and as many "o" (old); then only the first half is valid.
truncate -s 32M fs.img
mkfs.exfat fs.img >/dev/null
{ head -c 65536 /dev/zero | tr '\0' a; head -c 65536 /dev/zero | tr '\0' o; } >file
with cp file mount
python3 - <<'PY'
import struct
with open("fs.img", "r+b") as image:
    disk = image.read()
    at = next(at for at in range(0, len(disk), 32) if disk[at] == 0x85 and disk[at + 32] == 0xC0)
    entries = bytearray(disk[at : at + 32 * (disk[at + 1] + 1)])
    assert struct.unpack_from("<Q", entries, 40) == struct.unpack_from("<Q", entries, 56) == (131072,)
    struct.pack_into("<Q", entries, 40, 65536)
    checksum = 0
    for index, byte in enumerate(entries):
        if index not in (2, 3):
            checksum = ((checksum >> 1 | checksum << 15) + byte) & 0xFFFF
    struct.pack_into("<H", entries, 2, checksum)
    image.seek(at)
    image.write(entries)
PY
fsck.exfat -n fs.img

with cp mount/file exfat-fuse.out
grub-fstest fs.img cat '(loop0)/file' >GRUB.out
icat fs.img "$(fls fs.img | sed -n 's/^r\/r \([0-9]*\):\tfile$/\1/p')" >Sleuthkit.out
env -u LD_LIBRARY_PATH venv/bin/python - <<'PY'
import pyfsfat
volume = pyfsfat.volume()
volume.open("fs.img")
entry = volume.get_file_entry_by_path("\\file")
with open("libfsfat.out", "wb") as out:
    out.write(entry.read_buffer(entry.size))
PY
seen=$(for name in exfat-fuse GRUB Sleuthkit libfsfat; do
    echo "$name: $(stat -c %s $name.out) bytes, zero $(tr -cd '\0' <$name.out | wc -c), old $(tr -cd o <$name.out | wc -c)"
done)
echo "$seen"
want='exfat-fuse: 131072 bytes, zero 0, old 65536
GRUB: 131072 bytes, zero 0, old 65536
Sleuthkit: 131072 bytes, zero 0, old 65536
libfsfat: 131072 bytes, zero 0, old 65536'
[ "$seen" = "$want" ] || { echo "changed"; exit 1; }
echo "as seen on 30 November 2026"
