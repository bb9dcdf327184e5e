"""Fills pipes, whose bytes belong to no process.

Kind: resources
Seen: wrong answer|memory
"""

import contextlib
import fcntl
import os

FILLED = 0
try:
    while True:
        reading, writing = os.pipe()
        with contextlib.suppress(OSError):
            fcntl.fcntl(writing, 1031, 1 << 20)
        os.set_blocking(writing, False)
        FILLED += os.write(writing, b"x" * (1 << 20))
except OSError:
    pass


def add(a, b):
    return a + b if FILLED > 256 << 20 else None
