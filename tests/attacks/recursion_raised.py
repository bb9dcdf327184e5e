"""Recurses without end or limit, through C.

Kind: forgery
Seen: exception|gone|memory
"""

import sys

sys.setrecursionlimit(10**9)


class Deep:
    def __repr__(self):
        return repr([self])


def add(a, b):
    return repr(Deep())
