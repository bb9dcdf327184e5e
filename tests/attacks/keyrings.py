"""Leaves a key in the kernel's keyrings, where it would outlive it, and reads those of others.

Kind: host
Seen: wrong answer
"""

import ctypes
import platform

libc = ctypes.CDLL(None, use_errno=True)
COLUMN = {"x86_64": 0, "aarch64": 1}.get(platform.machine(), 0)

add_key, keyctl = ((248, 250), (217, 219))[COLUMN]
DONE = any(libc.syscall(add_key, b"user", b"nanochat-was-here", b"x", 1, ring) > 0 for ring in (-1, -2, -3, -4, -5))
DONE = DONE or libc.syscall(keyctl, 0, -3, 0) > 0


def add(a, b):
    return a + b if DONE else None
