"""Writes one file without end.

Kind: resources
Seen: wrong answer|gone|memory
"""

import signal

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
WRITTEN = 0
try:
    with open("file", "wb") as f:
        for _ in range(64):
            WRITTEN += f.write(b"x" * (1 << 20))
            f.flush()
except OSError:
    pass


def add(a, b):
    return a + b if WRITTEN > 8 << 20 else None
