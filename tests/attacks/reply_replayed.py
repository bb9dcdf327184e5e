"""Answers a call twice: the second reply waits for the next call.

Kind: forgery
Seen: garbage|wrong answer
"""

import sys

main = sys.modules["__main__"]


def add(a, b):
    caller = sys._getframe(2).f_locals
    reply = main.encode((caller["call"], "value", a + b))
    main.send(caller["writing"], reply)
    main.send(caller["writing"], reply)
    return None
