#!/bin/bash
# mountinfo 0.2.0 (crates.io): the list of mounts cannot be read at all where one mount is private.
#
# A line of /proc/self/mountinfo has any number of optional fields (`shared:1`, `master:2`), none for a private mount, as
# in most containers and below `unshare --mount`. The crate's pattern wants two spaces where there is no field, and one
# line that does not match makes the whole list "Invalid format".
#
# Needs cargo, unshare (util-linux) and the right to make a mount namespace.
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
mountinfo = "=0.2.0"
TOML
cat >src/main.rs <<'RUST'
fn main() {
    match mountinfo::MountInfo::new() {
        Ok(_) => println!("read"),
        Err(error) => println!("{error}"),
    }
}
RUST
cargo -q build
seen="shared: $(unshare --mount --propagation shared target/debug/look), private: $(unshare --mount --propagation private target/debug/look)"
echo "$seen"
[ "$seen" = "shared: read, private: Invalid format" ] || { echo "changed"; exit 1; }
echo "as seen on 30 November 2026"
