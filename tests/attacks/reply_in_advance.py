"""Sends well-formed replies before the calls.

Kind: forgery
Seen: garbage
"""

import contextlib
import os
import sys

main = sys.modules["__main__"]
for fd in range(3, 20):
    with contextlib.suppress(OSError, main.Closed):
        os.set_blocking(fd, False)
        for answer in (5, [1, 2, 3], 10**20 + 1, "ab"):
            main.send(fd, main.encode((b"", "value", answer)))
        os.set_blocking(fd, True)


def add(a, b):
    return None
