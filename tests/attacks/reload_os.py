"""Takes a fresh copy of os, past patches, and kills with ctypes.

Kind: host
Seen: wrong answer
"""

import ctypes
import importlib
import os

fresh = importlib.reload(os)
try:
    fresh.kill(int("@PID@"), 0)
    DONE = True
except OSError:
    DONE = ctypes.CDLL(None).kill(int("@PID@"), 0) == 0


def add(a, b):
    return a + b if DONE else None
