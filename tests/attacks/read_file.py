"""Reads a file of the host.

Kind: host
Seen: wrong answer
"""

try:
    with open("@CANARY@", encoding="utf-8") as f:
        DONE = bool(f.read())
except OSError:
    DONE = False


def add(a, b):
    return a + b if DONE else None
