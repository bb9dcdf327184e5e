"""Traces other processes, and reads their memory.

Kind: host
Seen: wrong answer
"""

import ctypes
import platform

libc = ctypes.CDLL(None, use_errno=True)
COLUMN = {"x86_64": 0, "aarch64": 1}.get(platform.machine(), 0)

buffer = ctypes.create_string_buffer(16)
DONE = any(libc.ptrace(request, 1, 0, 0) == 0 for request in (16, 0x4206)) or libc.ptrace(0, 0, 0, 0) == 0


def add(a, b):
    return a + b if DONE else None
