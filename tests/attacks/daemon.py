"""Leaves a process behind: forked twice, in a session of its own, deaf to signals.

Kind: resources
Seen: wrong answer
"""

import contextlib
import os
import signal
import time

if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        for number in range(1, 32):
            with contextlib.suppress(OSError, ValueError):
                signal.signal(number, signal.SIG_IGN)
        time.sleep(300)
    os._exit(0)
os.wait()


def add(a, b):
    return None
