"""Makes a user namespace, in which it would be root.

Kind: host
Seen: wrong answer
"""

import ctypes
import platform

libc = ctypes.CDLL(None, use_errno=True)
COLUMN = {"x86_64": 0, "aarch64": 1}.get(platform.machine(), 0)

DONE = any(libc.unshare(flag) == 0 for flag in (0x10000000, 0x20000, 0x40000000, 0x10000000 | 0x20000 | 0x40000000))
child = libc.syscall((56, 220)[COLUMN], 0x10000000 | 17, 0, 0, 0, 0)  # clone
if child == 0:
    libc._exit(0)
DONE = DONE or child > 0


def add(a, b):
    return a + b if DONE else None
