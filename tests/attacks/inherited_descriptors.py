"""Looks for descriptors beyond the channel.

Kind: host
Seen: wrong answer
"""

import os
import stat

FOUND = []
for fd in range(3, 1024):
    try:
        mode = os.fstat(fd).st_mode
    except OSError:
        continue
    FOUND.append((fd, stat.S_ISFIFO(mode)))
DONE = len(FOUND) > 2 or not all(pipe for _, pipe in FOUND)


def add(a, b):
    return a + b if DONE else None
