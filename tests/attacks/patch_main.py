"""Replaces every function and class of the module that calls it.

Kind: forgery
Seen: gone before|garbage|unplain|exception
"""

import sys

main = sys.modules["__main__"]
for name, value in list(vars(main).items()):
    if callable(value) and name != "main":
        setattr(main, name, lambda *a, **k: b"passed")


def add(a, b):
    return None
