"""Ignores all signals that can be, and does not end.

Kind: resources
Seen: timeout
Seconds: 1.5
"""

import contextlib
import signal
import time

for number in range(1, 65):
    with contextlib.suppress(OSError, ValueError):
        signal.signal(number, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_BLOCK, [number])


def add(a, b):
    while True:
        with contextlib.suppress(BaseException):
            time.sleep(100)
