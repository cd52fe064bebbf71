#!/bin/bash
# dissect.xfs 3.13 (PyPI): directories of an XFS whose directory blocks are larger than its blocks are listed in part.
#
# `mkfs.xfs -n size=8192` (and `-b size=1024`, since directory blocks have at least 4096 bytes) makes directory blocks of
# several blocks. Of a directory that has outgrown its inode the library finds the entries of some blocks only, and says
# nothing: lookups of the others fail as if the files were not there.
#
# Needs python3 with venv, mkfs.xfs (seen with 6.1.0).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip -q --disable-pip-version-check install dissect.xfs==3.13
mkfs.xfs -V

echo x >file
{
    printf '/dev/null\n0 0\nd--755 0 0\nmany d--755 0 0\n'
    for number in $(seq -w 600); do echo "a-file-with-a-long-name-$number ---644 0 0 file"; done
    printf '$\n$\n'
} >proto
cat >look.py <<'PY'
import sys
from dissect.xfs import XFS
with open("fs.img", "rb") as image:
    names = {name if isinstance(name, str) else name.filename for name in XFS(image).get("many").listdir()}
    print(f"{sys.argv[1]}: {len(names - {'.', '..'})} of 600 entries")
PY
# count NAME OPTION...: entries that are found in a file system made with these options.
count() {
    local name=$1
    shift
    truncate -s 0 fs.img
    truncate -s 400M fs.img
    mkfs.xfs -q -f "$@" -p proto fs.img
    venv/bin/python look.py "$name"
}
seen=$(count default; count '8 KiB directory blocks' -n size=8192; count '1 KiB blocks' -b size=1024)
echo "$seen"
want="default: 600 of 600 entries
8 KiB directory blocks: 300 of 600 entries
1 KiB blocks: 143 of 600 entries"
[ "$seen" = "$want" ] || { echo "changed"; exit 1; }
echo "as seen on 30 November 2026"
