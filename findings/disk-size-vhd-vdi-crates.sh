#!/bin/bash
# vhd 0.1.1 and vdi 0.2.0 (crates.io): a VHD that was made larger is read up to the size with which it was made; a VDI is read beyond
# its end where its size is no multiple of 1 MiB, and a part of it to the disk's end. There is no error.
#
# A VHD's footer has the original size at byte 40 and the current one at 48 (Microsoft's Virtual Hard Disk Image Format
# Specification): vhd takes the first for the second. vdi ends where its table of blocks ends; a `Slice` for the bytes of a
# partition looks at the range's end in `read_at`, and not in `read`. qemu-img has the sizes of the headers.
#
# Needs qemu-img and qemu-io (qemu-utils), cargo, python3.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
mkdir src
cat >Cargo.toml <<'TOML'
[package]
name = "look"
version = "0.0.0"
edition = "2021"
[dependencies]
vhd = "=0.1.1"
vdi = "=0.2.0"
TOML
cat >src/main.rs <<'RUST'
use std::{fs::File, io::Read, path::Path};
fn show(what: &str, mut disk: impl Read) {
    let mut bytes = Vec::new();
    disk.read_to_end(&mut bytes).unwrap();
    println!("{what}: {} bytes", bytes.len());
}
fn main() {
    show("vhd", vhd::VhdReader::open(Path::new("disk.vhd")).unwrap());
    let open = || vdi::VdiDisk::open(Box::new(File::open("disk.vdi").unwrap())).unwrap();
    show("vdi", open());
    show("vdi, the first 512 KiB", open().slice(0..512 << 10));
}
RUST
CARGO_PROFILE_DEV_DEBUG=0 cargo -q build

# A fixed VHD of 1 MiB, with another MiB between its data and its footer: what a resize makes of it.
qemu-img create -q -f vpc -o subformat=fixed,force_size=on disk.vhd 1M
python3 - <<'PY'
import struct
with open("disk.vhd", "rb") as disk:
    data = disk.read()
data, footer = data[:-512], bytearray(data[-512:])
assert struct.unpack_from(">QQ", footer, 40) == (1 << 20, 1 << 20)
struct.pack_into(">Q", footer, 48, 2 << 20)
struct.pack_into(">I", footer, 64, 0)
struct.pack_into(">I", footer, 64, ~sum(footer) & 0xFFFFFFFF)
with open("disk.vhd", "wb") as disk:
    disk.write(data + bytes([97]) * (1 << 20) + footer)
PY
qemu-img create -q -f vdi disk.vdi 1536K
qemu-io -f vdi -c 'write -q -P 97 0 1536k' disk.vdi
seen=$(
    for format in vpc vdi; do
        disk=disk.${format/vpc/vhd}
        qemu-img convert -f $format -O raw "$disk" raw
        echo "qemu-img, $disk: $(stat -c %s raw) bytes, $(tr -cd a <raw | wc -c) of data"
    done
    target/debug/look
)
echo "$seen"
want='qemu-img, disk.vhd: 2097152 bytes, 1048576 of data
qemu-img, disk.vdi: 1572864 bytes, 1572864 of data
vhd: 1048576 bytes
vdi: 2097152 bytes
vdi, the first 512 KiB: 2097152 bytes'
[ "$seen" = "$want" ] || { echo "changed"; exit 1; }
echo "as seen on 1 December 2026"
