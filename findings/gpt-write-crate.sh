#!/bin/bash
# gpt 4.1.0 and gptman 3.1.1 (crates.io): who adds a partition to a disk whose table of partitions does not lie at sector 2 loses what
# lies there instead, as a boot loader; the first gives partitions behind an unused number new numbers, too.
#
# The header says where the table is, and a partition's number is its entry's place in it (UEFI specification, 5.3.2). `sgdisk -j`
# moves the table, for boards whose boot loader is in the first sectors. Both crates read such a disk. gpt writes the entries
# that are in use to sector 2, one behind the other; gptman writes the copy there that belongs to the disk's end. sgdisk
# leaves all in its place.
#
# Needs apt-get with Debian 12's sources, libpopt0, cargo.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
apt-get -q -o APT::Sandbox::User=root download gdisk=1.0.9-2.1 >/dev/null
dpkg -x gdisk*.deb root
mkdir src
cat >Cargo.toml <<'TOML'
[package]
name = "look"
version = "0.0.0"
edition = "2021"
[dependencies]
gpt = "=4.1.0"
gptman = "=3.1.1"
TOML
cat >src/main.rs <<'RUST'
fn main() {
    let mut disk = gpt::GptConfig::new().writable(true).open("gpt").unwrap();
    disk.add_partition("new", 1 << 20, gpt::partition_types::LINUX_FS, 0, None).unwrap();
    disk.write().unwrap();

    let mut file = std::fs::File::options().read(true).write(true).open("gptman").unwrap();
    let mut disk = gptman::GPT::find_from(&mut file).unwrap();
    let start = disk.find_optimal_place(2048).unwrap();
    let number = disk.iter().find(|(_, entry)| entry.is_unused()).unwrap().0;
    disk[number] = gptman::GPTPartitionEntry {
        partition_type_guid: [1; 16],
        unique_partition_guid: [2; 16],
        starting_lba: start,
        ending_lba: start + 2047,
        attribute_bits: 0,
        partition_name: "new".into(),
    };
    disk.write_into(&mut file).unwrap();
}
RUST
CARGO_PROFILE_DEV_DEBUG=0 cargo -q build

# The table is at sector 1024, a boot loader of 64 sectors at 2, partitions 1 and 5 behind.
truncate -s 64M disk
root/sbin/sgdisk -j 1024 -n 1:2048:+1M -c 1:root -n 5:0:+1M -c 5:data disk >/dev/null
head -c 32768 /dev/zero | tr '\0' b | dd of=disk bs=512 seek=2 conv=notrunc status=none
cp disk gpt
cp disk gptman
cp disk sgdisk
root/sbin/sgdisk -n 2:0:+1M -c 2:new sgdisk >/dev/null
target/debug/look
# entry_sector DISK SECTOR: where the header in a sector says that its table is.
entry_sector() { od -An -t u8 -j $(($2 * 512 + 72)) -N 8 "$1" | xargs; }
seen=$(
    for name in sgdisk gpt gptman; do
        echo "$name: tables at $(entry_sector $name 1) and $(entry_sector $name 131071)," \
            "$(dd if=$name bs=512 skip=2 count=64 status=none | tr -cd b | wc -c) bytes of the boot loader"
        root/sbin/sgdisk -p $name | sed -n "s/^ *\([0-9]\+\) .* \([a-z]*\)$/$name: \1 is \2/p"
    done
)
echo "$seen"
want='sgdisk: tables at 1024 and 131039, 32768 bytes of the boot loader
sgdisk: 1 is root
sgdisk: 2 is new
sgdisk: 5 is data
gpt: tables at 2 and 131039, 16384 bytes of the boot loader
gpt: 1 is root
gpt: 2 is new
gpt: 3 is data
gptman: tables at 1024 and 2, 16384 bytes of the boot loader
gptman: 1 is root
gptman: 2 is new
gptman: 5 is data'
[ "$seen" = "$want" ] || { echo "changed"; exit 1; }
echo "as seen on 1 December 2026"
