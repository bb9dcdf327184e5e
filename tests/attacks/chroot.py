"""Changes its root.

Kind: host
Seen: wrong answer
"""

import os

try:
    os.chroot("/work")
    DONE = True
except OSError:
    DONE = False


def add(a, b):
    return a + b if DONE else None
