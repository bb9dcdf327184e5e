"""Replaces the encoder by one that always says 5.

Kind: forgery
Seen: wrong answer
"""

import sys

main, right = sys.modules["__main__"], sys.modules["__main__"].encode
main.encode = lambda value: right(value) if isinstance(value, tuple) else right(5)


def add(a, b):
    return None
