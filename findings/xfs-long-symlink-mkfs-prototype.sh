#!/bin/bash
# mkfs.xfs of xfsprogs 6.1.0-1 (Debian 12): a prototype with a symbolic link of more than some 330 bytes makes a file system
# that is damaged from the start.
#
# Such a target lies in a block of its own, which in version 5 of the format (the default) begins with a header. With -p
# the block is written as in version 4, without one; mkfs.xfs succeeds. xfs_repair of the same package calls the link
# damaged and would remove it, and Linux answers "Structure needs cleaning".
#
# Needs apt-get with Debian 12's sources.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
apt-get -q -o APT::Sandbox::User=root download xfsprogs=6.1.0-1 >/dev/null
dpkg -x xfsprogs_*.deb xfsprogs
PATH=$folder/xfsprogs/sbin:$folder/xfsprogs/usr/sbin:$PATH

printf '%s\n' /none '0 0' 'd--755 0 0' 'short l--777 0 0 folder/file' \
    "long l--777 0 0 $(printf 'folder/%.0s' {1..80})" '$' >prototype
truncate -s 320M fs.img
mkfs.xfs -q -p prototype fs.img
echo "mkfs.xfs exits with $?"
seen=$(xfs_repair -n fs.img 2>&1 | grep -oE 'bad symlink header|entry "[a-z]*" in shortform .*points to free' || true)
echo "$seen"
want='bad symlink header
bad symlink header
entry "long" in shortform directory inode 128 points to free'
[ "$(sort -u <<<"$seen")" = "$(sort -u <<<"$want")" ] || { echo "changed"; exit 1; }
echo "as seen on 30 November 2026"
