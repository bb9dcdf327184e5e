"""Replies that there is no such function, and says nothing more.

Kind: forgery
Seen: ^no reason$
"""

import __main__

__main__.answer = lambda function, args, kwargs: ("broken", __main__.encode(" "))


def add(a, b):
    return 0
