"""Sends containers that announce 4,000,000,000 parts.

Kind: forgery
Seen: garbage
"""

import sys

main = sys.modules["__main__"]


def add(a, b):
    caller = sys._getframe(2).f_locals
    main.send(caller["writing"], b"t\xff\xff\xff\xff" + b"d\xff\xff\xff\xff" * 20 + b"N" * 100)
    return None
