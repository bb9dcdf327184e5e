"""Opens a segment of shared memory of the host.

Kind: host
Seen: wrong answer
"""

import ctypes
import platform

libc = ctypes.CDLL(None, use_errno=True)
COLUMN = {"x86_64": 0, "aarch64": 1}.get(platform.machine(), 0)

DONE = libc.shmget(int("@SHM@"), 0, 0) >= 0


def add(a, b):
    return a + b if DONE else None
