"""Takes memory in ten processes, none of which takes much.

Kind: resources
Seen: memory
"""

import os
import time

FILLED = []  # a pipe of each child, on which it says that it has its memory
for _ in range(10):
    reader, writer = os.pipe()
    if os.fork() == 0:
        kept = b"x" * (60 << 20)
        os.write(writer, b"!")
        time.sleep(300)
        os._exit(0)
    os.close(writer)
    FILLED.append(reader)
ALL = all(os.read(reader, 1) for reader in FILLED)  # however slow the machine is; nothing from a child that was killed


def add(a, b):
    return a + b if ALL else None
