#!/bin/bash
# nbd-server 1:3.24-1.1 (Debian 12): a copy-on-write export mixes blocks up with `sparse_cow`, ends before its last part of a
# block, and of `treefiles` serves an empty disk.
#
# `copyonwrite` puts what a client writes into a second file, in blocks of 4096 bytes. With `sparse_cow`, which should only
# change where in that file, the first block written cannot be read back, and after a second one is written the bytes
# of one appear in the place of the other. Where the disk is no multiple of 4096 bytes its end, which a plain export serves,
# can be neither read nor written. And where the disk is kept as a tree of files (`treefiles`), the copy-on-write
# export looks for them in the folder above: everything reads as zeroes, without an error.
#
# Needs apt-get with Debian 12's sources, qemu-io (seen with 10.0.2), and the libraries of an installed GLib and GnuTLS.
set -euo pipefail
folder=$(mktemp -d)
server=
trap '[ -z "$server" ] || kill "$server" 2>/dev/null || true; wait; rm -rf "$folder"' EXIT
cd "$folder"
apt-get -q -o APT::Sandbox::User=root download nbd-server=1:3.24-1.1 >/dev/null
dpkg -x nbd-server_*.deb root

# try WHAT OPTIONS COMMANDS: serves with these options and gives qemu-io these commands; then which of them were refused.
try() {
    local what=$1 options=$2 command message result=
    shift 2
    rm -f socket
    printf '%s\n' '[generic]' "unixsock = $folder/socket" '[disk]' "$options" >conf
    root/bin/nbd-server -d -C "$folder/conf" 2>log &
    server=$!
    for _ in $(seq 200); do
        [ ! -S socket ] || break
        sleep 0.05
    done
    local arguments=()
    for command in "$@"; do arguments+=(-c "$command"); done
    message=$(qemu-io -f raw "${arguments[@]}" "nbd+unix:///disk?socket=$folder/socket" 2>&1 || true)
    result=$(grep -E "fail|can.t" <<<"$message" | cut -d, -f1 || true)
    kill "$server" 2>/dev/null || true
    wait "$server" 2>/dev/null || true
    server=
    echo "$what: ${result:-right}" | paste -sd, -
}
head -c 65536 /dev/zero | tr '\0' o >disk
head -c 6144 /dev/zero | tr '\0' o >short
mkdir tree
file="exportname = $folder/disk"
short="exportname = $folder/short"
tree=$(printf '%s\n' "exportname = $folder/tree" 'treefiles = true' 'filesize = 65536')
cow='copyonwrite = true'
two=('write -P 120 8192 4096' 'write -P 121 0 4096' 'read -P 120 8192 4096' 'read -P 121 0 4096')
seen=$(
    try 'two blocks' "$file" "${two[@]}"
    head -c 65536 /dev/zero | tr '\0' o >disk
    try 'two blocks, copy on write' "$file"$'\n'"$cow" "${two[@]}"
    try 'one block, sparse copy' "$file"$'\n'"$cow"$'\n''sparse_cow = true' "${two[0]}" "${two[2]}"
    try 'two blocks, sparse copy' "$file"$'\n'"$cow"$'\n''sparse_cow = true' "${two[@]}"
    try 'the first of them in place of the second' "$file"$'\n'"$cow"$'\n''sparse_cow = true' "${two[@]:0:2}" 'read -P 120 0 4096'
    try '6144 bytes' "$short" 'read -P 111 4096 2048'
    try '6144 bytes, copy on write' "$short"$'\n'"$cow" 'read -P 111 0 4096' 'read -P 111 4096 2048'
    try 'tree' "$tree" 'write -P 120 8192 4096' 'read -P 120 8192 4096'
    try 'tree again' "$tree" 'read -P 120 8192 4096'
    try 'tree again, copy on write' "$tree"$'\n'"$cow" 'read -P 120 8192 4096'
    try 'tree again, copy on write, zeroes' "$tree"$'\n'"$cow" 'read -P 0 8192 4096'
)
echo "$seen"
want='two blocks: right
two blocks, copy on write: right
one block, sparse copy: read failed: Invalid argument
two blocks, sparse copy: read failed: Invalid argument,Pattern verification failed at offset 0
the first of them in place of the second: right
6144 bytes: right
6144 bytes, copy on write: read failed: Invalid argument
tree: right
tree again: right
tree again, copy on write: Pattern verification failed at offset 8192
tree again, copy on write, zeroes: right'
[ "$seen" = "$want" ] || { echo "changed"; exit 1; }
echo "as seen on 30 November 2026"
