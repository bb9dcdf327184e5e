"""Prints without end from processes that are not waited for.

Kind: resources
Seen: output limit
"""

import os

for _ in range(4):
    if os.fork() == 0:
        while True:
            os.write(2, b"x" * 65536)


def add(a, b):
    import time

    time.sleep(5)
