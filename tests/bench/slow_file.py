#!/usr/bin/env python3
"""A file whose reads take a while each, however many there are at once: FUSE by hand, mounted over FILE itself (root).

    slow_file.py FILE BYTES DELAY_MS"""

import collections
import ctypes
import os
import select
import struct
import sys
import time

path, size, delay = sys.argv[1], int(sys.argv[2]), float(sys.argv[3]) / 1e3
# Of linux/fuse.h.
FORGET, GETATTR, OPEN, READ, STATFS, RELEASE, FSYNC, FLUSH, INIT, DESTROY, BATCH_FORGET = 2, 3, 14, 15, 17, 18, 20, 25, 26, 38, 42
ASYNC_READ, ASYNC_DIO, MAX_BACKGROUND = 1 << 0, 1 << 15, 512

fuse = os.open("/dev/fuse", os.O_RDWR)
options = f"fd={fuse},rootmode=100644,user_id=0,group_id=0".encode()
if ctypes.CDLL(None, use_errno=True).mount(b"slow", path.encode(), b"fuse", 0, options) != 0:
    sys.exit(f"mount: {os.strerror(ctypes.get_errno())}")
attributes = struct.pack("<QQQQQQIIIIIIIIII", 1, size, size // 512, 0, 0, 0, 0, 0, 0, 0o100644, 1, 0, 0, 0, 4096, 0)
waiting = collections.deque()
content = os.urandom(1 << 20)


def answer(unique, payload=b"", error=0):
    os.write(fuse, struct.pack("<IiQ", 16 + len(payload), error, unique) + payload)


def take(request):
    _, operation, unique = struct.unpack_from("<IIQ", request)
    if operation == INIT:
        answer(unique, struct.pack("<IIIIHHIIHHIIII24x", 7, 31, 1 << 17, ASYNC_READ | ASYNC_DIO, MAX_BACKGROUND, MAX_BACKGROUND, 4096, 1, 32, 0, 0, 0, 0, 0)[:64])
    elif operation == GETATTR:
        answer(unique, struct.pack("<QII", 3600, 0, 0) + attributes)
    elif operation == OPEN:
        answer(unique, struct.pack("<QII", 0, 0, 0))
    elif operation == READ:
        _, offset, length = struct.unpack_from("<QQI", request, 40)
        waiting.append((time.monotonic() + delay, unique, offset % (len(content) - length + 1), length))
    elif operation in (RELEASE, FSYNC, FLUSH):
        answer(unique)
    elif operation == STATFS:
        answer(unique, bytes(80))
    elif operation == DESTROY:
        sys.exit(0)
    elif operation not in (FORGET, BATCH_FORGET):
        answer(unique, error=-38)


poll = select.poll()
poll.register(fuse, select.POLLIN)
os.set_blocking(fuse, False)
print("mounted", flush=True)
while True:
    left = (waiting[0][0] - time.monotonic()) * 1e3 if waiting else 1000
    if left > 0 and not poll.poll(left):
        continue
    try:
        while True:
            take(os.read(fuse, (1 << 17) + 4096))
    except BlockingIOError:
        pass
    except OSError:
        sys.exit(0)
    while waiting and waiting[0][0] <= time.monotonic():
        _, unique, offset, length = waiting.popleft()
        answer(unique, content[offset : offset + length])
