#!/bin/bash
# Runs in the guest of ci/demo: shows the disk at work, then, with demo=shell, leaves the user in a shell.
# What the host compares goes to the second serial line: "sha256 SUM /NAME-ON-THE-DISK", and END.
set -euo pipefail
disk=/dev/vda
queues=(/sys/block/vda/mq/*)

# show COMMAND...: runs it with its command line above it.
show() {
    printf '\n# %s\n' "$*"
    "$@"
}

[ -b "$disk" ] || { echo "there is no $disk"; exit 1; }
show lsblk --output NAME,SIZE,TYPE,LOG-SEC
echo "serial $(cat /sys/block/vda/serial), ${#queues[@]} queues"
show mkfs.ext4 -q "$disk"
show mount "$disk" /mnt
printf '\n# writing 8 MiB of random bytes to /mnt/letter, with fsync\n'
dd if=/dev/urandom of=/mnt/letter bs=1M count=8 conv=fsync status=none
show sha256sum /mnt/letter
show fio --name=verify --directory=/mnt --size=16m --numjobs=2 --thread --rw=randwrite --bs=4k \
    --direct=1 --ioengine=libaio --iodepth=8 --verify=crc32c --do_verify=1 --verify_fatal=1 \
    --group_reporting --eta=never --output-format=terse --terse-version=3 --output=/tmp/fio
echo "fio: $(cut -d';' -f5 /tmp/fio) errors; every block verified by its CRC-32C"
sync
if [ "${demo:-}" = shell ]; then
    printf '\nThe disk is mounted on /mnt. Leave with "exit" or Ctrl-D; Ctrl-A X ends the guest at once.\n'
    PS1='guest \w # ' setsid cttyhack bash --norc || true
    cd /
fi
grep -q ' /mnt ' /proc/mounts || mount "$disk" /mnt
sum=$(sha256sum /mnt/letter)
show umount /mnt
{
    echo "sha256 ${sum%% *} /letter"
    echo END
} >/dev/ttyS1
