#!/bin/bash
# bmapflash 1.2.2 (npm) and bmap-parser 0.2.3 (crates.io): the first does not write the last block of an image whose block before is a
# hole, or of one with a block more than a multiple of 1 MiB, and says that it is done; what the second writes ends with the last block
# that is not a hole.
#
# bmapflash gathers up to 1 MiB of blocks and writes what it has at a hole or at the last block, but not where the last block is the
# first that it gathers: the copy of the partition table that GPT has at a disk's end may be there. bmap-parser reads no size of
# the image from the map, and its copy is too short for a disk image. bmaptool writes both images as they are.
#
# Needs apt-get with Debian 12's sources, Debian's python3, a file system with holes, cargo, node with npm.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
apt-get -q -o APT::Sandbox::User=root download bmap-tools=3.6-2 >/dev/null
dpkg -x bmap-tools*.deb root
export PYTHONPATH=$folder/root/usr/lib/python3/dist-packages PYTHONDONTWRITEBYTECODE=1
bmaptool() { /usr/bin/python3 root/usr/bin/bmaptool -q "$@"; }
npm install --silent --no-audit --no-fund bmapflash@1.2.2 >/dev/null
cat >look.js <<'JS'
const fs = require("fs")
const image = process.argv[2]
const out = fs.openSync(image + ".bmapflash", "r+")
require("bmapflash")
    .flashImageToFileDescriptor(fs.createReadStream(image), out, fs.readFileSync(image + ".bmap", "utf8"))
    .on("done", () => console.log("bmapflash, " + image + ": done"))
    .on("error", (error) => console.log("bmapflash, " + image + ": " + error))
JS
mkdir src
cat >Cargo.toml <<'TOML'
[package]
name = "look"
version = "0.0.0"
edition = "2021"
[dependencies]
bmap-parser = "=0.2.3"
TOML
cat >src/main.rs <<'RUST'
use std::fs::File;
fn main() {
    let image = std::env::args().nth(1).unwrap();
    let map = std::fs::read_to_string(format!("{image}.bmap")).unwrap();
    let map = bmap_parser::Bmap::from_xml(&map).unwrap();
    let mut out = File::create(format!("{image}.bmap-parser")).unwrap();
    bmap_parser::copy(&mut File::open(&image).unwrap(), &mut out, &map).unwrap();
}
RUST
CARGO_PROFILE_DEV_DEBUG=0 cargo -q build

# Blocks of 4096 bytes: of 512 the first and the last; 257, none of them a hole; of 512 the first.
block() { head -c 4096 /dev/zero | tr '\0' a | dd of="$1" bs=4096 seek="$2" conv=notrunc status=none; }
truncate -s 2M last first
block last 0
block last 511
head -c $((257 * 4096)) /dev/zero | tr '\0' a >full
block first 0
seen=$(
    for image in last full first; do
        bmaptool create -o $image.bmap $image
        bmaptool copy --bmap $image.bmap $image $image.bmaptool
        truncate -r $image $image.bmapflash
        node look.js $image
        timeout 60 target/debug/look $image
        for by in bmaptool bmapflash bmap-parser; do
            if cmp -s $image $image.$by; then
                same=same
            else
                same="$(stat -c %s $image.$by) bytes, $(tr -cd a <$image.$by | wc -c) of data"
            fi
            echo "$by, $image: $same"
        done
    done
)
echo "$seen"
want='bmapflash, last: done
bmaptool, last: same
bmapflash, last: 2097152 bytes, 4096 of data
bmap-parser, last: same
bmapflash, full: done
bmaptool, full: same
bmapflash, full: 1052672 bytes, 1048576 of data
bmap-parser, full: same
bmapflash, first: done
bmaptool, first: same
bmapflash, first: same
bmap-parser, first: 4096 bytes, 4096 of data'
[ "$seen" = "$want" ] || { echo "changed"; exit 1; }
echo "as seen on 1 December 2026"
