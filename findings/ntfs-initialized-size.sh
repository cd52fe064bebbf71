#!/bin/bash
# dissect.ntfs 3.16 (PyPI), ntfs 0.4.0 (crates.io) and GRUB 2.06-13+deb12u2 (grub-common, Debian 12): behind the initialized
# size of a file of NTFS they read what happened to be on the disk before.
#
# A file's $DATA has three sizes: allocated, real and initialized. What lies between the last two was reserved and never
# written (virtual disks of a fixed size begin so) and reads as zeroes, as in ntfs-3g, Sleuthkit and 7-Zip. These three look
# at the first two only.
#
# Needs root, a kernel with FUSE, apt-get with Debian 12's sources, libdevmapper, cargo, and python3 with venv.
set -euo pipefail
folder=$(mktemp -d)
trap 'umount -q "$folder/mount" || true; rm -rf "$folder"' EXIT
cd "$folder"
apt-get -q -o APT::Sandbox::User=root download grub-common=2.06-13+deb12u2 ntfs-3g=1:2022.10.3-1+deb12u4 \
    libntfs-3g89=1:2022.10.3-1+deb12u4 >/dev/null
for package in *.deb; do dpkg -x "$package" root; done
python3 -m venv venv
venv/bin/pip -q --disable-pip-version-check install dissect.ntfs==3.16
mkdir src
cat >Cargo.toml <<'TOML'
[package]
name = "look"
version = "0.0.0"
edition = "2021"
[dependencies]
ntfs = "=0.4.0"
TOML
cat >src/main.rs <<'RUST'
use ntfs::{indexes::NtfsFileNameIndex, Ntfs, NtfsReadSeek as _};
fn main() {
    let mut image = std::fs::File::open("fs.img").unwrap();
    let mut fs = Ntfs::new(&mut image).unwrap();
    fs.read_upcase_table(&mut image).unwrap();
    let root = fs.root_directory(&mut image).unwrap();
    let index = root.directory_index(&mut image).unwrap();
    let mut finder = index.finder();
    let entry = NtfsFileNameIndex::find(&mut finder, &fs, &mut image, "file").unwrap();
    let file = entry.unwrap().to_file(&fs, &mut image).unwrap();
    let item = file.data(&mut image, "").unwrap().unwrap();
    let mut value = item.to_attribute().unwrap().value(&mut image).unwrap();
    let mut bytes = vec![0; 1 << 20];
    let mut read = 0;
    while read < bytes.len() {
        read += value.read(&mut image, &mut bytes[read..]).unwrap();
    }
    std::fs::write("crate.out", bytes).unwrap();
}
RUST
cargo -q build
export LD_LIBRARY_PATH=root/lib/x86_64-linux-gnu:root/usr/lib/x86_64-linux-gnu
PATH=root/usr/sbin:root/sbin:root/usr/bin:root/bin:$PATH

# On a disk full of the letter "o" (old), a file of 64 KiB of "a" that is made 1 MiB long.
head -c 32M /dev/zero | tr '\0' o >fs.img
mkntfs -q -F -f -c 4096 fs.img >/dev/null 2>&1
mkdir mount
ntfs-3g fs.img mount
head -c 65536 /dev/zero | tr '\0' a >mount/file
umount mount
ntfsfallocate -l 1M fs.img file >/dev/null 2>&1
ntfs-3g -o ro fs.img mount
cp mount/file ntfs-3g.out
umount mount
grub-fstest fs.img cat '(loop0)/file' >GRUB.out
env -u LD_LIBRARY_PATH venv/bin/python - <<'PY'
from dissect.ntfs import NTFS
with open("fs.img", "rb") as image, open("dissect.out", "wb") as out:
    out.write(NTFS(image).mft.get("file").open().read())
PY
target/debug/look
seen=$(for name in ntfs-3g GRUB dissect crate; do
    echo "$name: $(stat -c %s $name.out) bytes, zero $(tr -cd '\0' <$name.out | wc -c), old $(tr -cd o <$name.out | wc -c)"
done)
echo "$seen"
want='ntfs-3g: 1048576 bytes, zero 983040, old 0
GRUB: 1048576 bytes, zero 0, old 983040
dissect: 1048576 bytes, zero 0, old 983040
crate: 1048576 bytes, zero 0, old 983040'
[ "$seen" = "$want" ] || { echo "changed"; exit 1; }
echo "as seen on 30 November 2026"
