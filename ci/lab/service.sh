# Runs where systemd is process 1 (ci/lab/systemd: a Debian guest; ci/lab/systemd-here): installs the package, uses, upgrades and
# purges it.
# shellcheck shell=bash
set -euo pipefail

UNIT=vhost-user-pmem@db0
SOCKET=/run/vhost-user-pmem/db0.sock
IMAGE=/var/lib/vhost-user-pmem/db0.img
PATIENCE_SECONDS=120

say() { echo "LAB $*"; }
fail() {
    say "FAILED: $*"
    journalctl --no-pager -n 40 -o cat -u 'vhost-user-pmem*' || true
    exit 1
}
property() { systemctl show --value --property "$2" "$1"; }
inode() { stat -c %i "$SOCKET"; }

# wait_for WHAT COMMAND...
wait_for() {
    local what=$1 end=$((SECONDS + PATIENCE_SECONDS))
    shift
    until "$@"; do
        [ $SECONDS -lt $end ] || fail "waited in vain: $what"
        sleep 0.2
    done
}

# files: all there are, but for what every program changes, and what services of others have for themselves while they run.
files() {
    # shellcheck disable=SC2086 # words
    find ${ROOTS:-/} -xdev \( -path /lab -o -path /tmp -o -path /var/log -o -path /var/lib/dpkg -o -path /var/lib/systemd -o -path /var/cache \
        -o -path '/var/tmp/systemd-private-*' ! -name '*vhost-user-pmem*' \) -prune -o -print | LC_ALL=C sort
    find /run -xdev -name '*vhost-user-pmem*'
}

# bench MORE: verified load as one of the group kvm, as QEMU is.
bench() {
    setpriv --reuid=nobody --regid=nogroup --groups=kvm \
        vhost-user-pmem bench --socket "$SOCKET" --rw randwrite --verify --size 4M "$@"
}

# load: one front-end after the other until /tmp/load is gone. One that is cut off says so; none may find no socket.
load() {
    local said
    while [ -e /tmp/load ]; do
        if said=$(bench --runtime 500ms 2>&1); then
            echo 'served' >>/tmp/visits
        else
            echo "$said" >>/tmp/cut
        fi
    done
}

# under_load WHAT COMMAND...: the daemon is another one then, and its socket the same.
under_load() {
    local what=$1 before pid load visits
    shift
    before=$(inode) pid=$(property $UNIT MainPID)
    rm -f /tmp/visits
    : >/tmp/cut
    touch /tmp/load
    load &
    load=$!
    wait_for "front-ends come" test -e /tmp/visits
    wait_for "one is there" counted front_ends
    "$@" >/tmp/said 2>&1 || fail "$what: $(cat /tmp/said)"
    wait_for "$what: another daemon runs" another_runs "$pid"
    visits=$(wc -l </tmp/visits)
    wait_for "$what: front-ends are served again" more_visits "$visits"
    rm /tmp/load
    wait $load
    [ "$(inode)" = "$before" ] || fail "$what: the socket is another one"
    ! grep 'cannot connect\|verification\|failed a' /tmp/cut || fail "$what: a front-end saw more than a pause"
    say "ok $what ($(wc -l </tmp/visits) front-ends, $(grep -c . /tmp/cut || true) cut off)"
}

# counted METRIC: whether it is more than 0.
counted() {
    local found=0
    exec 3<>/dev/tcp/127.0.0.1/9753
    printf 'GET /metrics HTTP/1.1\r\n\r\n' >&3
    grep "^vhost_user_pmem_$1{disk=\"db0\"} [1-9]" <&3 >/dev/null || found=1
    exec 3>&-
    return $found
}
another_runs() { [ "$(property $UNIT ActiveState)" = active ] && [ "$(property $UNIT MainPID)" != "$1" ]; }
more_visits() { [ "$(wc -l </tmp/visits)" -gt "$1" ]; }

files >/tmp/files.before
dpkg -i /lab/old.deb >/tmp/said 2>&1 || fail "install: $(cat /tmp/said)"
say "ok install ($(dpkg-query -W vhost-user-pmem | tr '\t' ' '), systemd $(systemctl --version | sed -n '1s/systemd \([0-9]*\).*/\1/p'))"

! systemctl start $UNIT 2>/dev/null || fail "it starts without a configuration"
sed "s,^\[\[disk,[server]\nmetrics-listen = \"127.0.0.1:9753\"\nsandbox = \"${SANDBOX:-require}\"\n\n&," \
    /usr/share/doc/vhost-user-pmem/examples/one-disk.toml >/etc/vhost-user-pmem/db0.toml
systemctl reset-failed $UNIT 2>/dev/null || true
systemctl enable --now $UNIT >/tmp/said 2>&1 || fail "enable --now: $(cat /tmp/said)"
[ "$(property $UNIT ActiveState)" = active ] || fail "it is not active"
pid=$(property $UNIT MainPID)
[ "$(stat -c '%U %G %a' "$SOCKET")" = 'vhost-user-pmem kvm 660' ] || fail "the socket: $(stat -c '%U %G %a' "$SOCKET")"
[ "$(stat -c %U "$IMAGE")" = vhost-user-pmem ] || fail "the image"
# Root of some machines may not.
if (echo -900 >/proc/self/oom_score_adj) 2>/dev/null; then
    [ "$(cat "/proc/$pid/oom_score_adj")" = -900 ] || fail "oom_score_adj"
fi
[ "$(property $UNIT NFileDescriptorStore)" = 1 ] || fail "the socket is not kept by systemd"
[ "$(grep -c '^Seccomp:	2\|^CapPrm:	0000000000000000' "/proc/$pid/status")" = 2 ] || fail "the sandbox"
say "ok enable --now"

bench --runtime 2s >/tmp/said 2>&1 || fail "bench: $(cat /tmp/said)"
counted writes_total || fail "metrics"
said=$(setpriv --reuid=nobody --regid=nogroup --clear-groups vhost-user-pmem bench --socket $SOCKET 2>&1) && fail "a stranger connects"
grep -q 'Permission denied' <<<"$said" || fail "a stranger: $said"
say "ok verified I/O of one of kvm, metrics, and nobody else"

# used: by a guest and under load, by each of the units.
used() {
    # A guest of one of kvm (ci/lab/small-guest): its own processes end with it. Without a home it hangs.
    said=$(cd /tmp && HOME=/tmp TMPDIR=/dev/shm timeout --signal KILL $PATIENCE_SECONDS unshare --pid --fork --kill-child \
        setpriv --reuid=nobody --regid=nogroup --groups=kvm /lab/linux mem=96M initrd=/lab/guest root=/dev/ram0 rw con=null con0=null,fd:1 \
        noreboot panic=-1 "virtio_uml.device=$SOCKET:2" 2>&1 </dev/null) || true
    sum=$(dd if=$IMAGE bs=64k skip=16 count=16 2>/dev/null | sha256sum | cut -d' ' -f1)
    grep -q "GUEST OK: .*, $(stat -c %s $IMAGE) bytes, $sum" <<<"$said" || fail "a guest's disk: $sum $said"
    say "ok I/O of a guest ($(sed -n 's/.*GUEST OK: \([^,]*\),.*/User-Mode Linux \1/p' <<<"$said"))"

    under_load restart systemctl restart $UNIT
    under_load 'kill -9' systemctl kill --signal KILL --kill-who main $UNIT
    under_load upgrade dpkg -i /lab/new.deb
    [ "$(dpkg-query -W -f '${Version}' vhost-user-pmem)" = "$(dpkg-deb -f /lab/new.deb Version)" ] || fail "the version"

    systemctl reload $UNIT || fail "reload"
    systemctl disable --now $UNIT >/dev/null 2>&1
    systemctl enable --now $UNIT.socket >/tmp/said 2>&1 || fail "socket unit: $(cat /tmp/said)"
    [ "$(property $UNIT ActiveState)" = inactive ] || fail "the service runs before anybody has come"
    bench --runtime 500ms >/tmp/said 2>&1 || fail "socket activation: $(cat /tmp/said)"
    [ "$(property $UNIT ActiveState)" = active ] || fail "the service did not start with its first front-end"
    systemctl disable --now $UNIT.socket >/dev/null 2>&1
    systemctl stop $UNIT
    say "ok reload, and start by the first front-end"

    mv /etc/vhost-user-pmem/db0.toml /etc/vhost-user-pmem/vhost-user-pmem.toml
    systemctl enable --now vhost-user-pmem >/tmp/said 2>&1 || fail "the unit of many: $(cat /tmp/said)"
    bench --runtime 500ms >/tmp/said 2>&1 || fail "the unit of many: $(cat /tmp/said)"
    say "ok one unit for all"

    control() { vhost-user-pmem ctl --control /run/vhost-user-pmem/control.sock "$@" >/tmp/said 2>&1; }
    sed -i 's,^\[server\],&\ncontrol = "/run/vhost-user-pmem/control.sock"\nallow = ["/run/vhost-user-pmem"\, "/var/lib/vhost-user-pmem"],' \
        /etc/vhost-user-pmem/vhost-user-pmem.toml
    systemctl restart vhost-user-pmem || fail "with a control socket"
    control add path=/var/lib/vhost-user-pmem/db1.img,socket=/run/vhost-user-pmem/db1.sock,size=16M || fail "add: $(cat /tmp/said)"
    SOCKET=/run/vhost-user-pmem/db1.sock bench --runtime 500ms >/tmp/said 2>&1 || fail "a disk that was added: $(cat /tmp/said)"
    control list || fail "list: $(cat /tmp/said)"
    [ "$(grep -c '^db[01] ' /tmp/said)" = 2 ] || fail "list: $(cat /tmp/said)"
    [ "$(vhost-user-pmem top --control /run/vhost-user-pmem/control.sock --once | grep -c '^db[01] ')" = 2 ] || fail "top"
    ! setpriv --reuid=nobody --regid=nogroup --clear-groups vhost-user-pmem ctl --control /run/vhost-user-pmem/control.sock list \
        >/dev/null 2>&1 || fail "a stranger asks"
    sed 's/db0/db2/g' /usr/share/doc/vhost-user-pmem/examples/one-disk.toml >>/etc/vhost-user-pmem/vhost-user-pmem.toml
    systemctl reload vhost-user-pmem || fail "reload with a control socket"
    wait_for "the configuration is applied" control show db2
    control remove db1 || fail "remove: $(cat /tmp/said)"
    [ ! -e /run/vhost-user-pmem/db1.sock ] || fail "the socket of a disk that was removed"
    say "ok control socket: add, list, top, reload, remove"
}
[ -n "${BRIEF:-}" ] || used

dpkg --purge vhost-user-pmem >/tmp/said 2>&1 || fail "purge: $(cat /tmp/said)"
! grep -qx vhost-user-pmem /proc/[0-9]*/comm || fail "it still runs"
[ -s "$IMAGE" ] || fail "a guest's disk is gone"
rm -r /var/lib/vhost-user-pmem
files >/tmp/files.after
left=$(diff /tmp/files.before /tmp/files.after | grep '^[<>]' || true)
[ -z "$left" ] || fail "purge has left or taken: $left"
[ "$(systemctl list-unit-files --no-legend 'vhost-user-pmem*' | wc -l)" = 0 ] || fail "units"
say "ok purge leaves the disk and nothing else"
echo "LAB END"
