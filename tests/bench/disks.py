#!/usr/bin/env python3
"""Disks that come and go through the control socket, beside a disk that is in use: what they cost it, and how long each takes.

    ci/bench disks [ROUNDS [DISKS [SECONDS [FOLDER]]]]

Files of 1 MiB that are there already in FOLDER (/dev/shm by default) are added one after the other, and removed. Beside them
`vhost-user-pmem bench --rw randrw --verify --event` loads another disk for SECONDS a round: in turn with nothing else, and for each
kind of disturbance with disks of the same daemon and with those of another one, which is what a machine with so few processors
costs by itself. The client and the worker share the last processor, before all others that would use it (SCHED_FIFO, if that is
allowed): what they wait for is not the processor, but what those who add disks share with them. Each number is the median of
the rounds, with the least and the most."""

import json
import os
import pathlib
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time

MIB = 1 << 20


def ask(control, method, path, body=None):
    """One request, as each has a connection of its own. Returns the status."""
    text = json.dumps(body) if body else ""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as stream:
        stream.connect(str(control))
        stream.sendall(f"{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(text)}\r\n\r\n{text}".encode())
        answer = b""
        while part := stream.recv(65536):
            answer += part
    return int(answer.split(b" ", 2)[1])


class Disks:
    """Adds and removes disks, and remembers how long each took, in milliseconds."""

    def __init__(self, folder, control, count):
        self.folder, self.control, self.count = folder, control, count
        self.adding, self.removing = [], []
        for number in range(count):
            with open(folder / f"d{number}", "wb") as file:
                file.write(b"x" * MIB)

    def add_all(self, goes_on=lambda: True):
        added = 0
        for number in range(self.count):
            if not goes_on():
                break
            body = {"path": str(self.folder / f"d{number}"), "socket": str(self.folder / f"d{number}.sock")}
            self.adding.append(self.timed("PUT", f"/v1/disks/d{number}", body, 201))
            added += 1
        return added

    def remove_all(self, count, waits=lambda: True):
        for number in range(count):
            waits()
            self.removing.append(self.timed("DELETE", f"/v1/disks/d{number}", None, 204))

    def forget(self):
        self.adding.clear()
        self.removing.clear()

    def timed(self, method, path, body, wanted):
        start = time.perf_counter()
        status = ask(self.control, method, path, body)
        if status != wanted:
            sys.exit(f"{method} {path}: {status}")
        return (time.perf_counter() - start) * 1000


def state(pid):
    """Descriptors, threads, and memory that is not of files in KiB."""
    fields = dict(line.split(":", 1) for line in pathlib.Path(f"/proc/{pid}/status").read_text().splitlines())
    return len(os.listdir(f"/proc/{pid}/fd")), int(fields["Threads"]), int(fields["RssAnon"].split()[0])


LAST = max(os.sched_getaffinity(0))
OTHERS = os.sched_getaffinity(0) - {LAST} or {LAST}


def go_first(thread=0):
    """Puts a thread on the last processor, before others."""
    os.sched_setaffinity(thread, {LAST})
    try:
        os.sched_setscheduler(thread, os.SCHED_FIFO, os.sched_param(1))
    except PermissionError:
        print("real-time priority is not allowed: others' work counts as well", file=sys.stderr)


def p99(tool, disk, seconds, depth):
    """In microseconds. A wrong byte ends it with an error."""
    words = [tool, "--log=error", "bench", f"--socket={disk}", "--rw=randrw", "--verify", "--event"]
    words += [f"--iodepth={depth}", f"--runtime={seconds}", "--json"]
    done = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, preexec_fn=go_first)
    if done.returncode:
        sys.exit("the load has failed")
    return json.loads(done.stdout)["peers"][0]["depths"][0]["latency_ns"]["p99"] / 1000


def spread(numbers, unit):
    return f"{statistics.median(numbers):.1f} {unit} ({min(numbers):.1f} to {max(numbers):.1f})"


def quantiles(name, numbers):
    numbers = sorted(numbers)
    at = lambda share: numbers[min(int(len(numbers) * share), len(numbers) - 1)]
    print(f"{name}: {len(numbers)}, median {at(0.5):.2f} ms, p99 {at(0.99):.2f} ms, slowest {numbers[-1]:.2f} ms", flush=True)


def changes(disks, seconds, is_over):
    """All disks are added and removed within this time, or again and again without a pause where it is zero. Returns how often one
    was added or removed."""
    start, asked = time.monotonic(), 0

    def goes_on():
        nonlocal asked
        asked += 1
        if seconds:
            is_over.wait(max(0, start + asked * seconds / (2 * disks.count) - time.monotonic()))
        return not is_over.is_set()

    while not is_over.is_set():
        disks.remove_all(disks.add_all(goes_on), goes_on)
        if seconds:
            break
    return asked


KINDS = ("all once", "all once, of another daemon", "without a pause", "without a pause, of another daemon")


def compare(tool, disk, ours, other, rounds, seconds, depth):
    """A row for each kind of disturbance, from rounds that have each of them once."""
    alone, beside, counts = [], {kind: [] for kind in KINDS}, {kind: [] for kind in KINDS}
    for _ in range(rounds):
        alone.append(p99(tool, disk, seconds, depth))
        for kind, disks, pace in zip(KINDS, (ours, other, ours, other), (seconds, seconds, 0, 0)):
            is_over = threading.Event()
            others = threading.Thread(target=lambda: counts[kind].append(changes(disks, pace, is_over)))
            others.start()
            beside[kind].append(p99(tool, disk, seconds, depth))
            is_over.set()
            others.join()
    for kind, numbers in beside.items():
        ratios = [with_it / without for with_it, without in zip(numbers, alone)]
        cells = [depth, kind, statistics.median(counts[kind]), spread(alone, "µs"), spread(numbers, "µs"), spread(ratios, "×")]
        print("|", " | ".join(map(str, cells)), "|", flush=True)


class Daemon:
    """A server with a disk of its own, and a control socket."""

    def __init__(self, tool, folder):
        folder.mkdir()
        self.disk, self.control = folder / "neighbour.sock", folder / "control"
        options = f"path={folder}/neighbour,socket={self.disk},size=64M"
        words = [tool, "--log=warn", "serve", f"--disk={options}", f"--control={self.control}", f"--allow={folder}"]
        self.process = subprocess.Popen(words, stdout=subprocess.DEVNULL)

    def wait(self):
        while not self.control.exists():
            time.sleep(0.01)

    def pin(self):
        """Its workers go first; its other threads, and those they start, leave the last processor to them."""
        for task in pathlib.Path(f"/proc/{self.process.pid}/task").iterdir():
            if (task / "comm").read_text().startswith("worker-"):
                go_first(int(task.name))
            else:
                os.sched_setaffinity(int(task.name), OTHERS)

    def end(self):
        self.process.terminate()
        self.process.wait()


def measure(tool, server, ours, theirs, rounds, seconds):
    # What threads leave to the C library is there after the first time.
    ours.remove_all(ours.add_all())
    time.sleep(1)
    before = state(server.process.pid)
    ours.forget()
    added = ours.add_all()
    full = state(server.process.pid)
    ours.remove_all(added)
    time.sleep(1)
    after = state(server.process.pid)
    quantiles("add, nothing else", ours.adding)
    quantiles("remove, nothing else", ours.removing)
    for name, numbers in [("before", before), (f"with {added} disks", full), ("after", after)]:
        print(f"{name}: {numbers[0]} descriptors, {numbers[1]} threads, {numbers[2]} KiB")
    ours.forget()
    # Its worker begins with the first front-end, and stays.
    p99(tool, server.disk, 1, 1)
    server.pin()
    print("\n| depth | disks come and go | changes | p99 alone | p99 beside them | ratio |\n| ---: | :--- | ---: | ---: | ---: | ---: |")
    for depth in (1, 32):
        compare(tool, server.disk, ours, theirs, rounds, seconds, depth)
    time.sleep(1)
    print("in the end: {} descriptors, {} threads, {} KiB".format(*state(server.process.pid)))
    quantiles("add, beside the load", ours.adding)
    quantiles("remove, beside the load", ours.removing)


def main():
    tool = pathlib.Path(sys.argv[1]).resolve()
    rounds, count, seconds = (int(word) for word in sys.argv[2:5])
    with tempfile.TemporaryDirectory(prefix="disks-", dir=sys.argv[5]) as folder:
        folder = pathlib.Path(folder)
        server, other = Daemon(tool, folder / "ours"), Daemon(tool, folder / "other")
        try:
            server.wait()
            other.wait()
            other.pin()
            os.sched_setaffinity(0, OTHERS)
            ours = Disks(folder / "ours", server.control, count)
            theirs = Disks(folder / "other", other.control, count)
            measure(tool, server, ours, theirs, rounds, seconds)
        finally:
            server.end()
            other.end()


main()
