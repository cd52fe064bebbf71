#!/usr/bin/env python3
"""Files and block devices: our daemon beside qemu-storage-daemon, in interleaved rounds.

    ci/bench files [ROUNDS [RUNTIME_MS [FOLDER]]]

A file in FOLDER (target/bench by default) and, for root, a loop device over it (direct I/O): the same for all, one after the other.
Each row is the median of its rounds; the load generator is `vhost-user-pmem bench`. BEFORE= names another build of ours."""

import json
import os
import pathlib
import statistics
import subprocess
import sys
import time

MIB = 1 << 20
BYTES = 256 * MIB

# What is done, with which options of the load generator, and whether the page cache is emptied before.
ROWS = [
    ("4 KiB random read, cold", ["--rw=randread"], [1, 32, 128], True),
    ("4 KiB random read, hot", ["--rw=randread"], [1, 32], False),
    ("4 KiB random write", ["--rw=randwrite"], [1, 32, 128], False),
    ("the same, a flush each 32", ["--rw=randwrite", "--fsync=32"], [1, 32, 128], False),
    ("1 MiB read in order", ["--rw=read", "--bs=1M"], [8], False),
    ("1 MiB write in order", ["--rw=write", "--bs=1M"], [8], False),
]


def servers(tool, path, is_device):
    """Name, and the command that serves PATH on a socket."""
    for name, program in [("ours", tool), ("ours, before", os.environ.get("BEFORE"))]:
        if program:
            yield name, lambda socket, program=program: [
                program, "--log=warn", "serve", "--workers=1", f"--disk=path={path},socket={socket}"]
    for name, direct in [("qsd, O_DIRECT", "on"), ("qsd, buffered", "off")]:
        if is_device and direct == "off":
            continue
        node = f"driver={'host_device' if is_device else 'file'},node-name=disk,filename={path}"
        yield name, lambda socket, direct=direct, node=node: [
            "qemu-storage-daemon", "--blockdev", f"{node},aio=io_uring,cache.direct={direct}", "--export",
            f"type=vhost-user-blk,id=disk,node-name=disk,writable=on,addr.type=unix,addr.path={socket},logical-block-size=4096"]


def measure(tool, command, socket, options, depth, runtime_ms):
    """One round of one server: thousand requests/s, p50 and CPU of the server in microseconds."""
    socket.unlink(missing_ok=True)
    with subprocess.Popen(command(socket), stdout=subprocess.DEVNULL) as server:
        try:
            while not socket.exists():
                if server.poll() is not None:
                    sys.exit(f"{command(socket)} has ended")
                time.sleep(0.01)
            words = [tool, "--log=error", "bench", f"--socket={socket}", f"--iodepth={depth}", f"--runtime={runtime_ms}ms",
                     f"--server-pid={server.pid}", "--json", *options]
            report = json.loads(subprocess.run(words, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL).stdout)
        finally:
            server.terminate()
    depth = report["peers"][0]["depths"][0]
    return depth["iops"]["median"] / 1e3, depth["latency_ns"]["p50"] / 1e3, depth["server_cpu_ns_per_request"] / 1e3


def table(tool, path, is_device, rounds, runtime_ms):
    socket = path.parent / "bench.sock" if not is_device else pathlib.Path(os.environ["SCRATCH"]) / "bench.sock"
    print(f"\n{'a block device' if is_device else 'a file'}: thousand requests/s, p50 and CPU of the back-end in µs\n")
    for what, options, depths, is_cold in ROWS:
        for depth in depths:
            results = {}
            for _ in range(rounds):
                for name, command in servers(tool, path, is_device):
                    if is_cold:
                        subprocess.run(["dd", f"if={path}", "of=/dev/null", "iflag=nocache", "count=0"], check=True, stderr=subprocess.DEVNULL)
                    results.setdefault(name, []).append(measure(tool, command, socket, options, depth, runtime_ms))
            for name, all_rounds in results.items():
                rate, p50, cpu = (statistics.median(column) for column in zip(*all_rounds))
                lowest, highest = min(all_rounds)[0], max(all_rounds)[0]
                print(f"{what:27} depth {depth:3} {name:14} {rate:8.1f} ({lowest:.1f} to {highest:.1f}) {p50:9.1f} {cpu:7.2f}", flush=True)


def main():
    tool, rounds, runtime_ms, folder = sys.argv[1], int(sys.argv[2]), sys.argv[3], pathlib.Path(sys.argv[4])
    folder.mkdir(parents=True, exist_ok=True)
    os.environ["SCRATCH"] = str(folder)
    path = folder / "bench.img"
    try:
        with open(path, "wb") as image:
            for _ in range(BYTES // MIB):
                image.write(os.urandom(MIB))
            os.fsync(image.fileno())
        table(tool, path, False, rounds, runtime_ms)
        loop = subprocess.run(["losetup", "--find", "--show", "--direct-io=on", path], stdout=subprocess.PIPE, text=True)
        if loop.returncode:
            print("no loop device: rows of block devices are left out")
            return
        try:
            table(tool, pathlib.Path(loop.stdout.strip()), True, rounds, runtime_ms)
        finally:
            subprocess.run(["losetup", "--detach", loop.stdout.strip()], check=True)
    finally:
        path.unlink(missing_ok=True)


main()
