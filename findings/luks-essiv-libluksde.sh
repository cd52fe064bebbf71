#!/bin/bash
# libluksde-python 20260902 (PyPI): a LUKS volume encrypted with AES of 128 bits and essiv:sha256 is not unlocked by its password.
#
# ESSIV encrypts a sector's number with the hash of the key, by the same cipher: SHA-256 gives AES-256 there, whatever the
# key's length is (LUKS1 specification, "cbc-essiv:hash"). With a key of 256 bits, and with other ways to make the
# initial vector, the library reads the same volume; QEMU, which wrote them all, reads them all.
#
# Needs python3 with venv, qemu-img and qemu-io (seen with 10.0.2).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip -q --disable-pip-version-check install libluksde-python==20260902
cat >look.py <<'PY'
import pyluksde
volume = pyluksde.volume()
volume.set_password("a password")
volume.open("disk.luks")
print("locked" if volume.is_locked() else f"read, {volume.read_buffer(1 << 20).count(0x5A)} bytes right")
PY
# look KEY MODE IV [HASH]: whether 1 MiB is read back from a volume made with these.
look() {
    local secret=(--object "secret,id=password,data=a password")
    local options=key-secret=password,iter-time=10
    rm -f disk.luks
    options+=,cipher-alg=aes-$1,cipher-mode=$2,ivgen-alg=$3${4:+,ivgen-hash-alg=$4}
    qemu-img create -q "${secret[@]}" -f luks -o "$options" disk.luks 1M
    qemu-io "${secret[@]}" --image-opts driver=luks,key-secret=password,file.filename=disk.luks \
        -c 'write -q -P 0x5a 0 1M' -c 'read -q -P 0x5a 0 1M'
    echo "aes-$1 $2-$3${4:+:$4}: $(venv/bin/python look.py)"
}
seen=$(look 256 xts plain64; look 128 xts plain64; look 256 cbc essiv sha256; look 128 cbc plain64; look 128 cbc essiv sha256)
echo "$seen"
want='aes-256 xts-plain64: read, 1048576 bytes right
aes-128 xts-plain64: read, 1048576 bytes right
aes-256 cbc-essiv:sha256: read, 1048576 bytes right
aes-128 cbc-plain64: read, 1048576 bytes right
aes-128 cbc-essiv:sha256: locked'
[ "$seen" = "$want" ] || { echo "changed"; exit 1; }
echo "as seen on 30 November 2026"
