#!/bin/bash
# tar 0.4.46 (crates.io) and tar 7.5.23, tar-fs 3.1.3 and modern-tar 0.8.6 (npm): a sparse file, as a disk image is, that GNU tar stored
# in POSIX's format comes out with another name and other bytes; of GNU's format one of them leaves it out and one cuts it off.
#
# With --sparse the member of a POSIX archive is named "GNUSparseFile.PID/NAME" and begins with the map of its parts; the name and
# the size that it really has are in its extended header (GNU tar's manual, "Sparse Formats"). None of the four looks for
# these. In GNU's own format such a member has the type S: the crate knows it, tar-fs says that it does not, tar leaves it
# out and modern-tar writes the parts one behind the other, both without an error. GNU tar and Python's tarfile are right.
#
# Needs GNU tar, a file system with holes, cargo, node 18 or later with npm, python3.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
mkdir src files
cat >Cargo.toml <<'TOML'
[package]
name = "look"
version = "0.0.0"
edition = "2021"
[dependencies]
tar = { version = "=0.4.46", default-features = false }
TOML
cat >src/main.rs <<'RUST'
fn main() {
    let mut arguments = std::env::args().skip(1);
    let archive = std::fs::File::open(arguments.next().unwrap()).unwrap();
    tar::Archive::new(archive).unpack(arguments.next().unwrap()).unwrap();
}
RUST
CARGO_PROFILE_DEV_DEBUG=0 cargo -q build
npm install --silent --no-audit --no-fund tar@7.5.23 tar-fs@3.1.3 modern-tar@0.8.6 >/dev/null
cat >look.mjs <<'JS'
import { createReadStream } from "node:fs"
import { pipeline } from "node:stream/promises"
import { extract } from "tar"
import fs from "tar-fs"
import { unpackTar } from "modern-tar/fs"
const [library, file, cwd] = process.argv.slice(2)
if (library === "tar") await extract({ file, cwd })
else await pipeline(createReadStream(file), library === "tar-fs" ? fs.extract(cwd) : unpackTar(cwd))
JS

truncate -s 1M files/disk
head -c 4096 /dev/zero | tr '\0' a | dd of=files/disk bs=4096 seek=100 conv=notrunc status=none
seen=$(
    for format in posix gnu; do
        tar --format=$format --sparse -C files -cf $format.tar disk
        for library in GNU-tar tarfile crate tar tar-fs modern-tar; do
            to=$format-$library
            mkdir "$to"
            case $library in
                GNU-tar) tar -C "$to" -xf $format.tar ;;
                tarfile) python3 -c "import tarfile; tarfile.open('$format.tar').extractall('$to')" 2>/dev/null ;;
                crate) target/debug/look $format.tar "$to" ;;
                *) node look.mjs $library $format.tar "$to" 2>/dev/null || echo "$format, $library: an error" ;;
            esac
            if cmp -s files/disk "$to/disk"; then
                echo "$format, $library: the same"
            else
                (cd "$to" && find . -type f -printf "$format, $library: %P, %s bytes\n" | sed 's/\.[0-9]*\//.PID\//')
            fi
        done
    done
)
echo "$seen"
want='posix, GNU-tar: the same
posix, tarfile: the same
posix, crate: GNUSparseFile.PID/disk, 4608 bytes
posix, tar: GNUSparseFile.PID/disk, 4608 bytes
posix, tar-fs: GNUSparseFile.PID/disk, 4608 bytes
posix, modern-tar: GNUSparseFile.PID/disk, 4608 bytes
gnu, GNU-tar: the same
gnu, tarfile: the same
gnu, crate: the same
gnu, tar-fs: an error
gnu, modern-tar: disk, 4096 bytes'
[ "$seen" = "$want" ] || { echo "changed"; exit 1; }
echo "as seen on 1 December 2026"
