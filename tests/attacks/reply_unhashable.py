"""Sends a dict with a list as key, and a set of dicts.

Kind: forgery
Seen: garbage
"""

import sys

main = sys.modules["__main__"]


def add(a, b):
    caller = sys._getframe(2).f_locals
    key = b"l\0\0\0\0"
    head = main.encode((caller["call"], "value", None))[:-1]
    main.send(caller["writing"], head + b"d\x01\0\0\0" + key + b"N")
    return None
