#!/bin/bash
# pycramfs 1.1.0 (PyPI) and fsck.cramfs of util-linux 2.38.1-5+deb12u3 (Debian 12): a cramfs with holes, as `mkfs.cramfs -z`
# makes it, is unreadable to the first ("incomplete or truncated stream") and refused by the second, the formatter's own
# companion. dissect.cramfs 1.1 (PyPI) reads it, but if a file is read while its folder is listed, the list goes astray.
#
# With -z blocks of zeroes are left out: no bytes lie between such a block's pointer and the one before, and a flag of the
# superblock says that there may be some. pycramfs gives these no bytes to zlib. dissect.cramfs walks a folder by the
# position of the image's one file object, which each read of a file moves.
#
# Needs apt-get with Debian 12's sources, python3 with venv.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
apt-get -q -o APT::Sandbox::User=root download util-linux=2.38.1-5+deb12u3 >/dev/null
dpkg -x util-linux_*.deb root
PATH=$folder/root/usr/sbin:$folder/root/sbin:$PATH
python3 -m venv venv
venv/bin/pip -q --disable-pip-version-check install pycramfs==1.1.0 dissect.cramfs==1.1
mkdir tree
for name in a b c; do { head -c 5000 /dev/zero | tr '\0' $name; head -c 20000 /dev/zero; echo end; } >tree/$name; done
mkfs.cramfs tree plain.img >/dev/null
mkfs.cramfs -z tree holes.img >/dev/null
cat >look.py <<'PY'
from pathlib import Path
from dissect.cramfs import CramFS
from pycramfs import Cramfs

def words(work):
    try:
        return work()
    except Exception as error:
        return f"{type(error).__name__}: {error}"

def names(root):
    seen = []
    try:
        for node in root.iterdir():
            seen.append(node.name.split("\0")[0])
            if len(seen) == 3:
                break
            node.open().read()
    except Exception as error:
        seen.append(type(error).__name__)
    return seen

want = Path("tree/a").read_bytes()
for image in ("plain.img", "holes.img"):
    with Cramfs.from_file(image) as fs:
        print(image, "pycramfs:", words(lambda: fs.select("/a").read_bytes() == want))
    with open(image, "rb") as file:
        fs = CramFS(file)
        print(image, "dissect.cramfs:", words(lambda: fs.get("a").open().read() == want), *fs.root.listdir(), "| as files are read:", *(it or '""' for it in names(fs.root)))
PY
seen=$(for image in plain holes; do echo "$image.img fsck.cramfs: $(fsck.cramfs $image.img 2>&1 || true)"; done; venv/bin/python look.py)
echo "$seen"
want='plain.img fsck.cramfs: 
holes.img fsck.cramfs: fsck.cramfs: unsupported filesystem features
plain.img pycramfs: True
plain.img dissect.cramfs: True a b c | as files are read: a "" EOFError
holes.img pycramfs: error: Error -5 while decompressing data: incomplete or truncated stream
holes.img dissect.cramfs: True a b c | as files are read: a "" EOFError'
[ "$seen" = "$want" ] || { echo "changed"; exit 1; }
echo "as seen on 30 November 2026"
