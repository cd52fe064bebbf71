#!/bin/bash
# Runs in the guest: a remote shell on the second serial line, so that the host can look at the disk between commands.
# Says "READY boot-id"; then, for each line received, runs it and answers with its output, each line
# after a "|", and "END status".
set -euo pipefail
exec 3<>/dev/ttyS1
stty -F /dev/ttyS1 raw -echo
echo "READY $(cat /proc/sys/kernel/random/boot_id)" >&3

while read -r command <&3; do
    status=0
    bash -c "$command" </dev/null >/tmp/output 2>&1 || status=$?
    while IFS= read -r line || [ -n "$line" ]; do
        printf '|%s\n' "$line"
    done </tmp/output >&3
    echo "END $status" >&3
done
