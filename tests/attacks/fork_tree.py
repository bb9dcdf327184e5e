"""Every process forks, without end.

Kind: resources
Seen: timeout|wrong answer|gone|garbage|memory|exception
Seconds: 2
"""

import contextlib
import os


def add(a, b):
    while True:
        with contextlib.suppress(OSError):
            os.fork()
