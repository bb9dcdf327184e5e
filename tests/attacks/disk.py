"""Fills the disk.

Kind: resources
Seen: wrong answer
"""

WRITTEN = 0
try:
    for number in range(1000):
        with open(f"file-{number}", "wb") as f:
            for _ in range(4):
                WRITTEN += f.write(b"x" * (1 << 20))
except OSError:
    pass


def add(a, b):
    return a + b if WRITTEN > 64 << 20 else None
