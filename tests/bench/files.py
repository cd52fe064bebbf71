#!/usr/bin/env python3
"""Files and block devices: our daemon beside qemu-storage-daemon, in interleaved rounds.

    ci/bench files [ROUNDS [RUNTIME_MS [FOLDER]]]

A file in FOLDER (target/bench by default) and, for root, a loop device over it (direct I/O): the same for all, one after the other.
Each row is the median of its rounds; the load generator is `vhost-user-pmem bench`. BEFORE= names another build of ours. "bare" is fio
on the same, without a back-end: what the device gives. Last a
loop device over a file whose reads take 20 ms each (slow_file.py), however many there are at once, read by an event-driven client."""

import contextlib
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


def bare(path, is_device, options, depth, runtime_ms):
    """What the device gives without a back-end, or the file with a flush each 32 writes; None for what is not compared so."""
    if "--rw=randread" in options and is_device:
        words = ["--rw=randread", "--direct=1", "--ioengine=io_uring", f"--iodepth={depth}"]
    elif "--fsync=32" in options:
        words = ["--rw=randwrite", f"--direct={int(is_device)}", "--ioengine=psync", "--fdatasync=32"]
    else:
        return None
    words = ["fio", "--name=bare", f"--filename={path}", "--bs=4k", "--allow_mounted_write=1", "--time_based", f"--runtime={runtime_ms}ms",
             "--output-format=json", *words]
    told = subprocess.run(words, check=True, stdout=subprocess.PIPE).stdout
    job = json.loads(told[told.index(b"{"):])["jobs"][0]
    of = job["write" if "--fsync=32" in options else "read"]
    cpu = (job["usr_cpu"] + job["sys_cpu"]) * 1e4 / of["iops"]
    return of["iops"] / 1e3, of["clat_ns"].get("percentile", {}).get("50.000000", 0) / 1e3, cpu


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


def table(tool, path, is_device, rounds, runtime_ms, rows=ROWS):
    socket = path.parent / "bench.sock" if not is_device else pathlib.Path(os.environ["SCRATCH"]) / "bench.sock"
    print(f"\n{'a block device' if is_device else 'a file'}: thousand requests/s, p50 and CPU of the back-end in µs\n")
    for what, options, depths, is_cold in rows:
        for depth in depths:
            results = {}
            for _ in range(rounds):
                for name, command in servers(tool, path, is_device):
                    if is_cold:
                        subprocess.run(["dd", f"if={path}", "of=/dev/null", "iflag=nocache", "count=0"], check=True, stderr=subprocess.DEVNULL)
                    results.setdefault(name, []).append(measure(tool, command, socket, options, depth, runtime_ms))
                if alone := bare(path, is_device, options, depth, runtime_ms):
                    results.setdefault("bare (fio)", []).append(alone)
            for name, all_rounds in results.items():
                rate, p50, cpu = (statistics.median(column) for column in zip(*all_rounds))
                lowest, highest = min(all_rounds)[0], max(all_rounds)[0]
                print(f"{what:27} depth {depth:3} {name:14} {rate:8.2f} ({lowest:.2f} to {highest:.2f}) {p50:9.1f} {cpu:7.2f}", flush=True)


@contextlib.contextmanager
def loop_device(path):
    """A loop device over a file, past its page cache; None where there is none."""
    loop = subprocess.run(["losetup", "--find", "--show", "--direct-io=on", path], stdout=subprocess.PIPE, text=True)
    if loop.returncode:
        print("no loop device: rows of block devices are left out")
        yield None
        return
    try:
        yield pathlib.Path(loop.stdout.strip())
    finally:
        subprocess.run(["losetup", "--detach", loop.stdout.strip()], check=True)


def slow(tool, folder, rounds, runtime_ms):
    """Reads that all take the same time, as many at once as there are."""
    path = folder / "slow.img"
    path.touch()
    script = pathlib.Path(__file__).with_name("slow_file.py")
    with subprocess.Popen([sys.executable, script, path, str(BYTES), "20"], stdout=subprocess.PIPE, text=True) as server:
        try:
            if server.stdout.readline() != "mounted\n":
                return print("no FUSE: rows of slow media are left out")
            with loop_device(path) as device:
                if device:
                    print("\nreads that take 20 ms", end="")
                    rows = [("4 KiB random read", ["--rw=randread", "--event"], [1, 32, 128], False)]
                    table(tool, device, True, rounds, max(int(runtime_ms), 1000), rows)
        finally:
            server.terminate()
            subprocess.run(["umount", path], check=False, stderr=subprocess.DEVNULL)
            path.unlink()


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
        with loop_device(path) as device:
            if device:
                table(tool, device, True, rounds, runtime_ms)
        if os.geteuid() == 0:
            slow(tool, folder, rounds, runtime_ms)
    finally:
        path.unlink(missing_ok=True)


main()
