"""Opens files without end.

Kind: resources
Seen: wrong answer
"""

import os

COUNT = 0
KEPT = []
try:
    while True:
        KEPT.append(os.dup(2))
        COUNT += 1
except OSError:
    pass
for fd in KEPT:
    os.close(fd)


def add(a, b):
    return a + b if COUNT > 1000 else None
