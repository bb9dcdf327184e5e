"""Takes memory in ten processes, none of which takes much.

Kind: resources
Seen: memory
"""

import os
import time

PIDS = []
for _ in range(10):
    pid = os.fork()
    if pid == 0:
        kept = b"x" * (60 << 20)
        time.sleep(300)
        os._exit(0)
    PIDS.append(pid)
time.sleep(0.7)
ALIVE = [pid for pid in PIDS if os.waitpid(pid, os.WNOHANG) == (0, 0)]


def add(a, b):
    return a + b if len(ALIVE) == 10 else None
