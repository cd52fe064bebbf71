#!/bin/bash
# cpio_reader 0.1.2, cpio-archive 0.10.0 (crates.io) and bsdtar 3.6.2-1+deb12u5 (libarchive, Debian 12): of an archive in cpio's format
# hpodc the files behind a device are lost. The first ends there without an error, the second reads them as the device's content.
#
# GNU cpio writes HP-UX's formats, too: a device's number stands in the place of the size there, and the place of the number says
# that it does (GNU cpio 2.13, `-H hpodc`). The three take it for the size, as in format odc, whose magic number
# it shares; libarchive then says that the archive is cut off, and shows 0,1 as the number.
#
# Needs root (for mknod), apt-get with Debian 12's sources, cargo.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
apt-get -q -o APT::Sandbox::User=root download cpio=2.13+dfsg-7.1 libarchive-tools=3.6.2-1+deb12u5 libarchive13=3.6.2-1+deb12u5 >/dev/null
for package in *.deb; do dpkg -x "$package" root; done
mkdir src files
cat >Cargo.toml <<'TOML'
[package]
name = "look"
version = "0.0.0"
edition = "2021"
[dependencies]
cpio_reader = "=0.1.2"
cpio-archive = "=0.10.0"
TOML
cat >src/main.rs <<'RUST'
use std::io::Read;
fn main() {
    let bytes = std::fs::read(std::env::args().nth(1).unwrap()).unwrap();
    print!("cpio_reader:");
    for entry in cpio_reader::iter_files(&bytes) {
        print!(" {} ({})", entry.name(), entry.file().len());
    }
    print!("\ncpio-archive:");
    let mut reader = cpio_archive::reader(std::io::Cursor::new(bytes)).unwrap();
    while let Some(header) = reader.next() {
        let (name, mut content) = (header.unwrap().name().to_string(), String::new());
        reader.read_to_string(&mut content).unwrap();
        let of_z = if name != "z" && content.contains("of z") { ", the bytes of z" } else { "" };
        print!(" {name} ({}{of_z})", if content.len() > 99 { "many".into() } else { content.len().to_string() });
    }
    println!();
}
RUST
CARGO_PROFILE_DEV_DEBUG=0 cargo -q build

echo "the bytes of a" >files/a
mknod files/disk b 8 16
echo "the bytes of z" >files/z
seen=$(
    for format in odc hpodc; do
        (cd files && printf '%s\n' a disk z | ../root/bin/cpio --quiet -o -H $format >../$format)
        echo "$format"
        echo "GNU cpio: $(root/bin/cpio --quiet -it <$format | xargs)"
        timeout 60 target/debug/look $format
        echo "bsdtar: $(LD_LIBRARY_PATH=$(echo root/usr/lib/*-linux-gnu) root/usr/bin/bsdtar -tf $format 2>error | xargs)" \
            "$(sed -n '1s/.*\(Truncated\).*/(\1)/p' error)"
    done | sed 's/ $//'
)
echo "$seen"
want='odc
GNU cpio: a disk z
cpio_reader: a (15) disk (0) z (15)
cpio-archive: a (15) disk (0) z (15)
bsdtar: a disk z
hpodc
GNU cpio: a disk z
cpio_reader: a (15)
cpio-archive: a (15) disk (many, the bytes of z)
bsdtar: a disk (Truncated)'
[ "$seen" = "$want" ] || { echo "changed"; exit 1; }
echo "as seen on 1 December 2026"
