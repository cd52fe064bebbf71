#!/bin/bash
# partitions.sh DEVICE SIZE_MIB...: writes a partition table with partitions of these sizes, lets the kernel read it
# again and says what it found: "name start size" of each, in sectors.
set -euo pipefail
device=$1
shift
name=${device#/dev/}
printf 'size=%sMiB\n' "$@" | sfdisk --quiet --wipe always --label dos "$device"
blockdev --rereadpt "$device"
for partition in "/sys/block/$name/$name"[0-9]*; do
    echo "$(basename "$partition") $(cat "$partition/start") $(cat "$partition/size")"
done
