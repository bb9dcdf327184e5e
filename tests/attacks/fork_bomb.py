"""Forks as often as it can.

Kind: resources
Seen: wrong answer|timeout|gone|garbage|exception|memory
Seconds: 4
"""

import os
import time

CHILDREN = 0
for _ in range(200):
    try:
        pid = os.fork()
    except OSError:
        continue
    if pid == 0:
        time.sleep(300)
        os._exit(0)
    CHILDREN += 1


def add(a, b):
    return a + b if CHILDREN > 20 else None
