#!/bin/bash
# vmdk-core 0.8.4 (crates.io): what was zeroed in an overlay of VMDK reads as what the parent has there, without an error.
#
# An entry 1 in a grain's table says that the grain is zero, 0 that it is the parent's (VMware's "Virtual Disk Format 5.0", and the
# header's bit 2). The crate's chain of overlays asks each whether it has the grain, and counts both as no: discarded and
# overwritten data comes back. qemu-img and dissect.hypervisor 3.21 read zeroes.
#
# Needs qemu-img and qemu-io (qemu-utils), cargo, python3 with venv.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip -q --disable-pip-version-check install dissect.hypervisor==3.21
mkdir src
cat >Cargo.toml <<'TOML'
[package]
name = "look"
version = "0.0.0"
edition = "2021"
[dependencies]
vmdk-core = "=0.8.4"
TOML
cat >src/main.rs <<'RUST'
fn main() {
    let mut disk = vmdk::VmdkChainReader::open(std::path::Path::new("overlay.vmdk")).unwrap();
    std::io::copy(&mut disk, &mut std::io::stdout()).unwrap();
}
RUST
CARGO_PROFILE_DEV_DEBUG=0 cargo -q build
cat >look.py <<'PY'
import sys
from pathlib import Path
from dissect.hypervisor.disk.vmdk import VMDK
sys.stdout.buffer.write(VMDK(Path("overlay.vmdk")).read(1 << 20))
PY

# Sixteen grains of "a"; above them the second is "b", the fifth to the eighth are zeroes.
qemu-img create -q -f vmdk base.vmdk 1M
qemu-io -f vmdk -c 'write -q -P 97 0 1M' base.vmdk
qemu-img create -q -f vmdk -o zeroed_grain=on -F vmdk -b base.vmdk overlay.vmdk
qemu-io -f vmdk -c 'write -q -P 98 64k 64k' -c 'write -q -z 256k 256k' overlay.vmdk
qemu-img convert -f vmdk -O raw overlay.vmdk raw
# letters: of each grain the first byte.
letters() { tr '\0' 0 | fold -b -w 65536 | cut -c 1 | tr -d '\n'; }
seen=$(
    echo "qemu-img: $(letters <raw)"
    echo "dissect.hypervisor: $(venv/bin/python look.py | letters)"
    echo "vmdk-core: $(target/debug/look | letters)"
)
echo "$seen"
want='qemu-img: abaa0000aaaaaaaa
dissect.hypervisor: abaa0000aaaaaaaa
vmdk-core: abaaaaaaaaaaaaaa'
[ "$seen" = "$want" ] || { echo "changed"; exit 1; }
echo "as seen on 1 December 2026"
