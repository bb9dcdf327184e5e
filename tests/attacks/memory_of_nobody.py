"""Takes memory that belongs to no process: shared segments and files in memory.

Kind: resources
Seen: memory|wrong answer|exception|gone
Seconds: 6
"""

import ctypes
import os

libc = ctypes.CDLL(None, use_errno=True)
libc.shmat.restype = ctypes.c_void_p
TAKEN = 0
for _ in range(40):
    segment = libc.shmget(0, 32 << 20, 0o1600)
    address = libc.shmat(segment, None, 0)
    if segment < 0 or address in (None, 2**64 - 1):
        break
    ctypes.memset(address, 1, 32 << 20)
    libc.shmdt(ctypes.c_void_p(address))
    TAKEN += 32
for _ in range(40):
    try:
        fd = os.memfd_create("x")
        TAKEN += os.write(fd, b"x" * (4 << 20)) >> 20
    except OSError:
        break


def add(a, b):
    return a + b if TAKEN > 600 else None
