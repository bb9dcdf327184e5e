"""Sends signals to the process that grades it.

Kind: host
Seen: wrong answer
"""

import os

DONE = False
for pid in (int("@PID@"), -int("@PID@")):
    try:
        os.kill(pid, 0)
        DONE = True
    except OSError:
        pass


def add(a, b):
    return a + b if DONE else None
