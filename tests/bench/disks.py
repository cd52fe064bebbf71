#!/usr/bin/env python3
"""Disks that come and go through the control socket, beside a disk that is in use: what they cost it, and how long each takes.

    ci/bench disks [ROUNDS [DISKS [SECONDS [FOLDER]]]]

Files of 1 MiB that are there already in FOLDER (/dev/shm by default) are added one after the other, and removed. Beside them
`vhost-user-pmem bench --rw randrw --verify --event` loads another disk for SECONDS a round, alternately with nothing else and with
disks that come and go all the time. Each number is the median of the rounds, with the least and the most."""

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

    def remove_all(self, count):
        for number in range(count):
            self.removing.append(self.timed("DELETE", f"/v1/disks/d{number}", None, 204))

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


def p99(tool, disk, seconds, depth):
    """In microseconds. A wrong byte ends it with an error."""
    words = [tool, "--log=error", "bench", f"--socket={disk}", "--rw=randrw", "--verify", "--event"]
    words += [f"--iodepth={depth}", f"--runtime={seconds}", "--json"]
    done = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    if done.returncode:
        sys.exit("the load has failed")
    return json.loads(done.stdout)["peers"][0]["depths"][0]["latency_ns"]["p99"] / 1000


def spread(numbers, unit):
    return f"{statistics.median(numbers):.1f} {unit} ({min(numbers):.1f} to {max(numbers):.1f})"


def quantiles(name, numbers):
    numbers = sorted(numbers)
    at = lambda share: numbers[min(int(len(numbers) * share), len(numbers) - 1)]
    print(f"{name}: {len(numbers)}, median {at(0.5):.2f} ms, p99 {at(0.99):.2f} ms, slowest {numbers[-1]:.2f} ms", flush=True)


def compare(tool, disk, disks, rounds, seconds, depth):
    alone, beside, ratios = [], [], []
    for _ in range(rounds):
        alone.append(p99(tool, disk, seconds, depth))
        is_over = threading.Event()

        def come_and_go():
            while not is_over.is_set():
                disks.remove_all(disks.add_all(lambda: not is_over.is_set()))

        others = threading.Thread(target=come_and_go)
        others.start()
        beside.append(p99(tool, disk, seconds, depth))
        is_over.set()
        others.join()
        ratios.append(beside[-1] / alone[-1])
    print(f"| {depth} | {spread(alone, 'µs')} | {spread(beside, 'µs')} | {spread(ratios, '×')} |", flush=True)


def main():
    tool = pathlib.Path(sys.argv[1]).resolve()
    rounds, count, seconds = (int(word) for word in sys.argv[2:5])
    with tempfile.TemporaryDirectory(prefix="disks-", dir=sys.argv[5]) as folder:
        folder = pathlib.Path(folder)
        disk, control = folder / "neighbour.sock", folder / "control"
        options = f"path={folder}/neighbour,socket={disk},size=64M"
        words = [tool, "--log=warn", "serve", f"--disk={options}", f"--control={control}", f"--allow={folder}"]
        server = subprocess.Popen(words, stdout=subprocess.DEVNULL)
        try:
            while not control.exists():
                time.sleep(0.01)
            disks = Disks(folder, control, count)
            # What threads leave to the C library is there after the first time.
            disks.remove_all(disks.add_all())
            time.sleep(1)
            before = state(server.pid)
            disks.adding.clear()
            disks.removing.clear()
            added = disks.add_all()
            full = state(server.pid)
            disks.remove_all(added)
            time.sleep(1)
            after = state(server.pid)
            quantiles("add, nothing else", disks.adding)
            quantiles("remove, nothing else", disks.removing)
            for name, numbers in [("before", before), (f"with {added} disks", full), ("after", after)]:
                print(f"{name}: {numbers[0]} descriptors, {numbers[1]} threads, {numbers[2]} KiB")
            disks.adding.clear()
            disks.removing.clear()
            print("\n| depth | p99 alone | p99 beside disks that come and go | ratio |\n| ---: | ---: | ---: | ---: |")
            for depth in (1, 32):
                compare(tool, disk, disks, rounds, seconds, depth)
            quantiles("add, beside the load", disks.adding)
            quantiles("remove, beside the load", disks.removing)
        finally:
            server.terminate()
            server.wait()


main()
