"""Mounts file systems, and makes its read-only ones writable.

Kind: host
Seen: wrong answer
"""

import ctypes
import os
import platform

libc = ctypes.CDLL(None, use_errno=True)
COLUMN = {"x86_64": 0, "aarch64": 1}.get(platform.machine(), 0)

here = os.path.dirname(os.__file__).encode()
DONE = any(libc.mount(*a) == 0 for a in ((b"x", b"/work", b"tmpfs", 0, b""), (b"proc", b"/work", b"proc", 0, b""),
                                         (None, b"/", None, 32, None), (None, here, None, 32 | 4096, None),
                                         (b"/", b"/work", None, 4096, None)))
DONE = DONE or libc.umount2(b"/dev/null", 2) == 0 or libc.umount2(here, 2) == 0


def add(a, b):
    return a + b if DONE else None
