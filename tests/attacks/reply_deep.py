"""Sends a message of 1,000,000 lists in each other.

Kind: forgery
Seen: garbage
"""

import sys

main = sys.modules["__main__"]


def add(a, b):
    caller = sys._getframe(2).f_locals
    main.send(caller["writing"], b"l\x01\0\0\0" * 800_000 + b"N")
    return None
