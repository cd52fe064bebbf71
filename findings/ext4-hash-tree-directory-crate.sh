#!/bin/bash
# ext4 0.9.0 (crates.io): a directory of a few hundred files is walked in part, without an error.
#
# A directory that does not fit into a block gets a hash tree (dir_index, on by default): blocks of names under a root
# block that looks like an empty directory to those who do not know it. The library's walk and its look-ups see the names
# of some blocks only.
#
# Needs cargo, mke2fs and debugfs (seen with 1.47.0).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
mkdir -p tree/d src
for number in $(seq -w 600); do echo x >"tree/d/a-file-with-a-long-name-$number"; done
mke2fs -q -t ext4 -d tree fs.img 64M 2>/dev/null >/dev/null

cat >Cargo.toml <<'TOML'
[package]
name = "look"
version = "0.0.0"
edition = "2021"
[dependencies]
ext4 = "=0.9.0"
TOML
cat >src/main.rs <<'RUST'
fn main() {
    let mut image = std::fs::File::open("fs.img").unwrap();
    let fs = ext4::SuperBlock::new(&mut image).unwrap();
    let (mut walked, mut found) = (0, 0);
    fs.walk(&fs.root().unwrap(), "", &mut |_, path, _, _| {
        walked += usize::from(path.contains("a-file"));
        Ok(true)
    })
    .unwrap();
    for number in 1..=600 {
        found += usize::from(fs.resolve_path(&format!("/d/a-file-with-a-long-name-{number:03}")).is_ok());
    }
    println!("walked {walked}, found by name {found} of 600");
}
RUST
seen=$(cargo -q run)
echo "$seen"
echo "debugfs lists $(debugfs -R 'ls /d' fs.img 2>/dev/null | grep -o 'a-file-with' | wc -l)"
[ "$seen" = "walked 27, found by name 27 of 600" ] || { echo "changed"; exit 1; }
echo "as seen on 30 November 2026"
