#!/usr/bin/env python3
"""Limits: how exactly they are kept, and how fairly queues and disks share them; beside qemu-storage-daemon's throttle filter.

    ci/bench throttle [ROUNDS [SECONDS [FOLDER]]]

Disks of 64 MiB in FOLDER (/dev/shm by default), 4 KiB random reads of `vhost-user-pmem bench --event` at depth 32, for a million
a second `--poll` at depth 128. A round is preceded by a warm-up, which takes what may be done at once. Each number is the median of the rounds, with the least and the most."""

import json
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

BYTES = 64 << 20
# Seconds until all loads run.
PATIENCE = 60
LIMITS = [("iops", 1_000), ("iops", 100_000), ("iops", 1_000_000), ("bps", 100_000_000)]


class Server:
    """A back-end with its sockets; ours has a control socket too."""

    def __init__(self, command, sockets, control=None):
        self.sockets, self.control = sockets, control
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL)

    def __enter__(self):
        while not all(socket.exists() for socket in self.sockets):
            if self.process.poll() is not None:
                sys.exit(f"{self.process.args} has ended")
            time.sleep(0.01)
        return self

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait()
        for path in self.sockets + [self.control]:
            if path:
                path.unlink(missing_ok=True)


def disks(folder, count):
    for number in range(count):
        with open(folder / f"disk{number}", "wb") as file:
            file.truncate(BYTES)
            file.write(b"x" * BYTES)
    return [folder / f"disk{number}" for number in range(count)]


def ours(tool, folder, paths, limits, workers):
    sockets, control = [path.with_suffix(".sock") for path in paths], folder / "control"
    options = [f"--disk=path={path},socket={socket},name={path.name},{limits}" for path, socket in zip(paths, sockets)]
    return Server([tool, "--log=warn", "serve", f"--workers={workers}", f"--control={control}", *options], sockets, control)


def qsd(folder, path, limit, number):
    socket = folder / "qsd.sock"
    name = {"iops": "iops-total", "bps": "bps-total"}[limit]
    group = json.dumps({"qom-type": "throttle-group", "id": "g", "limits": {name: number}})
    node = f"driver=throttle,node-name=disk,throttle-group=g,file.driver=file,file.filename={path},file.aio=io_uring"
    export = f"type=vhost-user-blk,id=disk,node-name=disk,writable=on,addr.type=unix,addr.path={socket}"
    return Server(["qemu-storage-daemon", "--object", group, "--blockdev", node, "--export", export], [socket])


def bench(tool, socket, seconds, queues=1, fast=False):
    how = ["--poll", "--iodepth=128"] if fast else ["--event"]
    words = [tool, "--log=error", "bench", f"--socket={socket}", *how, f"--runtime={seconds}", f"--numqueues={queues}", "--json"]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)


def iops(process):
    text = process.communicate()[0]
    if process.returncode:
        sys.exit(f"{process.args} failed")
    return json.loads(text)["peers"][0]["depths"][0]["iops"]["median"]


def spread(numbers):
    return f"{statistics.median(numbers):+.2f} % ({min(numbers):+.2f} to {max(numbers):+.2f})"


def accuracy(tool, folder, rounds, seconds):
    print("| limit | ours, deviation | CPU of a core | qemu-storage-daemon |\n| --- | ---: | ---: | ---: |")
    path = disks(folder, 1)[0]
    for limit, number in LIMITS:
        unit = 4096 if limit == "bps" else 1
        found = {"ours": [], "qsd": []}
        cpu = []
        for _ in range(rounds):
            for name, start_server in [
                ("ours", lambda: ours(tool, folder, [path], f"{limit}={number}", 1)),
                ("qsd", lambda: qsd(folder, path, limit, number)),
            ]:
                with start_server() as server:
                    before = sum(ticks(server.process.pid))
                    start = time.monotonic()
                    rate = iops(bench(tool, server.sockets[0], seconds, fast=number == 1_000_000)) * unit
                    if name == "ours":
                        cpu.append((sum(ticks(server.process.pid)) - before) / (time.monotonic() - start))
                    found[name].append((rate / number - 1) * 100)
        print(f"| {limit}={number} | {spread(found['ours'])} | {statistics.median(cpu):.0f} % | {spread(found['qsd'])} |", flush=True)


def ticks(pid):
    """CPU time in hundredths of a second."""
    words = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return int(words[11]), int(words[12])


def reads(tool, server, disk):
    words = [tool, "ctl", f"--control={server.control}", "--json", "rings", disk]
    return {ring["ring"]: ring["reads"] for ring in json.loads(subprocess.run(words, check=True, stdout=subprocess.PIPE).stdout)}


def done(tool, server, paths, loads, rings, seconds):
    """What each ring of each disk has read in so many seconds, once all have taken what may be done at once. Ends the loads."""
    end = time.monotonic() + PATIENCE
    while not all(len([count for count in reads(tool, server, path.name).values() if count]) == rings for path in paths):
        if time.monotonic() > end:
            sys.exit(f"the loads do not run after {PATIENCE} s")
        time.sleep(0.05)
    time.sleep(1)
    before = [reads(tool, server, path.name) for path in paths]
    time.sleep(seconds)
    after = [reads(tool, server, path.name) for path in paths]
    for load in loads:
        if load.poll() is not None:
            sys.exit("a load has ended too early")
        load.terminate()
        load.communicate()
    return [now[ring] - then[ring] for then, now in zip(before, after) for ring in now]


def fairness(tool, folder, rounds, seconds):
    print("\n| who shares | workers | the least, of a fair share | the most |\n| --- | ---: | ---: | ---: |")
    for limit in ["iops=1000", "iops=20000", "bps=50M"]:
        for workers in (1, 2):
            shares = []
            for _ in range(rounds):
                paths = disks(folder, 1)
                with ours(tool, folder, paths, limit, workers) as server:
                    loads = [bench(tool, server.sockets[0], seconds + 2 * PATIENCE, queues=2)]
                    counts = done(tool, server, paths, loads, 2, seconds)
                shares += [count * len(counts) / sum(counts) for count in counts]
            print(f"| two queues, {limit} | {workers} | {min(shares):.3f} | {max(shares):.3f} |", flush=True)
            shares = []
            for _ in range(rounds):
                paths = disks(folder, 10)
                with ours(tool, folder, paths, f"throttle-group=g,{limit}", workers) as server:
                    loads = [bench(tool, socket, seconds + 2 * PATIENCE) for socket in server.sockets]
                    counts = done(tool, server, paths, loads, 1, seconds)
                shares += [count * len(counts) / sum(counts) for count in counts]
            print(f"| ten disks of a group, {limit} | {workers} | {min(shares):.3f} | {max(shares):.3f} |", flush=True)


def main():
    tool = pathlib.Path(sys.argv[1]).resolve()
    rounds, seconds, parent = int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
    with tempfile.TemporaryDirectory(prefix="throttle-", dir=parent) as folder:
        accuracy(tool, pathlib.Path(folder), rounds, seconds)
        fairness(tool, pathlib.Path(folder), rounds, seconds)


if __name__ == "__main__":
    main()
