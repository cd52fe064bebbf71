#!/bin/bash
# GRUB 2.06-13+deb12u2 (grub-common, Debian 12): a file of ext4 that begins with a hole cannot be read, "something wrong with
# extent".
#
# Holes between extents read as zeroes, and a file without any extent does as well; before the first extent GRUB finds no
# entry and takes that for damage. An ISO image begins with 32 KiB of zeroes: after `cp --sparse=always` the loopback
# command cannot use it any more. With the block map of ext2 the same file is read.
#
# Needs apt-get with Debian 12's sources, mke2fs (seen with 1.47.0), sparse files.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
PATH=$PATH:/usr/sbin:/sbin
