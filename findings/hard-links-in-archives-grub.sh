#!/bin/bash
# GRUB 2.06-13+deb12u2 (grub-common, Debian 12): in an archive of cpio's format newc, as an initramfs is, a file with two names is empty
# but by its last name, without an error; in a tar archive a second name in another folder is "not found".
#
# In newc the bytes of a file stand with the last of its names only (Linux, "initramfs buffer format": c_nlink); GRUB takes
# each name for a file of its own. In tar a hard link has the name of the other member, from the top of the
# archive; GRUB looks it up from the link's own folder, as it would a symbolic link's.
#
# Needs apt-get with Debian 12's sources, libdevmapper, GNU tar.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
apt-get -q -o APT::Sandbox::User=root download grub-common=2.06-13+deb12u2 cpio=2.13+dfsg-7.1 >/dev/null
for package in *.deb; do dpkg -x "$package" root; done
mkdir -p files/lower
echo "some bytes" >files/first
ln files/first files/second
ln files/first files/lower/third
(
    cd files
    for format in newc odc; do printf '%s\n' first second lower lower/third | ../root/bin/cpio --quiet -o -H $format >../$format; done
    tar --format=ustar -cf ../ustar first second lower
)
seen=$(
    for format in newc odc ustar; do
        mkdir $format.back
        case $format in
            ustar) tar -C $format.back -xf $format ;;
            *) (cd $format.back && ../root/bin/cpio --quiet -id <../$format) ;;
        esac
        for name in first second lower/third; do
            root/usr/bin/grub-fstest $format cat "(loop0)/$name" >content 2>error || true
            echo "$format, $name: GNU's tools $(stat -c %s $format.back/$name) bytes, GRUB $(stat -c %s content)" \
                "$(grep -o 'not found' error || true)"
        done
    done | sed 's/ $//'
)
echo "$seen"
want='newc, first: GNU'\''s tools 11 bytes, GRUB 0
newc, second: GNU'\''s tools 11 bytes, GRUB 0
newc, lower/third: GNU'\''s tools 11 bytes, GRUB 11
odc, first: GNU'\''s tools 11 bytes, GRUB 11
odc, second: GNU'\''s tools 11 bytes, GRUB 11
odc, lower/third: GNU'\''s tools 11 bytes, GRUB 11
ustar, first: GNU'\''s tools 11 bytes, GRUB 11
ustar, second: GNU'\''s tools 11 bytes, GRUB 11
ustar, lower/third: GNU'\''s tools 11 bytes, GRUB 0 not found'
[ "$seen" = "$want" ] || { echo "changed"; exit 1; }
echo "as seen on 1 December 2026"
