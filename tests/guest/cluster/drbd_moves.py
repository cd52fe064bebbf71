#!/usr/bin/env python3
"""A guest under verified load moves between our daemons on two nodes of DRBD (protocol C), both of which are primary meanwhile.

    drbd_moves.py ROUNDS DAEMON KERNEL INITRAMFS FOLDER

The nodes are User-Mode Linux on this machine's root (drbd_node.sh); QEMU runs in them. Its last line says what was seen."""

import json
import os
import pathlib
import socket
import subprocess
import sys
import time

BYTES = 48 << 20
SETUP = "/lib/drbd/drbdsetup-84"
# In tenths of a second, the interval in seconds: an emulated guest may keep a node's only CPU for a while.
UP = f"""
drbdmeta --force 0 v08 /dev/ubda internal create-md &&
{SETUP} new-resource disk && {SETUP} new-minor disk 0 0 && {SETUP} attach 0 /dev/ubda /dev/ubda internal &&
{SETUP} connect disk ipv4:10.78.0.$NODE:7788 ipv4:10.78.0.$OTHER:7788 --protocol=C --allow-two-primaries=yes \\
    --timeout=60 --ping-int=10 --ping-timeout=50
"""
END = "kill $(cat /tmp/qemu.pid) $(cat /tmp/daemon.pid); while [ -e /proc/$(cat /tmp/daemon.pid)/exe ]; do sleep 0.1; done"
PATIENCE = 600


class Node:
    def __init__(self, number, cable, folder):
        self.number, self.count, self.control = number, 0, folder / f"control-{number}"
        self.control.mkdir()
        disk = folder / f"disk-{number}"
        with open(disk, "wb") as file:
            file.truncate(BYTES)
        script = pathlib.Path(__file__).resolve().with_name("drbd_node.sh")
        words = ["setpriv", "--pdeathsig", "KILL", "unshare", "--pid", "--fork", "--kill-child", "linux.uml", "mem=1400M",
                 "root=/dev/root", "rootfstype=hostfs", "rootflags=/", "ro", "noreboot", "panic=-1", "con=null", "con0=null,fd:1", "ssl=null",
                 f"uml_dir={folder}", f"ubd0={disk}", f"vec0:transport=fd,fd={cable.fileno()},depth=128,gro=0", f"init={script}",
                 f"control={self.control}", f"node={number}"]
        with open(folder / f"console-{number}", "wb") as console:
            self.process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=console, stderr=subprocess.STDOUT,
                                            pass_fds=[cable.fileno()], env=dict(os.environ, TMPDIR="/dev/shm"))

    def run(self, line, may_fail=False):
        """Runs a line of the shell there; what it said."""
        self.count += 1
        new = self.control / "new"
        new.write_text(line)
        new.rename(self.control / f"cmd.{self.count}")
        done, said = (self.control / f"{name}.{self.count}" for name in ("done", "out"))
        self.wait(f"{line!r} is done", done.exists)
        if int(done.read_text()) and not may_fail:
            sys.exit(f"node {self.number}: {line!r} has failed: {said.read_text()}")
        return said.read_text()

    def wait(self, what, condition):
        since = time.monotonic()
        while not condition():
            if self.process.poll() is not None or time.monotonic() - since > PATIENCE:
                sys.exit(f"node {self.number}: waited in vain until {what}")
            time.sleep(0.05)

    def wait_there(self, condition):
        self.run(f"for try in $(seq {PATIENCE * 10}); do {condition} && exit 0; sleep 0.1; done; cat /proc/drbd; exit 1")

    def serve(self, daemon):
        self.run(f"{SETUP} primary 0 && rm -f /tmp/disk.sock || exit; {daemon} serve "
                 f"--disk path=/dev/drbd0,socket=/tmp/disk.sock,serial=moved,lock=wait >>daemon.log 2>&1 & echo $! >/tmp/daemon.pid")
        self.wait_there("grep -q /tmp/disk.sock /proc/net/unix")

    def start_guest(self, kernel, initramfs, life, more=""):
        self.run(f"rm -f /tmp/monitor; qemu-system-x86_64 -accel tcg -cpu max -smp 1 -m 448M -machine q35,memory-backend=memory "
                 f"-object memory-backend-memfd,id=memory,size=448M,share=on -nodefaults -display none "
                 f"-chardev socket,id=disk,path=/tmp/disk.sock -device vhost-user-blk-pci,chardev=disk,num-queues=1 "
                 f"-serial file:guest.{life} -qmp unix:/tmp/monitor,server=on,wait=off -kernel {kernel} -initrd {initramfs} "
                 f"-append 'console=ttyS0 lab=drbd_load.sh no_timer_check quiet panic=-1' {more} >qemu.{life} 2>&1 & echo $! >/tmp/qemu.pid")
        self.wait_there("[ -S /tmp/monitor ]")

    def passes(self, life):
        """How many passes of the load the guest has told of in this life."""
        console = self.control / f"guest.{life}"
        said = console.read_text(errors="replace") if console.exists() else ""
        if "LOAD failed" in said or "I/O error" in said:
            sys.exit(f"the guest's load has failed: {said[-3000:]}")
        return said.count("LOAD pass")

    def await_passes(self, life, more):
        wanted = self.passes(life) + more
        self.wait("the load has gone on", lambda: self.passes(life) >= wanted)


def migrate(uri):
    """On a node: has QEMU move its guest there; for how many milliseconds it stood still."""
    monitor = socket.socket(socket.AF_UNIX)
    monitor.connect("/tmp/monitor")
    lines = monitor.makefile("rw")
    lines.readline()

    def ask(name, **arguments):
        lines.write(json.dumps({"execute": name, "arguments": arguments}) + "\n")
        lines.flush()
        while not {"return", "error"} & (answer := json.loads(lines.readline())).keys():
            pass
        return answer.get("return") if "return" in answer else sys.exit(str(answer))

    ask("qmp_capabilities")
    ask("migrate-set-parameters", **{"max-bandwidth": 1 << 40, "downtime-limit": 2000})
    ask("migrate", uri=uri)
    while (state := ask("query-migrate")).get("status") != "completed":
        if state.get("status") in ("failed", "cancelled"):
            sys.exit(str(state))
        time.sleep(0.2)
    print(state["downtime"])


def move_about(nodes, rounds, daemon, kernel, initramfs):
    for node in nodes:
        node.run(UP)
    nodes[0].wait_there(f'[ "$({SETUP} cstate 0)" = Connected ]')
    nodes[0].run(f"{SETUP} new-current-uuid --clear-bitmap 0")
    are_same = f'[ "$({SETUP} dstate 0)" = UpToDate/UpToDate ]'
    nodes[0].wait_there(are_same)
    nodes[0].serve(daemon)
    nodes[0].start_guest(kernel, initramfs, 0)
    nodes[0].await_passes(0, 1)
    pauses = []
    for life in range(1, rounds + 1):
        source, destination = nodes[(life - 1) % 2], nodes[life % 2]
        destination.serve(daemon)
        uri = f"tcp:10.78.0.{destination.number}:4444"
        destination.start_guest(kernel, initramfs, life, f"-incoming {uri}")
        pauses.append(int(source.run(f"python3 {pathlib.Path(__file__).resolve()} migrate {uri}")))
        source.run(f"{END}; {SETUP} secondary 0")
        destination.await_passes(life, 2)
    nodes[0].wait_there(are_same)
    nodes[rounds % 2].run(f"{END}; {SETUP} secondary 0")
    copies = {node.run(f"{SETUP} primary 0 && sha256sum </dev/drbd0 && {SETUP} secondary 0") for node in nodes}
    if len(copies) != 1:
        sys.exit(f"the two copies differ: {copies}")
    print(f"moved between two primaries, both copies alike in the end; stood still for {min(pauses)} to {max(pauses)} ms")


def main():
    if sys.argv[1] == "migrate":
        return migrate(sys.argv[2])
    rounds, (daemon, kernel, initramfs), folder = int(sys.argv[1]), sys.argv[2:5], pathlib.Path(sys.argv[5])
    cables = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    for cable in cables:
        for buffer in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            cable.setsockopt(socket.SOL_SOCKET, buffer, 4 << 20)
    nodes = [Node(number, cable, folder) for number, cable in enumerate(cables, 1)]
    try:
        move_about(nodes, rounds, daemon, kernel, initramfs)
    finally:
        for node in nodes:
            node.process.kill()


main()
