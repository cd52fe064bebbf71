#!/bin/bash
# fio.sh DEVICE OFFSET_MIB JOB_MIB: two jobs, one on each CPU and so on each queue, write blocks of 4 KiB from OFFSET on
# in random order and verify them by CRC-32C. The last lines are each queue's interrupts meanwhile.
set -euo pipefail
device=$1 offset_mib=$2 job_mib=$3
virtio=$(basename "$(readlink "/sys/block/${device#/dev/}/device")")

# interrupts: the sum over the CPUs for each queue.
interrupts() {
    local queue
    for queue in 0 1; do
        awk -v name="$virtio-req.$queue" '$NF == name { for (i = 2; i <= 3; i++) sum += $i } END { print sum + 0 }' \
            /proc/interrupts
    done
}

mapfile -t before < <(interrupts)
fio --name=verify --filename="$device" --direct=1 --ioengine=libaio --iodepth=16 --thread --numjobs=2 \
    --cpus_allowed=0,1 --cpus_allowed_policy=split --rw=randwrite --bs=4k --offset="${offset_mib}m" \
    --size="${job_mib}m" --offset_increment="${job_mib}m" \
    --verify=crc32c --do_verify=1 --verify_fatal=1 --group_reporting
mapfile -t after < <(interrupts)
echo "interrupts $((after[0] - before[0])) $((after[1] - before[1]))"
