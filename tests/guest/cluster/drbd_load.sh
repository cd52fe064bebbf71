#!/bin/bash
# drbd_load.sh: in the guest that moves: passes of verified fio on its disk, each told on the console.
for _ in $(seq 300); do
    [ ! -b /dev/vda ] || break
    sleep 0.1
done
pass=0
while :; do
    pass=$((pass + 1))
    fio --name=load --filename=/dev/vda --direct=1 --ioengine=libaio --iodepth=16 --thread --rw=randwrite --bs=4k \
        --offset=1m --size=2m --randseed="$pass" --verify=crc32c --verify_backlog=128 --do_verify=1 --verify_fatal=1 \
        >/tmp/fio 2>&1 || {
        cat /tmp/fio
        echo "LOAD failed in pass $pass"
        exit 1
    }
    echo "LOAD pass $pass"
done
