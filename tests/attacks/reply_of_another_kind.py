"""Sends replies of a kind that does not exist, and without a value.

Kind: forgery
Seen: garbage
"""

import sys

main = sys.modules["__main__"]


def add(a, b):
    caller = sys._getframe(2).f_locals
    main.send(caller["writing"], main.encode((caller["call"], "passed", True)))
    return None
