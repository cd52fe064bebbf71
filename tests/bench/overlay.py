#!/usr/bin/env python3
"""Private disks over one base (overlay=): beside a plain disk in the same process, and beside qcow2 on qemu-storage-daemon.

    ci/bench overlay [ROUNDS [SECONDS [FOLDER]]]

1 GiB in FOLDER (/dev/shm by default), 4 KiB at random offsets, `vhost-user-pmem bench --poll` at depth 32 on the first CPU, back-ends
on the last. Each round runs both one after the other; a ratio is the median of the rounds', with the least and the most. First
writes are those of a tenth of a second on a disk that nobody has written to; a part of them meets a page for the second time."""

import json
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile

from throttle import Server, iops

BYTES = 1 << 30
FIRST_SECONDS = 0.1
CLIENT, BACK_END = ["taskset", "-c", "0"], ["taskset", "-c", str(os.cpu_count() - 1)]


def bench(tool, socket, seconds, *how):
    words = [*CLIENT, tool, "--log=error", "bench", f"--socket={socket}", "--poll", "--iodepth=32", f"--runtime={seconds}", *how, "--json"]
    return iops(subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL))


def row(name, ours, theirs):
    ratios = [one / other for one, other in zip(ours, theirs)]
    numbers = [f"{statistics.median(all) / 1000:.0f}" for all in (ours, theirs)]
    print(f"| {name} | {numbers[0]} | {numbers[1]} | {statistics.median(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f}) |", flush=True)


def alternate(tool, name, one, other, rounds, seconds, *how):
    both = [(bench(tool, one, seconds, *how), bench(tool, other, seconds, *how)) for _ in range(rounds)]
    row(name, *zip(*both))


def serve(tool, base, disks, control=None):
    """Disks by name, with their options besides the path."""
    sockets = [base.with_name(f"{name}.sock") for name in disks]
    options = [
        f"--disk=path={path},socket={socket},name={name}{more}" for (name, (path, more)), socket in zip(disks.items(), sockets)
    ]
    also = [f"--control={control}"] if control else []
    return Server([*BACK_END, tool, "--log=warn", "serve", "--workers=1", *also, *options], sockets, control)


def fill(tool, socket, control):
    """Writes all of a private disk."""
    show = [tool, "ctl", f"--control={control}", "--json", "show", "written"]
    while json.loads(subprocess.run(show, check=True, stdout=subprocess.PIPE).stdout)["state"]["overlay_bytes"] < BYTES:
        bench(tool, socket, 1, "--rw=write", "--bs=1M")


def first_writes(tool, base, rounds, where):
    ours, theirs = [], []
    for _ in range(rounds):
        kept = base.with_name("kept.overlay")
        with serve(tool, base, {"fresh": (base, f",overlay={kept if where == 'file' else where}")}) as server:
            ours.append(bench(tool, server.sockets[0], FIRST_SECONDS, "--rw=randwrite"))
        kept.unlink(missing_ok=True)
        upper, socket = base.with_name("upper.qcow2"), base.with_name("qcow2.sock")
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", base, "-F", "raw", upper], check=True)
        node = f"driver=qcow2,node-name=disk,file.driver=file,file.filename={upper}"
        export = f"type=vhost-user-blk,id=disk,node-name=disk,writable=on,addr.type=unix,addr.path={socket}"
        with Server([*BACK_END, "qemu-storage-daemon", "--blockdev", node, "--export", export], [socket]):
            theirs.append(bench(tool, socket, FIRST_SECONDS, "--rw=randwrite"))
        upper.unlink()
    row(f"first writes in {where}, beside a qcow2 overlay on qemu-storage-daemon", ours, theirs)


def main():
    tool, rounds, seconds = pathlib.Path(sys.argv[1]).resolve(), int(sys.argv[2]), float(sys.argv[3])
    with tempfile.TemporaryDirectory(dir=sys.argv[4]) as name:
        base = pathlib.Path(name) / "base"
        with open(base, "wb") as file:
            for _ in range(BYTES >> 20):
                file.write(os.urandom(1 << 20))
        plain, control = base.with_name("plain"), base.with_name("control")
        shutil.copy(base, plain)
        private = (base, ",overlay=memory")
        disks = {"plain": (plain, ""), "unwritten": private, "written": private}
        print("| thousand requests/s | private | other | ratio |\n| --- | ---: | ---: | ---: |")
        with serve(tool, base, disks, control) as server:
            plain, unwritten, written = server.sockets
            fill(tool, written, control)
            alternate(tool, "reads of what nobody has written, beside a plain disk", unwritten, plain, rounds, seconds)
            alternate(tool, "reads of what was written", written, plain, rounds, seconds)
            alternate(tool, "writes to what was written", written, plain, rounds, seconds, "--rw=randwrite")
        for where in ("memory", "file"):
            first_writes(tool, base, rounds, where)


main()
