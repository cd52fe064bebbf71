#!/bin/bash
# load.sh start DEVICE: from now on, four jobs of fio on both CPUs, and so on both queues, write blocks of 4 KiB in
#   random order at a depth of 16, read back and verify them by CRC-32C, pass after pass; each pass writes other bytes.
# load.sh finish: waits until the pass is through, and says how many there were.
set -euo pipefail
log=/tmp/load.log stop=/tmp/load.stop result=/tmp/load.result

passes() {
    local device=$1 pass=0
    until [ -e "$stop" ]; do
        pass=$((pass + 1))
        fio --name=load --filename="$device" --direct=1 --ioengine=libaio --iodepth=16 --thread --numjobs=4 \
            --cpus_allowed=0,1 --cpus_allowed_policy=split --rw=randwrite --bs=4k --offset=1m --size=4m \
            --offset_increment=4m --randseed="$pass" --verify=crc32c --verify_backlog=512 --do_verify=1 \
            --verify_fatal=1 --group_reporting >"$log" 2>&1 || {
            echo "failed in pass $pass" >"$result.new"
            mv "$result.new" "$result"
            return
        }
    done
    echo "$pass" >"$result.new"
    mv "$result.new" "$result"
}

case $1 in
start)
    rm -f "$stop" "$result"
    passes "$2" &
    ;;
finish)
    touch "$stop"
    until [ -e "$result" ]; do
        sleep 0.1
    done
    grep -qx '[0-9]*' "$result" || {
        cat "$result" "$log"
        exit 1
    }
    cat "$result"
    ;;
esac
