#!/bin/bash
# hfsplus 0.4.0, hfsplus-core 0.1.0 (crates.io), libfshfs-python 20260922 (PyPI), 7-Zip 26.02 (7zip 22.01+really26.02+dfsg-0+deb12u1)
# and GRUB 2.06-13+deb12u2 (both Debian 12): a file of HFS+ with two names is empty to the first four, without an error, and to
# the last it is not there. hfsplus-core reads the first eight extents of a file and leaves out the rest.
#
# Each name of such a file is a catalog record with the type "hlnk" and no data, which tells the number of the file in the folder "HFS+
# Private Data" (Apple's Technical Note 1150, "Hard Links"); extents from the ninth on are in the extents overflow file. Backups
# on HFS+ consist of hard links. Linux reads and wrote them here.
#
# A guest in QEMU (emulation is enough). Needs apt-get with Debian 12's security sources, qemu-system-x86_64, busybox-static, kmod,
# cpio, libdevmapper, cargo, python3 with venv.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
PATH=$PATH:/usr/sbin:/sbin
apt-get -q -o APT::Sandbox::User=root download linux-image-6.1.0-57-amd64=6.1.192-3 7zip=22.01+really26.02+dfsg-0+deb12u1 \
    grub-common=2.06-13+deb12u2 >/dev/null
for package in *.deb; do dpkg -x "$package" system; done
python3 -m venv venv
venv/bin/pip -q --disable-pip-version-check install libfshfs-python==20260922
mkdir src
cat >Cargo.toml <<'TOML'
[package]
name = "look"
version = "0.0.0"
edition = "2021"
[dependencies]
hfsplus = "=0.4.0"
hfsplus-core = "=0.1.0"
TOML
cat >src/main.rs <<'RUST'
fn show(reader: &str, name: &str, bytes: &[u8]) {
    println!("{reader}, {name}: {}.", bytes.chunks(4096).map(|block| block[0] as char).collect::<String>());
}
fn main() {
    let disk = std::fs::read("disk").unwrap();
    let mut volume = hfsplus::HfsVolume::open(std::io::Cursor::new(&disk)).unwrap();
    for name in ["one", "two", "pieces"] {
        show("hfsplus", name, &volume.read_file(name).unwrap());
    }
    let files = hfsplus_core::list_root(&disk).unwrap();
    for name in ["one", "two", "pieces"] {
        let file = files.iter().find(|file| file.name == name).unwrap();
        show("hfsplus-core", name, &hfsplus_core::read_file(&disk, file.cnid).unwrap());
    }
}
RUST
CARGO_PROFILE_DEV_DEBUG=0 cargo -q build
cat >look.py <<'PY'
import pyfshfs
volume = pyfshfs.volume()
volume.open("disk")
for name in ["one", "two", "pieces"]:
    file = volume.get_file_entry_by_path("/" + name)
    data = file.read_buffer(file.size) if file.size else b""
    print("libfshfs, " + name + ":", "".join(chr(byte) for byte in data[::4096]) + ".")
PY

# An empty volume of 16 MiB, as there is no mkfs.hfsplus in Debian 12: block 1 is the bitmap, the extents file is at 2 and the
# catalog at 10, with the root folder "disk" and its thread.
python3 - <<'PY'
import struct
BLOCK, BLOCKS, EXTENTS, CATALOG, NODES = 4096, 4096, 2, 10, 64

def fork(size, start, count):
    return struct.pack(">QIIII", size, size, count, start, count) + bytes(56)

def node(kind, height, records):
    out = bytearray(struct.pack(">IIBBHH", 0, 0, kind, height, len(records), 0))
    places = []
    for record in records:
        places.append(len(out))
        out += record
    places.append(len(out))
    out += bytes(BLOCK - len(out))
    for index, place in enumerate(places):
        struct.pack_into(">H", out, BLOCK - 2 * (index + 1), place)
    return out

def header(nodes, used, leaves, key, attributes):
    root = used - 1
    record = struct.pack(">HIIIIHHIIHIBBI", root, root, leaves, root, root, BLOCK, key, nodes, nodes - used, 0, BLOCK, 0, 0, attributes)
    return node(1, 0, [record + bytes(64), bytes(128), bytes([0xFF << (8 - used) & 0xFF]) + bytes(BLOCK - 257)])

def key(parent, name):
    return struct.pack(">HIH", 6 + len(name), parent, len(name) // 2) + name

name = "disk".encode("utf-16-be")
root = struct.pack(">HHIIIIIIIIIBBHI", 1, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0o40755, 1) + bytes(40)
thread = struct.pack(">HHIH", 3, 0, 1, len(name) // 2) + name
image = bytearray(BLOCK * BLOCKS)
image[EXTENTS * BLOCK : (EXTENTS + 1) * BLOCK] = header(8, 1, 0, 10, 2)
image[CATALOG * BLOCK : (CATALOG + 1) * BLOCK] = header(NODES, 2, 2, 516, 6)
image[(CATALOG + 1) * BLOCK : (CATALOG + 2) * BLOCK] = node(255, 1, [key(1, name) + root, key(2, b"") + thread])
used = CATALOG + NODES
for block in [*range(used), BLOCKS - 1]:
    image[BLOCK + block // 8] |= 0x80 >> block % 8
volume = struct.pack(
    ">2sHIIIIIIIIIIIIIIIIIQ32x",
    *(b"H+", 4, 1 << 8, 0x31302E30, 0, 1, 1, 0, 1, 0, 0, BLOCK, BLOCKS, BLOCKS - used - 1, used, BLOCK, BLOCK, 16, 1, 1),
)
volume += fork(BLOCKS // 8, 1, 1) + fork(8 * BLOCK, EXTENTS, 8) + fork(NODES * BLOCK, CATALOG, NODES) + bytes(160)
image[1024:1536] = image[-1024:-512] = volume
with open("disk", "wb") as disk:
    disk.write(image)
PY

mkdir -p root/{bin,proc,sys,dev,m}
cp /bin/busybox root/bin/
(cd system && find lib/modules -path '*/virtio/*' -o -name virtio_blk.ko -o -path '*/fs/hfsplus/*' -o -name nls_utf8.ko -o -name cdrom.ko -o -name 'modules.*') |
    (cd system && cpio -pdm --quiet ../root)
depmod -b root "$(basename system/lib/modules/*)"
cat >root/init <<'SH'
#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev
for module in virtio_pci virtio_blk nls_utf8 hfsplus; do modprobe $module; done
while [ ! -b /dev/vda ]; do sleep 0.1; done
mount -t hfsplus /dev/vda /m
cd /m
# write LETTER BLOCK FILE
write() { head -c 4096 /dev/zero | tr '\0' $1 | dd of=$3 bs=4096 seek=$2 conv=notrunc,fsync 2>/dev/null; }
write a 0 one
ln one two
block=0
for letter in a b c d e f g h i j k l; do
    write $letter $block pieces
    write $letter $block between
    block=$((block + 1))
done
sync
for file in one two pieces; do echo "SEEN Linux, $file: $(fold -b -w 4096 $file | cut -c 1 | tr -d '\n')."; done
cd /
umount /m
poweroff -f
SH
chmod +x root/init
(cd root && find . | cpio -o -H newc --quiet) >initrd
timeout 300 qemu-system-x86_64 -accel tcg -cpu max -m 1G -nodefaults -no-reboot -display none -serial file:serial \
    -drive file=disk,format=raw,if=virtio -kernel system/boot/vmlinuz-* -initrd initrd \
    -append 'console=ttyS0 quiet panic=-1 no_timer_check' </dev/null
seen=$(
    tr -d '\r' <serial | sed -n 's/^SEEN //p'
    target/debug/look
    venv/bin/python look.py
    system/usr/bin/7zz x -o7zip disk >/dev/null && echo "7-Zip ends with 0"
    for file in one two pieces; do echo "7-Zip, $file: $(fold -b -w 4096 7zip/disk/$file | cut -c 1 | tr -d '\n')."; done
    echo "GRUB lists $(system/usr/bin/grub-fstest disk ls '(loop0)/' | xargs)"
)
echo "$seen"
want='Linux, one: a.
Linux, two: a.
Linux, pieces: abcdefghijkl.
hfsplus, one: .
hfsplus, two: .
hfsplus, pieces: abcdefghijkl.
hfsplus-core, one: .
hfsplus-core, two: .
hfsplus-core, pieces: abcdefgh.
libfshfs, one: .
libfshfs, two: .
libfshfs, pieces: abcdefghijkl.
7-Zip ends with 0
7-Zip, one: .
7-Zip, two: .
7-Zip, pieces: abcdefghijkl.
GRUB lists between pieces'
[ "$seen" = "$want" ] || { echo "changed"; exit 1; }
echo "as seen on 1 December 2026"
