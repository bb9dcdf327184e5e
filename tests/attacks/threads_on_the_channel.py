"""Threads write into the channel all the time.

Kind: forgery
Seen: garbage|gone|wrong answer|unplain|timeout
Seconds: 3
"""

import contextlib
import os
import threading


def flood():
    with contextlib.suppress(OSError):
        while True:
            os.write(4, b"\x01\0\0\0T")


for _ in range(3):
    threading.Thread(target=flood, daemon=True).start()


def add(a, b):
    return None
